"""Sources of images or features, listed as units and read as Arrow tables."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import pyarrow as pa

from dq_cluster.images.config import SourceSettings
from dq_cluster.images.files import Folder
from dq_cluster.images.inventory import Inventory
from dq_cluster.images.parquet import ParquetRows
from dq_cluster.images.skipped import Skipped
from dq_cluster.images.tars import WebDataset
from dq_cluster.images.units import Unit
from dq_cluster.storage import FileInfo

_FILES = ("folder", "webdataset")  # kinds whose images are files, not rows


class Source(Protocol):
    """A collection of images or features, on storage.

    `read` yields tables with the columns `id` (string or int64, null where the input has none),
    `uri`, the carried columns, `reason` (null, or why there is nothing to decode), and `image`
    (binary) or `feature` (lists).
    skipped counts what `units` and `read` leave out.
    """

    skipped: Skipped

    def listing(self) -> Iterator[FileInfo]:
        """The files, in the order of their paths, that the names do not rule out, as a stream."""

    def holds(self, info: FileInfo) -> bool:
        """Whether a file of `listing` belongs to the dataset; its first bytes may be read."""

    def units(self) -> Iterator[Unit]:
        """List the dataset, as a stream. Raises InputError where a file has another schema."""

    def read(self, units: Iterable[Unit], rows: int) -> Iterator[pa.Table]:
        """Read units in order, in tables of at most `rows` rows.

        Raises StorageError where storage fails, and InputError where a file is not the one that
        was planned; what is wrong with the data is a `reason`.
        """


def source_schema(settings: SourceSettings) -> pa.Schema:
    """The types of `id` and the carried columns of a source: one each for all its files.

    Raises InputError, naming the file, for types that do not go together or cannot be carried.
    """
    if settings.kind in _FILES:
        return pa.schema([(name, pa.string()) for name in ("id", *settings.columns)])
    return ParquetRows(settings).schema()


def numbers_rows(settings: SourceSettings) -> bool:
    """Whether the ids of a source are its row numbers, which start at 0 in every dataset."""
    return settings.kind not in _FILES and ParquetRows(settings).numbers_rows()


def open_source(settings: SourceSettings) -> Source:
    """The source that `settings` describes."""
    match settings.kind:
        case "folder":
            return Folder(settings)
        case "webdataset":
            return WebDataset(settings)
        case "inventory":
            return Inventory(settings)
        case "parquet" | "features":
            return ParquetRows(settings)
