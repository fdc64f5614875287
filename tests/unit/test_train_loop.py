"""The training loop over torch.distributed, without Ray."""

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dq_cluster.geometry import DECODER_GRID
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.fit import find_positives, fit, start
from dq_cluster.storage import Storage
from dq_cluster.training.checkpoint import (
    Checkpoint,
    checkpoint_epochs,
    latest_checkpoint,
    save_checkpoint,
)
from dq_cluster.training.loop import OnEpoch, train_epochs
from dq_cluster.training.parallel import use_mixed_precision

# No batch size divides these rows, no worker count these batches: every remainder occurs.
ROWS, DIM = 591, 24
MODEL = ModelSettings(
    bits=16,
    nbits=4,
    refine_bits=32,
    dim=8,
    hidden=(16,),
    components=16,
    neighbours=5,
    epochs=3,
    batch_size=101,
)
ONE_BATCH = MODEL.model_copy(update={"epochs": 1, "batch_size": ROWS})
DECODED = ONE_BATCH.model_copy(update={"refine_bits": 0, "decode_hidden": 6, "decode_epochs": 2})


def make_features() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, DIM))
    return (centres[rng.integers(12, size=ROWS)] + 0.4 * rng.normal(size=(ROWS, DIM))).astype("f4")


def run(
    storage: Storage,
    model: ModelSettings = MODEL,
    on_epoch: OnEpoch = lambda metrics: None,
    *,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Train as this process's part of its process group.

    In double precision runs differ by what they compute, not by how rounding grows.
    """
    features = make_features()
    torch.manual_seed(0)
    network = DeepQuan(model, DIM)
    start(network, torch.from_numpy(features))
    positives = find_positives(network, torch.from_numpy(features))
    train_epochs(
        network.to(dtype),
        features,
        positives,
        storage,
        seed=0,
        device=torch.device("cpu"),
        on_epoch=on_epoch,
    )


def newest(storage: Storage) -> Checkpoint:
    checkpoint = latest_checkpoint(storage)
    assert checkpoint is not None
    return checkpoint


def worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    run(Storage(f"{folder}/run"))
    run(Storage(f"{folder}/one-batch"), ONE_BATCH, dtype=torch.float32)
    run(Storage(f"{folder}/decoded"), DECODED)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    storage = Storage(str(tmp_path_factory.mktemp("alone")))
    run(storage)
    return newest(storage)


def test_one_worker_trains_what_the_reference_loop_trains(tmp_path: Path) -> None:
    for number, model in enumerate((MODEL, DECODED)):
        storage = Storage(str(tmp_path / str(number)))
        run(storage, model, dtype=torch.float32)
        single = newest(storage)
        for name, tensor in fit(make_features(), model, seed=0).state_dict().items():
            step = DECODER_GRID if name.startswith("decode.") else 1e-6
            torch.testing.assert_close(single.network[name], tensor, atol=step, rtol=0)


def test_four_workers_train_what_one_trains(alone: Checkpoint, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=worker, args=(r, 4, str(tmp_path)), daemon=True) for r in range(4)
    ]
    for process in workers:
        process.start()
    for process in workers:
        process.join(240)
    assert [process.exitcode for process in workers] == [0, 0, 0, 0]
    four = newest(Storage(str(tmp_path / "run")))
    for name, tensor in alone.network.items():
        torch.testing.assert_close(four.network[name], tensor, atol=1e-8, rtol=0)
    for one, other in zip(alone.history, four.history, strict=True):
        assert one["terms"] == pytest.approx(other["terms"], abs=1e-6)
        assert one["perplexity"] == pytest.approx(other["perplexity"], rel=1e-6)

    # In single precision, as it is used: the same codebooks from the same global batch.
    single = Storage(str(tmp_path / "single"))
    run(single, ONE_BATCH, dtype=torch.float32)
    of_four, of_one = newest(Storage(str(tmp_path / "one-batch"))), newest(single)
    torch.testing.assert_close(
        of_four.network["codebooks"], of_one.network["codebooks"], atol=1e-5, rtol=0
    )

    # One worker fits the decoder, and all have it.
    single = Storage(str(tmp_path / "decoded by one"))
    run(single, DECODED)
    of_four, of_one = newest(Storage(str(tmp_path / "decoded"))), newest(single)
    for name in (name for name in of_one.network if name.startswith("decode.")):
        assert of_one.network[name].any()
        torch.testing.assert_close(
            of_four.network[name], of_one.network[name], atol=DECODER_GRID, rtol=0
        )


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    alone: Checkpoint, tmp_path: Path
) -> None:
    class CutOffError(Exception):
        pass

    def cut_off(metrics: dict[str, Any]) -> None:
        raise CutOffError

    storage = Storage(str(tmp_path))
    for epoch in (1, 2):
        with pytest.raises(CutOffError):
            run(storage, on_epoch=cut_off)
        assert checkpoint_epochs(storage)[-1] == epoch
    run(storage)
    resumed = newest(storage)
    for name, tensor in alone.network.items():
        torch.testing.assert_close(resumed.network[name], tensor, atol=1e-6, rtol=0)
    assert [h["terms"] for h in resumed.history] == [
        pytest.approx(h["terms"], rel=1e-5) for h in alone.history
    ]


def test_a_checkpoint_without_its_card_does_not_count(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    network = DeepQuan(MODEL, DIM).state_dict()
    save_checkpoint(storage, Checkpoint(0, network))
    (tmp_path / "epoch-00001.safetensors").write_bytes(b"cut off while writing")
    assert newest(storage).epoch == 0
    assert newest(storage).optimizer is None


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for epoch in range(4):
        save_checkpoint(storage, Checkpoint(epoch, {"w": torch.full((2,), float(epoch))}))
    assert checkpoint_epochs(storage) == [2, 3]
    assert len(list(storage.list())) == 4


def test_mixed_precision_keeps_outputs_and_codebooks_in_float32() -> None:
    torch.manual_seed(0)
    network = DeepQuan(MODEL, DIM)
    features = torch.from_numpy(make_features())
    start(network, features)
    exact = network(features)
    use_mixed_precision(network)
    mixed = network(features)
    assert {part.dtype for part in mixed} == {torch.float32}
    torch.testing.assert_close(mixed.target, exact.target, atol=0, rtol=0)
    assert not torch.equal(mixed.embedding, exact.embedding)
    torch.testing.assert_close(mixed.embedding, exact.embedding, atol=0.02, rtol=0)
    mixed.embedding.sum().backward()
    assert {p.grad.dtype for p in network.encoder.parameters() if p.grad is not None} == {
        torch.float32
    }


def test_the_documented_bytes_are_those_of_the_default_network() -> None:
    # docs/decisions/0007-one-global-batch.md
    settings = ModelSettings()
    network = DeepQuan(settings, 1280)
    parameters = 4 * sum(p.numel() for p in network.parameters() if p.requires_grad)
    gathered = 4 * settings.batch_size * 2 * settings.dim
    assert (parameters, gathered) == (857_600, 262_144)
    assert (gathered + 2 * gathered + 2 * parameters) // 2 == 1_250_816
