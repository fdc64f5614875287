"""The codes of one segment, in a faiss index."""

import faiss
import numpy as np

from dq_cluster.errors import InputError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import open_code_file, read_codes
from dq_cluster.index.manifest import Manifest
from dq_cluster.search import faiss_index
from dq_cluster.search.codebooks import Codebooks
from dq_cluster.search.gpu import Lists
from dq_cluster.search.segments import Segment
from dq_cluster.storage.scratch import scratch_memory


class Codes:
    """Codes (n, code_size) uint8 of an immutable segment, and the faiss index that scans them.

    In an IVF geometry `cells` (n,) are theirs. index: where faiss already has the codes. lists: the
    same codes on a GPU.
    """

    def __init__(
        self,
        codes: np.ndarray,
        codebooks: Codebooks,
        cells: np.ndarray | None = None,
        *,
        index: faiss.Index | None = None,
        lists: Lists | None = None,
    ) -> None:
        geometry = codebooks.geometry
        self.codes, self.lists = codes, lists
        if index is not None:
            self.index = index
        elif not geometry.nlist:
            self.index = faiss_index.flat(codes, codebooks.vectors, geometry)
        elif cells is not None and codebooks.coarse is not None:
            self.index = faiss_index.ivf(
                codes, cells, codebooks.vectors, codebooks.coarse, geometry
            )
        else:
            raise InputError("an IVF geometry needs the cells and the coarse centroids")

    def __len__(self) -> int:
        return len(self.codes)

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

        8-bit flat codes are held once, in faiss' memory; other codes also in a temporary file,
        memory-mapped. Raises IntegrityError for a file that disagrees with the manifest, and
        ConfigError where there is no GPU for it; StorageError where storage fails or the disk of
        the temporary file has no room.
        """
        geometry, flat = manifest.geometry, None
        if not _is_mapped(geometry):
            flat = faiss_index.unfilled(segment.rows, codebooks.vectors, geometry)
            codes = faiss_index.codes_of(flat)
        else:
            codes = _mapped(segment.rows, geometry.code_size)
        cells = np.empty(segment.rows, np.int32) if geometry.nlist else None
        row = 0
        for entry in segment.files:
            local = index.storage.local(entry.path)
            with open_code_file(
                index.storage, entry, model=manifest.model, geometry=geometry
            ) as file:
                for stored, of_block in read_codes(file, geometry, local):
                    here = slice(row, row + len(stored))
                    codes[here] = stored
                    if cells is not None and of_block is not None:
                        cells[here] = of_block
                    row = here.stop
        lists = None
        if gpu:
            lists = Lists(codes, codebooks, cells)
            lists.to_gpu()
        return cls(codes, codebooks, cells, index=flat, lists=lists)


def scratch_bytes(geometry: CodeGeometry) -> int:
    """What the codes of a row, the second one too, take of the folder for temporary files."""
    return _is_mapped(geometry) * geometry.code_size + geometry.refine_m


def _is_mapped(geometry: CodeGeometry) -> bool:
    return geometry.nbits == 4 or geometry.nlist > 0


def _mapped(rows: int, width: int) -> np.ndarray:
    """An array (rows, width) uint8 in an unnamed temporary file. Raises StorageError."""
    if rows == 0:
        return np.empty((0, width), np.uint8)
    return np.frombuffer(scratch_memory(rows * width), np.uint8).reshape(rows, width)
