"""What Ray Train starts on every worker."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
from ray.train.collective import barrier
from ray.train.torch import get_device

from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.neighbours import Positives
from dq_cluster.observe.exporter import expose
from dq_cluster.observe.metrics import CODEBOOK_PERPLEXITY, TRAIN_LOSS, TRAIN_SAMPLES
from dq_cluster.storage import Storage
from dq_cluster.training import node
from dq_cluster.training.loop import train_epochs
from dq_cluster.training.neighbours import read_column
from dq_cluster.training.rows import TrainingRows
from dq_cluster.training.stream import parts

FEATURES = "features"  # the name of the data set that a worker may stream


@dataclass(frozen=True)
class TrainJob:
    """All a worker needs to know."""

    rows: TrainingRows
    model: ModelSettings
    seed: int
    storage: Storage


def train_worker(config: dict[str, TrainJob]) -> None:
    """Train `config["job"]` together with the other workers of the group."""
    job = config["job"]
    expose("train")
    with node.node_folder(repr(job)) as folder:
        _train(job, folder)


def _train(job: TrainJob, folder: Path) -> None:
    features, positives = _node_copy(job, folder)
    leader = ray.train.get_context().get_world_rank() == 0

    def on_epoch(metrics: dict[str, Any]) -> None:
        if leader:
            for term, value in metrics["terms"].items():
                TRAIN_LOSS.labels(term=term).set(value)
            TRAIN_SAMPLES.inc(len(features))
            CODEBOOK_PERPLEXITY.set(metrics["perplexity"])
        ray.train.report(metrics)

    train_epochs(
        DeepQuan(job.model, job.rows.features.dim),
        features,
        positives,
        job.storage.child("checkpoints"),
        seed=job.seed,
        device=get_device(),
        on_epoch=on_epoch,
    )
    barrier()  # until then another worker of this node may be reading the copy
    node.forget(folder)


def _node_copy(job: TrainJob, folder: Path) -> tuple[np.ndarray, Positives]:
    """Features and positives of all training rows, copied to this node if they are not yet."""
    pieces, count = job.rows.pieces(), job.rows.count

    def of_positives(column: str, dtype: str) -> np.ndarray:
        shape = (count, job.model.neighbours)
        return node.mapped(
            folder / f"{column}.npy",
            shape,
            dtype,
            lambda: zip(
                (slice(piece.first, piece.last) for piece in pieces),
                read_column(job.storage, "positives", column, pieces),
                strict=True,
            ),
        )

    features = node.mapped(
        folder / "features.npy",
        (count, job.rows.features.dim),
        job.rows.features.dtype,
        lambda: parts(ray.train.get_dataset_shard(FEATURES)),
    )
    return features, Positives(of_positives("rows", "int64"), of_positives("weights", "float32"))
