"""Encoding while its processes are killed: the machinery of the chaos test and benchmark.

A driver (`jobs/encode.py`, a process of its own) encodes from and to an S3 server on a Ray cluster
of two worker nodes. Blows fall at random moments; afterwards every input must be in the version
exactly once or in the rejects exactly once.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from ray.cluster_utils import Cluster

from dq_cluster.encoding.config import PoolSettings
from dq_cluster.images.config import SourceSettings
from dq_cluster.index.catalog import Index
from dq_cluster.index.tombstones import live_ids
from dq_cluster.index.verify import verify
from dq_cluster.storage import Storage
from tests.encoding import encode_command, settings_for, tiny_backbone, tiny_model
from tests.pictures import crops, encoded, photograph, write_parquet
from tests.seaweed import S3Server

ROOT = Path(__file__).parents[2]
BLOWS = ("loader", "encoder", "node", "driver", "storage", "second driver")
# The defaults take 15 seconds to see that a node is gone; tests have no patience.
_SYSTEM = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 5,
}
_BAD_EVERY = 37
_FRAGMENT = 20


class Arena:
    """A cluster, a bucket of pictures on an S3 server, and the drivers at work.

    The environment must point at `server`.
    """

    def __init__(self, folder: Path, server: S3Server, images: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder, self.images = folder, images
        self.fragments = -(-images // _FRAGMENT)
        self.server = server
        bucket = f"arena-{uuid.uuid4().hex[:12]}"
        server.client().create_bucket(Bucket=bucket)
        self.storage = Storage(f"s3://{bucket}")
        self.index = Index(self.storage.child("index"))
        self.card = tiny_model(self.index.storage, tiny_backbone(folder))
        self._write_pictures()
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": _SYSTEM},
        )
        self.nodes = [self.cluster.add_node(num_cpus=3) for _ in range(2)]
        self.drivers: list[subprocess.Popen[bytes]] = []
        self.gave_up = 0
        self.log = open(folder / "drivers.log", "ab")  # noqa: SIM115

    def close(self) -> None:
        self._kill_drivers()
        self.log.close()
        self.cluster.shutdown()

    def _write_pictures(self) -> None:
        # Big enough that decoding takes a while, few enough that storing them does not.
        large = [encoded(photograph().rotate(angle)) for angle in range(20)]
        pictures = [*large, *crops(20)]
        images = [
            pictures[n % len(pictures)][: 300 if n % _BAD_EVERY == 0 else None]
            for n in range(self.images)
        ]
        local = write_parquet(
            self.folder / "pile.parquet", {"id": range(self.images), "image": images}, _FRAGMENT
        )
        self.storage.upload(local, "pile/pile.parquet")

    def begin(self, run: str) -> None:
        """Start a driver of `run`; several may work on one."""
        settings = settings_for(
            self.index.storage.uri,
            self.card,
            SourceSettings(kind="parquet", uri=f"{self.storage.uri}/pile"),
            run=run,
            fragment_rows=_FRAGMENT,
            pool=PoolSettings(encoders=2, decoders=1),
            max_reject_fraction=0.1,
        )
        self.drivers.append(
            subprocess.Popen(
                encode_command(settings, self.folder / f"{run}.yaml"),
                cwd=ROOT,
                env=os.environ | {"RAY_ADDRESS": self.cluster.address, "OMP_NUM_THREADS": "1"},
                stdout=self.log,
                stderr=self.log,
            )
        )

    def done(self, run: str) -> int:
        """Fragments of `run` that are committed; -1 while storage does not answer."""
        with contextlib.suppress(Exception):
            return sum(1 for _ in self.index.storage.list(f"runs/{run}/ledger"))
        return -1

    def strike(self, blow: str, run: str) -> bool:
        """Deal one blow. False if there was nobody to hit."""
        match blow:
            case "loader":
                return self._kill_worker("ray::load")
            case "encoder":
                return self._kill_worker("ray::MapWorker")
            case "node":
                node = self.nodes.pop(self.random.randrange(len(self.nodes)))
                self.cluster.remove_node(node, allow_graceful=False)
                self.nodes.append(self.cluster.add_node(num_cpus=3))
                return True
            case "driver":
                self._kill_drivers()
                self.begin(run)
                return True
            case "storage":
                self.server.kill()
                time.sleep(self.random.uniform(0, 3))
                self.server.start()
                return True
            case "second driver":
                self.begin(run)
                return True
        raise ValueError(blow)

    def storm(self, run: str, limit: int, blows: Sequence[str] = ()) -> Counter[str]:
        """Encode `run` under `limit` blows, fewer if it is done before, and check what came out.

        The blows are those given, in their order, or else random ones.
        """
        dealt: Counter[str] = Counter()
        self.begin(run)
        while dealt.total() < limit:
            # Let some work be done first, so that there is something to lose.
            more = self.random.randint(1, max(1, self.fragments // 8))
            if not self._progressed(run, self.done(run) + more):
                break
            blow = blows[dealt.total()] if blows else self.random.choice(BLOWS)
            if self.strike(blow, run):
                dealt[blow] += 1
                print(f"{run}: {self.done(run)}/{self.fragments} done, {blow}", flush=True)
        self.finish(run, 1200)
        self.check(run)
        return dealt

    def _progressed(self, run: str, target: int) -> bool:
        """Wait until `target` fragments are done. False if all drivers ended before."""
        while self.done(run) < target:
            if all(driver.poll() is not None for driver in self.drivers):
                return False
            time.sleep(0.1)
        return True

    def finish(self, run: str, timeout: float) -> None:
        """Wait for the drivers; one that gave up is started again, as its user would."""
        deadline = time.monotonic() + timeout
        while True:
            assert time.monotonic() < deadline, f"{run} is not done after {timeout} seconds"
            codes = [driver.poll() for driver in self.drivers]
            if None in codes:
                time.sleep(0.2)
            elif 0 in codes:
                self.drivers = []
                return
            else:
                self.gave_up += 1
                self.drivers = []
                self.begin(run)

    def check(self, run: str) -> None:
        """Every input once in the version or once in the rejects; one version of the run."""
        manifests = [self.index.manifest(number) for number in self.index.versions()]
        (manifest,) = [m for m in manifests if m.producer.run == run]
        assert verify(self.index, manifest.version).problems == ()
        storage = self.index.storage
        encoded_ids = Counter(
            id for _, ids in live_ids(storage, manifest) for id in ids.to_pylist()
        )
        rejected_ids = Counter(
            id
            for file in manifest.rejects
            for id in pq.read_table(storage.open(file.path)).column("id").to_pylist()
        )
        bad = set(range(0, self.images, _BAD_EVERY))
        assert rejected_ids == Counter(bad)
        assert encoded_ids == Counter(set(range(self.images)) - bad)

    def _kill_worker(self, title: str) -> bool:
        raylets = {
            process.process.pid
            for node in self.nodes
            for process in node.all_processes.get("raylet", [])
        }
        victims = [pid for pid, parent, name in _processes() if parent in raylets and title in name]
        if not victims:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.random.choice(victims), signal.SIGKILL)
        return True

    def _kill_drivers(self) -> None:
        for driver in self.drivers:
            driver.kill()
            driver.wait(240)
        self.drivers = []


def _processes() -> Iterator[tuple[int, int, str]]:
    """(pid, parent's pid, command line) of every process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                yield int(entry.name), int(status[1]), command
