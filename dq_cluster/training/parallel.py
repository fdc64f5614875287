"""A step's work divided among the workers of a process group, its result left as it is.

Each worker runs the network on its pairs of the global batch, and compares them with those of all
workers, in-batch negatives included. The number of workers therefore changes neither gradients nor
codebooks, but for rounding.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.losses import Share, whole


def world_size() -> int:
    """Number of workers; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This worker's number; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all workers."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def agree(network: DeepQuan) -> None:
    """Give every worker the first one's network, bit by bit: machines may round differently."""
    if world_size() > 1:
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, 0)


def own_range(rows: int) -> tuple[int, int]:
    """The part [start, stop) of `rows` that falls to this worker."""
    share = -(-rows // world_size())
    return min(rank() * share, rows), min((rank() + 1) * share, rows)


def share_of(rows: int) -> Share:
    """This worker's part of a batch of `rows` pairs."""
    if world_size() == 1:
        return whole(rows)
    return Share(*own_range(rows), rows, lambda own: _gather_rows(own, rows))


def _gather_rows(own: Tensor, rows: int) -> Tensor:
    """The `rows` rows of all workers in order."""
    share = -(-rows // world_size())
    everyone: Tensor = _Gather.apply(F.pad(own, (0, 0, 0, share - len(own))))
    return everyone[:rows]


class _Gather(torch.autograd.Function):
    """Rows (share, d) of each worker to those of all, (workers * share, d); gradients go back to
    the worker that a row is from, summed over all workers."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        share = len(gradient) // world_size()
        if dist.get_backend() == "nccl":
            own = gradient.new_empty(share, gradient.shape[1])
            dist.reduce_scatter_tensor(own, gradient)
            return own
        dist.all_reduce(gradient)  # gloo has no reduce-scatter on every machine
        return gradient[rank() * share : (rank() + 1) * share]


def backward(loss: Tensor, network: nn.Module) -> None:
    """Gradients of the parameters for a loss of which each worker has its part: of their sum.

    They travel as one tensor. DistributedDataParallel sends them while the backward pass still
    runs, which pays for large networks; for one of a megabyte, looking after that took a fifth of
    a step.
    """
    loss.backward()
    add_gradients([p for p in network.parameters() if p.requires_grad])


def add_gradients(own: list[nn.Parameter]) -> None:
    """Replace the gradients of the parameters by their sums over all workers, in one message."""
    if world_size() == 1:
        return
    flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in own])
    dist.all_reduce(flat)
    for parameter, total in zip(own, flat.split([p.numel() for p in own]), strict=True):
        parameter.grad = total.view_as(parameter)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def use_mixed_precision(network: DeepQuan) -> None:
    """Run encoder and decoder in bfloat16; parameters, losses and codebooks stay float32."""
    for part in (network.encoder, network.decoder):
        part.forward = _in_bfloat16(part.forward)  # type: ignore[assignment, method-assign]


def _in_bfloat16(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def mixed(inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16):
            return forward(inputs).float()

    return mixed
