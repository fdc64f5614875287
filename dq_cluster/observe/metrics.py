"""Every metric of dq_cluster, defined once.

    QUERIES.inc(outcome="ok")
    COVERAGE.observe(0.97)
    with STEP_SECONDS.time(step="merge"):
        ...

The names here are the ones Prometheus shows after Ray's own `ray_` prefix. Ray collects from every
process of the cluster and exports per node; a record made where Ray does not run goes nowhere, so
library code may record without asking. Ray sends a histogram as the midpoints of its buckets:
quantiles are exact to the bucket, the `_sum` is approximate.
"""

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

# A query is worth milliseconds; a deadline is rarely over ten seconds.
_LATENCY_SECONDS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
_LOAD_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]
_REPEAT_S = 5  # Ray reports every 10 seconds unless told otherwise
_SHARES = [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999, 1]


class Metric:
    """A name, a sentence, and the labels every record must give.

    Ray's own object is made at the first record inside a running Ray: made earlier, Ray would
    silently lose what is recorded in it.
    """

    _kind: str

    def __init__(self, name: str, description: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.description = description
        self.labels = tuple(labels)
        self._lock = threading.Lock()
        self._ray: Any = None
        ALL.append(self)

    @property
    def exported(self) -> str:
        """The name as Prometheus sees it."""
        return f"ray_{self.name}"

    def _arguments(self) -> dict[str, Any]:
        return {"description": self.description, "tag_keys": self.labels}

    def _target(self) -> Any:
        """Ray's metric, or None where Ray does not run."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return None
        if self._ray is None:
            from ray.util import metrics

            with self._lock:
                if self._ray is None:
                    self._ray = getattr(metrics, self._kind)(self.name, **self._arguments())
        return self._ray

    def _tags(self, labels: dict[str, object]) -> dict[str, str]:
        if labels.keys() != set(self.labels):
            raise TypeError(f"{self.name} takes labels {self.labels}, got {tuple(labels)}")
        return {label: str(value) for label, value in labels.items()}


class Counter(Metric):
    """Only goes up. Its name ends in `_total`."""

    _kind = "Counter"

    def inc(self, value: float = 1, **labels: object) -> None:
        """Add `value` ≥ 0."""
        tags = self._tags(labels)
        if value > 0 and (target := self._target()) is not None:
            target.inc(value, tags)


class Gauge(Metric):
    """The last value; it disappears with the process that set it.

    Ray forgets a gauge that was not recorded between two of its reports. A value that seldom
    changes is therefore recorded again and again, by a thread of this process.
    """

    _kind = "Gauge"

    def __init__(self, name: str, description: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, description, labels)
        self._last: dict[tuple[str, ...], tuple[float, dict[str, str]]] = {}

    def set(self, value: float, **labels: object) -> None:
        tags = self._tags(labels)
        self._last[tuple(tags.values())] = float(value), tags
        if (target := self._target()) is not None:
            target.set(float(value), tags)
        _keep_gauges()

    def repeat(self) -> None:
        """Tell Ray the last values again."""
        if (target := self._target()) is not None:
            for value, tags in list(self._last.values()):
                target.set(value, tags)


class Histogram(Metric):
    """How values spread over buckets."""

    _kind = "Histogram"

    def __init__(
        self, name: str, description: str, labels: Sequence[str], boundaries: Sequence[float]
    ) -> None:
        super().__init__(name, description, labels)
        self.boundaries = list(boundaries)

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "boundaries": self.boundaries}

    def observe(self, value: float, **labels: object) -> None:
        tags = self._tags(labels)
        if (target := self._target()) is not None:
            target.observe(float(value), tags)

    @contextlib.contextmanager
    def time(self, **labels: object) -> Iterator[None]:
        """Observe the seconds that the block takes, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.observe(time.perf_counter() - start, **labels)


ALL: list[Metric] = []


@functools.cache
def _keep_gauges() -> None:
    """Start the thread that repeats gauges; once in a process."""

    def repeat_all() -> None:
        while True:
            time.sleep(_REPEAT_S)
            for metric in ALL:
                if isinstance(metric, Gauge):
                    metric.repeat()

    threading.Thread(target=repeat_all, name="gauges", daemon=True).start()


# Queries, recorded by the router.
QUERIES = Counter(
    "dq_queries_total",
    "Queries answered, by outcome: ok, partial, timed_out, rejected, failed.",
    ["outcome"],
)
QUERY_SECONDS = Histogram(
    "dq_query_duration_seconds", "A query from arrival to answer.", [], _LATENCY_SECONDS
)
STEP_SECONDS = Histogram(
    "dq_query_step_seconds",
    "One step of a query: embed, search, merge.",
    ["step"],
    _LATENCY_SECONDS,
)
COVERAGE = Histogram(
    "dq_query_coverage_ratio", "Codes searched / codes in the version, per query.", [], _SHARES
)
HEDGES = Counter("dq_hedges_total", "Second requests sent because a shard was slow.", ["shard"])
RETRIES = Counter("dq_retries_total", "Requests sent again because a shard failed.", ["shard"])

# Shards, recorded by each replica.
SHARD_SEARCH_SECONDS = Histogram(
    "dq_shard_search_seconds", "One search inside a shard.", ["shard"], _LATENCY_SECONDS
)
SHARD_LOAD_SECONDS = Histogram(
    "dq_shard_load_seconds", "Loading one version of a shard.", ["shard"], _LOAD_SECONDS
)
SHARD_LOAD_FAILURES = Counter(
    "dq_shard_load_failures_total", "Versions that a shard refused to load.", ["shard"]
)
SHARD_CODES = Gauge("dq_shard_codes", "Codes that a replica serves.", ["shard"])
INDEX_VERSION = Gauge("dq_index_version", "The index version that this process serves.")

# Encoding, recorded by the driver.
ENCODE_IMAGES = Counter("dq_encode_images_total", "Images encoded and committed.")
ENCODE_REJECTS = Counter("dq_encode_rejects_total", "Images that could not be encoded.")
ENCODE_FRAGMENTS = Gauge("dq_encode_fragments", "Fragments that the plan of this run has.")
ENCODE_FRAGMENTS_DONE = Gauge("dq_encode_fragments_done", "Fragments committed.")

# Training, recorded by rank 0.
TRAIN_LOSS = Gauge("dq_train_loss", "Training loss, by term.", ["term"])
TRAIN_SAMPLES = Counter("dq_train_samples_total", "Training samples seen by all workers.")
CODEBOOK_PERPLEXITY = Gauge(
    "dq_codebook_perplexity",
    "Words of a codebook in use, as the exponential of the usage entropy, mean over sub-codebooks.",
)
