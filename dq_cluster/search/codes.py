"""The codes of one segment, in a faiss index."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq

from dq_cluster.errors import InputError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import open_code_file, read_bare_codes, read_cells
from dq_cluster.index.manifest import Manifest
from dq_cluster.search import faiss_index
from dq_cluster.search.cells import CellCodes
from dq_cluster.search.codebooks import Codebooks
from dq_cluster.search.gpu import Lists
from dq_cluster.search.segments import Segment
from dq_cluster.storage.scratch import scratch_memory

_Column = Callable[[pq.ParquetFile, Path | None], Iterator[np.ndarray]]


class Codes:
    """Codes (n, code_size) uint8 of an immutable segment, and the faiss index that scans them.

    In an IVF geometry `cells` (n,) are theirs unless `codes` know them, and there is no `index`:
    the lists of all segments are scanned together. index: where faiss already has the codes.
    lists: the same codes on a GPU.
    """

    def __init__(
        self,
        codes: np.ndarray | CellCodes,
        codebooks: Codebooks,
        cells: np.ndarray | None = None,
        *,
        index: faiss.Index | None = None,
        lists: Lists | None = None,
    ) -> None:
        geometry = codebooks.geometry
        self.codes, self.lists = codes, lists
        self.index: Any = index
        if geometry.nlist:
            if isinstance(codes, np.ndarray):
                if cells is None or codebooks.coarse is None:
                    raise InputError("an IVF geometry needs the cells and the coarse centroids")
                self.codes = CellCodes.of(codes, cells, codebooks.vectors, geometry)
        elif index is None and isinstance(codes, np.ndarray):
            self.index = faiss_index.flat(codes, codebooks.vectors, geometry)

    def __len__(self) -> int:
        return len(self.codes)

    def cells(self) -> np.ndarray:
        """The cells (n,) int32 of the codes of an IVF geometry."""
        assert isinstance(self.codes, CellCodes)
        return self.codes.runs.cells_of(np.arange(len(self))).astype(np.int32)

    @classmethod
    def load(
        cls,
        index: Index,
        manifest: Manifest,
        segment: Segment,
        codebooks: Codebooks,
        *,
        gpu: bool = False,
    ) -> "Codes":
        """Read the codes of `segment` from storage, also to the GPU if asked.

        8-bit codes, and those with cells, are held once; flat 4-bit codes also in a temporary file,
        memory-mapped. Raises IntegrityError for a file that disagrees with the manifest, and
        ConfigError where there is no GPU for it; StorageError where storage fails or the disk of
        the temporary file has no room.
        """
        geometry, flat = manifest.geometry, None

        def read(what: _Column) -> Iterator[np.ndarray]:
            for entry in segment.files:
                local = index.storage.local(entry.path)
                with open_code_file(
                    index.storage, entry, model=manifest.model, geometry=geometry
                ) as file:
                    yield from what(file, local)

        def stored(file: pq.ParquetFile, local: Path | None) -> Iterator[np.ndarray]:
            return read_bare_codes(file, geometry, local)

        if geometry.nlist:
            in_cells = CellCodes(
                read(lambda file, _: read_cells(file)),
                lambda: read(stored),
                codebooks.vectors,
                geometry,
            )
            lists = _on_gpu(in_cells, codebooks) if gpu else None
            return cls(in_cells, codebooks, lists=lists)
        if not _is_mapped(geometry):
            flat = faiss_index.unfilled(segment.rows, codebooks.vectors, geometry)
            codes = faiss_index.codes_of(flat)
        else:
            codes = _mapped(segment.rows, geometry.code_size)
        row = 0
        for block in read(stored):
            codes[row : row + len(block)] = block
            row += len(block)
        lists = None
        if gpu:
            lists = Lists(codes, codebooks)
            lists.to_gpu()
        return cls(codes, codebooks, index=flat, lists=lists)


def _on_gpu(codes: CellCodes, codebooks: Codebooks) -> Lists:
    rows = np.arange(len(codes))
    lists = Lists(codes[rows], codebooks, codes.runs.cells_of(rows))
    lists.to_gpu()
    return lists


def scratch_bytes(geometry: CodeGeometry) -> int:
    """What the codes of a row, the second one too, take of the folder for temporary files."""
    return _is_mapped(geometry) * geometry.code_size + geometry.refine_m


def _is_mapped(geometry: CodeGeometry) -> bool:
    return geometry.nbits == 4 and not geometry.nlist


def _mapped(rows: int, width: int) -> np.ndarray:
    """An array (rows, width) uint8 in an unnamed temporary file. Raises StorageError."""
    if rows == 0:
        return np.empty((0, width), np.uint8)
    return np.frombuffer(scratch_memory(rows * width), np.uint8).reshape(rows, width)
