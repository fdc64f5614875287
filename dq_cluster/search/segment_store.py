"""The loaded segments of a process, which its versions share."""

import resource
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa

from dq_cluster.index.ahead import readers
from dq_cluster.index.catalog import Index
from dq_cluster.index.manifest import Manifest
from dq_cluster.search.codebooks import Codebooks
from dq_cluster.search.codes import Codes, scratch_bytes
from dq_cluster.search.refine import load_second_codes
from dq_cluster.search.segments import Segment
from dq_cluster.search.stored_rows import StoredRows
from dq_cluster.storage.scratch import check_scratch

_READERS = 4  # at least: what is read of a segment at once is small, however large it is


@dataclass(frozen=True, eq=False)
class LoadedSegment:
    """What a search reads of a segment. second: its second codes, where the geometry has some."""

    codes: Codes
    rows: StoredRows
    second: np.ndarray | None


class SegmentStore:
    """Segments are read once, and forgotten when no shard that somebody holds has them."""

    def __init__(self, index: Index, *, gpu: bool = False) -> None:
        self._index, self._gpu = index, gpu
        self._loaded: WeakValueDictionary[object, LoadedSegment] = WeakValueDictionary()
        self._loading = threading.Lock()

    def missing(
        self, manifest: Manifest, schema: pa.Schema, segments: Sequence[Segment]
    ) -> list[Segment]:
        """Those that would have to be read."""
        return [each for each in segments if _key(manifest, schema, each) not in self._loaded]

    def get(
        self,
        manifest: Manifest,
        schema: pa.Schema,
        segments: Sequence[Segment],
        codebooks: Codebooks,
    ) -> list[LoadedSegment]:
        """Load what is not loaded yet. schema: the id and the carried columns of the version.

        Raises what reading an index raises, ConfigError where there is no GPU for the codes.
        """

        def load(segment: Segment) -> LoadedSegment:
            key = _key(manifest, schema, segment)
            if (there := self._loaded.get(key)) is not None:
                return there
            where = (self._index, manifest, segment)
            second = load_second_codes(*where) if codebooks.second is not None else None
            made = LoadedSegment(
                Codes.load(*where, codebooks, gpu=self._gpu),
                StoredRows.load(*where, schema),
                second,
            )
            self._loaded[key] = made
            return made

        files = [file for segment in segments for file in segment.files]
        rows = sum(segment.rows for segment in self.missing(manifest, schema, segments))
        check_scratch(rows * scratch_bytes(manifest.geometry))
        # Two versions at once may need the same segment.
        with self._loading, ThreadPoolExecutor(max(_READERS, readers(files))) as pool:
            _allow_files()
            loaded = list(pool.map(load, segments))
        # What reading took comes back no more until the next version.
        pa.default_memory_pool().release_unused()
        return loaded


def _key(manifest: Manifest, schema: pa.Schema, segment: Segment) -> object:
    """Files say what is read of them, and the version as which types."""
    return segment.name, manifest.model, schema.serialize().to_pybytes()


def _allow_files() -> None:
    """Segments keep files open: allow as many as this process may allow itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
