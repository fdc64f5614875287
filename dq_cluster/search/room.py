"""Whether codes fit the memory of this process, and its GPU, before they are loaded."""

from collections.abc import Sequence
from pathlib import Path

from dq_cluster.errors import DoesNotFitError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.sizing import CELL_ROW_BYTES, row_bytes
from dq_cluster.search.cells import LIST_BYTES, RUN_BYTES
from dq_cluster.search.faiss_index import BLOCK, scans_fast
from dq_cluster.search.segments import Segment

_GPU_LABEL_BYTES = 4
_GPU_WORK_BYTES = 1536 << 20  # what faiss takes of a GPU for its own work


def check_fits(
    rows: int,
    geometry: CodeGeometry,
    allowed_bytes: int,
    *,
    gpu: bool = False,
    segments: Sequence[Segment] = (),
) -> None:
    """Raise DoesNotFitError where loading `rows` codes takes more memory than `allowed_bytes`.

    segments: that have them; with cells, many small files take more.
    """
    cells, packed = geometry.nlist > 0, scans_fast(geometry)
    needed = rows * row_bytes(geometry.code_size, cells=cells, packed=packed, gpu=gpu)
    if cells:
        needed += max(0, _list_bytes(segments, geometry) - rows * CELL_ROW_BYTES)
    _check(rows, geometry, "", needed, allowed_bytes)


def _list_bytes(segments: Sequence[Segment], geometry: CodeGeometry) -> int:
    """What lists take beside the codes: each, what fills them up, and their runs."""
    runs = sum(min(file.rows, geometry.nlist) for segment in segments for file in segment.files)
    filling = BLOCK // 2 * geometry.code_size if scans_fast(geometry) else 0
    return runs * RUN_BYTES + len(segments) * geometry.nlist * (LIST_BYTES + filling)


def check_fits_gpu(rows: int, geometry: CodeGeometry, allowed_bytes: int) -> None:
    """Raise DoesNotFitError where `rows` codes take more of a GPU than `allowed_bytes`."""
    needed = rows * (geometry.code_size + _GPU_LABEL_BYTES) + _GPU_WORK_BYTES
    _check(rows, geometry, " of the GPU", needed, allowed_bytes)


def _check(rows: int, geometry: CodeGeometry, where: str, needed: float, allowed: int) -> None:
    if needed > allowed:
        raise DoesNotFitError(
            f"{rows:,} codes of {geometry.code_size} bytes need {needed / 1e9:.3f} GB{where}, "
            f"{allowed / 1e9:.3f} GB are allowed; use more shards or larger replicas"
        )


def free_gpu_memory() -> int:
    """Bytes that are free on the first GPU of this process."""
    import torch  # only here: replicas without a GPU start faster without it

    return int(torch.cuda.mem_get_info()[0])


def free_memory() -> int:
    """Bytes that this process may still take: of the machine and, in a container, of its limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip() != "max":
        return min(free << 10, int(limit.read_text()) - int(used.read_text()))
    return free << 10
