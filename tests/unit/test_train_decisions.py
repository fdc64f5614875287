"""Settings, split, and quality gate of training."""

import numpy as np
import pytest
import torch
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from dq_cluster.config import load_settings
from dq_cluster.errors import ConfigError, InputError, QualityGateError
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.training.config import QualityGate, TrainSettings
from dq_cluster.training.quality import answer, check_gate
from dq_cluster.training.split import MAX_VALIDATION, Split, blocks
from dq_cluster.training.trainer import _failure

REQUIRED = ["index=/data/index", "features=/data/features"]


@pytest.mark.parametrize("size", ["laptop", "cluster"])
def test_the_shipped_configuration_is_valid(size: str) -> None:
    assert load_settings(TrainSettings, f"configs/{size}/train.yaml").model.bits


def test_a_run_keeps_its_things_below_the_index() -> None:
    settings = load_settings(TrainSettings, None, [*REQUIRED, "name=first"])
    assert settings.run_uri == "/data/index/runs/first/train"
    settings = load_settings(TrainSettings, None, [*REQUIRED, "storage=s3://bucket/run"])
    assert settings.run_uri == "s3://bucket/run"


def test_workers_are_a_number_or_a_range() -> None:
    assert load_settings(TrainSettings, None, [*REQUIRED, "workers=3"]).worker_range == (3, 3)
    elastic = load_settings(TrainSettings, None, [*REQUIRED, "workers.min=1", "workers.max=4"])
    assert elastic.worker_range == (1, 4)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("model.bitz=8", "unknown key 'model.bitz'"),
        ("workers=0", "workers"),
        ("validation_fraction=1", "validation_fraction"),
        ("name=../escape", "name"),
        ("gate.min_map=2", "gate.min_map"),
    ],
)
def test_a_wrong_setting_is_named(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_settings(TrainSettings, None, [*REQUIRED, override])


def test_an_elastic_range_is_ordered() -> None:
    with pytest.raises(ConfigError, match="min 4 is greater than max 2"):
        load_settings(TrainSettings, None, [*REQUIRED, "workers.min=4", "workers.max=2"])


def test_the_split_holds_out_a_random_share() -> None:
    split = Split(20_000, 0.05, seed=3)
    assert len(split.validation()) == pytest.approx(1000, rel=0.15)
    assert len(split.training()) + len(split.validation()) == 20_000
    # Where in the set a row lies says nothing.
    assert np.mean(split.validation()) == pytest.approx(10_000, rel=0.06)
    other = Split(20_000, 0.05, seed=4)
    shared = np.intersect1d(split.validation(), other.validation())
    assert len(shared) < 120


def test_no_more_is_held_out_than_measuring_needs() -> None:
    found = len(Split(1_000_000, 0.5, seed=0).validation())
    assert found == pytest.approx(MAX_VALIDATION, rel=0.1)


@pytest.mark.parametrize("rows", [1, 16384, 16385, 70_000, 3_000_000])
def test_blocks_cover_the_rows(rows: int) -> None:
    found = blocks(rows)
    assert found[0][0] == 0
    assert found[-1][1] == rows
    assert [stop for _, stop in found[:-1]] == [start for start, _ in found[1:]]
    assert max(stop - start for start, stop in found) <= 65536


def test_what_a_worker_raised_is_what_training_raises() -> None:
    settings = load_settings(TrainSettings, None, [*REQUIRED, "name=t"])
    text = "Traceback (most recent call last):\n  File x\ndq_cluster.errors.InputError: row 5"
    ours = UserExceptionWithTraceback(InputError("row 5"), text)
    found = _failure(settings, WorkerGroupError("x", {0: ours}), "2 of 9 epochs are kept")
    assert type(found) is InputError
    assert str(found) == "row 5"
    bug = UserExceptionWithTraceback(KeyError("cell"), "Traceback\n  File x\nKeyError: 'cell'")
    found = _failure(settings, WorkerGroupError("x", {0: bug}), "2 of 9 epochs are kept")
    assert str(found).startswith(
        "training 't' gave up after 3 restarts: KeyError: 'cell'; 2 of 9 epochs are kept, "
        "the same command continues from there; its stack is in "
    )
    late = ControllerError(TimeoutError("The worker group startup timed out after 60 s.\nMore."))
    found = _failure(settings, late, "0 of 9 epochs are kept")
    assert "restarts: The worker group startup timed out after 60 s.; 0 of" in str(found)


def test_the_gate_names_the_numbers() -> None:
    measured = {"queries": 500, "recall_at_10": 0.41, "map_at_1000": 0.3}
    check_gate(QualityGate(min_recall_at_10=0.4, min_map=0.3), measured)
    check_gate(QualityGate(), measured)
    with pytest.raises(QualityGateError, match=r"recall_at_10 0\.4100 is below 0\.5000 on 500"):
        check_gate(QualityGate(min_recall_at_10=0.5), measured)
    with pytest.raises(QualityGateError, match=r"map_at_1000 0\.3000 is below 0\.3500"):
        check_gate(QualityGate(min_map=0.35), measured)
    with pytest.raises(QualityGateError, match=r"map_at_1000 0\.0000 is below"):
        check_gate(QualityGate(min_map=0.35), {"queries": 500, "recall_at_10": 0.41})


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_search_by_codes_ranks_by_the_distance_to_the_words(metric: str) -> None:
    torch.manual_seed(0)
    model = ModelSettings(bits=16, nbits=4, dim=8, hidden=(16,), components=12, metric=metric)
    network = DeepQuan(model, 12)
    network.codebooks.normal_()
    network.anchors.normal_()
    features, queries = torch.randn(200, 12), torch.randn(5, 12)
    with torch.no_grad():
        found = answer(network, queries, features, first_row=1000)
        embedded, words = network.embed(queries), network.quantize(network.embed(features))
    scores = embedded @ words.T if metric == "ip" else -torch.cdist(embedded, words).square()
    best = scores.gather(1, found.coded.rows - 1000)
    torch.testing.assert_close(best, scores.sort(dim=1, descending=True).values)
    similarity = torch.cosine_similarity(queries[:, None], features[None], dim=2)
    torch.testing.assert_close(found.exact.rows[:, 0] - 1000, similarity.argmax(1))
