"""From words to an embedding, with what the model of a version has for that."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from dq_cluster.images.backbone import Backbone
from dq_cluster.images.sentences import Sentences
from dq_cluster.index.models import ModelCard
from dq_cluster.model.bundle import load_words
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.words import from_tensors
from dq_cluster.storage import Storage

# Texts to embeddings (n, dim); InputError for a text that is longer than the network reads.
Reader = Callable[[Sequence[str]], np.ndarray]


def load_reader(
    storage: Storage, card: ModelCard, network: DeepQuan, backbone: Backbone | None
) -> Reader | None:
    """What reads words for a model, if anything does: learned from captions, or the backbone."""
    tensors = load_words(storage, card) if card.words else {}
    if card.words.get("kind") == "captions":
        sentences = Sentences(card.words["sentences"])
        words = from_tensors(card.words["network"], tensors)

        def by_captions(texts: Sequence[str]) -> np.ndarray:
            vectors = sentences.tower.features(texts)
            with torch.inference_mode():
                return words(torch.from_numpy(vectors)).numpy()

        return by_captions
    if backbone is None or backbone.text is None:
        return None
    tower = backbone.text
    mean = tensors.get("text_mean")
    # Texts lie apart from images: each is moved as the mean text is to the mean image.
    shift = 0 if mean is None else network.mean.numpy() - mean

    def by_tower(texts: Sequence[str]) -> np.ndarray:
        features = np.asarray(tower.features(texts) + shift, np.float32)
        with torch.inference_mode():
            return network.embed(torch.from_numpy(features)).numpy()

    return by_tower
