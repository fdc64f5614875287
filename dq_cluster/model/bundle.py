"""Saving a trained DeepQuan below an index, and loading it again."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dq_cluster.config import validate_settings
from dq_cluster.errors import IntegrityError
from dq_cluster.index.models import ModelCard, read_card, read_tensors, write_model
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.storage import Storage

# Not of the network, but of the cells of an IVF version, and of what reads words.
_CELLS = "coarse_centroids"
_WORDS = "words."


def save_model(
    index_storage: Storage,
    network: DeepQuan,
    *,
    cells: np.ndarray | None = None,
    preprocessing: dict[str, Any],
    training: dict[str, Any],
    evaluation: dict[str, Any],
    words: tuple[dict[str, Any], Mapping[str, np.ndarray]] | None = None,
) -> ModelCard:
    """Store `network` as a model of the index; the card's digest names it from then on.

    cells: centroids (nlist, dim) of the coarse cells of an IVF model; preprocessing says how an
    image becomes the feature the network takes; training and evaluation are summaries for people.
    words: how the model reads words, and the tensors for it.
    """
    tensors = {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}
    geometry = network.geometry
    if cells is not None:
        tensors[_CELLS] = cells
        geometry = geometry.model_copy(update={"nlist": len(cells)})
    about, of_words = words or ({}, {})
    tensors |= {_WORDS + name: array for name, array in of_words.items()}
    return write_model(
        index_storage,
        tensors,
        geometry=geometry,
        feature_dim=network.feature_dim,
        network=network.settings.model_dump(mode="json"),
        preprocessing=preprocessing,
        training=training,
        evaluation=evaluation,
        words=about,
    )


def load_model(index_storage: Storage, digest: str) -> tuple[DeepQuan, ModelCard]:
    """The network of a model, ready to embed, and its card. `digest` may be a unique prefix.

    Raises NotFoundError for an unknown digest and IntegrityError for weights that do not match.
    """
    card = read_card(index_storage, digest)
    network = DeepQuan(
        validate_settings(ModelSettings, card.network, f"model {card.digest[:12]}"),
        card.feature_dim,
    )
    tensors = {
        name: torch.from_numpy(array.copy())
        for name, array in read_tensors(index_storage, card).items()
        if name != _CELLS and not name.startswith(_WORDS)
    }
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise IntegrityError(f"model {card.digest[:12]}: {' '.join(str(error).split())}") from None
    return network.eval(), card


def load_words(index_storage: Storage, card: ModelCard) -> dict[str, np.ndarray]:
    """The tensors with which a model reads words. Raises IntegrityError as `load_model` does."""
    return {
        name.removeprefix(_WORDS): array
        for name, array in read_tensors(index_storage, card).items()
        if name.startswith(_WORDS)
    }
