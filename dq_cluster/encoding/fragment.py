"""One fragment, from its units to its entry in the ledger.

`FragmentEncoder` is the actor that Ray Data sends fragment numbers to. It starts the loading
tasks of a fragment, encodes the chunks they stream to it, writes the files, and commits. A
failure leaves nothing that counts, so a fragment can always be encoded again.
"""

import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dq_cluster.encoding.known import KnownIds
from dq_cluster.encoding.load import Chunk, Expectation, load
from dq_cluster.encoding.outputs import Encoder, Output
from dq_cluster.encoding.packing import divide
from dq_cluster.encoding.plan import Plan, PlanReader
from dq_cluster.errors import DqError
from dq_cluster.fragments.attempts import persistently
from dq_cluster.fragments.ledger import Ledger, Receipt
from dq_cluster.fragments.progress import Work
from dq_cluster.fragments.retry import Failures
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.decode import Reason
from dq_cluster.images.skipped import most_frequent
from dq_cluster.images.units import Unit
from dq_cluster.index.codefile import write_parquet
from dq_cluster.index.columns import cast_columns
from dq_cluster.index.ids import concat_rows
from dq_cluster.index.manifest import FileEntry
from dq_cluster.index.thumbnails import COLUMN as THUMBNAIL
from dq_cluster.index.thumbnails import ThumbnailWriter
from dq_cluster.observe.log import configure_logging
from dq_cluster.storage import Storage

# Chunks that a loading task may be ahead of the encoder.
_AHEAD = 2


@dataclass(frozen=True)
class EncodeJob:
    """All that an actor must know. Where the run keeps its plan, ledger, and rejects.

    carried: the carried columns, with the types that they have in every file of the run. known:
    ids that are not encoded again. thumbnails: pixels of a side, 0 for none. apart: where they are
    written, None where they stay among the rows.
    """

    source: SourceSettings
    carried: pa.Schema
    output: Output
    storage: Storage
    run: str
    rejects: str
    plan: Plan
    decoders: int
    known: KnownIds | None = None
    thumbnails: int = 0
    apart: str | None = None


@dataclass
class _Gathered:
    """What the lanes of a fragment gave so far; chunks are kept by lane, to restore order."""

    rows: dict[int, list[pa.Table]] = field(default_factory=lambda: defaultdict(list))
    arrays: dict[int, list[dict[str, np.ndarray]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    rejects: list[pa.Table] = field(default_factory=list)
    thumbnails: ThumbnailWriter | None = None
    places: dict[int, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, lane: int, rows: pa.Table, arrays: dict[str, np.ndarray]) -> None:
        if self.thumbnails is not None:
            ids, pictures = (rows.column(n).combine_chunks() for n in ("id", THUMBNAIL))
            self.places[lane].append(self.thumbnails.add(ids, pictures))
            rows = rows.drop_columns([THUMBNAIL])
        self.rows[lane].append(rows)
        self.arrays[lane].append(arrays)

    @property
    def work(self) -> Work:
        return Work(
            rows=sum(table.num_rows for tables in self.rows.values() for table in tables),
            rejected=sum(table.num_rows for table in self.rejects),
            seconds=dict(self.seconds),
        )


class FragmentEncoder:
    """Encodes fragments by number and returns their receipts, as JSON.

    Ray Data calls it from two threads: while one waits, for the first pixels of its fragment or
    for storage, the other keeps the networks busy. The networks run for one at a time.
    """

    def __init__(self, job: EncodeJob, reports: ActorHandle | None = None) -> None:
        configure_logging()
        self._job, self._reports = job, reports
        self._ledger = Ledger(job.storage, job.run)
        self._lock = threading.Lock()

    # Opened at the first fragment, not in the constructor: of an actor that cannot be made, Ray
    # reports the stack and not the exception.
    @cached_property
    def _encoder(self) -> Encoder:
        return self._job.output.open()

    @cached_property
    def _plan(self) -> PlanReader:
        return PlanReader(self._job.storage, self._job.plan)

    @cached_property
    def _known(self) -> "ray.ObjectRef[KnownIds] | None":
        """Put once; the loading tasks of the node read the same copy."""
        return None if self._job.known is None else ray.put(self._job.known)

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        for fragment in batch["fragment"]:
            receipt = persistently(
                int(fragment), partial(self._encode, int(fragment)), self._reports
            )
            yield {"receipt": [receipt.model_dump_json()]}

    def _encode(self, fragment: int, failures: Failures) -> Receipt:
        if self._ledger.contains(fragment):
            return self._ledger.read(fragment)
        with self._lock:
            units, expected = self._plan.fragment(fragment), self._encoder.expects
        gathered = _Gathered()
        if self._job.thumbnails and self._job.apart is not None:
            gathered.thumbnails = ThumbnailWriter()
        lanes = divide(units, self._job.decoders)
        for lane, chunk in self._stream(lanes, expected, failures.apart):
            gathered.seconds["load"] += chunk.seconds
            gathered.skipped.update(chunk.skipped)
            if chunk.rows.num_rows:
                with self._lock:
                    started = time.perf_counter()
                    arrays = self._encoder(chunk.payload)
                    gathered.seconds["encode"] += time.perf_counter() - started
                gathered.add(lane, chunk.rows, arrays)
            if chunk.rejects.num_rows:
                gathered.rejects.append(chunk.rejects)
            if self._reports is not None:
                self._reports.working.remote(fragment, gathered.work)
        return self._commit(fragment, gathered)

    def _stream(
        self, lanes: list[list[Unit]], expected: Expectation, apart: bool
    ) -> Iterator[tuple[int, Chunk]]:
        """Chunks of all lanes as they come, with the number of their lane."""
        # Beside their encoder, on CPUs that it claimed for them: loading tasks that had to find
        # CPUs of their own could wait for ever behind the encoders of other drivers.
        here = ray.get_runtime_context().get_node_id()
        remote = ray.remote(load).options(
            num_cpus=0,
            max_retries=0,  # the fragment is tried again, and must know how often
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
            num_returns="streaming",
            _generator_backpressure_num_objects=_AHEAD,
        )
        how = {"apart": apart, "thumbnails": self._job.thumbnails}
        open_lanes = {
            remote.remote(self._job.source, lane, expected, self._known, **how): n
            for n, lane in enumerate(lanes)
        }
        try:
            while open_lanes:
                (ready, *_), _ = ray.wait(list(open_lanes), num_returns=1)
                try:
                    chunk = ray.get(next(ready))
                except StopIteration:
                    del open_lanes[ready]
                    continue
                except RayTaskError as error:
                    # The cause is one of ours, or a bug; either says more than Ray's wrapping.
                    if isinstance(error.cause, DqError | MemoryError):
                        raise error.cause from None
                    raise
                yield open_lanes[ready], chunk
        finally:
            for lane in open_lanes:
                ray.cancel(lane)

    def _commit(self, fragment: int, gathered: _Gathered) -> Receipt:
        started = time.perf_counter()
        files: tuple[FileEntry, ...] = ()
        thumbnails = None
        columns: dict[str, str] = {}
        rows = 0
        if gathered.rows:
            lanes = sorted(gathered.rows)
            tables = [t for lane in lanes for t in gathered.rows[lane]]
            table = concat_rows([cast_columns(t, self._job.carried) for t in tables])
            parts = [p for lane in lanes for p in gathered.arrays[lane]]
            arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            first = _first_of_each_id(table)
            if len(first) < table.num_rows:
                again = np.setdiff1d(np.arange(table.num_rows), first)
                gathered.rejects.append(_duplicates(table.take(again)))
                table, arrays = table.take(first), {n: a[first] for n, a in arrays.items()}
            files = (self._encoder.write(fragment, table, arrays),)
            if gathered.thumbnails is not None:
                places = np.concatenate([p for lane in lanes for p in gathered.places[lane]])
                thumbnails = gathered.thumbnails.write(
                    self._job.storage,
                    f"{self._job.apart}/thumbnails-{fragment:06d}-{uuid.uuid4().hex[:12]}.parquet",
                    self._job.thumbnails,
                    np.sort(places[first]),
                )
            rows = table.num_rows
            columns = {n: str(table.schema.field(n).type) for n in table.column_names}
        rejects = self._write_rejects(fragment, gathered.rejects)
        gathered.seconds["write"] += time.perf_counter() - started
        receipt = Receipt(
            fragment=fragment,
            rows=rows,
            rejected=sum(file.rows for file in rejects),
            reasons=_count_reasons(gathered.rejects),
            files=files,
            rejects=rejects,
            thumbnails=thumbnails,
            columns=columns,
            seconds=dict(gathered.seconds),
            skipped=most_frequent(gathered.skipped),
        )
        counted = self._ledger.commit(receipt)
        kept = {file.path for file in counted.written}
        for file in receipt.written:
            if file.path not in kept:
                self._job.storage.delete(file.path)
        return counted

    def _write_rejects(self, fragment: int, tables: list[pa.Table]) -> tuple[FileEntry, ...]:
        if not tables:
            return ()
        path = f"{self._job.rejects}/rejects-{fragment:06d}-{uuid.uuid4().hex[:12]}.parquet"
        return (write_parquet(self._job.storage, path, concat_rows(tables), stats=["reason"]),)


def _count_reasons(rejects: list[pa.Table]) -> dict[str, int]:
    return dict(Counter(r for table in rejects for r in table.column("reason").to_pylist()))


def _first_of_each_id(table: pa.Table) -> np.ndarray:
    """Positions, ascending, of the first row of every id."""
    numbers = table.column("id").combine_chunks().dictionary_encode().indices.to_numpy()
    return np.sort(np.unique(numbers, return_index=True)[1])


def _duplicates(rows: pa.Table) -> pa.Table:
    reason = pa.array([Reason.DUPLICATE_ID.value] * rows.num_rows)
    return rows.select(["id", "uri"]).append_column("reason", reason)
