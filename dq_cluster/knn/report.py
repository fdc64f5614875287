"""What was found, as a page that people read: counts, a histogram, and grids of pictures."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from dq_cluster.errors import NotFoundError
from dq_cluster.evaluate.report import THUMBNAIL, GridRow, Picture
from dq_cluster.images.config import ImageLimits
from dq_cluster.images.thumbnail import thumbnail

_ACROSS = 8  # pictures of a group
_BARS = 40


def histogram(scores: np.ndarray) -> str:
    """How many have which score (n,), as SVG."""
    figure = Figure(figsize=(8, 3))
    axes = figure.subplots()
    axes.hist(scores, bins=_BARS, color="#4a78d6")
    axes.set(xlabel="score with the leader of the group", ylabel="images")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def grid(pictures: Iterable[tuple[str | None, str]], caption: str) -> GridRow | None:
    """The readable ones of some pictures, each a uri and its caption; the first stands alone.

    caption: of the first, above its own. None where not even two can be read.
    """
    readable = []
    for uri, below in pictures:
        try:
            readable.append(Picture(thumbnail(uri, ImageLimits(), THUMBNAIL), below))
        except NotFoundError:
            continue
        if len(readable) > _ACROSS:
            break
    if len(readable) < 2:
        return None
    first, *others = readable
    return GridRow(Picture(first.data, f"{caption} {first.caption}"), others)


def captions(
    uris: pa.Array | None, ids: pa.Array, notes: Sequence[str]
) -> list[tuple[str | None, str]]:
    """Uri and caption of images: the id and a note."""
    places = uris.to_pylist() if uris is not None else [None] * len(ids)
    names = ids.to_pylist()
    return [
        (place, f"{name} {note}".strip())
        for place, name, note in zip(places, names, notes, strict=True)
    ]
