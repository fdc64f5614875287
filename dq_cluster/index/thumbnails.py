"""Files of small pictures beside the code files: Parquet with `id` and `thumbnail` (JPEG).

A manifest names at most one for each code file. No shard reads them: a picture is looked up when it
is shown. Rows are in order of their ids, in small row groups, so that one group is read for one.
"""

import hashlib
import mmap
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dq_cluster.index.ids import as_type, joined
from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.index.statistics import column_stats
from dq_cluster.storage import Storage
from dq_cluster.storage.scratch import scratch_file, scratch_folder, scratch_room

COLUMN = "thumbnail"
SIDE = b"dq.thumbnails"  # metadata: pixels of a side
_GROUP_ROWS = 256
_PIECE = 8 << 20


class ThumbnailWriter:
    """Gathers thumbnails in a temporary file, and writes them in order of their ids.

    Memory is of the ids. Rows are numbered as they are added. Raises StorageError where the folder
    for temporary files has no room.
    """

    def __init__(self) -> None:
        self._file = scratch_file()
        self._size = 0
        self._ids: list[pa.Array] = []
        self._places: list[np.ndarray] = []  # (n, 2): offset and length, which is -1 for none
        self._rows = 0

    def add(self, ids: pa.Array, pictures: pa.Array) -> np.ndarray:
        """Keep `pictures` (n,), nulls among them, of `ids` (n,); returns their row numbers."""
        places = np.empty((len(ids), 2), np.int64)
        with scratch_room(written=self._size):
            for row, picture in enumerate(pictures):
                data = picture.as_buffer() if picture.is_valid else None
                places[row] = self._size, -1 if data is None else data.size
                if data is not None:
                    self._file.write(data)
                    self._size += data.size
            self._file.flush()
        self._ids.append(ids)
        self._places.append(places)
        self._rows += len(ids)
        return np.arange(self._rows - len(ids), self._rows)

    def write(
        self, storage: Storage, path: str, side: int, rows: np.ndarray | None = None
    ) -> FileEntry | None:
        """Write the pictures of `rows`, ascending; None if there is none, and no file then.

        Of several with one id the last counts. side: of a picture, pixels.
        """
        if not self._size:
            return None
        ids, places = joined(self._ids), np.concatenate(self._places)
        rows = np.arange(self._rows) if rows is None else rows
        rows = rows[places[rows, 1] >= 0]
        ids, places = ids.take(pa.array(rows)), places[rows]
        order = pc.sort_indices(pa.table({"id": ids}), [("id", "ascending")]).to_numpy()
        ids, places = ids.take(pa.array(order)), places[order]
        last = np.ones(len(ids), bool)
        last[:-1] = pc.not_equal(ids[:-1], ids[1:]).to_numpy(zero_copy_only=False)
        ids, places = ids.filter(pa.array(last)), places[last]
        schema = pa.schema(
            [("id", ids.type), (COLUMN, pa.binary())], metadata={SIDE: str(side).encode()}
        )
        with (
            scratch_folder() as folder,
            mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            local = folder / "thumbnails"
            with (
                scratch_room(),
                # Pictures are compressed already.
                pq.ParquetWriter(
                    local, schema, compression={"id": "ZSTD", COLUMN: "NONE"}, use_dictionary=False
                ) as writer,
            ):
                for start in range(0, len(ids), _GROUP_ROWS):
                    part = slice(start, start + _GROUP_ROWS)
                    pictures = [data[offset : offset + size] for offset, size in places[part]]
                    writer.write_table(
                        pa.table([ids[part], pa.array(pictures, pa.binary())], schema=schema)
                    )
            digest = hashlib.sha256()
            with local.open("rb") as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
            storage.upload(local, path)
            return FileEntry(
                path=path,
                rows=len(ids),
                size=local.stat().st_size,
                sha256=digest.hexdigest(),
                stats=column_stats(pq.read_metadata(local), ["id"]),
            )


def stored_thumbnail(storage: Storage, manifest: Manifest, row: int, id: int | str) -> bytes | None:
    """The picture of `id`, which is row `row` of the version; None where none is stored."""
    for file in manifest.files:
        if row < file.rows:
            entry = manifest.thumbnails.get(file.path)
            return None if entry is None else _find(storage, entry, id)
        row -= file.rows
    return None


def _find(storage: Storage, entry: FileEntry, id: int | str) -> bytes | None:
    with storage.open(entry.path) as handle:
        file = pq.ParquetFile(handle)
        for number in range(file.metadata.num_row_groups):
            bounds = file.metadata.row_group(number).column(0).statistics
            if bounds is not None and bounds.has_min_max and not bounds.min <= id <= bounds.max:
                continue
            group = file.read_row_group(number)
            place = pc.index(group.column("id"), pa.scalar(id, group.schema.field("id").type))
            if place.as_py() >= 0:
                picture = group.column(COLUMN)[place.as_py()].as_py()
                return picture if isinstance(picture, bytes) else None
    return None


def thumbnail_side(storage: Storage, manifest: Manifest) -> int:
    """Pixels of a side of the newest stored thumbnails; 0 where there are none."""
    for entry in reversed(manifest.thumbnails.values()):
        with storage.open(entry.path) as handle:
            return int(pq.read_schema(handle).metadata[SIDE])
    return 0


def merge_thumbnails(
    storage: Storage,
    manifest: Manifest,
    living: Mapping[str, pa.Array],
    target: Storage,
    path: str,
) -> FileEntry | None:
    """Write the pictures of the ids that live in each code file as one file; None for none."""
    writer, side = ThumbnailWriter(), 0
    for name, ids in living.items():
        entry = manifest.thumbnails.get(name)
        if entry is None:
            continue
        with storage.open(entry.path) as handle:
            file = pq.ParquetFile(handle)
            side = int(file.schema_arrow.metadata[SIDE])
            for batch in file.iter_batches(_GROUP_ROWS):
                own = as_type(batch.column("id"), manifest.id_type)
                lives = pc.is_in(own, ids.cast(own.type))
                writer.add(own.filter(lives), batch.column(COLUMN).filter(lives))
    return writer.write(target, path, side)


def thumbnail_problems(storage: Storage, manifest: Manifest) -> Iterator[str]:
    """What is wrong with thumbnail files that are what the manifest names."""
    rows = {file.path: file.rows for file in manifest.files}
    for path, entry in manifest.thumbnails.items():
        where = f"{storage.uri}/{entry.path}"
        if path not in rows:
            yield f"{where}: thumbnails of {path}, which the version does not have"
            continue
        if entry.rows > rows[path]:
            yield f"{where}: {entry.rows} thumbnails, {path} has {rows[path]} rows"
        with storage.open(entry.path) as handle:
            file = pq.ParquetFile(handle)
            if file.schema_arrow.names != ["id", COLUMN]:
                yield f"{where}: columns {', '.join(file.schema_arrow.names)}, not id, {COLUMN}"
                continue
            for batch in file.iter_batches(_GROUP_ROWS):
                if any(not picture.as_py() for picture in batch.column(COLUMN)):
                    yield f"{where}: holds empty thumbnails"
                    break
