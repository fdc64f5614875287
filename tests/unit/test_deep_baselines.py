"""Neural hashing for comparison: learns better than its random start, and alike by seed."""

from dataclasses import dataclass

import numpy as np
import pytest

from dq_cluster.evaluate.baselines import BASELINES, deep
from dq_cluster.evaluate.metrics import mean_average_precision

METHODS: dict[str, tuple[deep.Loss, tuple[int, ...]]] = {
    "DH": (deep.deep_hashing, (64,)),
    "DeepBit": (deep.deep_bit, ()),
    "GreedyHash": (deep.greedy_hash, ()),
    "BiHalf": (deep.bi_half, ()),
    "CIBHash": (deep.cib_hash, (64,)),
}


@dataclass(frozen=True)
class Pile:
    features: np.ndarray
    labels: np.ndarray


@pytest.fixture(scope="module")
def pile() -> Pile:
    """Ten classes in 32 of 64 dimensions; the others are louder, and say nothing."""
    rng = np.random.default_rng(0)
    centres = np.concatenate([rng.normal(size=(10, 32)), np.zeros((10, 32))], 1)
    labels = rng.integers(10, size=1200)
    features = centres[labels] + 0.9 * rng.normal(size=(1200, 64))
    return Pile(features.astype(np.float32), labels)


def quality(codes: list[np.ndarray], pile: Pile) -> float:
    base, queries = codes
    distance = (queries[:, None] != base[None]).sum(2)
    found = np.argsort(distance, axis=1, kind="stable")[:, :50]
    return mean_average_precision(found, pile.labels[1000:], pile.labels[:1000], 50)


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_equal_seeds_learn_alike(name: str, pile: Pile) -> None:
    assert name in BASELINES
    loss, hidden = METHODS[name]
    base, queries = pile.features[:1000], pile.features[1000:]

    def codes(epochs: int, seed: int) -> list[np.ndarray]:
        method = deep.trained(loss, hidden=hidden, epochs=epochs)
        return method(base, [base, queries], 16, seed)

    starts, ends = ([codes(epochs, seed) for seed in range(3)] for epochs in (0, 20))
    before, after = (np.mean([quality(each, pile) for each in some]) for some in (starts, ends))
    assert after > before + 0.02, (before, after)
    for one, other in zip(codes(20, 0), ends[0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert (ends[0][0] != ends[1][0]).any()
