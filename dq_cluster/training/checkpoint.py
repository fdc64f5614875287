"""Checkpoints of a training run, one per epoch, on its storage.

    <run>/epoch-00007.safetensors   network and optimizer after 7 epochs
    <run>/epoch-00007.json          written last: a checkpoint without it does not exist

Any number of workers can continue from one, after a crash or in a new submission. Ray Train's own
checkpoints are not used: its controller may not yet know the newest one when a worker is killed,
which costs one epoch more, and they would bring pickle to storage.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from dq_cluster.document import parse_record
from dq_cluster.storage import Storage

KEPT = 2
_CARD = re.compile(r"epoch-(\d{5}|[1-9]\d{5,8})\.json", re.ASCII)


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer and its schedule: tensors by `<parameter>.<entry>`, and plain values."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    schedule: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
    ) -> "OptimizerState":
        state = optimizer.state_dict()
        tensors = {
            f"{index}.{name}": value
            for index, entries in state["state"].items()
            for name, value in entries.items()
        }
        return cls(tensors, state["param_groups"], schedule.state_dict())

    def restore(
        self, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
    ) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in self.tensors.items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": self.groups})
        schedule.load_state_dict(self.schedule)


@dataclass(frozen=True)
class Checkpoint:
    """State after `epoch` epochs (0: untrained, no optimizer yet) and the metrics of each."""

    epoch: int
    network: dict[str, Tensor]
    optimizer: OptimizerState | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(storage: Storage, checkpoint: Checkpoint) -> None:
    """Store a checkpoint whole, then drop all but the newest `KEPT`."""
    optimizer = checkpoint.optimizer
    tensors = {f"network.{name}": tensor for name, tensor in checkpoint.network.items()}
    card: dict[str, Any] = {"epoch": checkpoint.epoch, "history": checkpoint.history}
    if optimizer is not None:
        tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer.tensors.items()}
        card["optimizer"] = {"groups": optimizer.groups, "schedule": optimizer.schedule}
    data = save_tensors({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    storage.write(_name(checkpoint.epoch, "safetensors"), data)
    storage.write(_name(checkpoint.epoch, "json"), json.dumps(card).encode())
    for epoch in checkpoint_epochs(storage)[:-KEPT]:
        storage.delete(_name(epoch, "json"))
        storage.delete(_name(epoch, "safetensors"))


def checkpoint_epochs(storage: Storage) -> list[int]:
    """After how many epochs there is a complete checkpoint, ascending."""
    matches = (_CARD.fullmatch(info.path) for info in storage.list())
    return sorted(int(each[1]) for each in matches if each)


def read_history(storage: Storage, epoch: int) -> list[dict[str, Any]]:
    """The metrics of the epochs up to a checkpoint."""
    history: list[dict[str, Any]] = _read_card(storage, epoch)["history"]
    return history


def latest_checkpoint(storage: Storage) -> Checkpoint | None:
    """The newest complete checkpoint; None for a run that has none."""
    epochs = checkpoint_epochs(storage)
    if not epochs:
        return None
    card = _read_card(storage, epochs[-1])
    tensors = load_tensors(storage.read(_name(epochs[-1], "safetensors")))
    plain = card.get("optimizer")
    optimizer = plain and OptimizerState(_below(tensors, "optimizer."), **plain)
    return Checkpoint(card["epoch"], _below(tensors, "network."), optimizer, card["history"])


def _read_card(storage: Storage, epoch: int) -> dict[str, Any]:
    name = _name(epoch, "json")
    return parse_record(storage.read(name), f"{storage.uri}/{name}")


def _name(epoch: int, suffix: str) -> str:
    return f"epoch-{epoch:05d}.{suffix}"


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
