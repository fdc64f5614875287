"""Small pictures of images that were featurized or encoded, by their URI.

Only an image comes out: whatever a `uri` names is decoded and encoded again, so a dataset that
lists other files cannot be used to read them. Nothing is fetched over HTTP.
"""

import io
import re
import tarfile
import time
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dq_cluster.errors import DqError, NotFoundError
from dq_cluster.images.columns import column_of, payload_column
from dq_cluster.images.config import ImageLimits
from dq_cluster.images.decode import decode_image
from dq_cluster.images.tables import PARQUET, SUFFIXES, open_rows
from dq_cluster.images.tars import choose_image, is_image, split_member
from dq_cluster.images.values import as_images, may_be_images
from dq_cluster.storage import Storage

_ROW = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, SUFFIXES))}))#(\d+)", re.IGNORECASE)
_MEMBER = re.compile(r"(.+?\.(?:tar(?:\.gz|\.bz2|\.xz)?|tgz|tbz2?|txz))#(.+)", re.IGNORECASE)


def thumbnail(uri: str | None, limits: ImageLimits, size: int = 160) -> bytes:
    """A JPEG of the middle of the image at `uri`, `size` pixels a side.

    The URI is that of a file, `<file>.parquet#<row>` for a row with an image in the column `image`
    or in the only column that may be one, or `<file>.tar#<key>` for a sample of a WebDataset.
    Raises NotFoundError where there is no picture.
    """
    row, member = _ROW.fullmatch(uri or ""), _MEMBER.fullmatch(uri or "")
    inside = row or member
    folder, _, name = (inside[1] if inside else uri or "").rpartition("/")
    try:
        if not folder:
            raise NotFoundError("no picture")
        storage = Storage(folder)
        if row:
            data = _row(storage, name, int(row[2]), limits.max_bytes)
        elif member:
            data = _member(storage, name, member[2], limits)
        elif storage.size(name) > limits.max_bytes:
            raise NotFoundError("no picture")
        else:
            data = storage.read(name)
        pixels = decode_image(data, size, limits)
    except (DqError, pa.ArrowException, tarfile.TarError, zlib.error, EOFError, OSError):
        raise NotFoundError("the index names no readable picture for this image") from None
    return small_jpeg(pixels, size)


def small_jpeg(pixels: np.ndarray, size: int) -> bytes:
    """A square of pixels (s, s, 3) uint8 as a JPEG of at most `size` pixels a side."""
    image, out = Image.fromarray(pixels), io.BytesIO()
    if size < image.width:
        image = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
    image.save(out, "JPEG", quality=85)
    return out.getvalue()


def _row(storage: Storage, name: str, row: int, max_bytes: int) -> bytes:
    """The image of one row. Its whole row group is read, if it has no more than `max_bytes`."""
    if name.lower().endswith(PARQUET):
        with storage.open(name) as handle:
            metadata = pq.read_metadata(handle)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        ends = np.cumsum([group.num_rows for group in groups])
        at = int(np.searchsorted(ends, row, side="right"))
        if at == len(groups) or groups[at].total_byte_size > max_bytes:
            raise NotFoundError("no picture")
    file = open_rows(storage, name)
    column = payload_column(file.schema, "image", "image", "images", may_be_images)
    for table in file.batches(row, row + 1, [column], 1):
        images = column_of(table, column)
        data = as_images(images.type).read(images)[0].as_py()
        if isinstance(data, bytes):
            return data
    raise NotFoundError("no picture")


def _member(storage: Storage, name: str, key: str, limits: ImageLimits) -> bytes:
    """The image of one sample. A tar has no table of contents: headers are read up to it."""
    deadline = time.monotonic() + limits.max_seconds
    members: dict[str, tarfile.TarInfo] = {}
    with storage.open(name) as handle, tarfile.open(fileobj=handle, mode="r:*") as tar:
        for member in tar:
            part_of, extension = split_member(member.name)
            if part_of == key and member.isreg() and extension not in members:
                members[extension] = member
            elif members or time.monotonic() > deadline:
                break
        chosen = choose_image([name for name in members if is_image(name)])
        content = tar.extractfile(members[chosen]) if chosen else None
        if chosen is None or content is None or members[chosen].size > limits.max_bytes:
            raise NotFoundError("no picture")
        return content.read()
