"""What Ray Train starts on every worker that trains a backbone."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import ray
import ray.train
import torch
from ray.train.torch import get_device
from torch import Tensor

from dq_cluster.errors import DqError, InputError
from dq_cluster.images.trainable import Trainable
from dq_cluster.images.units import Unit
from dq_cluster.model.config import ModelSettings
from dq_cluster.observe.exporter import expose
from dq_cluster.observe.metrics import TRAIN_LOSS, TRAIN_SAMPLES
from dq_cluster.storage import Storage
from dq_cluster.training import parallel, pixels
from dq_cluster.training.checkpoint import (
    Checkpoint,
    OptimizerState,
    checkpoint_epochs,
    latest_checkpoint,
    save_checkpoint,
)
from dq_cluster.training.config import FinetuneSettings
from dq_cluster.training.view_stream import Chunk, chunks, remaining, views

VIEWS = "views"  # the name of the data set
_FIRST = 1024  # images that the head starts from


@dataclass(frozen=True)
class PixelJob:
    """All a worker needs to know. storage: of the checkpoints, one for so many steps."""

    settings: FinetuneSettings
    model: ModelSettings
    units: tuple[Unit, ...]
    images: int
    seed: int
    storage: Storage

    @property
    def steps(self) -> int:
        """Of all epochs."""
        return self.settings.epochs * (self.images // self.settings.batch_size)

    def network(self) -> pixels.Together:
        torch.manual_seed(self.seed)
        backbone = Trainable(self.settings.backbone, self.settings.blocks)
        return pixels.Together(backbone, self.model)

    def left(self) -> list[Chunk]:
        """What the newest checkpoint has not seen."""
        done = checkpoint_epochs(self.storage)[-1]
        seen = done * self.settings.batch_size
        return remaining(self.units, self.settings.epochs, self.seed, seen, self.images)


@ray.remote
def begin(job: PixelJob) -> None:
    """Write the checkpoint of step 0: the head fitted to the features of the first images."""
    network = job.network()
    first: list[pixels.Pair] = []
    seen = 0
    for chunk in chunks(job.units, 0, job.seed):
        for pair in views(job.settings, network.backbone.image_size, chunk, job.seed):
            first.append((torch.from_numpy(pair[0]), torch.from_numpy(pair[1])))
            seen += len(pair[0])
            if seen >= _FIRST:
                break
        if seen >= _FIRST:
            break
    if not seen:
        raise InputError(f"{job.settings.source.uri}: none of the first images can be decoded")
    pixels.start(network, first, job.seed)
    save_checkpoint(job.storage, Checkpoint(0, network.state_dict()))


def train_pixels(config: dict[str, PixelJob]) -> None:
    """Train `config["job"]` together with the other workers of the group."""
    job = config["job"]
    expose("train")
    settings, device = job.settings, get_device()
    network = job.network().to(device)
    trained = network.trained()
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(job.steps, 10), pct_start=0.11
    )
    checkpoint = latest_checkpoint(job.storage)
    if checkpoint is None:
        raise DqError(f"{job.storage.uri} lost its checkpoints while the run was using them")
    network.load_state_dict(checkpoint.network)
    if checkpoint.optimizer is not None:
        checkpoint.optimizer.restore(optimizer, schedule)
    history = list(checkpoint.history)
    own = settings.batch_size // parallel.world_size()  # all alike: the stream is split evenly
    pairs = _pairs(own, settings.shuffle, job.seed, device)
    started, at = time.perf_counter(), checkpoint.epoch
    for step in range(checkpoint.epoch + 1, job.steps + 1):
        pair = next(pairs, None)
        if pair is None:
            raise InputError(
                f"{settings.source.uri}: the images that can be decoded are too few for "
                f"{job.steps} steps of {settings.batch_size}; repair them or train fewer epochs"
            )
        optimizer.zero_grad()
        parts = pixels.backward(
            network,
            pair,
            parallel.share_of(own * parallel.world_size()),
            settings.temperature,
            settings.micro_batch,
            parallel.all_reduce,
        )
        parallel.add_gradients(trained)
        optimizer.step()
        schedule.step()
        if step % settings.checkpoint_every and step < job.steps:
            continue
        terms = {name: float(parallel.all_reduce(part)) for name, part in parts.items()}
        seconds = time.perf_counter() - started
        metrics = {
            "step": step,
            "terms": terms,
            "workers": parallel.world_size(),
            "images_per_s": (step - at) * settings.batch_size / seconds,
            "finished": time.time(),
        }
        started, at = time.perf_counter(), step
        history.append(metrics)
        if parallel.rank() == 0:
            for term, value in terms.items():
                TRAIN_LOSS.labels(term=term).set(value)
            TRAIN_SAMPLES.inc(settings.checkpoint_every * settings.batch_size)
            state = OptimizerState.of(optimizer, schedule)
            save_checkpoint(job.storage, Checkpoint(step, network.state_dict(), state, history))
        ray.train.report(metrics)


def _pairs(own: int, shuffle: int, seed: int, device: torch.device) -> Iterator[pixels.Pair]:
    shard = ray.train.get_dataset_shard(VIEWS)
    for batch in shard.iter_batches(
        batch_size=own,
        batch_format="numpy",
        drop_last=True,
        local_shuffle_buffer_size=shuffle or None,
        local_shuffle_seed=seed,
    ):
        yield _tensor(batch["one"], device), _tensor(batch["other"], device)


def _tensor(views: np.ndarray, device: torch.device) -> Tensor:
    return torch.tensor(np.ascontiguousarray(views), device=device)
