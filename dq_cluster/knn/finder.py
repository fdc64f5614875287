"""One fragment of queries, from their codes to its entry in the ledger."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.actor import ActorHandle

from dq_cluster.fragments.attempts import persistently
from dq_cluster.fragments.ledger import Ledger, Receipt
from dq_cluster.fragments.progress import Work
from dq_cluster.fragments.retry import Failures
from dq_cluster.images.features import FeatureSet, open_features
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import write_parquet
from dq_cluster.knn.config import NeighboursSettings
from dq_cluster.knn.join import Join
from dq_cluster.knn.pick import lists, without_self
from dq_cluster.knn.result import schema_of
from dq_cluster.model.bundle import load_model
from dq_cluster.observe.log import configure_logging
from dq_cluster.search.merge import rerank
from dq_cluster.search.shard import LoadedShard, load_whole
from dq_cluster.storage import Storage

_TOGETHER = 1 << 17  # queries that are joined at once
_REFINED = 64  # queries whose second codes are scored at once: what a cache holds


@dataclass(frozen=True)
class FindJob:
    """All that an actor must know. version, queries, factor (candidates for each neighbour that are
    re-ranked): what the settings mean by now."""

    settings: NeighboursSettings
    version: int
    queries: int
    factor: int
    storage: Storage


class NeighbourFinder:
    """Finds the neighbours of fragments of queries, by number; returns receipts as JSON."""

    def __init__(self, job: FindJob, reports: ActorHandle | None = None) -> None:
        configure_logging()
        self._job, self._reports = job, reports
        self._ledger = Ledger(job.storage, "")

    # Loaded at the first fragment: of an actor that cannot be made, Ray reports the stack only.
    @cached_property
    def _shard(self) -> LoadedShard:
        index = Index.at(self._job.settings.index)
        return load_whole(index, index.manifest(self._job.version))

    @cached_property
    def _join(self) -> Join:
        return Join(self._shard, self._job.settings.pool.cpus)

    @cached_property
    def _features(self) -> FeatureSet:
        assert self._job.settings.features is not None
        return open_features(self._job.settings.features)

    @cached_property
    def _network(self) -> Any:
        index = Index.at(self._job.settings.index)
        return load_model(index.storage, self._shard.manifest.model)[0]

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        faiss.omp_set_num_threads(self._job.settings.pool.cpus)  # of the thread that calls
        for fragment in batch["fragment"]:
            receipt = persistently(int(fragment), partial(self._find, int(fragment)), self._reports)
            yield {"receipt": [receipt.model_dump_json()]}

    def _find(self, fragment: int, failures: Failures) -> Receipt:
        if self._ledger.contains(fragment):
            return self._ledger.read(fragment)
        started = time.perf_counter()
        size = self._job.settings.fragment_rows
        rows = np.arange(fragment * size, min((fragment + 1) * size, self._job.queries))
        if self._job.settings.features is None:
            rows = self._shard.living(rows)
        tables = []
        for start in range(0, max(len(rows), 1), _TOGETHER):
            tables.append(self._table(rows[start : start + _TOGETHER]))
            if self._reports is not None:
                seconds = {"search": time.perf_counter() - started}
                work = Work(min(start + _TOGETHER, len(rows)), 0, seconds)
                self._reports.working.remote(fragment, work)
        table = pa.concat_tables(tables)
        searched = time.perf_counter()
        path = f"part-{fragment:06d}-{uuid.uuid4().hex[:12]}.parquet"
        file = write_parquet(self._job.storage, path, table.combine_chunks(), stats=["id"])
        lengths = pc.list_value_length(table.column("rows"))
        full = int(np.count_nonzero(lengths.to_numpy() >= self._job.settings.k))
        receipt = Receipt(
            fragment=fragment,
            rows=table.num_rows,
            rejected=0,
            reasons={},
            files=(file,),
            rejects=(),
            columns={"full": str(full)},
            seconds={"search": searched - started, "write": time.perf_counter() - searched},
        )
        counted = self._ledger.commit(receipt)
        if counted.files != receipt.files:
            self._job.storage.delete(path)
        return counted

    def _table(self, rows: np.ndarray) -> pa.Table:
        """The result for the queries `rows` (n,)."""
        settings, shard = self._job.settings, self._shard
        found_type = shard.rows.schema.field("id").type
        if settings.features is None:
            scores, ordinals = self._search(shard.embeddings(rows), settings.k + 1)
            scores, ordinals = without_self(scores, ordinals, rows)
            ids = shard.rows.take(rows).column("id").combine_chunks()
        else:
            start, stop = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
            features = self._features.read(start, stop)
            scores, ordinals = self._search(_embedded(self._network, features), settings.k)
            ids = pa.array(self._features.ids(start, stop))
        offsets, near, places = lists(scores, ordinals, settings.within)
        unique, back = np.unique(places, return_inverse=True)
        names = shard.rows.take(unique).column("id").combine_chunks().take(pa.array(back))
        columns = [
            ids,
            pa.ListArray.from_arrays(offsets, names.cast(found_type)),
            pa.ListArray.from_arrays(offsets, pa.array(near, pa.float32())),
            pa.array(rows, pa.int64()),
            pa.ListArray.from_arrays(offsets, pa.array(places, pa.int64())),
        ]
        return pa.Table.from_arrays(columns, schema=schema_of(ids.type, found_type))

    def _search(self, embeddings: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        shard, asked = self._shard, self._job.settings
        if shard.refiner is None or self._job.factor == 1:
            return self._join.search(embeddings, k, nprobe=asked.nprobe, within=asked.within)
        # The second code, or the decoder, decides what is within a score.
        scores, ordinals = self._join.search(embeddings, k * self._job.factor, nprobe=asked.nprobe)
        refined = []
        for start in range(0, len(embeddings), _REFINED):
            some = slice(start, start + _REFINED)
            second = shard.refiner.scores(embeddings[some], ordinals[some])
            refined.append(rerank([(scores[some], ordinals[some], second)], k)[:2])
        if not refined:
            return scores[:, :k], ordinals[:, :k]
        return np.vstack([r[0] for r in refined]), np.vstack([r[1] for r in refined])


def _embedded(network: Any, features: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return network.embed(torch.from_numpy(features)).numpy()
