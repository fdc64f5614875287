"""The two stages of encoding, measured on a source's first images, in this process."""

import time
from collections.abc import Iterable
from itertools import islice

import numpy as np

from dq_cluster.building.choose import Stages
from dq_cluster.encoding.load import Expectation, load
from dq_cluster.errors import InputError
from dq_cluster.images.backbone import Backbone
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.units import Unit

IMAGES = 200
_BATCH = 16


def measure_stages(source: SourceSettings, units: Iterable[Unit], backbone: Backbone) -> Stages:
    """Seconds per image of each stage, on at most `IMAGES` images of the first of `units`.

    backbone: with one thread. Raises InputError where none of the images can be decoded.
    """
    pixels: list[np.ndarray] = []
    decode_s, count, rejects = 0.0, 0, 0
    expected = Expectation(backbone.frame, backbone.feature_dim)
    for chunk in load(source, _first(units), expected):
        decode_s += chunk.seconds
        pixels.append(chunk.payload)
        count += len(chunk.payload)
        rejects += chunk.rejects.num_rows
        if count + rejects >= IMAGES:
            break
    if not count:
        raise InputError(f"none of the first {rejects:,} images of {source.uri} can be decoded")
    sample = np.concatenate([part for part in pixels if len(part)])[:IMAGES]
    backbone.features(sample[:_BATCH])  # the first call sets up
    started = time.perf_counter()
    for start in range(0, len(sample), _BATCH):
        backbone.features(sample[start : start + _BATCH])
    embed_s = (time.perf_counter() - started) / len(sample)
    return Stages(decode_s / (count + rejects), embed_s)


def _first(units: Iterable[Unit]) -> list[Unit]:
    """Units with at least `IMAGES` rows, cut to that; one whose rows are not known is enough."""
    chosen, rows = [], 0
    for unit in islice(units, IMAGES):
        chosen.append(unit._replace(rows=min(unit.rows, IMAGES - rows)))
        rows += unit.rows or IMAGES
        if rows >= IMAGES:
            break
    return chosen
