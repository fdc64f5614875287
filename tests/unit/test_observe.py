"""Metric definitions, log lines, and traces, without Ray."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dq_cluster.errors import ConfigError
from dq_cluster.index.sizing import SizingRequest, size_index
from dq_cluster.observe import log, metrics, tracing


def test_metric_names_follow_prometheus() -> None:
    families = list(metrics.REGISTRY.collect())
    assert len(families) > 15
    for family in families:
        assert re.fullmatch(r"dq_[a-z0-9]+(_[a-z0-9]+)*", family.name)
        assert family.documentation.endswith(".")
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_ratio"))


def test_recording_and_reading_without_ray_does_not_import_ray() -> None:
    code = (
        "import sys; from dq_cluster.observe import exporter, metrics as m\n"
        "m.QUERIES.labels(outcome='ok').inc()\n"
        "with m.timed(m.STEP_SECONDS.labels(step='merge')): pass\n"
        "assert b'dq_queries_total' in exporter.exposition(None)[0]\n"
        "assert not any(name.split('.')[0] == 'ray' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """A logger; what `configure_logging` changes is put back afterwards."""
    root = logging.getLogger("dq_cluster")
    monkeypatch.setattr(root, "handlers", root.handlers)
    monkeypatch.setattr(root, "propagate", root.propagate)
    monkeypatch.setattr(root, "level", root.level)
    return logging.getLogger("dq_cluster.test")


def test_json_lines_carry_fields_and_the_request_id(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DQ_LOG_FORMAT", "json")
    log.configure_logging()
    with log.request_context("abc-1") as request_id:
        logger.info("shard %d is slow", 3, extra={"shard": 3})
    logger.debug("not shown")
    try:
        raise ValueError("broken\nline")
    except ValueError:
        logger.exception("outside a request")
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = map(json.loads, captured.err.splitlines())
    assert request_id == "abc-1"
    assert first | {"time": ""} == {
        "time": "",
        "level": "INFO",
        "logger": "dq_cluster.test",
        "message": "shard 3 is slow",
        "request_id": "abc-1",
        "shard": 3,
    }
    assert "request_id" not in second
    assert "broken" in second["exception"]


def test_text_lines_carry_the_same(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DQ_LOG_FORMAT", "text")
    log.configure_logging()
    with log.request_context("abc-1"):
        logger.warning("slow", extra={"shard": 3})
    line = capsys.readouterr().err
    assert line.endswith("WARNING dq_cluster.test: slow  request_id=abc-1 shard=3\n")


@pytest.mark.parametrize("given", [None, "", "two words", "a\nb", "x" * 65])
def test_an_unsafe_request_id_is_replaced(given: str | None) -> None:
    with log.request_context(given) as request_id:
        assert re.fullmatch(r"[0-9a-f]{32}", request_id)
        assert log.current_request_id() == request_id
    assert log.current_request_id() == ""


@pytest.mark.parametrize(("name", "value"), [("DQ_LOG_FORMAT", "xml"), ("DQ_LOG_LEVEL", "LOUD")])
def test_wrong_log_settings_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        log.configure_logging()


def test_tracing_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)
    tracing._tracer.cache_clear()
    with tracing.span("query", k=10):
        assert tracing.trace_headers() == {}


def test_a_span_continues_in_another_process() -> None:
    """Two spans, the second under the first's headers, as a shard in another process sees them."""
    code = (
        "from dq_cluster.observe.tracing import span, trace_headers\n"
        "with span('query', k=10): headers = trace_headers()\n"
        "with span('shard', parent=headers, shard=1): pass\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"OTEL_TRACES_EXPORTER": "console"},
        capture_output=True,
        text=True,
        check=True,
    )
    decoder, text, spans = json.JSONDecoder(), result.stdout.strip(), []
    while text:
        found, end = decoder.raw_decode(text)
        spans.append(found)
        text = text[end:].strip()
    query, shard = spans
    assert (query["name"], shard["name"]) == ("query", "shard")
    assert shard["parent_id"] == query["context"]["span_id"]
    assert shard["context"]["trace_id"] == query["context"]["trace_id"]
    assert shard["attributes"] == {"shard": 1}


def test_a_measurement_names_its_trace() -> None:
    code = (
        "from dq_cluster.observe import metrics, tracing\n"
        "with tracing.span('query'), metrics.timed(metrics.QUERY_SECONDS):\n"
        "    headers = tracing.trace_headers()\n"
        "with metrics.timed(metrics.QUERY_SECONDS): pass\n"
        "(found,) = [s.exemplar for m in metrics.REGISTRY.collect() for s in m.samples\n"
        "            if s.exemplar]\n"
        "assert found.labels == {'trace_id': headers['traceparent'].split('-')[1]}\n"
        "assert tracing.exemplar() is None\n"
    )
    environment = {"OTEL_TRACES_EXPORTER": "console"}
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    # A trace that the sampler leaves out leads nowhere.
    environment |= {"OTEL_TRACES_SAMPLER": "always_off"}
    code = (
        "from dq_cluster.observe import tracing\n"
        "with tracing.span('query'): assert tracing.exemplar() is None\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_an_unknown_exporter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "nonsense")
    tracing._tracer.cache_clear()
    with pytest.raises(ConfigError, match="OTEL_TRACES_EXPORTER=nonsense"), tracing.span("query"):
        pass
    tracing._tracer.cache_clear()


def test_the_sizing_table_of_the_docs_is_what_plan_says() -> None:
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    rows = [
        [float(cell.replace(",", "")) for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if re.match(r"\| [\d,]+ \| \d+ \|", line)
    ]
    assert len(rows) >= 5
    for images, bits, *figures in rows:
        sizing = size_index(SizingRequest(images=int(images), bits=int(bits)))
        assert figures == [
            sizing.shards,
            sizing.memory_per_replica_gb,
            sizing.memory_total_gb,
            sizing.storage_gb,
            sizing.fragments,
        ]
