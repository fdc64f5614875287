"""What a build chooses by itself, and what it will take. Decisions only."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from dq_cluster.encoding.config import PoolSettings

# From here on scanning all codes for every query is felt.
_CELLS_FROM = 1_000_000
_ROWS_PER_CELL = 39  # that training a cell needs
# More threads than this gain little in one network on CPU.
_THREADS = 4


class Stages(NamedTuple):
    """Seconds of one core for an image: to read and decode it, and for the backbone."""

    decode_s: float
    embed_s: float


class Forecast(NamedTuple):
    """seconds: of decoding and the backbone, by all cores. disk: bytes that are written."""

    seconds: float
    disk: int


def choose_pool(stages: Stages, cpus: int, claims: int) -> PoolSettings:
    """Divide the `cpus` cores of a node so that both stages take equally long.

    Encoders of at most four threads each; decoders are tasks of each encoder. Where one stage
    needs less than a core, the other one uses the rest of it. claims: logical CPUs that Ray has on
    the node.
    """
    share = stages.embed_s / max(stages.decode_s + stages.embed_s, 1e-9)
    threads = max(1, math.ceil(cpus * share - 0.25))
    encoders = max(1, min(math.ceil(threads / _THREADS), claims // 2))
    decoders = math.ceil((cpus * (1 - share) - 0.25) / encoders)
    most = claims // encoders - 1  # that Ray has room for
    return PoolSettings(
        encoders=encoders,
        decoders=max(1, min(decoders, most)),
        threads=max(1, round(threads / encoders)),
    )


def on_all(pool: PoolSettings, nodes: Sequence[int]) -> PoolSettings:
    """The pool of one node, as often as all `nodes` (logical CPUs of each) have room for it."""
    encoders = sum(min(pool.encoders, cpus // pool.cpus) for cpus in nodes)
    return pool.model_copy(update={"encoders": max(1, encoders)})


def choose_cells(images: int, sample: int) -> int:
    """Coarse cells for so many images, a power of two near four times their root; 0: none."""
    if images < _CELLS_FROM:
        return 0
    most = min(4 * math.isqrt(images), min(images, sample) // _ROWS_PER_CELL)
    return 1 << max(most.bit_length() - 1, 0)


def passes(images: int, sample: int, second_views: float) -> tuple[float, float]:
    """How many images are decoded, and how many pass the backbone, second views among them.

    Where all images are in the sample, their features are kept and become codes at once.
    """
    trained = min(images, sample)
    rest = 0 if images <= sample else images
    return trained + rest, trained * (1 + second_views) + rest


def forecast(
    stages: Stages,
    images: int,
    sample: int,
    *,
    second_views: float,
    cpus: int,
    feature_bytes: int,
    code_bytes: int,
) -> Forecast:
    """feature_bytes: of one image's features, without a second view; code_bytes: of a code."""
    decoded, embedded = passes(images, sample, second_views)
    seconds = (decoded * stages.decode_s + embedded * stages.embed_s) / max(cpus, 1)
    trained = min(images, sample)
    disk = trained * feature_bytes * (1 + second_views) + images * code_bytes
    return Forecast(seconds, round(disk))
