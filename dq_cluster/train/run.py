"""The training workload: features in, a published model out, resumable at every step.

<run>/run.json      what is trained; a run of the same name must be of the same
<run>/neighbours/, <run>/positives/
<run>/checkpoints/  one per epoch; epoch 0 is the network before training
<run>/ray/          Ray Train's own bookkeeping
"""

import contextlib
import json
import logging
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from dq_cluster.errors import ConfigError, DqError, InputError
from dq_cluster.images.features import open_features
from dq_cluster.index.document import parse_record
from dq_cluster.index.models import ModelCard
from dq_cluster.model.bundle import save_model
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.storage import Storage
from dq_cluster.train.cells import check_cells, find_cells
from dq_cluster.train.checkpoint import (
    Checkpoint,
    checkpoint_epochs,
    latest_checkpoint,
    save_checkpoint,
)
from dq_cluster.train.config import TrainSettings
from dq_cluster.train.neighbours import find_positives, fit_front
from dq_cluster.train.quality import check_gate, measure
from dq_cluster.train.rows import TrainingRows
from dq_cluster.train.split import Split
from dq_cluster.train.trainer import train_missing_epochs
from dq_cluster.train.worker import Job

logger = logging.getLogger(__name__)


def train(settings: TrainSettings) -> ModelCard:
    """Train on the features, measure on the rows held out, publish the model in the index.

    Started again with the same name it goes on where it stopped. Raises InputError for unusable
    features, ConfigError when the name belongs to a run of something else, QualityGateError when
    the model misses its gate, and DqError when workers failed too often.
    """
    rows = _training_rows(settings)
    storage = Storage(settings.run_uri)
    checkpoints = storage.child("checkpoints")
    seconds: dict[str, float] = {}
    with _timed(seconds, "front"):
        network = _network(settings, rows, storage)
    with _timed(seconds, "neighbours"):
        find_positives(network, rows, storage, use_gpu=settings.use_gpu)
    with _timed(seconds, "epochs"):
        train_missing_epochs(settings, Job(rows, settings.model, settings.seed, storage))
    with _timed(seconds, "evaluation"):
        trained = _newest(checkpoints)
        network.load_state_dict(trained.network)
        measured = measure(network, rows)
    check_gate(settings.gate, measured)
    cells = None
    if settings.nlist:
        with _timed(seconds, "cells"):
            cells = find_cells(
                network,
                rows,
                settings.nlist,
                seed=settings.seed,
                cpus=settings.cpus_per_worker,
            )
    training = {
        "run": settings.name,
        "features": settings.features,
        "rows": rows.count,
        "seed": settings.seed,
        "samples_per_s": rows.count / statistics.mean(e["seconds"] for e in trained.history),
        "seconds": seconds,
        "history": trained.history,
    }
    card = save_model(
        Storage(settings.index),
        network,
        cells=cells,
        preprocessing=rows.features.preprocessing,
        training=training,
        evaluation=measured,
    )
    logger.info("published model %s", card.digest[:12], extra=measured)
    return card


def _training_rows(settings: TrainSettings) -> TrainingRows:
    features = open_features(settings.features)
    rows = TrainingRows(features, Split(features.rows, settings.validation_fraction, settings.seed))
    needed = max(settings.model.neighbours, 10)
    if rows.count <= needed or rows.count == features.rows:
        raise InputError(
            f"{settings.features} has {features.rows} rows, {rows.count} of them to train on; "
            f"training needs more than {needed}, and at least one held out"
        )
    check_cells(settings.nlist, rows.count)
    if settings.gate.min_map and not features.labelled:
        raise InputError(f"gate.min_map needs a column 'label', which {settings.features} lacks")
    return rows


def _network(settings: TrainSettings, rows: TrainingRows, storage: Storage) -> DeepQuan:
    """The run's network as far as it is trained; for a new run, with its linear front set."""
    checkpoints = storage.child("checkpoints")
    torch.manual_seed(settings.seed)
    network = DeepQuan(settings.model, rows.features.dim)
    if storage.exists("run.json"):
        _claim(settings, rows, storage)
    if checkpoint_epochs(checkpoints):
        network.load_state_dict(_newest(checkpoints).network)
    else:
        # The name is claimed only now: features that cannot be read leave no run behind.
        fit_front(network, rows)
        _claim(settings, rows, storage)
        save_checkpoint(checkpoints, Checkpoint(0, network.state_dict()))
    return network


def _claim(settings: TrainSettings, rows: TrainingRows, storage: Storage) -> None:
    """Record what this run trains. Raises ConfigError if the name is of a run of other things.

    Only what decides the epochs: gate and cells come after them and may change.
    """
    wanted = {
        "features": rows.features.fingerprint,
        "model": settings.model.model_dump(mode="json"),
        "seed": settings.seed,
        "validation_fraction": settings.validation_fraction,
    }
    if storage.create("run.json", json.dumps(wanted, indent=1).encode()):
        return
    if differing := sorted(_differing(_record(storage), wanted)):
        raise ConfigError(
            f"run '{settings.name}' at {storage.uri} was started with other "
            f"{', '.join(differing)}; choose another name, or delete that run"
        )


def _record(storage: Storage) -> dict[str, Any]:
    record = parse_record(storage.read("run.json"), f"{storage.uri}/run.json")
    record.pop("format", None)
    return record


def _differing(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in one.keys() | other.keys():
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differing(a, b, f"{prefix}{key}.")
        elif a != b:
            yield prefix + key


def _newest(checkpoints: Storage) -> Checkpoint:
    found = latest_checkpoint(checkpoints)
    if found is None:
        raise DqError(f"{checkpoints.uri} lost its checkpoints while the run was using them")
    return found


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 3)
    logger.info("%s took %.1f s", stage, seconds[stage])
