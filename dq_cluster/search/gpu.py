"""Codes scanned on a GPU, by faiss' IVFPQ: the only product quantizer that it has there.

On a GPU faiss takes codes for residuals of the centroid of their list; ours are none. So the lists
get centroids of zero, and which of them a query looks into is decided here: those of its nearest
cells or, without cells, all of the even pieces that the codes are cut into.
"""

import threading

import faiss
import numpy as np

from dq_cluster.errors import ConfigError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.search import faiss_index
from dq_cluster.search.codebooks import Codebooks

_MAX_DEPTH = 2048  # faiss' limits on a GPU: rows found for a query, and lists looked into
_MAX_PROBES = 2048
_TABLES_BYTES = 48 << 10  # of one query: the shared memory of a block of threads
_LIST_ROWS = 1 << 16  # of a piece: enough lists to fill a GPU, few enough tables to compute


class Lists:
    """Codes in an IVFPQ index whose centroids are zero, and what says which lists to scan.

    codes (n, code_size) uint8; with cells also cells (n,). Searched by one thread at a time:
    the resources of a GPU are not for several.
    """

    def __init__(
        self, codes: np.ndarray, codebooks: Codebooks, cells: np.ndarray | None = None
    ) -> None:
        geometry = codebooks.geometry
        self._geometry, self._coarse = geometry, codebooks.coarse
        self._number = geometry.nlist or min(1 + len(codes) // _LIST_ROWS, _MAX_PROBES)
        zeros = np.zeros((self._number, geometry.dim), np.float32)
        self._index = faiss_index.in_lists(
            codes,
            np.arange(len(codes)) % self._number if cells is None else cells,
            codebooks.vectors,
            faiss_index.coarse_index(zeros, geometry),
            geometry,
            by_residual=True,
        )
        self._lock = threading.Lock()

    def to_gpu(self) -> None:
        """Move the codes to the first GPU that this process sees. Raises ConfigError."""
        check_gpu(self._geometry)
        config = faiss.GpuIndexIVFPQConfig()
        config.indicesOptions = faiss.INDICES_32_BIT
        config.interleavedLayout = True  # for any number of sub-quantizers, and for 4-bit codes
        self._resources = faiss.StandardGpuResources()
        self._index = faiss.GpuIndexIVFPQ(self._resources, self._index, config)

    def reach(self, depth: int, nprobe: int) -> bool:
        """Whether a GPU can answer such a search."""
        return depth <= _MAX_DEPTH and self._probes(nprobe) <= _MAX_PROBES

    def search(self, queries: np.ndarray, depth: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        """faiss' scores and labels, both (n, depth), of queries (n, dim); labels count the codes.

        nprobe: how many of the nearest cells are looked into; 0, or without cells: all lists.
        """
        probes = self._probes(nprobe)
        chosen = np.tile(np.arange(self._number), (len(queries), 1))
        if self._coarse is not None and probes < self._number:
            chosen = self._coarse.search(queries, probes)[1]
        with self._lock:
            self._index.nprobe = probes
            # None: the products with the centroids, which are zero.
            scores, labels = self._index.search_preassigned(queries, depth, chosen, None)
        return scores, labels

    def _probes(self, nprobe: int) -> int:
        return nprobe if self._coarse is not None and nprobe else self._number


def check_gpu(geometry: CodeGeometry) -> None:
    """Raise ConfigError where faiss has no GPU in this process, or none for such codes."""
    tables = geometry.m * geometry.ksub * np.dtype(np.float32).itemsize
    if tables > _TABLES_BYTES:
        raise ConfigError(
            f"{geometry.m} sub-quantizers of {geometry.nbits} bits need tables of {tables:,} "
            f"bytes, a GPU has room for {_TABLES_BYTES:,}; set gpus to 0, or use shorter codes"
        )
    if not faiss.get_num_gpus():
        raise ConfigError(
            "faiss sees no GPU in this process: it takes a node with a GPU and faiss-gpu, which "
            "the extra `gpu` installs; or set gpus to 0"
        )
