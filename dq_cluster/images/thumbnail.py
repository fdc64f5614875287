"""Small pictures of images that were featurized or encoded, by their URI.

Only an image comes out: whatever a `uri` names is decoded and encoded again, so a pile that
lists other files cannot be used to read them. Nothing is fetched over HTTP.
"""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dq_cluster.errors import DqError, NotFoundError
from dq_cluster.images.config import ImageLimits
from dq_cluster.images.decode import decode_image
from dq_cluster.storage import Storage

_IMAGE_COLUMN = "image"


def thumbnail(uri: str | None, limits: ImageLimits, size: int = 160) -> bytes:
    """A JPEG of the middle of the image at `uri`, `size` pixels a side.

    The URI is that of a file, or `<file>.parquet#<row>` for a row with the bytes of an image in
    the column `image`. Raises NotFoundError where there is no picture.
    """
    folder, _, name = (uri or "").rpartition("/")
    file, _, row = name.rpartition("#")
    try:
        if not folder:
            raise NotFoundError("no picture")
        storage = Storage(folder)
        if file.endswith(".parquet") and row.isdecimal():
            data = _row(storage, file, int(row), limits.max_bytes)
        elif storage.size(name) > limits.max_bytes:
            raise NotFoundError("no picture")
        else:
            data = storage.read(name)
        pixels = decode_image(data, size, limits)
    except (DqError, pa.ArrowException):
        raise NotFoundError("the index names no readable picture for this image") from None
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=85)
    return out.getvalue()


def _row(storage: Storage, name: str, row: int, max_bytes: int) -> bytes:
    """The image of one row. Its whole row group is read, if it has no more than `max_bytes`."""
    with storage.open(name) as handle:
        file = pq.ParquetFile(handle)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        ends = np.cumsum([group.num_rows for group in groups])
        at = int(np.searchsorted(ends, row, side="right"))
        place = file.schema_arrow.get_field_index(_IMAGE_COLUMN)
        if at == len(groups) or place < 0 or groups[at].total_byte_size > max_bytes:
            raise NotFoundError("no picture")
        image = file.read_row_group(at, columns=[_IMAGE_COLUMN]).column(_IMAGE_COLUMN)
        data = image[row - int(ends[at]) + groups[at].num_rows].as_py()
    if not isinstance(data, bytes):
        raise NotFoundError("no picture")
    return data
