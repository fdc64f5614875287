"""Pictures of answers, for notebooks. Needs matplotlib (the extra `evaluate`)."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread

from dq_cluster.client import Client
from dq_cluster.errors import NotFoundError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ACROSS = 6  # pictures in a row
_INCHES = 1.6  # of a picture's side


def neighbours(client: Client, *, k: int = 11, **query: Any) -> Figure:
    """The query, where it is an image or an id, and its neighbours with their scores.

    query: as for `Client.search`, with one subject. A neighbour whose picture cannot be read is an
    empty square with its id. Raises what `Client.search` raises.
    """
    hits = client.search(k=k, **query).hits[0]
    titles = [f"{hit.score:.3f}" for hit in hits]
    pictures = [_picture(client, hit.id) for hit in hits]
    names = [str(hit.id) for hit in hits]
    if query.get("image") is not None:
        titles, names = ["query", *titles], ["", *names]
        pictures = [_pixels(query["image"]), *pictures]
    elif query.get("id") is not None:
        titles, names = ["query", *titles], [str(query["id"]), *names]
        pictures = [_picture(client, query["id"]), *pictures]
    rows = -(-max(len(titles), 1) // _ACROSS)
    figure = Figure(figsize=(_ACROSS * _INCHES, rows * (_INCHES + 0.3)), layout="constrained")
    grid = figure.subplots(rows, _ACROSS, squeeze=False)
    for place in grid.flat:
        place.set_axis_off()
    for place, picture, title, name in zip(grid.flat, pictures, titles, names, strict=False):
        _draw(place, picture, title, name)
    return figure


def _draw(place: "Axes", picture: np.ndarray | None, title: str, name: str) -> None:
    place.set_title(title, fontsize=8)
    if picture is not None:
        place.imshow(picture)
    else:
        place.text(0.5, 0.5, name, ha="center", va="center", fontsize=7, wrap=True)


def _picture(client: Client, id: int | str) -> np.ndarray | None:
    try:
        return np.asarray(imread(io.BytesIO(client.picture(id)), format="jpeg"))
    except NotFoundError:
        return None


def _pixels(image: bytes | Path) -> np.ndarray:
    from PIL import Image, ImageOps

    opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
    return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
