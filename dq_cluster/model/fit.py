"""Training DeepQuan in one process: the reference for the distributed trainer.

Alternating optimisation: an epoch of gradient steps with the codebooks fixed, then a rotation
and Lloyd steps with the network fixed.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dq_cluster.errors import InputError
from dq_cluster.model import quantizer, scores
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.decoder import fit_decoder
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.neighbours import Positives, inverse, manifold_positives, nearest
from dq_cluster.model.quantizer import AllReduce, alone
from dq_cluster.model.standardize import (
    Moments,
    discriminative_components,
    moments,
    principal_components,
    view_moments,
)
from dq_cluster.model.step import Batch, training_loss

# The first fit finds rotation and centroids from nothing; later epochs follow the network. Few
# centroids converge slowly, so they get more rounds when the network is final; many need none.
_FIRST_ROUNDS = 10
_LATER_ROUNDS = 3
_LAST_ROUNDS_OF_FEW = 20
# Of k-means for the second code, as many as faiss takes.
_REFINE_ROUNDS = 25

# The settings that `prepare` depends on.
PREPARED_BY = ("objective", "components", "whitening", "neighbours")

OnEpoch = Callable[[int, dict[str, float]], None]


class Prepared(NamedTuple):
    """What training needs besides the features: the linear front, `mean` (D,) and `components`
    (D, kept), and every image's positives. Seeds and code lengths share it."""

    mean: Tensor
    components: Tensor
    positives: Positives


def prepare(
    features: np.ndarray,
    settings: ModelSettings,
    views: tuple[np.ndarray, np.ndarray] | None = None,
) -> Prepared:
    """Find the front and the positives of features (n, D) held in memory.

    views: the features (s, D) of some of the images, and those of another view of each (s, D).
    Of the settings only `PREPARED_BY` matter. Raises InputError for too few features.
    """
    if features.ndim != 2 or len(features) <= settings.neighbours:
        raise InputError(
            f"training needs features (n, D) of more than {settings.neighbours} images, "
            f"found {features.shape}"
        )
    data = torch.from_numpy(np.asarray(features, np.float32))
    network = DeepQuan(settings, data.shape[1])
    start(network, data, views)
    return Prepared(network.mean, network.components, find_positives(network, data))


def fit(
    features: np.ndarray,
    settings: ModelSettings,
    seed: int,
    on_epoch: OnEpoch | None = None,
    prepared: Prepared | None = None,
) -> DeepQuan:
    """Train on features (n, D) held in memory. Equal arguments give equal networks.

    prepared: of the same features and settings, and of views if there are any; default:
    `prepare` without views. on_epoch(epoch, summary) is called after every epoch with the mean
    of each loss term, `variance` (of the embedding, summed over dimensions) and `perplexity`
    (mean number of centroids in use per sub-space).
    """
    prepared = prepared or prepare(features, settings)
    torch.manual_seed(seed)
    data = torch.from_numpy(np.asarray(features, np.float32))
    network = DeepQuan(settings, data.shape[1])
    network.mean.copy_(prepared.mean)
    network.components.copy_(prepared.components)
    positives = prepared.positives
    optimizer, schedule = make_optimizer(network, settings, -(-len(data) // settings.batch_size))
    for epoch in range(settings.epochs):
        network.train()
        history = []
        for batch in batches(data, positives, settings.batch_size, seed=(seed, epoch)):
            loss, terms = training_loss(network, batch, settings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            history.append(terms)
        summary = {name: float(torch.stack([t[name] for t in history]).mean()) for name in terms}
        network.eval()
        summary |= update_quantizer(network, embed_all(network, data), epoch=epoch, seed=seed)
        if on_epoch is not None:
            on_epoch(epoch, summary)
    if settings.score_aware:
        fit_anchors(network, embed_all(network, data), seed=seed)
    if settings.refine_bits:
        fit_refine(network, embed_all(network, data), seed=seed)
    if settings.decode_hidden:
        learn_to_decode(network, embed_all(network, data), seed=seed)
    return network


def start(
    network: DeepQuan, features: Tensor, views: tuple[np.ndarray, np.ndarray] | None = None
) -> None:
    """Set the linear front of a new network from the features, and pairs of views if given."""
    stats, pairs = moments(features), None
    if views is not None and network.settings.objective == "semantic":
        one, other = (torch.from_numpy(np.asarray(side, np.float32)) for side in views)
        pairs = view_moments(one, other, stats.mean)
    set_front(network, stats, pairs)


def set_front(network: DeepQuan, stats: Moments, pairs: Moments | None) -> None:
    """Set the linear front of a network from the moments of all features, and of the differences
    between views where there are any."""
    kept = network.components.shape[1]
    if pairs is not None and pairs.number > kept:  # fewer say nothing of that many directions
        mean, components = discriminative_components(stats, pairs, kept, network.settings.whitening)
    else:
        mean, components = principal_components(stats, kept)
    network.mean.copy_(mean)
    network.components.copy_(components)


def find_positives(network: DeepQuan, features: Tensor) -> Positives:
    """Manifold positives of features (n, D) held in memory."""
    k = network.settings.neighbours
    standardized = network.standardize(features)
    ranked = nearest(standardized, standardized, k + 1)
    own = torch.arange(len(features))[:, None]
    # Oneself is first unless there are duplicates; then any k others will do.
    others = (ranked.rows != own).long()
    order = others.argsort(dim=1, descending=True, stable=True)[:, :k]
    graph = ranked.rows.gather(1, order).numpy()
    return manifold_positives(graph, k, inverse(graph))


def batches(
    features: Tensor, positives: Positives, batch_size: int, seed: tuple[int, int]
) -> Iterator[Batch]:
    """One epoch: every image once, in random order, with one positive drawn by weight."""
    generator = np.random.default_rng(seed)
    chances = positives.weights.cumsum(1)
    for rows in np.array_split(
        generator.permutation(len(features)), -(-len(features) // batch_size)
    ):
        draw = generator.random((len(rows), 1)) * chances[rows, -1:]
        place = (chances[rows] < draw).sum(1).clip(max=chances.shape[1] - 1)
        yield Batch(
            features[rows],
            features[positives.rows[rows, place]],
            torch.from_numpy(positives.weights[rows, place]),
        )


def make_optimizer(
    network: torch.nn.Module, settings: ModelSettings, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with one cycle of the learning rate over all epochs."""
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        settings.learning_rate,
        total_steps=settings.epochs * steps_per_epoch,
        # Not 0.1: OneCycleLR divides by pct_start * total_steps - 1, which must never be 0.
        pct_start=0.11,
    )
    return optimizer, schedule


@torch.no_grad()
def embed_all(network: DeepQuan, features: Tensor) -> Tensor:
    """Embeddings (n, dim) of features (n, D), a block at a time."""
    return torch.cat([network.embed(block) for block in features.split(8192)])


@torch.no_grad()
def update_quantizer(
    network: DeepQuan,
    embedding: Tensor,
    *,
    epoch: int,
    seed: int,
    all_reduce: AllReduce = alone,
    sample: Tensor | None = None,
) -> dict[str, float]:
    """Fit rotation and codebooks to (this worker's share of) the embeddings, the network fixed.

    Epoch 0 starts from new centroids, drawn from `sample` (which every worker must pass alike;
    default: the embeddings). Returns `variance` and `perplexity`.
    """
    geometry = network.geometry
    codebooks = network.codebooks
    rounds = _LATER_ROUNDS
    if geometry.nbits == 4 and epoch + 1 == network.settings.epochs:
        rounds = _LAST_ROUNDS_OF_FEW
    if epoch == 0:
        rounds = max(rounds, _FIRST_ROUNDS)
        source = embedding if sample is None else sample
        codebooks = quantizer.initial_codebooks(source, geometry.m, geometry.ksub, seed)
    for _ in range(rounds):
        codebooks = quantizer.lloyd(embedding, codebooks, 2, all_reduce)
        turn = quantizer.rotation(all_reduce(quantizer.cross_statistics(embedding, codebooks)))
        embedding = embedding @ turn
        network.rotation.copy_(network.rotation @ turn)
    codebooks = quantizer.lloyd(embedding, codebooks, 2, all_reduce)
    network.codebooks.copy_(codebooks)
    codes = quantizer.assign(embedding, codebooks)
    _, counts = quantizer.cell_statistics(embedding, codes, geometry.ksub)
    count = all_reduce(torch.tensor(float(len(embedding)), device=embedding.device))
    mean = all_reduce(embedding.sum(0)) / count
    square = all_reduce(embedding.square().sum()) / count
    return {
        "variance": float(square - mean.square().sum()),
        "perplexity": float(quantizer.perplexity(all_reduce(counts)).mean()),
    }


@torch.no_grad()
def fit_anchors(network: DeepQuan, sample: Tensor, *, seed: int) -> None:
    """Choose the anchors of score-aware assignment, once network, rotation, and
    centroids are final.

    sample: embeddings (s, dim), which every worker must pass alike.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(max(len(sample), scores.ANCHORS), generator=generator) % len(sample)
    shuffled = sample[order.to(sample.device)]
    # From both ends: an anchor says nothing of the error at other images.
    anchors, others = shuffled[: scores.ANCHORS], shuffled[-scores.ANCHORS :]
    network.anchors.copy_(anchors)
    network.offset.copy_(
        scores.mean_error(others, network.codebooks, anchors, network.geometry.metric)
    )


@torch.no_grad()
def fit_refine(
    network: DeepQuan,
    embedding: Tensor,
    *,
    seed: int,
    all_reduce: AllReduce = alone,
    sample: Tensor | None = None,
) -> None:
    """Fit the centroids of the second code, once network and rotation are final.

    Arguments as for `update_quantizer`. The rotation is left to the first code: a second one
    that is longer has less need of it.
    """
    second = network.geometry.refine
    assert second is not None
    centroids = quantizer.initial_codebooks(
        embedding if sample is None else sample, second.m, second.ksub, seed
    )
    network.refine_codebooks.copy_(
        quantizer.lloyd(embedding, centroids, _REFINE_ROUNDS, all_reduce)
    )


def learn_to_decode(network: DeepQuan, embedding: Tensor, *, seed: int) -> None:
    """Fit the decoder to embeddings (n, dim), once the codes are final."""
    codes = torch.cat([network.assign(block) for block in embedding.split(8192)])
    epochs = network.settings.decode_epochs
    fit_decoder(network.decode, codes, embedding, network.codebooks, epochs=epochs, seed=seed)
