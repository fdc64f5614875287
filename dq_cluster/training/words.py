"""Words for a trained model: a network learned from captions, or the mean of a sample of texts."""

import logging
from typing import Any, NamedTuple

import numpy as np
import torch

from dq_cluster.errors import InputError
from dq_cluster.images.backbone import load_backbone
from dq_cluster.images.features import FeatureSet
from dq_cluster.images.sentences import Sentences
from dq_cluster.images.text import clean
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.words import FEWEST, Pairs, WordsNetwork, fit_words
from dq_cluster.storage import Storage
from dq_cluster.training.config import TrainSettings
from dq_cluster.training.rows import TrainingRows

logger = logging.getLogger(__name__)

_MOST = 200_000  # pairs that are learned from
_TEXTS = 50_000  # lines of `texts` that are read
_TEXT_BATCH = 64


class Learned(NamedTuple):
    """What goes into the model: `about` into its card, tensors; and what was measured."""

    about: dict[str, Any]
    tensors: dict[str, np.ndarray]
    measured: dict[str, float]


def check_words(settings: TrainSettings, features: FeatureSet) -> None:
    """Raise InputError where there is nothing to learn words from, before work starts."""
    if settings.captions:
        features.texts(settings.captions, 0, 1)
    if settings.texts and features.preprocessing.get("kind", "none") == "none":
        raise InputError(
            "texts are for the text network of a backbone, and these features do not say which "
            "backbone made them; featurize the images with one, or give captions"
        )


def learn_words(settings: TrainSettings, network: DeepQuan, rows: TrainingRows) -> Learned | None:
    """Learn from `settings.captions`, or measure `settings.texts`; None without both."""
    if settings.captions:
        return _from_captions(settings, settings.captions, network, rows)
    if settings.texts:
        return _from_texts(settings.texts, network, rows.features)
    return None


def _from_captions(
    settings: TrainSettings, column: str, network: DeepQuan, rows: TrainingRows
) -> Learned:
    sentences = Sentences(settings.sentences)
    texts, embeddings, held_out = _pairs(column, network, rows, settings.seed)
    learned = ~held_out
    if (count := int(learned.sum())) < FEWEST:
        raise InputError(
            f"{rows.features.storage.uri} has {count} captions in '{column}' to learn from; words "
            f"need at least {FEWEST}"
        )
    vectors, cut = sentences.many(texts)
    if cut:
        most = sentences.tower.max_tokens
        logger.warning("%d captions are longer than %d tokens and were cut", cut, most)
    _, group = np.unique(np.array(texts, object), return_inverse=True)
    words = fit_words(
        Pairs(vectors[learned], embeddings[learned], group[learned]), seed=settings.seed
    )
    measured = {"captions": float(count), "captions_cut": float(cut)}
    if held_out.any():
        measured |= _measured(words, vectors[held_out], embeddings[held_out])
    about = {"kind": "captions", "network": words.about, "sentences": sentences.about}
    tensors = {name: tensor.numpy() for name, tensor in words.state_dict().items()}
    return Learned(about, tensors, measured)


def _pairs(
    column: str, network: DeepQuan, rows: TrainingRows, seed: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Captions, the embeddings (n, dim) of their images, and which are held out (n,); a random
    part of them where there are more than can be learned from."""
    share = min(1.0, _MOST / rows.features.rows)
    random = np.random.default_rng(seed)
    texts: list[str] = []
    embeddings, held_out = [np.empty((0, network.settings.dim), np.float32)], [np.empty(0, bool)]
    for piece in rows.pieces():
        captions = rows.features.texts(column, piece.start, piece.stop)
        words = [_words(caption) for caption in captions]
        kept = np.array([word is not None for word in words], bool)
        kept &= random.random(len(words)) < share
        features = rows.features.read(piece.start, piece.stop)[kept]
        with torch.inference_mode():
            embeddings.append(network.embed(torch.from_numpy(features)).float().numpy())
        texts += [word for word, keep in zip(words, kept, strict=True) if keep and word]
        held_out.append(rows.split.held_out(np.arange(piece.start, piece.stop)[kept]))
    return texts, np.concatenate(embeddings), np.concatenate(held_out)


def _words(caption: str | None) -> str | None:
    """A caption as it is read; None for one that says nothing."""
    try:
        return clean(caption) if caption else None
    except InputError:
        return None


def _measured(words: WordsNetwork, vectors: np.ndarray, embeddings: np.ndarray) -> dict[str, float]:
    """How often the image of a caption is among the ten nearest of all that were held out."""
    with torch.inference_mode():
        scores = words(torch.from_numpy(vectors)) @ torch.from_numpy(embeddings).T
    own = scores.diagonal()[:, None]
    found = (scores > own).sum(1) < 10
    return {"words_queries": float(len(vectors)), "words_recall_at_10": float(found.float().mean())}


def _from_texts(uri: str, network: DeepQuan, features: FeatureSet) -> Learned:
    tower = load_backbone(features.preprocessing).text
    if tower is None:
        raise InputError(
            f"the backbone of {features.storage.uri} has no text network, which texts are for; "
            "leave out texts, or give captions"
        )
    folder, _, name = uri.rpartition("/")
    lines = Storage(folder or "/").read(name).decode("utf-8", "replace").splitlines()[:_TEXTS]
    texts = [word for word in map(_words, lines) if word]
    if len(texts) < FEWEST:
        raise InputError(f"{uri} has {len(texts)} lines of text; the mean needs {FEWEST}")
    total = np.zeros(features.dim)
    for start in range(0, len(texts), _TEXT_BATCH):
        total += tower.features(texts[start : start + _TEXT_BATCH], cut=True).sum(0)
    mean = (total / len(texts)).astype(np.float32)
    gap = float(np.linalg.norm(mean - network.mean.numpy()))
    return Learned(
        {"kind": "tower"}, {"text_mean": mean}, {"texts": float(len(texts)), "modality_gap": gap}
    )
