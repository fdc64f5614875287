"""Models on storage: weights as safetensors beside a card that says how to use them.

    <index>/models/<digest>/model.safetensors
    <index>/models/<digest>/model.json

The digest covers the weights and everything that decides what a code means, so equal digests
mean interchangeable codes. Readers need neither torch nor pickle.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from dq_cluster.document import Document
from dq_cluster.errors import IntegrityError, NotFoundError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.run import Run
from dq_cluster.storage import Storage

LATEST = "latest"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CARD = re.compile(rf"models/{_DIGEST.pattern}/model\.json")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ModelCard(Document):
    """What `model.json` holds.

    network: the configuration of the network; preprocessing: how an image becomes the feature the
    network expects; words: how the model reads words, where it learned to; training and evaluation:
    summaries, not covered by the digest.
    """

    NAME: ClassVar[str] = "model card"

    digest: str
    geometry: CodeGeometry
    feature_dim: int
    network: dict[str, Any]
    preprocessing: dict[str, Any] = Field(default_factory=dict)
    words: dict[str, Any] = Field(default_factory=dict, exclude_if=lambda words: not words)
    training: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] = Field(default_factory=dict)

    @property
    def decodes(self) -> bool:
        """Whether the model has a decoder of its codes."""
        return bool(self.network.get("decode_hidden"))


def write_model(
    storage: Storage,
    tensors: Mapping[str, np.ndarray],
    *,
    geometry: CodeGeometry,
    feature_dim: int,
    network: dict[str, Any],
    preprocessing: dict[str, Any],
    training: dict[str, Any],
    evaluation: dict[str, Any],
    words: dict[str, Any] | None = None,
) -> ModelCard:
    """Store a model below the index at `storage`. Storing the same model twice is one model.

    `tensors` must hold `codebooks` (m, ksub, dsub) float32, `refine_codebooks` likewise where
    there is a second code, and for an IVF geometry `coarse_centroids` (nlist, dim) float32; all
    other names belong to the network.
    """
    expected: dict[str, tuple[int, ...]] = {"codebooks": (geometry.m, geometry.ksub, geometry.dsub)}
    if (second := geometry.refine) is not None:
        expected["refine_codebooks"] = (second.m, second.ksub, second.dsub)
    if geometry.nlist:
        expected["coarse_centroids"] = (geometry.nlist, geometry.dim)
    for name, shape in expected.items():
        stored = tensors[name].shape if name in tensors else None
        if stored != shape:
            raise IntegrityError(f"model tensor '{name}' must have shape {shape}, has {stored}")
    weights = save_tensors({name: np.ascontiguousarray(t) for name, t in tensors.items()})
    digest = _digest(weights, geometry, feature_dim, network, preprocessing, words or {})
    card = ModelCard(
        digest=digest,
        geometry=geometry,
        feature_dim=feature_dim,
        network=network,
        preprocessing=preprocessing,
        words=words or {},
        training=training,
        evaluation=evaluation,
    )
    storage.write(f"models/{digest}/model.safetensors", weights)
    # The card is written last: a model without a card does not exist.
    storage.create(f"models/{digest}/model.json", card.model_dump_json(indent=1).encode())
    return card


def list_models(storage: Storage) -> list[str]:
    """Digests of all complete models; what else lies in the folder is none."""
    names = (info.path.split("/")[1:] for info in storage.list("models"))
    return [
        digest for digest, *rest in names if rest == ["model.json"] and _DIGEST.fullmatch(digest)
    ]


def find_model(storage: Storage, name: str) -> ModelCard:
    """The model that a user means by `name`.

    `latest`: the one that was published last; the name of a training that has published one; a
    digest, or an unambiguous prefix of one. Raises NotFoundError, listing what exists, for another.
    """
    if name == LATEST:
        published = [info for info in storage.list("models") if _CARD.fullmatch(info.path)]
        if not published:
            raise NotFoundError(f"{storage.uri} has no model yet; 'dq-cluster train' makes one")
        newest = max(published, key=lambda info: (info.modified, info.path))
        return read_card(storage, newest.path.split("/")[1])
    if _RUN.fullmatch(name):
        trained = Run(storage.child(f"runs/{name}/train")).result()
        if isinstance(trained, str):
            return read_card(storage, trained)
    return read_card(storage, name)


def read_card(storage: Storage, digest: str) -> ModelCard:
    """The card of a model; `digest` may be an unambiguous prefix.

    Raises NotFoundError, listing what exists, for an unknown or ambiguous digest.
    """
    matches = [name for name in list_models(storage) if name.startswith(digest)]
    if len(matches) != 1:
        names = ", ".join(name[:12] for name in list_models(storage)) or "none"
        what = "no model" if not matches else f"{len(matches)} models"
        raise NotFoundError(
            f"{storage.uri} has {what} '{digest}'; models: {names} (or '{LATEST}', or the name of "
            "a training that has ended)"
        )
    name = f"models/{matches[0]}/model.json"
    return ModelCard.parse(storage.read(name), f"{storage.uri}/{name}")


def read_tensors(storage: Storage, card: ModelCard) -> dict[str, np.ndarray]:
    """All weights of the model. Raises IntegrityError when they do not match the digest."""
    name = f"models/{card.digest}/model.safetensors"
    weights = storage.read(name)
    actual = _digest(
        weights, card.geometry, card.feature_dim, card.network, card.preprocessing, card.words
    )
    if actual != card.digest:
        raise IntegrityError(
            f"{storage.uri}/{name} hashes to {actual[:12]}, not to its digest {card.digest[:12]}; "
            "restore the file or train again"
        )
    return dict(load_tensors(weights))


def _digest(
    weights: bytes,
    geometry: CodeGeometry,
    feature_dim: int,
    network: dict[str, Any],
    preprocessing: dict[str, Any],
    words: dict[str, Any],
) -> str:
    meaning = {
        "format": ModelCard.FORMAT,
        "geometry": geometry.model_dump(mode="json"),
        "feature_dim": feature_dim,
        "network": network,
        "preprocessing": preprocessing,
    }
    if words:  # without, a model has the digest that it had before there were words
        meaning["words"] = words
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(hashlib.sha256(weights).digest() + text).hexdigest()
