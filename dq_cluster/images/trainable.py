"""Backbones whose last blocks are trained, and their weights in an index.

    <index>/backbones/<sha256>.safetensors

A block is what such networks repeat: a child of a `Sequential` or `ModuleList` that has parts of
its own. Normalization keeps the statistics it was trained with: a feature then depends on its own
image alone, however a batch is divided among workers and micro-batches.
"""

import hashlib
from collections.abc import Iterator

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from dq_cluster.errors import ConfigError
from dq_cluster.images.backbone import tuned_weights
from dq_cluster.images.config import BackboneSettings
from dq_cluster.images.torch_backbone import torch_network
from dq_cluster.storage import Storage

_CONTAINERS = (nn.Sequential, nn.ModuleList)


class Trainable(nn.Module):
    """Pixels (n, s, s, 3) uint8 to features (n, feature_dim) float32, with gradients.

    blocks: how many of the last blocks are trained, with all that follows them; 0: everything.
    Raises ConfigError for a backbone that is no torch network or has fewer blocks.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: BackboneSettings, blocks: int) -> None:
        super().__init__()
        self.network, self._look, settings = torch_network(settings)
        self.network.eval()
        self.settings = settings
        self.image_size = settings.image_size
        mean, std = torch.tensor(settings.mean), torch.tensor(settings.std)
        self.register_buffer("mean", 255 * mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * std.view(3, 1, 1), persistent=False)
        first = _first_trained(self.network, blocks)
        for place, (_, parameter) in enumerate(self.network.named_parameters()):
            parameter.requires_grad_(place >= first)
        for parameter in self.network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            probe = torch.zeros(1, self.image_size, self.image_size, 3, dtype=torch.uint8)
            self.feature_dim = self(probe).shape[1]

    def train(self, mode: bool = True) -> "Trainable":
        """Stay as it was trained: batch normalization and dropout do not follow the batch."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        on_gpu = pixels.device.type == "cuda"
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=on_gpu):
            output = (self._look or self.network)((images - self.mean) / self.std)
        if output.ndim == 4:
            output = output.mean((2, 3))
        return torch.flatten(output, 1).float()


def _first_trained(network: nn.Module, blocks: int) -> int:
    """The place, in the order of the parameters, of the first one that is trained."""
    if not blocks:
        return 0
    found = list(_blocks(network))
    if blocks > len(found):
        raise ConfigError(f"blocks {blocks}: this backbone has {len(found)}; 0 trains all of it")
    firsts = [next(block.parameters(), None) for block in found[-blocks:]]
    first = next(parameter for parameter in firsts if parameter is not None)
    return next(place for place, p in enumerate(network.parameters()) if p is first)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        inside = isinstance(module, _CONTAINERS) and not isinstance(child, _CONTAINERS)
        if inside and any(True for _ in child.children()):
            yield child
        else:
            yield from _blocks(child)


def save_weights(index: Storage, backbone: Trainable) -> str:
    """Store the weights below an index; their SHA-256, which names them."""
    tensors = {
        n: t.detach().cpu().contiguous().clone() for n, t in backbone.network.state_dict().items()
    }
    data = save_tensors(tensors)
    digest = hashlib.sha256(data).hexdigest()
    index.write(tuned_weights(digest), data)
    return digest
