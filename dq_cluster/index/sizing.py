"""How much machine an index needs: shards, memory, disk, and storage.

The figures are upper bounds by design: memory per shard is what serving one version promises not
to exceed (a replica holds two while it switches), storage what encoding promises not to exceed.
"""

import math
from typing import Literal

from pydantic import Field

from dq_cluster.config import Settings
from dq_cluster.errors import ConfigError

# Rows of a fragment, unless a run asks for other: a few minutes' work, and files of about a
# megabyte of codes.
FRAGMENT_ROWS = 65536
ID_BYTES = 8
STORAGE_OVERHEAD = 1.2
ROW_BYTES = 2
CELL_ROW_BYTES = 1.5  # in place of ROW_BYTES: lists, and the runs of rows that they are made of
LABEL_BYTES = 8  # faiss keeps a number with every code on its way to a GPU
PROCESS_BYTES = 300 * 10**6


class SizingRequest(Settings):
    """images: codes in the index; bits, refine_bits: length of the code and of the second one;
    nbits: of a sub-code; cells: whether the index has coarse cells (IVF); memory_gb: what one
    replica may use.
    """

    images: int = Field(gt=0)
    bits: int = Field(gt=0, multiple_of=8)
    nbits: Literal[4, 8] = 8
    cells: bool = False
    refine_bits: int = Field(0, ge=0, multiple_of=8)
    replicas: int = Field(2, gt=0)
    memory_gb: float = Field(16.0, gt=0)


class Sizing(Settings):
    """What an index needs. Sizes are decimal gigabytes; memory and local disk (second codes and
    ids, not the carried columns) are per replica of one shard.
    """

    images: int
    code_bytes: int
    shards: int
    replicas_total: int
    memory_per_replica_gb: float
    memory_total_gb: float
    disk_per_replica_gb: float
    storage_gb: float
    fragments: int


def row_bytes(code_size: int, *, cells: bool, packed: bool, gpu: bool = False) -> float:
    """Memory that a replica needs for every row of a version while it loads it.

    cells: in files that have some 16 rows for each cell; `search.room` counts what smaller ones
    take. packed: whether codes are for fast-scan, of which faiss makes a second copy before the
    first can go, unless they lie in cells; gpu: whether they are first put into lists for a GPU.
    """
    again = code_size if packed and not cells else 0
    lists = (2 if cells else 1) * code_size + LABEL_BYTES if gpu else 0
    return code_size + (CELL_ROW_BYTES if cells else ROW_BYTES) + max(again, lists)


def size_index(request: SizingRequest) -> Sizing:
    """Fewest shards whose replicas fit the memory, and what the whole then takes.

    Memory of a replica is `row_bytes` per row + 300 MB; storage is at most 1.2 × (codes + 8)
    bytes per image. Raises ConfigError where not even one row fits.
    """
    code = request.bits // 8
    row = row_bytes(code, cells=request.cells, packed=request.nbits == 4)
    room = request.memory_gb * 1e9 - PROCESS_BYTES
    if room < row:
        raise ConfigError(
            f"memory_gb {request.memory_gb} leaves no room for codes beside the "
            f"{PROCESS_BYTES / 1e9} GB of the process; allow at least 1 GB"
        )
    rows_fit = int(room // row)
    shards = math.ceil(request.images / rows_fit)
    rows = math.ceil(request.images / shards)
    memory = rows * row + PROCESS_BYTES
    total = shards * request.replicas
    stored = request.refine_bits // 8 + ID_BYTES
    return Sizing(
        images=request.images,
        code_bytes=code,
        shards=shards,
        replicas_total=total,
        memory_per_replica_gb=round(memory / 1e9, 3),
        memory_total_gb=round(memory * total / 1e9, 3),
        disk_per_replica_gb=round(rows * stored / 1e9, 3),
        storage_gb=round(request.images * (code + stored) * STORAGE_OVERHEAD / 1e9, 3),
        fragments=math.ceil(request.images / FRAGMENT_ROWS),
    )
