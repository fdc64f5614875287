"""faiss indexes over codes that already exist: nothing is trained, nothing is encoded again."""

import ctypes
import functools
import time

import faiss
import numpy as np

from dq_cluster.geometry import CodeGeometry

_METRICS = {"l2": faiss.METRIC_L2, "ip": faiss.METRIC_INNER_PRODUCT}
BLOCK = 32  # codes that fast-scan packs together
_CHUNK = 1 << 20
_SAMPLE = 1 << 16
_REPEATS = 4  # the best of them: other processes only ever add time
_LEVELS = ("NONE", "AVX2", "AVX512", "AVX512_VPOPCNT", "ARM_NEON", "ARM_SVE")


def unfilled(rows: int, codebooks: np.ndarray, geometry: CodeGeometry) -> faiss.IndexPQ:
    """A flat index of `rows` codes to be written through `codes_of`, so that they exist once."""
    index = faiss.IndexPQ(geometry.dim, geometry.m, geometry.nbits, _METRICS[geometry.metric])
    faiss.copy_array_to_vector(codebooks.astype(np.float32).ravel(), index.pq.centroids)
    index.is_trained = True
    index.codes.resize(rows * geometry.code_size)
    index.ntotal = rows
    return index


def codes_of(index: faiss.IndexPQ) -> np.ndarray:
    """The codes (n, code_size) uint8 of a flat index: its own memory, not a copy."""
    if index.ntotal == 0:
        return np.empty((0, index.code_size), np.uint8)
    flat = faiss.rev_swig_ptr(index.codes.data(), index.ntotal * index.code_size)
    return flat.reshape(index.ntotal, index.code_size)


def flat(codes: np.ndarray, codebooks: np.ndarray, geometry: CodeGeometry) -> faiss.Index:
    """An index that scans every code: IndexPQ, or IndexPQFastScan for 4-bit codes."""
    index = _filled(codes, codebooks, geometry)
    return faiss.IndexPQFastScan(index) if scans_fast(geometry) else index


def over_lists(
    sizes: np.ndarray,
    codes: np.ndarray,
    numbers: np.ndarray | None,
    codebooks: np.ndarray,
    geometry: CodeGeometry,
) -> faiss.IndexIVF:
    """An index over inverted lists that lie in memory already, for `search_preassigned` alone.

    sizes (l,): the rows of each list; codes (l,): addresses of their codes, packed for fast-scan
    where `scans_fast`; numbers (l,): addresses of their int64 numbers, None for an index that is
    asked for pairs of list and offset only. Codes are not residuals. The caller keeps the memory.
    """
    lists = faiss.OnDiskInvertedLists()  # the only ones that do not own their codes
    lists.nlist, lists.code_size, lists.read_only = len(sizes), geometry.code_size, True
    lists.prefetch_nthread = 0  # its threads would read numbers that may not exist
    lists.lists.resize(len(sizes))
    table = np.empty((len(sizes), 3), np.uint64)  # rows, capacity, address of the codes
    table[:, 0], table[:, 2] = sizes, codes
    # Numbers are looked for `capacity` times `code_size` bytes behind the codes.
    table[:, 1] = sizes if numbers is None else numbers - codes
    ctypes.memmove(int(lists.lists.data().this), table.ctypes.data, table.nbytes)
    kind = faiss.IndexIVFPQ if numbers is None else faiss.IndexIVFPQFastScan
    metric = _METRICS[geometry.metric]
    coarse = faiss.IndexFlat(geometry.dim, metric)  # never asked
    index = kind(coarse, geometry.dim, max(1, len(sizes)), geometry.m, geometry.nbits, metric)
    index.by_residual = False
    faiss.copy_array_to_vector(codebooks.astype(np.float32).ravel(), index.pq.centroids)
    index.is_trained = True
    index.nlist = lists.nlist
    index.replace_invlists(lists, False)
    if numbers is not None:
        lists.code_size = 1
    index.ntotal = int(sizes.sum())
    index.referenced_objects = [coarse, lists]
    return index


def packed(codes: np.ndarray, codebooks: np.ndarray, geometry: CodeGeometry) -> np.ndarray:
    """4-bit codes (n, code_size), full blocks of them, as fast-scan reads them: the same shape."""
    index = faiss.IndexPQFastScan(_filled(codes, codebooks, geometry))
    return faiss.rev_swig_ptr(index.codes.get(), codes.size).reshape(codes.shape).copy()


def unpacked(blocks: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The codes (…, code_size) at `places` (…) of what `packed` made of codes (n, code_size)."""
    width = blocks.shape[1]
    lane = places % BLOCK
    low, shift = lane & 15, (lane & 16) >> 2
    byte = np.where(low < 8, 2 * low, 2 * low - 15)
    at = ((places - lane) * width + byte)[..., None] + BLOCK * np.arange(width)
    flat, shift = blocks.reshape(-1), shift[..., None].astype(np.uint8)
    return (flat[at] >> shift & 15) | (flat[at + 16] >> shift & 15) << 4


def _filled(codes: np.ndarray, codebooks: np.ndarray, geometry: CodeGeometry) -> faiss.IndexPQ:
    index = unfilled(len(codes), codebooks, geometry)
    codes_of(index)[:] = codes
    return index


def in_lists(
    codes: np.ndarray,
    lists: np.ndarray,
    codebooks: np.ndarray,
    coarse: faiss.IndexFlat,
    geometry: CodeGeometry,
    *,
    by_residual: bool = False,
) -> faiss.IndexIVFPQ:
    """Codes (n, code_size) in inverted lists (n,), one for each centroid of `coarse`."""
    index = faiss.IndexIVFPQ(
        coarse, geometry.dim, coarse.ntotal, geometry.m, geometry.nbits, coarse.metric_type
    )
    index.by_residual = by_residual
    faiss.copy_array_to_vector(codebooks.astype(np.float32).ravel(), index.pq.centroids)
    index.is_trained = True
    width = index.coarse_code_size()
    for start in range(0, len(codes), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(codes)))
        number = lists[part].astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width]
        index.add_sa_codes(
            np.hstack([number, codes[part]]), np.arange(part.start, part.stop, dtype=np.int64)
        )
    return index


def coarse_index(centroids: np.ndarray, geometry: CodeGeometry) -> faiss.IndexFlat:
    """What finds the nearest of the centroids (nlist, dim) of cells."""
    quantizer = faiss.IndexFlat(geometry.dim, _METRICS[geometry.metric])
    quantizer.add(np.ascontiguousarray(centroids, np.float32))
    return quantizer


def scans_fast(geometry: CodeGeometry) -> bool:
    """Whether codes are scanned by 4-bit fast-scan, with its rounded tables.

    Not for inner products within cells: fast-scan leaves out codes of the lowest product that it
    can express, and what it left out of a cell nobody else knows.
    """
    return geometry.nbits == 4 and not (geometry.nlist and geometry.metric == "ip")


def choose_simd(geometry: CodeGeometry) -> str:
    """Set this process to the instruction set that scans such codes fastest; return its name.

    Which one that is differs between processors: gathers, on which wide 8-bit scans depend, are
    slow on some, and there the scalar loop wins. Measured in a tenth of a second, once in a
    process: while the next version loads, searches on the current one keep their speed.
    """
    fastest = _fastest_simd(geometry)
    faiss.SIMDConfig.set_level(getattr(faiss, f"SIMDLevel_{fastest}"))
    return fastest


@functools.cache
def _fastest_simd(geometry: CodeGeometry) -> str:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (_SAMPLE, geometry.code_size), dtype=np.uint8)
    centroids = rng.normal(size=(geometry.m, geometry.ksub, geometry.dsub)).astype(np.float32)
    index = flat(codes, centroids, geometry)
    queries = rng.normal(size=(4, geometry.dim)).astype(np.float32)
    seconds = {}
    for name in _LEVELS:
        level = getattr(faiss, f"SIMDLevel_{name}")
        if not faiss.SIMDConfig.is_simd_level_available(level):
            continue
        faiss.SIMDConfig.set_level(level)
        seconds[name] = min(_timed(index, queries) for _ in range(_REPEATS))
    return min(seconds, key=seconds.__getitem__)


def _timed(index: faiss.Index, queries: np.ndarray) -> float:
    begin = time.perf_counter()
    index.search(queries, 10)
    return time.perf_counter() - begin
