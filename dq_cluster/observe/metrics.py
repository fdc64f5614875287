"""Every metric of dq_cluster, defined once with prometheus-client's own types.

    QUERIES.labels(outcome="ok").inc()
    COVERAGE.observe(0.97)
    with timed(SHARD_SEARCH_SECONDS.labels(shard=3)):
        ...

A record stays in the process that makes it, so library code may record without asking. How it gets
from there to Prometheus is `observe.exporter`'s business.
"""

import contextlib
import math
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dq_cluster.observe.tracing import exemplar

REGISTRY = CollectorRegistry()

# A query is worth milliseconds; a deadline is rarely over ten seconds.
_LATENCY_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_LOAD_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999, 1)


@contextlib.contextmanager
def timed(histogram: Histogram) -> Iterator[None]:
    """Observe the seconds that the block takes, also when it raises, with the id of its trace."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        histogram.observe(time.perf_counter() - begin, exemplar())


def _histogram(
    name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
) -> Histogram:
    return Histogram(name, text, labels, buckets=buckets, registry=REGISTRY)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    """A gauge without labels is NaN until it is set: prometheus-client would begin with 0."""
    gauge = Gauge(name, text, labels, registry=REGISTRY)
    if not labels:
        gauge.set(math.nan)
    return gauge


# Queries, recorded by the router.
QUERIES = _counter(
    "dq_queries_total",
    "Queries answered, by outcome: ok, partial, timed_out, rejected, failed.",
    "outcome",
)
QUERY_SECONDS = _histogram(
    "dq_query_duration_seconds", "A query from arrival to answer.", (), _LATENCY_SECONDS
)
STEP_SECONDS = _histogram(
    "dq_query_step_seconds",
    "One step of a query: embed, search, merge.",
    ("step",),
    _LATENCY_SECONDS,
)
COVERAGE = _histogram(
    "dq_query_coverage_ratio", "Codes searched / codes in the version, per query.", (), _SHARES
)
HEDGES = _counter("dq_hedges_total", "Second requests sent because a shard was slow.", "shard")
RETRIES = _counter("dq_retries_total", "Requests sent again because a shard failed.", "shard")

# Shards, recorded by each replica.
SHARD_SEARCH_SECONDS = _histogram(
    "dq_shard_search_seconds", "One search inside a shard.", ("shard",), _LATENCY_SECONDS
)
SHARD_LOAD_SECONDS = _histogram(
    "dq_shard_load_seconds", "Loading one version of a shard.", ("shard",), _LOAD_SECONDS
)
SHARD_LOAD_FAILURES = _counter(
    "dq_shard_load_failures_total", "Versions that a shard refused to load.", "shard"
)
SHARD_CODES = _gauge("dq_shard_codes", "Codes that a replica serves.", "shard")
INDEX_VERSION = _gauge("dq_index_version", "The index version that this process serves.")

# Encoding, recorded by the driver.
ENCODE_IMAGES = _counter("dq_encode_images_total", "Images encoded and committed.")
ENCODE_REJECTS = _counter("dq_encode_rejects_total", "Images that could not be encoded.")
ENCODE_FRAGMENTS = _gauge("dq_encode_fragments", "Fragments that the plan of this run has.")
ENCODE_FRAGMENTS_DONE = _gauge("dq_encode_fragments_done", "Fragments committed.")

NEIGHBOURS_QUERIES = _counter(
    "dq_neighbours_queries_total", "Queries whose neighbours are committed."
)
NEIGHBOURS_FRAGMENTS = _gauge("dq_neighbours_fragments", "Fragments of queries of this run.")
NEIGHBOURS_FRAGMENTS_DONE = _gauge("dq_neighbours_fragments_done", "Fragments committed.")

# Training, recorded by rank 0.
TRAIN_LOSS = _gauge("dq_train_loss", "Training loss, by term.", "term")
TRAIN_SAMPLES = _counter("dq_train_samples_total", "Training samples seen by all workers.")
CODEBOOK_PERPLEXITY = _gauge(
    "dq_codebook_perplexity",
    "Words of a codebook in use, as the exponential of the usage entropy, mean over sub-codebooks.",
)
