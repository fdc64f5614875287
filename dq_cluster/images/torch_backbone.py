"""Backbones of libraries that run on torch: transformers, open_clip, timm, torchvision."""

import contextlib
import hashlib
import importlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dq_cluster.errors import ConfigError, InputError
from dq_cluster.images.backbone import (
    efficientnet_lite0_network,
    expect,
    load_weights,
    pooled,
    prepared,
)
from dq_cluster.images.config import BackboneSettings, TextSettings
from dq_cluster.images.framing import Preparation, of_open_clip, of_timm, of_transformers
from dq_cluster.images.text import TextTower, TokenizerLock, check_length, unit
from dq_cluster.images.weights import advice, local_folder

_BATCH = 16
_LARGEST_BATCH = 1024
_PACKAGES = {"open_clip": "open_clip_torch"}


@dataclass(frozen=True)
class _Loaded:
    """A network, and how pixels (n, 3, s, s) become features (n, dim) with it.

    preparation: the model's own. text: of the same network.
    """

    network: nn.Module
    forward: Callable[[Tensor], Tensor]
    preparation: Preparation | None = None
    text: "_TorchText | None" = None


class TorchBackbone:
    """A network of a library, without its classifier."""

    def __init__(
        self, settings: BackboneSettings, recorded: bool, tuned: bytes | None = None
    ) -> None:
        """recorded: the settings say all of the preprocessing; else it is the model's own.

        tuned: weights instead of the pretrained ones.
        """
        if settings.threads:
            torch.set_num_threads(settings.threads)
        loaded = _load(settings)
        if tuned is not None:
            load_weights(loaded.network, tuned)
        sha256 = hashlib.sha256(tuned).hexdigest() if tuned else _sha256(loaded.network)
        expect(settings, sha256)
        if loaded.preparation is not None and not recorded:
            settings = prepared(settings, loaded.preparation)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._dtype = getattr(torch, settings.dtype)
        loaded.network.eval().requires_grad_(False).to(self._device, self._dtype)
        self._forward = torch.compile(loaded.forward) if settings.compile else loaded.forward
        self._mean = torch.tensor(settings.mean, device=self._device).mul(255).view(3, 1, 1)
        self._std = torch.tensor(settings.std, device=self._device).mul(255).view(3, 1, 1)
        self.image_size = settings.image_size
        self.frame = settings.framing or settings.image_size
        self.text: TextTower | None = loaded.text
        self.feature_dim = self._probe(settings)
        self.batch_size = _BATCH if self._device == "cpu" else self._filling()
        fixed: dict[str, Any] = {"sha256": sha256, "threads": 0}
        if loaded.text is not None:
            loaded.text.place(self._device)
            fixed["text"] = TextSettings(
                max_tokens=loaded.text.max_tokens, sha256=loaded.text.sha256
            )
            if settings.text and settings.text.sha256 not in (None, loaded.text.sha256):
                raise InputError(
                    f"the tokenizer of {settings.path or settings.name} is not the one that the "
                    "model was trained with; restore its files or train again"
                )
        self.preprocessing = settings.model_copy(update=fixed).model_dump(mode="json")

    def features(self, pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            batch = torch.tensor(pixels, device=self._device).permute(0, 3, 1, 2)
            output = self._forward(((batch - self._mean) / self._std).to(self._dtype))
        features = pooled(output.float().cpu().numpy())
        return features if self.text is None else unit(features)

    def _probe(self, settings: BackboneSettings) -> int:
        probe = np.zeros((1, self.image_size, self.image_size, 3), np.uint8)
        try:
            return self.features(probe).shape[1]
        except Exception as error:
            why = " ".join(str(error).split())[:300]
            hint = ", without compile" if settings.compile else ""
            raise ConfigError(
                f"backbone '{settings.kind}' does not run on squares of {self.image_size} pixels "
                f"with {settings.dtype}: {why}; try another image_size or dtype{hint}"
            ) from error

    def _filling(self) -> int:
        """The batch from which on more images at once gain little, or do not fit."""
        best, rate = _BATCH, 0.0
        size = _BATCH
        while size <= _LARGEST_BATCH:
            pixels = np.zeros((size, self.image_size, self.image_size, 3), np.uint8)
            try:
                self.features(pixels)
                started = time.perf_counter()
                self.features(pixels)
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                break
            now = size / (time.perf_counter() - started)
            if now < 1.1 * rate:
                break
            best, rate, size = size, now, 2 * size
        return best


class _TorchText:
    """The text network of a library's model.

    encode: texts to tensors that `forward` takes; count: tokens of a text, with the marks.
    """

    def __init__(
        self,
        network: nn.Module,
        encode: Callable[[Sequence[str]], dict[str, Tensor]],
        forward: Callable[..., Tensor],
        count: Callable[[str], int],
        max_tokens: int,
        tokenizer: bytes,
    ) -> None:
        self._network, self._encode, self._forward = network, encode, forward
        self._count, self.max_tokens = count, max_tokens
        self._device = "cpu"
        self.sha256 = hashlib.sha256(tokenizer).hexdigest()

    def place(self, device: str) -> None:
        self._device = device

    def tokens(self, text: str) -> int:
        return self._count(text)

    def features(self, texts: Sequence[str], *, cut: bool = False) -> np.ndarray:
        if not cut:
            check_length(texts, [self._count(text) for text in texts], self.max_tokens)
        given = {name: tensor.to(self._device) for name, tensor in self._encode(texts).items()}
        with torch.inference_mode():
            output = self._forward(**given)
        return unit(output.float().cpu().numpy())


def torch_network(
    settings: BackboneSettings,
) -> tuple[nn.Module, Callable[[Tensor], Tensor] | None, BackboneSettings]:
    """The pretrained network of a backbone, how pixels (n, 3, s, s) pass it if not by calling it,
    and the settings with its own preprocessing.

    Raises ConfigError for a kind that torch cannot train.
    """
    if settings.kind in ("onnx", "none"):
        raise ConfigError(f"backbone '{settings.kind}' cannot be trained: it is no torch network")
    if settings.kind == "efficientnet-lite0":
        return efficientnet_lite0_network(), None, settings
    loaded = _load(settings)
    if loaded.preparation is not None:
        settings = prepared(settings, loaded.preparation)
    forward = None if loaded.forward is loaded.network else loaded.forward
    return loaded.network, forward, settings


def _load(settings: BackboneSettings) -> _Loaded:
    kind = settings.kind
    package = _PACKAGES.get(kind, kind)
    if importlib.util.find_spec(kind) is None:
        raise ConfigError(
            f"backbone kind '{kind}' needs the package {package}: pip install {package}, or "
            "pip install 'dq-cluster[backbones]'"
        )
    make_torchvision_importable()
    loaders = {
        "transformers": _transformers,
        "open_clip": _open_clip,
        "timm": _timm,
        "torchvision": _torchvision,
    }
    try:
        importlib.import_module(kind)
    except Exception as error:
        raise ConfigError(
            f"the package {package} cannot be imported: {' '.join(str(error).split())[:300]}; "
            "install builds of torch, torchvision, and it that belong together"
        ) from error
    if settings.path:
        local_folder(settings.path)
    try:
        return loaders[kind](settings)
    except (ConfigError, InputError):
        raise
    except Exception as error:
        raise advice(kind, error) from error


def _transformers(settings: BackboneSettings) -> _Loaded:
    from transformers import AutoImageProcessor, AutoModel

    place, options = str(settings.name), {}
    if settings.path:
        place, options = str(local_folder(settings.path)), {"local_files_only": True}
    network = AutoModel.from_pretrained(place, dtype="auto", use_safetensors=True, **options)
    processor = AutoImageProcessor.from_pretrained(place, **options)
    own = of_transformers(processor.to_dict(), f"the image processor of {place}")
    if not hasattr(network, "get_image_features"):
        return _Loaded(network, lambda pixels: _embedding(network(pixel_values=pixels)), own)

    def look(pixels: Tensor) -> Tensor:
        return _embedding(network.get_image_features(pixel_values=pixels))

    return _Loaded(network, look, own, _transformers_text(network, place, options))


def _transformers_text(network: Any, place: str, options: dict[str, Any]) -> "_TorchText | None":
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a folder without the files of the tokenizer: images only
    config = network.config.text_config
    most = int(getattr(config, "max_position_embeddings", 77))
    # SigLIP was trained on texts of one length, without a mask.
    siglip = network.config.model_type.startswith("siglip")
    locked = TokenizerLock(tokenizer)

    def encode(texts: Sequence[str]) -> dict[str, Tensor]:
        padding = "max_length" if siglip else True
        given = locked(
            texts, padding=padding, truncation=True, max_length=most, return_tensors="pt"
        )
        names = ["input_ids"] if siglip else ["input_ids", "attention_mask"]
        return {name: given[name] for name in names if name in given}

    def read(**given: Tensor) -> Tensor:
        return _embedding(network.get_text_features(**given))

    def count(text: str) -> int:
        return len(locked([text])["input_ids"][0])

    backend = getattr(tokenizer, "backend_tokenizer", None)
    named = backend.to_str() if backend else repr(sorted(tokenizer.get_vocab().items()))
    return _TorchText(network, encode, read, count, most, named.encode())


def _embedding(output: Any) -> Tensor:
    """What stands for the whole input: a pooled output, or the first token."""
    if isinstance(output, Tensor):
        return output
    pooler: Tensor | None = getattr(output, "pooler_output", None)
    return pooler if pooler is not None else output.last_hidden_state[:, 0]


def _open_clip(settings: BackboneSettings) -> _Loaded:
    import open_clip

    if settings.path:
        name, pretrained = f"local-dir:{local_folder(settings.path)}", None
    else:
        name, _, tag = str(settings.name).partition("/")
        pretrained = tag or None
        if name.startswith("hf-hub:"):
            name, pretrained = str(settings.name), None
    network = open_clip.create_model(name, pretrained=pretrained, precision="fp32")
    own = of_open_clip(network.visual.preprocess_cfg, f"open_clip's {name}")
    tokenizer = open_clip.get_tokenizer(name)
    most = int(tokenizer.context_length)

    def encode(texts: Sequence[str]) -> dict[str, Tensor]:
        return {"text": tokenizer(list(texts))}

    def count(text: str) -> int:
        if hasattr(tokenizer, "encode"):
            return len(tokenizer.encode(text)) + 2
        return len(tokenizer.tokenizer(text)["input_ids"])

    words = getattr(tokenizer, "tokenizer", None)
    vocabulary = words.get_vocab() if words is not None else tokenizer.encoder
    named = repr(sorted(vocabulary.items())).encode()
    text = _TorchText(network, encode, network.encode_text, count, most, named)
    return _Loaded(network, network.encode_image, own, text)


def _timm(settings: BackboneSettings) -> _Loaded:
    import timm

    name = f"local-dir:{local_folder(settings.path)}" if settings.path else str(settings.name)
    network = timm.create_model(name, pretrained=True, num_classes=0)
    own = of_timm(timm.data.resolve_model_data_config(network), f"timm's {name}")
    return _Loaded(network, network, own)


def _torchvision(settings: BackboneSettings) -> _Loaded:
    import torchvision

    name = str(settings.name)
    network = torchvision.models.get_model(name, weights="DEFAULT")
    for last in ("fc", "classifier", "head", "heads"):
        if hasattr(network, last):
            setattr(network, last, nn.Identity())
            return _Loaded(network, network)
    raise ConfigError(f"torchvision model '{name}' has no classifier this knows how to remove")


def _sha256(network: nn.Module) -> str:
    """Of all weights of a network, as they are stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def make_torchvision_importable() -> None:
    """Declare two operators of torchvision where its compiled part does not load.

    The builds of PyPI are for CUDA, and beside a torch for CPU even `import torchvision` fails,
    since it registers shapes for these. Its Python part, all that is needed here, works.
    """
    if torch.version.cuda is not None or not importlib.util.find_spec("torchvision"):
        return
    with contextlib.suppress(Exception):
        importlib.import_module("torchvision")
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)  # what it declares ends with it


_KEPT: list[Any] = []
