"""The training job on Ray: published models, lost workers, submissions of the same name."""

import logging
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dq_cluster.client import Client
from dq_cluster.config import load_settings
from dq_cluster.encoding.config import EncodeSettings
from dq_cluster.encoding.run import encode
from dq_cluster.errors import ConfigError, DqError, InputError, QualityGateError
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.features import open_features
from dq_cluster.index.models import ModelCard, list_models
from dq_cluster.model.bundle import load_model
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.fit import find_positives as reference_positives
from dq_cluster.model.fit import start
from dq_cluster.storage import Storage
from dq_cluster.training.checkpoint import checkpoint_epochs
from dq_cluster.training.config import ElasticWorkers, QualityGate, TrainSettings
from dq_cluster.training.neighbours import find_positives, fit_front, read_column
from dq_cluster.training.rows import TrainingRows
from dq_cluster.training.run import train
from dq_cluster.training.split import Split
from dq_cluster.training.stream import parts, stream
from tests.encoding import current, read_version

pytestmark = pytest.mark.ray

ROWS, DIM = 1500, 24


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    labels = rng.integers(12, size=ROWS)
    values = rng.normal(size=(12, DIM))[labels] + 0.4 * rng.normal(size=(ROWS, DIM))
    views = values + 0.2 * rng.normal(size=(ROWS, DIM))
    for number, part in enumerate(np.array_split(np.arange(ROWS), 3)):
        vectors, others = (pa.array(side[part].astype("f4").ravel()) for side in (values, views))
        unseen = pa.array(part % 3 > 0)
        table = pa.table(
            {
                "id": part,
                "feature": pa.FixedSizeListArray.from_arrays(vectors, DIM),
                "view": pa.FixedSizeListArray.from_arrays(others, DIM, mask=unseen),
                "label": labels[part],
            },
            metadata={"dq.preprocessing": '{"backbone": "none"}'},
        )
        pq.write_table(table, folder / f"part-{number}.parquet")
    return folder


def settings(index: str, features: Path, *overrides: str) -> TrainSettings:
    model = "bits=32 nbits=4 dim=16 hidden=[32] components=16 neighbours=10 batch_size=300"
    small = [f"model.{setting}" for setting in model.split()]
    return load_settings(
        TrainSettings, None, [f"index={index}", f"features={features}", *small, *overrides]
    )


def kill_a_worker(run: Storage, after: int) -> tuple[int, float]:
    """SIGKILL a training worker once `after` epochs are done; epochs done then, and the time."""
    import psutil  # type: ignore[import-untyped]  # Ray brings it along

    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        done = max(checkpoint_epochs(run.child("checkpoints")), default=0)
        if done >= after:
            # Only children of this process: other Rays may run on the machine.
            for process in psutil.Process().children(recursive=True):
                if process.cmdline()[0].startswith("ray::RayTrainWorker"):
                    process.send_signal(signal.SIGKILL)
                    return done, time.time()
        time.sleep(0.01)
    raise TimeoutError(f"no worker to kill after {after} epochs")


def assert_no_finished_epoch_was_repeated(card: ModelCard, done: int, killed: float) -> None:
    finished = [epoch["finished"] for epoch in card.training["history"]]
    assert finished == sorted(finished)
    assert finished[done - 1] <= killed < finished[-1]


def test_the_blocks_find_the_reference_positives(
    ray_cluster: None,
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("dq_cluster.training.rows.blocks", lambda rows: [(0, 700), (700, rows)])
    config = settings(str(tmp_path), features)
    found = open_features(str(features))
    rows = TrainingRows(found, Split(found.rows, 0.1, seed=0))
    pieces = rows.pieces()
    assert len(pieces) == 2
    matrix = torch.from_numpy(np.concatenate([rows.read(piece) for piece in pieces]))
    first, second = map(np.concatenate, zip(*map(rows.read_pairs, pieces), strict=True))
    assert len(first) > 300
    torch.manual_seed(0)
    network = DeepQuan(config.model, DIM)
    start(network, matrix, (first, second))
    expected = network.mean.clone(), network.components.clone()
    fit_front(network, rows)
    torch.testing.assert_close((network.mean, network.components), expected, atol=1e-5, rtol=0)

    storage = Storage(str(tmp_path))
    find_positives(network, rows, storage, seed=0, use_gpu=False)
    reference = reference_positives(network, matrix)
    for column, values in zip(("rows", "weights"), reference, strict=True):
        read = np.concatenate(list(read_column(storage, "positives", column, pieces)))
        np.testing.assert_allclose(read, values, rtol=1e-6)

    # In cells, as large sets are searched; when all of them are looked into, nothing is lost.
    cells = Storage(str(tmp_path / "cells"))
    monkeypatch.setattr("dq_cluster.training.neighbours.cells_of", lambda rows: 30)
    with caplog.at_level(logging.INFO, "dq_cluster.training.neighbours"):
        find_positives(network, rows, cells, seed=0, use_gpu=False)
    assert "of 256 rows, 1.000 of the 10 exact ones were found, in 30 of 30 cells" in caplog.text
    read = np.concatenate(list(read_column(cells, "positives", "weights", pieces)))
    np.testing.assert_allclose(read, reference.weights, rtol=1e-6)


def test_a_stream_brings_every_row_once(
    ray_cluster: None, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dq_cluster.training.stream._BLOCK_BYTES", 20_000)  # several to a piece
    found = open_features(str(features))
    rows = TrainingRows(found, Split(found.rows, 0.1, seed=0))
    pieces = rows.pieces()
    received = list(parts(stream(rows).iterator()))
    assert len(received) > len(pieces)
    numbers = np.concatenate([numbers for numbers, _ in received])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(rows.count))
    matrix = np.concatenate([values for _, values in received])[np.argsort(numbers)]
    assert matrix.dtype == rows.features.dtype
    np.testing.assert_array_equal(matrix, np.concatenate([rows.read(p) for p in pieces]))


def test_a_killed_worker_costs_only_the_epoch_under_way(
    ray_cluster: None, features: Path, s3: str
) -> None:
    config = settings(f"{s3}/index", features, "workers=2", "max_failures=1", "model.epochs=30")
    with ThreadPoolExecutor(1) as pool:
        kill = pool.submit(kill_a_worker, Storage(config.run_uri), 2)
        card = train(config)
        assert_no_finished_epoch_was_repeated(card, *kill.result())
    assert len(card.training["history"]) == 30
    assert {epoch["workers"] for epoch in card.training["history"]} == {2}
    assert card.preprocessing == {"backbone": "none"}
    assert card.evaluation["map_at_1000"] > 0.8
    network, stored = load_model(Storage(config.index), card.digest)
    assert stored == card
    assert network.encode(torch.zeros(3, DIM)).shape == (3, card.geometry.code_size)


def test_the_same_submission_goes_on_after_a_failed_one(
    ray_cluster: None, features: Path, tmp_path: Path
) -> None:
    index = str(tmp_path / "index")
    config = settings(index, features, "max_failures=0", "model.epochs=30", "name=again")
    with ThreadPoolExecutor(1) as pool:
        kill = pool.submit(kill_a_worker, Storage(config.run_uri), 2)
        with pytest.raises(DqError, match=r"'again' gave up after 0 restarts: .* of 30 epochs"):
            train(config)
        done, killed = kill.result()
    with pytest.raises(ConfigError, match=r"was begun with model\.bits 32 \(now 64\);"):
        train(settings(index, features, "model.epochs=30", "name=again", "model.bits=64"))
    # Another number of workers may finish what one began.
    card = train(config.model_copy(update={"workers": ElasticWorkers(min=1, max=2)}))
    assert_no_finished_epoch_was_repeated(card, done, killed)
    workers = [epoch["workers"] for epoch in card.training["history"]]
    assert len(workers) == 30
    assert workers[:done] == [1] * done
    assert set(workers) <= {1, 2}

    # The run is complete: only the gate and the publication are left to do again.
    elsewhere = config.model_copy(
        update={"index": str(tmp_path / "other"), "storage": config.run_uri}
    )
    strict = elsewhere.model_copy(update={"gate": QualityGate(min_recall_at_10=1.0)})
    with pytest.raises(QualityGateError, match=r"recall_at_10 0\.\d+ is below 1\.0000"):
        train(strict)
    assert list_models(Storage(strict.index)) == []
    assert train(elsewhere).digest == card.digest

    # So few cells that they are learned on a sample: 256 rows each.
    cells = elsewhere.model_copy(update={"nlist": 5})
    ivf = train(cells)
    assert ivf.geometry == card.geometry.model_copy(update={"nlist": 5})
    assert train(cells).digest == ivf.digest
    assert sorted(list_models(Storage(cells.index))) == sorted([card.digest, ivf.digest])
    _search_by_cells(ivf, cells.index, features)


def _search_by_cells(card: ModelCard, index: str, features: Path) -> None:
    source = SourceSettings(kind="features", uri=str(features))
    encode(EncodeSettings(index=index, model=card.digest, source=source, fragment_rows=500))
    catalog, manifest = current(index)
    table = read_version(catalog.storage, manifest)
    cell_of = dict(zip(table["id"].to_pylist(), table["cell"].to_pylist(), strict=True))
    queries = open_features(str(features)).read(0, 20)
    with Client(index) as client:
        whole = client.search(vectors=queries, k=1000).hits
        one = client.search(vectors=queries, k=1000, nprobe=1).hits
    nearest = 0
    for everything, found in zip(whole, one, strict=True):
        (cell,) = {cell_of[hit.id] for hit in found}
        assert len(found) == sum(other == cell for other in cell_of.values())
        expected = [hit for hit in everything if cell_of[hit.id] == cell]
        assert found[: len(expected)] == expected
        nearest += found[0] == everything[0]
    assert nearest >= 15


def test_too_many_cells_are_refused_before_the_work(features: Path, tmp_path: Path) -> None:
    config = settings(str(tmp_path / "index"), features, "nlist=40")
    with pytest.raises(InputError, match=r"nlist 40 needs at least 1,560 rows .* nlist 36 at most"):
        train(config)
    assert not Path(config.index).exists()


def test_a_feature_that_is_no_number_stops_the_run_at_once(
    ray_cluster: None, features: Path, tmp_path: Path
) -> None:
    table = pq.read_table(features / "part-1.parquet")
    values = table["feature"].combine_chunks().flatten().to_numpy().copy()
    values[5 * DIM] = np.nan
    broken = pa.FixedSizeListArray.from_arrays(pa.array(values), DIM)
    folder = tmp_path / "broken"
    folder.mkdir()
    pq.write_table(table.set_column(1, "feature", broken), folder / "part-1.parquet")
    config = settings(str(tmp_path / "index"), folder)
    with pytest.raises(InputError) as caught:
        train(config)
    assert type(caught.value) is InputError
    assert str(caught.value).startswith(f"{folder}/part-1.parquet row 5: the feature is not finite")
    assert not Path(config.index).exists()
