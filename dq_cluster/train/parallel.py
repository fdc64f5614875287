"""The network's work divided among the workers of a process group, the losses left whole.

Each worker runs the network on its part of the global batch and receives what the others
computed, so every worker sees the losses of the whole batch, in-batch negatives included. The
number of workers therefore changes neither gradients nor codebooks, but for rounding.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from dq_cluster.model.deepquan import DeepQuan, Output


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
    """Give every worker the first one's codebooks, to the bit, whatever their machines round."""
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def own_range(rows: int) -> tuple[int, int]:
    """The part [start, stop) of `rows` that falls to this worker."""
    share = -(-rows // world_size())
    return min(rank() * share, rows), min((rank() + 1) * share, rows)


class Divided(nn.Module):
    """A network over a batch of row numbers that is spread over all workers.

    `forward(rows)` takes the same global batch (n,) on every worker, looks up the features of this
    worker's part by `features(rows)`, and returns the Output of all n. Gradients reach this
    worker's part only; `backward` below completes them.
    """

    def __init__(self, network: DeepQuan, features: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features = features
        self.network: nn.Module = network
        if world_size() > 1:
            # Every worker updates the codebooks alike; there is nothing to broadcast.
            self.network = DistributedDataParallel(network, broadcast_buffers=False)

    def forward(self, rows: Tensor) -> Output:
        start, stop = own_range(len(rows))
        own: Output = self.network(self.features(rows[start:stop]))
        if world_size() == 1:
            return own
        everyone = _gather_rows(torch.cat(own, dim=1), len(rows))
        return Output(*everyone.split([part.shape[1] for part in own], dim=1))


def _gather_rows(own: Tensor, rows: int) -> Tensor:
    """The `rows` rows of all workers in order; only this worker's own carry gradients."""
    share = -(-rows // world_size())
    padded = F.pad(own, (0, 0, 0, share - len(own)))
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded.detach())
    parts[rank()] = padded
    return torch.cat(parts)[:rows]


def backward(loss: Tensor) -> None:
    """Gradients of a loss that every worker computed from the whole output of `Divided`.

    Each worker holds the part of the gradient that went through its rows. What is wanted is
    their sum; DistributedDataParallel takes their mean.
    """
    (loss * world_size()).backward()


def use_mixed_precision(network: DeepQuan) -> None:
    """Run encoder and decoder in bfloat16; parameters, losses and codebooks stay float32."""
    for part in (network.encoder, network.decoder):
        part.forward = _in_bfloat16(part.forward)  # type: ignore[assignment, method-assign]


def _in_bfloat16(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def mixed(inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16):
            return forward(inputs).float()

    return mixed
