"""How fast a version becomes searchable, against the disk, and the memory it then takes.

    python -m benchmarks.load --rows 10000000 [--folder /mnt/disk]

A served index of one shard per replica is asked to refresh to a version of `rows` codes that no
memory caches: `posix_fadvise(DONTNEED)` after `fsync` for every file, and the replicas' counts of
bytes that came from the disk (/proc/<pid>/io) are printed to show that it worked. The time is
from the request to its answer, after which the version is served. The disk's own speed is read
from the same files, as cold, by as many readers as there are shards, before and after.

Ids are random 64-bit numbers, the kind that does not compress: a row is code + 8 bytes on disk.
"""

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import memory, replicas
from benchmarks.serve import DIM, make_codes, query_api
from dq_cluster.client import Client
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.run import fast_serve

_ROWS_PER_FILE = 1_000_000
_PIECE = 4 << 20
_ALLOWED = (2, 300e6)  # bytes per row beside the code, bytes per process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--bytes", type=int, default=16, help="per code")
    parser.add_argument("--nbits", type=int, default=8, choices=(4, 8))
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--folder", help="on the disk to measure (default: TMPDIR)")
    asked = parser.parse_args()
    fast_serve()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        os.environ["TMPDIR"] = folder
        uri = f"{folder}/index"
        m = asked.bytes * 8 // asked.nbits
        small = make_codes(uri, 1000 * asked.shards, m, asked.nbits)
        already = set(Path(uri).rglob("*.parquet"))
        large = make_codes(
            uri,
            asked.rows,
            m,
            asked.nbits,
            files=asked.shards * max(1, asked.rows // asked.shards // _ROWS_PER_FILE),
            random_ids=True,
        )
        files = sorted(set(Path(uri).rglob("*.parquet")) - already)
        print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {vars(asked)}")
        found = measure(uri, files, small, large, asked.shards)
    size = found["bytes"]
    rate = size / found["refresh_s"] / 1e6
    disk = max(found["disk_mb_s"])
    busy = sum(each["cpu_s"] for each in found["replicas"].values())
    print(
        f"{size / 1e6:.0f} MB searchable in {found['refresh_s']:.2f} s: {rate:.0f} MB/s, "
        f"{rate / disk:.2f} of the disk's {disk:.0f}; {size / busy / 1e6:.0f} MB per CPU second"
    )
    allowed = (asked.rows / asked.shards * (asked.bytes + _ALLOWED[0]) + _ALLOWED[1]) / 1e6
    for name, each in found["replicas"].items():
        print(
            f"{name}: {each['rss']:.0f} MB resident of {allowed:.0f} allowed; anonymous "
            f"{each['anonymous']:.0f} (before: {each['before']['anonymous']:.0f}), file-backed "
            f"{each['file']:.0f} (before: {each['before']['file']:.0f}), peak {each['peak']:.0f}; "
            f"{each['from_disk']:.0f} MB came from the disk, {each['cpu_s']:.2f} s of CPU"
        )
    print(json.dumps(found))


def measure(uri: str, files: list[Path], small: int, large: int, shards: int) -> dict[str, Any]:
    """Serve version `small`, then have version `large` of `files` loaded beside it."""
    settings = ServeSettings(index=uri, version=small, shards=shards, port=0)
    query = np.zeros(DIM, np.float32)
    disk = [read_speed(files, shards)]
    with query_api(settings) as url, Client(url, timeout_s=settings.load_timeout_s) as client:
        client.search(embedding=query)
        processes = {
            name: pid for name, pid in replicas(os.getpid()).items() if name.startswith("Shard")
        }
        before = {name: memory(pid) for name, pid in processes.items()}
        read = {name: from_disk(pid) for name, pid in processes.items()}
        used = {name: cpu(pid) for name, pid in processes.items()}
        forget(files)
        begin = time.perf_counter()
        info = client.refresh(large)
        seconds = time.perf_counter() - begin
        assert client.search(embedding=query).version == info.version == large
        after = {
            name: memory(pid)
            | {
                "before": before[name],
                "from_disk": (from_disk(pid) - read[name]) / 1e6,
                "cpu_s": cpu(pid) - used[name],
            }
            for name, pid in sorted(processes.items())
        }
    disk.append(read_speed(files, shards))
    size = sum(file.stat().st_size for file in files)
    return {"bytes": size, "refresh_s": seconds, "disk_mb_s": disk, "replicas": after}


def forget(files: list[Path]) -> None:
    """Take `files` out of the page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)  # a dirty page cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_speed(files: list[Path], readers: int) -> float:
    """MB/s of `readers` threads that read whole files, none of them cached."""
    forget(files)
    begin = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        size = sum(pool.map(_read, files))
    return size / (time.perf_counter() - begin) / 1e6


def _read(file: Path) -> int:
    piece, size = bytearray(_PIECE), 0
    with open(file, "rb", buffering=0) as source:
        while count := source.readinto(piece):
            size += count
    return size


def from_disk(pid: int) -> int:
    """Bytes that a process has made the disk read."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
