"""Metrics of several real processes in one answer, without Ray."""

import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

from dq_cluster.errors import ConfigError
from dq_cluster.observe import exporter
from dq_cluster.observe.exporter import Process
from tests.seaweed import free_ports

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Path]:
    """The folder of a node on which this process is registered."""
    exporter.register("reader", tmp_path / "node")
    yield tmp_path / "node"
    exporter.register("local", None)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that registers as `name`, runs `code`, says so, and stays."""
    with ExitStack() as stack:

        def started(folder: Path, name: str, code: str = "") -> "subprocess.Popen[str]":
            program = (
                "import sys; from pathlib import Path\n"
                "from dq_cluster.observe.metrics import *\n"
                "from dq_cluster.observe import exporter\n"
                f"exporter.register({name!r}, Path({str(folder)!r}))\n"
                f"{code}\n"
                "print('ready', flush=True); sys.stdin.read()\n"
            )
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            return process

        yield started


def samples(families: list[Metric], name: str, **labels: object) -> list[Any]:
    wanted = {label: str(value) for label, value in labels.items()}.items()
    found = [s for family in families for s in family.samples if s.name == name]
    return [s for s in found if wanted <= s.labels.items()]


def values(name: str, **labels: object) -> list[float]:
    return [sample.value for sample in samples(exporter.gather(), name, **labels)]


def test_two_processes_are_exact_and_told_apart(node: Path, start: Start) -> None:
    code = (
        "for seconds in (0.0004, 0.013, {last}):\n"
        "    QUERY_SECONDS.observe(seconds, {{'trace_id': '{trace}'}})\n"
        "QUERIES.labels(outcome='ok').inc(3)\n"
    )
    one = start(node, "router", code.format(last=7.25, trace="aa"))
    two = start(node, "router", code.format(last=0.5, trace="bb"))

    name = "dq_query_duration_seconds"
    assert values(f"{name}_sum", pid=one.pid) == [0.0004 + 0.013 + 7.25]
    assert values(f"{name}_sum", pid=two.pid) == [0.0004 + 0.013 + 0.5]
    assert values(f"{name}_count", process="router") == [3, 3]
    assert values(f"{name}_bucket", pid=one.pid, le="5.0") == [2]
    assert values(f"{name}_bucket", pid=two.pid, le="0.5") == [3]
    assert values(f"{name}_bucket", pid=two.pid, le="0.02") == [2]
    assert values("dq_queries_total", outcome="ok", process="router") == [3, 3]

    # What Prometheus would read, exemplars included; a text for older ones without them.
    text, media_type = exporter.exposition(OPENMETRICS)
    assert media_type.startswith("application/openmetrics-text")
    read = list(text_string_to_metric_families(text.decode()))
    (slow,) = samples(read, f"{name}_bucket", pid=one.pid, le="10.0")
    assert (slow.exemplar.labels, slow.exemplar.value) == ({"trace_id": "aa"}, 7.25)
    plain, media_type = exporter.exposition(None)
    assert media_type.startswith("text/plain")
    assert b"dq_queries_total{" in plain
    assert b"trace_id" not in plain
    assert b"_created" not in plain


def test_only_what_a_process_has_recorded(node: Path, start: Start) -> None:
    start(node, "encode", "ENCODE_FRAGMENTS.set(9); ENCODE_FRAGMENTS_DONE.set(0)")
    idle = start(node, "idle")
    found = [s for family in exporter.gather() for s in family.samples]
    assert {s.name: s.value for s in found if s.labels["process"] == "encode"} == {
        "dq_encode_fragments": 9,
        "dq_encode_fragments_done": 0,  # set to 0, which is not the same as not set
    }
    assert not [s for s in found if s.labels["pid"] == str(idle.pid)]


def test_a_killed_process_goes_with_its_metrics(node: Path, start: Start) -> None:
    one, two = (start(node, "shard", "SHARD_CODES.labels(shard=0).set(5)") for _ in range(2))
    assert values("dq_shard_codes", process="shard") == [5, 5]
    one.kill()
    os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert [s.labels["pid"] for s in samples(exporter.gather(), "dq_shard_codes", shard=0)] == [
        str(two.pid)
    ]
    assert {each.pid for each in exporter.registered(node)} == {two.pid, os.getpid()}
    assert len(list(node.iterdir())) == 2
    # One that ends by itself takes its file with it.
    assert two.stdin is not None
    two.stdin.close()
    two.wait()
    assert len(list(node.iterdir())) == 1


def test_the_port_of_the_node_is_taken_over(node: Path, start: Start) -> None:
    (port,) = free_ports(1)
    code = f"INDEX_VERSION.set(7); exporter.serve_node({port})"
    first = start(node, "router", code)
    pids = {first.pid}

    def seen(wanted: set[int]) -> None:
        deadline = time.monotonic() + 240
        got: set[str] = set()
        while got != {str(pid) for pid in wanted}:
            assert time.monotonic() < deadline, got
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=240) as answer:
                    text = answer.read().decode()
            except OSError:
                time.sleep(0.05)
                continue
            families = list(plain_families(text))
            got = {s.labels["pid"] for s in samples(families, "dq_index_version")}

    seen(pids)
    second = start(node, "router", code)
    seen(pids | {second.pid})
    first.kill()
    first.wait()
    seen({second.pid})


def test_a_process_that_hangs_is_left_out_and_named(
    node: Path, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exporter, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(logging.getLogger("dq_cluster"), "propagate", True)
    codes = "SHARD_CODES.labels(shard=0).set(5)"
    hung = start(node, "shard", codes)
    os.kill(hung.pid, signal.SIGSTOP)
    assert values("dq_shard_codes", process="shard") == []
    # On a busy machine this process itself may be too slow, and be named beside the other.
    assert hung.pid in {vars(record)["pid"] for record in caplog.records}
    os.kill(hung.pid, signal.SIGCONT)
    monkeypatch.setattr(exporter, "_PATIENCE_S", 60)
    assert values("dq_shard_codes", process="shard") == [5]


def test_a_pid_that_was_used_again_is_another_process(node: Path) -> None:
    (me,) = exporter.registered(node)
    before = Process(me.pid, me.started - 1, me.port, "router")
    (node / before.file).touch()
    (node / "lost+found").mkdir()
    assert exporter.registered(node) == [me]
    assert {path.name for path in node.iterdir()} == {me.file, "lost+found"}


def test_a_process_that_goes_on_under_another_name_is_counted_once(node: Path) -> None:
    exporter.register("train", node)
    exporter.register("encode", node)
    assert [each.name for each in exporter.registered(node)] == ["encode"]


@pytest.mark.parametrize("port", ["0", "65536", "-1", "eighty", "8081 ", "٨٠٨١"])
def test_a_port_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("DQ_METRICS_PORT", port)
    with pytest.raises(ConfigError, match=f"DQ_METRICS_PORT={port}: expected a port"):
        exporter.expose("router")


def test_work_goes_on_where_nothing_can_be_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("dq_cluster"), "propagate", True)
    (tmp_path / "file").touch()
    monkeypatch.setattr(exporter, "_node_folder", lambda: tmp_path / "file" / "node")
    exporter.expose("router")
    assert "metrics of this process cannot be read" in caplog.text
    exporter.exposition(None)
    exporter.register("local", None)
