"""OpenTelemetry traces across the router and its shards; off unless the environment asks.

`OTEL_TRACES_EXPORTER=otlp` (or `console`) turns them on in every process that has it; the other
standard `OTEL_*` variables (endpoint, service name, sampler) keep their meaning. `otlp` needs
`pip install opentelemetry-exporter-otlp`.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from dq_cluster.errors import ConfigError


@contextlib.contextmanager
def span(
    name: str, parent: Mapping[str, str] | None = None, **attributes: str | int | float | bool
) -> Iterator[None]:
    """A span around the block, under `parent` (what `trace_headers` gave on the caller's side)."""
    tracer = _tracer()
    if tracer is None:
        yield
        return
    from opentelemetry import propagate

    context = propagate.extract(parent) if parent else None
    with tracer.start_as_current_span(name, context=context, attributes=attributes):
        yield


def trace_headers() -> dict[str, str]:
    """The current span as W3C headers, to hand to another process; empty when tracing is off."""
    headers: dict[str, str] = {}
    if _tracer() is not None:
        from opentelemetry import propagate

        propagate.inject(headers)
    return headers


def exemplar() -> dict[str, str] | None:
    """What leads from a measurement to its trace; None where there is no trace that is kept."""
    if _tracer() is None:
        return None
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return {"trace_id": f"{context.trace_id:032x}"} if context.trace_flags.sampled else None


@functools.cache
def _tracer() -> Any:
    """This process's tracer, or None when tracing is off. Raises ConfigError if it cannot be on."""
    names = [n.strip() for n in os.environ.get("OTEL_TRACES_EXPORTER", "").split(",")]
    names = [name for name in names if name and name != "none"]
    if not names or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        return None
    provider = TracerProvider()
    for name in names:
        exporters = entry_points(group="opentelemetry_traces_exporter", name=name)
        if not exporters:
            raise ConfigError(
                f"OTEL_TRACES_EXPORTER={name}: no such exporter is installed; "
                "otlp comes with `pip install opentelemetry-exporter-otlp`"
            )
        exporter = next(iter(exporters)).load()
        provider.add_span_processor(BatchSpanProcessor(exporter()))
    return provider.get_tracer("dq_cluster")
