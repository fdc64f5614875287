"""Ray Train: start the workers, replace lost ones, and report their progress."""

import contextlib
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

from ray.train import (
    DataConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from dq_cluster.cluster import in_thread
from dq_cluster.cluster.failures import ours, reason_in
from dq_cluster.cluster.room import Need, patience_of, wait_for_room
from dq_cluster.errors import DqError
from dq_cluster.observe.log import keep_stack
from dq_cluster.storage import Storage
from dq_cluster.training.checkpoint import checkpoint_epochs, read_history
from dq_cluster.training.config import TrainSettings
from dq_cluster.training.stream import stream
from dq_cluster.training.worker import FEATURES, TrainJob, train_worker

logger = logging.getLogger(__name__)

_LOOK_EVERY = 1.0  # seconds


def train_missing_epochs(settings: TrainSettings, job: TrainJob) -> None:
    """Train the epochs that have no checkpoint yet.

    Raises what the workers raised where it is a DqError, and DqError when more of them were lost
    than `settings.max_failures` allows.
    """
    checkpoints = job.storage.child("checkpoints")
    done = checkpoint_epochs(checkpoints)[-1]
    if done == job.model.epochs:
        return
    if done:
        logger.info("run '%s' continues after epoch %d", settings.name, done)
    wait_for_workers(settings)
    with _progress(checkpoints, done, job.model.epochs):
        run_workers(
            settings,
            train_worker,
            job,
            job.storage,
            {FEATURES: stream(job.rows)},
            lambda: f"{checkpoint_epochs(checkpoints)[-1]} of {job.model.epochs} epochs are kept",
            # The worker that fills a node's copy streams all rows.
            split=[],
        )


def run_workers(
    settings: TrainSettings,
    loop: Callable[[dict[str, Any]], None],
    job: Any,
    storage: Storage,
    datasets: dict[str, Any],
    kept: Callable[[], str],
    split: list[str] | Literal["all"] = "all",
) -> None:
    """Run `loop` on a group of workers, with another group where one is lost.

    split: the data sets that are divided among them. kept: what is not lost, for the message.
    Raises as `train_missing_epochs`.
    """
    trainer = _trainer(settings, loop, job, storage, datasets, split)
    try:
        # Not in this thread, where Ray Train would make of SIGINT a run that ended well.
        in_thread(trainer.fit).result()
    except TrainingFailedError as error:
        raise _failure(settings, error, kept()) from error


def _failure(settings: TrainSettings, error: TrainingFailedError, kept: str) -> DqError:
    causes: list[BaseException] = [getattr(error, "controller_failure", error)]
    if isinstance(error, WorkerGroupError):
        causes = list(error.worker_failures.values()) or causes
    for cause in causes:
        if ours_error := ours(cause):
            return ours_error
    stack = f"; its stack is {keep_stack(error)}" if "Traceback" in str(causes[0]) else ""
    return DqError(
        f"training '{settings.name}' gave up after {settings.max_failures} restarts: "
        f"{reason_in(str(causes[0]))}; {kept}, the same command continues from there{stack}"
    )


def wait_for_workers(settings: TrainSettings) -> None:
    """Return when the cluster has room for the workers. Raises InputError when it never has."""
    fewest, _ = settings.worker_range
    advice = "lower workers or cpus_per_worker"
    if settings.use_gpu:
        advice += ", or train without use_gpu"
    wait_for_room([Need("workers", fewest, _worker_resources(settings))], advice)


def _worker_resources(settings: TrainSettings) -> dict[str, float]:
    return {"CPU": settings.cpus_per_worker} | ({"GPU": 1.0} if settings.use_gpu else {})


def _trainer(
    settings: TrainSettings,
    loop: Callable[[dict[str, Any]], None],
    job: Any,
    storage: Storage,
    datasets: dict[str, Any],
    split: list[str] | Literal["all"],
) -> TorchTrainer:
    # Ray's default of two seconds makes a small job wait longer for its end than it trains.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    smallest, largest = settings.worker_range
    return TorchTrainer(
        loop,
        train_loop_config={"job": job},
        datasets=datasets,
        dataset_config=DataConfig(datasets_to_split=split),
        scaling_config=ScalingConfig(
            num_workers=smallest if smallest == largest else (smallest, largest),
            use_gpu=settings.use_gpu,
            resources_per_worker=_worker_resources(settings),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=storage.path(),
            storage_filesystem=storage.arrow,
            failure_config=FailureConfig(
                max_failures=settings.max_failures,
                # Each is a group of workers that did not start in Ray's 60 s, because others took
                # the room or their machines are slow. Ray's default is to try for ever.
                controller_failure_limit=math.ceil(patience_of(os.environ).taken / 60) + 1,
            ),
        ),
    )


@contextlib.contextmanager
def _progress(checkpoints: Storage, done: int, epochs: int) -> Iterator[None]:
    """Meanwhile, log every epoch when its checkpoint appears."""
    stop = threading.Event()

    def follow() -> None:
        seen, stopped = done, False
        while not stopped:
            stopped = stop.wait(_LOOK_EVERY)
            try:
                newest = max(checkpoint_epochs(checkpoints), default=0)
                history = read_history(checkpoints, newest) if newest > seen else []
            except DqError as error:  # training does without; the next look says it all
                logger.warning("cannot see how far training is: %s", error)
                continue
            _log_epochs(history, seen, epochs)
            seen = max(seen, newest)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _log_epochs(history: list[dict[str, Any]], seen: int, epochs: int) -> None:
    for epoch, record in enumerate(history[seen:], seen + 1):
        values = record["terms"] | {name: record[name] for name in ("perplexity", "variance")}
        logger.info(
            "epoch %d/%d, %.0f samples/s, %.0f s left",
            epoch,
            epochs,
            record["samples_per_s"],
            (epochs - epoch) * record["seconds"],
            extra={name: f"{value:.4g}" for name, value in values.items()},
        )
