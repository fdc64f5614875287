"""`build`, for a program or a notebook: from a place, or from pictures in memory."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dq_cluster.building.config import BuildSettings
from dq_cluster.building.run import build
from dq_cluster.config import validate_settings
from dq_cluster.errors import InputError
from dq_cluster.images.kinds import kind_of
from dq_cluster.location import absolute
from dq_cluster.storage import Storage

Picture = np.ndarray | Image.Image | bytes | Path
_ROW_GROUP = 256


def build_index(
    pile: str | Path | Sequence[Picture],
    index: str | Path,
    *,
    ids: Sequence[int] | Sequence[str] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Make an index of `pile`; the same call continues a build, and returns what `build` does.

    pile: a folder of pictures, of Parquet files, or of tars, here or on s3://; or pictures: arrays
    (h, w, 3) or (h, w) uint8, Pillow's images, encoded bytes, or files. Pictures in memory are kept
    in `<index>/images/`, as PNG unless they were encoded. ids: of pictures in memory (default: 0,
    1, …). settings: those of BuildSettings, `model={"bits": 128}` for example. Raises InputError
    for what is no picture, and what `build` raises.
    """
    place = absolute(str(index))
    if isinstance(pile, str | Path):
        uri = absolute(str(pile))
        source = {"uri": uri, "kind": kind_of(uri)}
    else:
        source = {"uri": _kept(pile, ids, Storage(place)), "kind": "parquet"}
    source |= settings.pop("source", {})
    asked = {"index": place, "source": source, **settings}
    return build(validate_settings(BuildSettings, asked, "build_index"))


def _kept(
    pictures: Sequence[Picture], ids: Sequence[int] | Sequence[str] | None, index: Storage
) -> str:
    """Where the pictures are kept: a Parquet file that is named by what is in it."""
    ids = range(len(pictures)) if ids is None else ids
    if len(ids) != len(pictures):
        raise InputError(f"{len(pictures)} pictures have {len(ids)} ids; give one for each")
    sink, digest = pa.BufferOutputStream(), hashlib.sha256()
    names = pa.array(ids)
    schema = pa.schema([("id", names.type), ("image", pa.binary())])
    with pq.ParquetWriter(sink, schema) as writer:
        for start, group in _groups(pictures):
            rows = names.slice(start, len(group))
            writer.write_table(pa.table({"id": rows, "image": group}, schema=schema))
            for id, image in zip(rows.to_pylist(), group, strict=True):
                digest.update(f"{id}\0{len(image)}\0".encode() + image)
    path = f"images/{digest.hexdigest()[:16]}.parquet"
    if not index.exists(path):
        index.write(path, sink.getvalue().to_pybytes())
    return f"{index.uri}/{path}"


def _groups(pictures: Iterable[Picture]) -> Iterator[tuple[int, list[bytes]]]:
    group: list[bytes] = []
    start = 0
    for number, picture in enumerate(pictures):
        group.append(_encoded(picture, number))
        if len(group) == _ROW_GROUP:
            yield start, group
            start, group = number + 1, []
    if group:
        yield start, group


def _encoded(picture: Picture, number: int) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Path):
        return picture.read_bytes()
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            raise InputError(
                f"picture {number} is an array of {picture.dtype} {picture.shape}; give uint8 of "
                "(h, w, 3) or (h, w)"
            )
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise InputError(f"picture {number} is a {type(picture).__name__}, not a picture")
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()
