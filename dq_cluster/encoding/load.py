"""Loading: the units of one lane become chunks for an encoder, and rejects.

It runs in a task of its own on a CPU, beside the encoder. No Ray here.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dq_cluster.encoding.known import KnownIds
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.decode import Reason, RejectError
from dq_cluster.images.framing import Framing
from dq_cluster.images.guard import ChildDecoder, Decode, watched
from dq_cluster.images.sources import open_source
from dq_cluster.images.thumbnail import small_jpeg
from dq_cluster.images.units import Unit
from dq_cluster.images.values import matrix
from dq_cluster.index.thumbnails import COLUMN as THUMBNAIL
from dq_cluster.storage import Storage, translated

# Bytes of pixels or features in a chunk: enough to make the hand-over cheap, little enough
# that the few in flight never matter.
_CHUNK_BYTES = 8 << 20
_NO_ROWS = pa.table({})


@dataclass(frozen=True)
class Expectation:
    """What the encoder takes: squares of pixels, cut as `frame` says, or, if 0, `feature_dim`
    floats."""

    frame: int | Framing
    feature_dim: int

    @property
    def image_size(self) -> int:
        return self.frame.size if isinstance(self.frame, Framing) else self.frame

    @property
    def row_bytes(self) -> int:
        return 3 * self.image_size**2 or 4 * self.feature_dim


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a lane.

    rows: `id`, `uri`, and the carried columns of what can be encoded; payload: their pixels
    (n, s, s, 3) uint8 or features (n, dim) as stored; rejects: `id`, `uri`, `reason` of the rest;
    seconds: what reading and decoding took; skipped: what was passed over on the way, by kind.
    """

    rows: pa.Table
    payload: np.ndarray
    rejects: pa.Table
    seconds: float
    skipped: dict[str, int]


def load(
    source: SourceSettings,
    units: Sequence[Unit],
    expected: Expectation,
    known: KnownIds | None = None,
    *,
    apart: bool = False,
    thumbnails: int = 0,
) -> Iterator[Chunk]:
    """Read and decode `units` in order; if `apart`, images are decoded in a child process.

    known: rows with one of these ids are passed over. thumbnails: images get a column `thumbnail`
    of JPEGs of so many pixels a side at most; 0: none.

    Raises StorageError where storage fails, InputError where a file changed since it was planned.
    Without `apart`, an image that crashes its decoder,
    or takes longer than the limits allow, ends this process.
    """
    limit = max(1, _CHUNK_BYTES // expected.row_bytes)
    with translated(Storage(source.uri), ""):
        opened = open_source(source)
        tables = opened.read(units, limit)
        if known is not None:
            tables = known.new_rows(tables, opened.skipped)
        for chunk in _chunks(source, tables, expected, apart, thumbnails):
            yield replace(chunk, skipped=opened.skipped.take())
        if rest := opened.skipped.take():
            yield Chunk(_NO_ROWS, np.empty(0), _NO_ROWS, 0.0, rest)


def _chunks(
    source: SourceSettings,
    tables: Iterator[pa.Table],
    expected: Expectation,
    apart: bool,
    thumbnails: int,
) -> Iterator[Chunk]:
    started = time.perf_counter()
    for table in tables:
        reasons = _with_null_ids(table)
        if expected.image_size:
            with ChildDecoder(source.limits) if apart else watched(source.limits) as decode:
                payload = _pixels(table, reasons, expected, decode)
        else:
            payload = _features(table, reasons, expected.feature_dim)
        chunk = _chunk(table, payload, reasons)
        if thumbnails and expected.image_size:
            pictures = pa.array([small_jpeg(p, thumbnails) for p in payload], pa.binary())
            chunk = replace(chunk, rows=chunk.rows.append_column(THUMBNAIL, pictures))
        yield replace(chunk, seconds=time.perf_counter() - started)
        started = time.perf_counter()


def _with_null_ids(table: pa.Table) -> list[str | None]:
    null_ids = pc.if_else(pc.is_null(table.column("id")), Reason.NO_ID.value, None)
    return pc.coalesce(table.column("reason"), null_ids).to_pylist()


def _pixels(
    table: pa.Table, reasons: list[str | None], expected: Expectation, decode: Decode
) -> np.ndarray:
    """Pixels of the rows without a reason; what cannot be decoded gets one."""
    size = expected.image_size
    pixels = np.empty((table.num_rows, size, size, 3), np.uint8)
    count = 0
    for row, image in enumerate(table.column("image")):
        if reasons[row] is not None:
            continue
        try:
            if not image.is_valid:
                raise RejectError(Reason.MISSING)
            pixels[count] = decode(image.as_buffer().to_pybytes(), expected.frame)
            count += 1
        except RejectError as error:
            reasons[row] = error.reason.value
    return pixels[:count]


def _features(table: pa.Table, reasons: list[str | None], dim: int) -> np.ndarray:
    """Features of the rows without a reason; one that is not `dim` finite floats gets one."""
    features, fits = matrix(table.column("feature").combine_chunks(), dim)
    finite = np.isfinite(features).all(axis=1)
    fits[fits] = finite
    for row in np.flatnonzero(~fits):
        reasons[row] = reasons[row] or Reason.BAD_FEATURE.value
    kept = np.array([reason is None for reason in reasons], bool)
    return features if kept.all() else features[finite][kept[fits]]


def _chunk(table: pa.Table, payload: np.ndarray, reasons: list[str | None]) -> Chunk:
    column = pa.array(reasons, pa.string())
    carried = [n for n in table.column_names if n not in ("image", "feature", "reason")]
    table = table.select(carried)
    rejects = table.select(["id", "uri"]).append_column("reason", column)
    return Chunk(
        table.filter(pc.is_null(column)), payload, rejects.filter(pc.is_valid(column)), 0.0, {}
    )
