"""What score-aware assignment costs beside the nearest centroids.

    python benchmarks/assign.py [--rows 20000] [--threads 2]

Embeddings and centroids are random: the time depends on sizes alone. docs/experiments.md says what
the codes gain in quality.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dq_cluster.model import quantizer, scores

DIM = 64
SIZES: tuple[tuple[int, Literal[4, 8]], ...] = (
    (16, 4),
    (16, 8),
    (32, 4),
    (32, 8),
    (64, 4),
    (64, 8),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(asked.threads)
    embedding = F.normalize(torch.randn(asked.rows, DIM), dim=1)
    anchors, offset = embedding[: scores.ANCHORS], torch.zeros(())
    for bits, nbits in SIZES:
        centroids = quantizer.initial_codebooks(embedding, bits // nbits, 1 << nbits, 0)
        seconds = {
            "nearest": _seconds(partial(quantizer.assign, embedding, centroids)),
            "score_aware": _seconds(
                partial(scores.assign, embedding, centroids, anchors, offset, "l2")
            ),
        }
        row: dict[str, float] = {"bits": bits, "nbits": nbits}
        row |= {f"{name}_codes_per_s": round(asked.rows / s) for name, s in seconds.items()}
        row["times_as_long"] = round(seconds["score_aware"] / seconds["nearest"], 1)
        print(json.dumps(row), flush=True)


def _seconds(run: Callable[[], Tensor]) -> float:
    run()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
