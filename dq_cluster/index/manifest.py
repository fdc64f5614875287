"""The manifest: the immutable description of one version of an index.

It is the only truth about a version. A file that no manifest names does not exist.
"""

from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import ConfigDict, Field

from dq_cluster.config import Settings
from dq_cluster.document import Document
from dq_cluster.errors import IntegrityError
from dq_cluster.geometry import CodeGeometry


class ColumnStats(Settings):
    """Smallest and largest value and null count of a carried column in one file."""

    model_config = ConfigDict(allow_inf_nan=True)

    min: int | float | str | bool | None = None
    max: int | float | str | bool | None = None
    nulls: int = 0


class FileEntry(Settings):
    """One immutable Parquet file: path in the index, rows, bytes, SHA-256 of its content."""

    path: str
    rows: int
    size: int
    sha256: str
    stats: dict[str, ColumnStats] = Field(default_factory=dict)


class Producer(Settings):
    """What made a version: the software version and the encoding run."""

    dq_cluster: str
    run: str


class Manifest(Document):
    """One version: a model, the code files made with it, and what is known about them.

    `rows` counts codes over `files`; `deleted` counts rows that `tombstones` take out of them.
    `id_type` is the Arrow type of the ids, int64, uint64, or string; a file of a uint64 version may
    store int64. `columns` names the carried columns; `arrow_schema` has their types
    (`index.columns.pack_schema`), None where an older dq_cluster wrote the version. `thumbnails`
    has the file of small pictures of a code file, by the path of that (`index.thumbnails`).
    """

    NAME: ClassVar[str] = "manifest"

    version: int
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    parent: int | None = None
    model: str
    geometry: CodeGeometry
    id_type: str
    columns: tuple[str, ...] = ()
    arrow_schema: str | None = None
    files: tuple[FileEntry, ...]
    rows: int
    thumbnails: dict[str, FileEntry] = Field(default_factory=dict)
    tombstones: tuple[FileEntry, ...] = ()
    deleted: int = 0
    rejects: tuple[FileEntry, ...] = ()
    rejected: int = 0
    evaluation: dict[str, Any] = Field(default_factory=dict)
    producer: Producer

    def to_json(self) -> bytes:
        # Releases that know no thumbnails read a version without any.
        without = set() if self.thumbnails else {"thumbnails"}
        return self.model_dump_json(indent=1, exclude=without).encode()


def parse_manifest(data: bytes, origin: str) -> Manifest:
    """Validate a stored manifest; `origin` names it in errors.

    Raises IntegrityError for a format this reader does not know or content that contradicts
    itself (totals against files).
    """
    manifest = Manifest.parse(data, origin)
    total = sum(file.rows for file in manifest.files)
    if total != manifest.rows:
        raise IntegrityError(f"{origin} says {manifest.rows} rows but its files hold {total}")
    return manifest
