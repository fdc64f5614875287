"""The training workload: features in, a published model out, resumable at every step.

<run>/run.json      what is trained; a run of the same name must be of the same
<run>/neighbours/, <run>/positives/
<run>/checkpoints/  one per epoch; epoch 0 is the network before training
<run>/ray/          Ray Train's own bookkeeping
"""

import contextlib
import logging
import statistics
import time
from collections.abc import Iterator

import torch

from dq_cluster.config import Settings
from dq_cluster.errors import DqError, InputError
from dq_cluster.images.features import open_features
from dq_cluster.index.models import ModelCard
from dq_cluster.model.bundle import save_model
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.run import Run
from dq_cluster.storage import Storage
from dq_cluster.training.cells import check_cells, find_cells
from dq_cluster.training.checkpoint import (
    Checkpoint,
    checkpoint_epochs,
    latest_checkpoint,
    save_checkpoint,
)
from dq_cluster.training.config import TrainSettings
from dq_cluster.training.neighbours import find_positives, fit_front
from dq_cluster.training.quality import check_gate, measure
from dq_cluster.training.rows import TrainingRows
from dq_cluster.training.split import Split
from dq_cluster.training.trainer import train_missing_epochs, wait_for_workers
from dq_cluster.training.words import check_words, learn_words
from dq_cluster.training.worker import TrainJob

logger = logging.getLogger(__name__)


class TrainRequest(Settings):
    """What decides the epochs of a run: gate and cells come after them and may change.

    features: the fingerprint of the feature files.
    """

    features: str
    model: ModelSettings
    seed: int
    validation_fraction: float


def train(settings: TrainSettings) -> ModelCard:
    """Train on the features, measure on the rows held out, publish the model in the index.

    Started again with the same name, it continues where it stopped. Raises InputError for unusable
    features, ConfigError when the name belongs to a run of something else, QualityGateError when
    the model misses its gate, and DqError when workers failed too often.
    """
    rows = _training_rows(settings)
    wait_for_workers(settings)
    run = Run(Storage(settings.run_uri))
    request = TrainRequest(
        features=rows.features.fingerprint,
        model=settings.model,
        seed=settings.seed,
        validation_fraction=settings.validation_fraction,
    )
    run.check(request)
    checkpoints = run.storage.child("checkpoints")
    torch.manual_seed(settings.seed)
    network = DeepQuan(settings.model, rows.features.dim)
    seconds: dict[str, float] = {}
    with _timed(seconds, "front"):
        # Before the name is claimed: features that cannot be read leave no run behind.
        if is_new := not checkpoint_epochs(checkpoints):
            fit_front(network, rows)
    with run.at_work():
        run.claim(request)
        if is_new and not checkpoint_epochs(checkpoints):
            save_checkpoint(checkpoints, Checkpoint(0, network.state_dict()))
        network.load_state_dict(_newest(checkpoints).network)
        card = _train(settings, network, rows, run.storage, seconds)
        run.finish(card.digest)
    return card


def _train(
    settings: TrainSettings,
    network: DeepQuan,
    rows: TrainingRows,
    storage: Storage,
    seconds: dict[str, float],
) -> ModelCard:
    """Everything after the front. seconds: spent on each stage, added to."""
    with _timed(seconds, "neighbours"):
        find_positives(network, rows, storage, seed=settings.seed, use_gpu=settings.use_gpu)
    with _timed(seconds, "epochs"):
        train_missing_epochs(settings, TrainJob(rows, settings.model, settings.seed, storage))
    with _timed(seconds, "evaluation"):
        trained = _newest(storage.child("checkpoints"))
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
    with _timed(seconds, "words"):
        words = learn_words(settings, network, rows)
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
        evaluation=measured | (words.measured if words else {}),
        words=(words.about, words.tensors) if words else None,
    )
    logger.info("published model %s", card.digest[:12], extra=measured)
    return card


def _training_rows(settings: TrainSettings) -> TrainingRows:
    features = open_features(settings.features, settings.feature_column)
    rows = TrainingRows(features, Split(features.rows, settings.validation_fraction, settings.seed))
    needed = max(settings.model.neighbours, 10)
    if rows.count <= needed or rows.count == features.rows:
        raise InputError(
            f"{settings.features} has {features.rows} rows, {rows.count} of them to train on; "
            f"training needs more than {needed}, and at least one held out"
        )
    check_cells(settings.nlist, rows.count)
    check_words(settings, features)
    if settings.gate.min_map and not features.labelled:
        raise InputError(f"gate.min_map needs a column 'label', which {settings.features} lacks")
    return rows


def _newest(checkpoints: Storage) -> Checkpoint:
    checkpoint = latest_checkpoint(checkpoints)
    if checkpoint is None:
        raise DqError(f"{checkpoints.uri} lost its checkpoints while the run was using them")
    return checkpoint


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 3)
    logger.info("%s took %.1f s", stage, seconds[stage])
