"""What kind of source a place holds, told by its files."""

import os
from collections import Counter
from itertools import islice

from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.images.config import SourceKind
from dq_cluster.images.tables import SUFFIXES as TABLES
from dq_cluster.images.tars import SUFFIXES as TARS
from dq_cluster.storage import Storage

_LOOKED_AT = 1000


def kind_of(uri: str) -> SourceKind:
    """`parquet` or `webdataset` where most of the first files are tables or tars, else `folder`.

    Raises NotFoundError for a place that does not exist, and InputError for one without files.
    """
    storage = Storage(uri)
    if not storage.exists():
        raise NotFoundError(f"{uri} does not exist")
    if not os.path.isdir(uri) and (kind := _kind_of_file(uri.lower())) != "folder":
        return kind
    names = [info.path for info in islice(storage.list(), _LOOKED_AT)]
    kinds = Counter(_kind_of_file(name.lower()) for name in names)
    if not names:
        raise InputError(f"{uri} holds no files; give a folder of pictures, tables, or tars")
    return max(("folder", "parquet", "webdataset"), key=lambda kind: kinds[kind])


def _kind_of_file(name: str) -> SourceKind:
    if name.endswith(TABLES):
        return "parquet"
    return "webdataset" if name.endswith(TARS) else "folder"
