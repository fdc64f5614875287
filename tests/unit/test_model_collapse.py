"""What the triplet and manifold terms are for (Chen et al. 2018: "to avoid trivial solution")."""

import numpy as np

from dq_cluster.model.config import ModelSettings
from dq_cluster.model.fit import fit


def final_summary(**weights: float) -> dict[str, float]:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(6, 48))
    features = centres[np.arange(600) % 6] + 3 * generator.normal(size=(600, 48))
    settings = ModelSettings(
        dim=16,
        bits=32,
        nbits=4,
        hidden=(32,),
        components=24,
        neighbours=20,
        batch_size=100,
        epochs=60,
        learning_rate=5e-2,
        quantization_weight=1.0,
        **weights,
    )
    summaries: list[dict[str, float]] = []
    fit(features.astype("f4"), settings, 0, lambda epoch, summary: summaries.append(summary))
    return summaries[-1]


def test_training_for_quantization_alone_collapses() -> None:
    collapsed = final_summary(triplet_weight=0, manifold_weight=0)
    assert collapsed["variance"] < 0.5
    # All images in one place are easy to quantize and impossible to tell apart.
    assert collapsed["quantization"] < 1e-3


def test_the_triplet_term_keeps_images_apart() -> None:
    whole = final_summary()
    # A unit vector's variance over the pile is at most 1.
    assert whole["variance"] > 0.9
    assert whole["perplexity"] > 12


def test_the_manifold_term_alone_keeps_images_apart_too() -> None:
    assert final_summary(triplet_weight=0, manifold_weight=20)["variance"] > 0.5
