"""The command line: exit statuses, one-line errors, and JSON that is nothing but JSON."""

import io
import json
import os
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.cli.failures import explain
from dq_cluster.cli.main import run
from dq_cluster.cli.output import emit
from dq_cluster.index.catalog import Index
from dq_cluster.jsontext import to_json
from tests.support import make_index, make_model, make_version

COMMAND = [sys.executable, "-c", "from dq_cluster.cli import main; main()"]


@pytest.fixture
def index(tmp_path: Path) -> str:
    uri = str(tmp_path / "index")
    make_version(uri, make_model(uri), rows=300, files=3)
    return uri


def test_plan_as_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--images", "1000000", "--bits", "64", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["shards"] == 1
    assert printed.err == ""


def test_list_show_and_rollback(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    Index.at(index).publish(
        lambda version, parent: (
            Index.at(index).manifest(1).model_copy(update={"version": version, "parent": parent})
        )
    )
    assert run(["index", "list", index, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["version"] for row in listed["versions"]] == [1, 2]
    assert listed["current"] == 2
    assert run(["index", "rollback", index]) == 0
    assert Index.at(index).current() == 1
    capsys.readouterr()
    assert run(["index", "show", index, "--version", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "show", "{index}", "--version", "9"], "no version 9; versions: 1"),
        (["index", "rollback", "{index}", "9"], "no version 9"),
        (["index", "rollback", "{index}"], "no parent"),
        (["index", "gc", "{index}", "--training", "first"], "no training first"),
        (["index", "list", "{index}-absent"], "no published index"),
        (["train", "indx=/x"], "unknown key 'indx'"),
        (["train", "--config", "/absent.yaml"], "/absent.yaml does not exist"),
        (["encode", "index=/x", "bogus=1"], "unknown key 'bogus'"),
        (["serve", "index=/x", "shards=none"], "'shards'"),
        (["serve", "/x", "shards=none"], "'shards'"),
        (["serve", "{index}-absent"], "no published index"),
        (["serve", "shards=2", "/x"], "'/x' is not KEY=VALUE"),
        (["plan", "--images", "0"], "greater than 0"),
        (["search", "{index}"], "--image FILE, --text WORDS, or both; or --id ID"),
        (["search", "{index}", "--id", "7", "-k", "5000"], "more than the 1000 that one request"),
        (["search", "{index}", "--id", "9" * 20], "is outside the ids of this index"),
        (["search", "{index}", "--id", "-5"], "-5"),
        (["search", "gs://bucket/index", "--id", "7"], "scheme 'gs'"),
        (["search", "s3:/bucket/index", "--id", "7"], "neither a path of this machine"),
        (["search", "", "--id", "7"], "a location is empty"),
        (["index", "list", "hf://datasets/x"], "scheme 'hf'"),
        (["index", "list", "~nobody-of-that-name"], "no such user"),
        (["index", "delete", "{index}", "9" * 20], "is outside the ids of this index"),
        (["index", "delete", "{index}", "-5"], "1 of 1 ids are not in version 1 (-5)"),
        (["index", "delete", "{index}", "3", "three"], "whole numbers; found 'three'"),
        (["index", "delete", "{index}"], "either ids or --ids-file"),
        (["index", "delete", "{index}", "3", "--ids-file", "x"], "either ids or --ids-file"),
        (["index", "delete", "{index}", "--ids-file", "/absent"], "/absent: No such file"),
        (["index", "delete", "{index}", "--ids-file", "/dev/null"], "holds no ids"),
        (["index", "gc", "{index}", "--grace-hours", "nan"], "--grace-hours nan is not between"),
        (["index", "gc", "{index}", "--grace-hours", "1e300"], "--grace-hours 1e+300"),
        (["index", "gc", "{index}", "--grace-hours", "-1"], "--grace-hours -1"),
        (["index", "compact", "{index}", "--rows", "0"], "--rows 0 is not 1 or more"),
        (["encode", "--config", "/dev"], "/dev: Is a directory"),
        (["encode", "index=/x", "model=", "source.kind=folder", "source.uri=/x"], "'model'"),
        (["encode", "index=/x", "laptop.yaml"], "given with --config"),
        (["bogus"], "No such command 'bogus'; see dq-cluster --help"),
        (["plan"], "Missing option '--images'; see dq-cluster plan --help"),
        (["plan", "--images", "many"], "'--images'"),
        (["plan", "--imagse", "3"], "No such option: --imagse"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    index: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> list[tuple[Path, int]]:
        found = (path for path in Path(index).rglob("*") if path.is_file())
        return sorted((path, path.stat().st_mtime_ns) for path in found)

    before = files()
    arguments = [argument.format(index=index) for argument in arguments]
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    words = 2 if arguments[0] == "index" else 1
    assert run([*arguments[:words], "--json", *arguments[words:]]) == 2
    printed = capsys.readouterr()
    assert message in json.loads(printed.out)["error"]
    assert printed.err.count("\n") == 1
    assert files() == before


def test_errors_as_json(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "show", index, "--version", "9", "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["kind"] == "NotFoundError"


def test_of_a_history_the_last_entry_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    history = [{"terms": {"triplet": 0.5}}, {"terms": {"triplet": 0.25}}]
    emit({"training": {"run": "first", "history": history}}, as_json=False)
    line = "training: run first, history 2 in all, the last: terms triplet 0.25\n"
    assert capsys.readouterr().out == line


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["encode", "--help"]):
        assert run(arguments) == 0
        printed = capsys.readouterr()
        assert printed.out.lstrip().startswith("Usage: dq-cluster")
        assert printed.err == ""


def test_damage_exits_1(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(index) / "versions" / "1.json").write_text("{}")
    assert run(["index", "show", index]) == 1
    assert "not a valid manifest" in capsys.readouterr().err


def test_verify_names_what_is_wrong(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "verify", index, "--json"]) == 0
    damaged = next((Path(index) / "data").rglob("*.parquet"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    capsys.readouterr()
    assert run(["index", "verify", index, "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert damaged.name in problem


def test_delete_compact_and_gc(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "delete", index, "3", "5"]) == 0
    assert run(["index", "delete", index, "3"]) == 2
    assert run(["index", "compact", index]) == 0
    assert Index.at(index).manifest().rows == 298
    capsys.readouterr()
    assert run(["index", "gc", index, "--grace-hours", "0", "--keep", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"] == [1, 2]
    assert run(["index", "verify", index]) == 0


def test_search_by_id_without_a_server(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["search", index, "--id", "7", "-k", "3", "--include", "label", "--json"]
    assert run(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert 7 in [hit["id"] for hit in answer["hits"]]
    assert answer["coverage"] == 1.0
    best = answer["hits"][0]["score"]
    assert run([*arguments, "--within", str(best)]) == 0
    near = json.loads(capsys.readouterr().out)["hits"]
    assert near
    assert all(hit["score"] >= best for hit in near)
    assert run([*arguments, "--within", str(best + 1)]) == 0
    assert json.loads(capsys.readouterr().out)["hits"] == []
    assert run([*arguments, "--nprobe", "-1"]) == 2
    assert run(["search", index, "--id", "123456"]) == 2
    assert run(["search", index, "--image", "absent.png"]) == 2


def test_a_table_shows_values_as_they_are() -> None:
    out = io.StringIO()
    emit({"hits": [{"[b]": "[/x] [red]", "id": 1}]}, as_json=False, file=out)
    assert "[b]" in out.getvalue()
    assert "[/x] [red]" in out.getvalue()


def test_ids_from_a_file(
    index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    table, text = tmp_path / "ids.parquet", tmp_path / "ids.txt"
    pq.write_table(pa.table({"key": pa.array([3, 5, 3], pa.int32())}), table)
    text.write_text("7\n8\n\n7\n")
    arguments = ["index", "delete", index, "--json", "--ids-file"]
    assert run([*arguments, str(table), "--ids-column", "key"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": 2, "ids": 2, "deleted": 2}
    assert run([*arguments, str(text)]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": 3, "ids": 2, "deleted": 4}
    done = subprocess.run([*COMMAND, *arguments, "-"], input=b"10\n11\n", capture_output=True)
    assert json.loads(done.stdout) == {"version": 4, "ids": 2, "deleted": 6}


@pytest.mark.parametrize("string_ids", [False, True])
def test_ids_that_look_like_options(
    string_ids: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = str(tmp_path / "index")
    make_index(uri, rows=300, files=1, first_id=-100, string_ids=string_ids)
    assert run(["index", "delete", uri, "-5", "-100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": 2, "ids": 2, "deleted": 2}
    assert run(["index", "delete", uri, "--json", "--", "-6", "7"]) == 0
    assert json.loads(capsys.readouterr().out)["deleted"] == 4
    assert run(["index", "delete", uri, "8", "-5"]) == 2
    assert "1 of 2 ids are not in version 3 (-5)" in capsys.readouterr().err


def test_a_copied_manifest_is_no_version(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    versions = Path(index) / "versions"
    (versions / "1 (copy).json").write_bytes((versions / "1.json").read_bytes())
    assert run(["index", "list", index, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["version"] for row in listed["versions"]] == [1]
    assert listed["ignored"] == ["versions/1 (copy).json"]
    assert run(["index", "delete", index, "3"]) == 0


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        "map": float("nan"),
        "rows": [{"ap": float("inf"), "k": np.int64(3), "x": np.float32(0.5)}],
        "all": np.array([1.0, np.nan]),
        "day": date(2026, 1, 2),
        "text": "NaN",
    }
    emit(found, as_json=True)
    line = capsys.readouterr().out

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    assert json.loads(line, parse_constant=refuse) == {
        "map": None,
        "rows": [{"ap": None, "k": 3, "x": 0.5}],
        "all": [1.0, None],
        "day": "2026-01-02",
        "text": "NaN",
    }
    assert to_json({1: float("nan")}) == '{"1": null}'


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    hits = [{"id": "[red]a[/b].jpg", "uri": ":cat: [x]"}, {"id": 1234567, "uri": "[/]"}]
    emit({"hits": hits, "file": "[bold]:dog:", "ignored": ["a", "b c"]}, as_json=False)
    printed = capsys.readouterr().out
    for text in (
        "[red]a[/b].jpg",
        ":cat: [x]",
        "[/]",
        "file: [bold]:dog:",
        "1234567",
        "ignored: a, b c",
    ):
        assert text in printed


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: Permission denied"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (MemoryError(), 1, "this machine has not enough memory for it"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_the_machine_is_no_internal_error(error: Exception, status: int, message: str) -> None:
    failure = explain(error)
    assert (failure.status, failure.message) == (status, message)


def test_our_own_mistakes_keep_their_stack(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def broken(request: object) -> None:
        raise KeyError("a\nb")

    monkeypatch.setattr("dq_cluster.index.sizing.size_index", broken)
    assert run(["plan", "--images", "3", "--json"]) == 1
    printed = capsys.readouterr()
    (kept,) = tmp_path.glob("dq-cluster-*.log")
    assert printed.err == f"error: internal error: KeyError: 'a\\nb'; the stack is in {kept}\n"
    assert json.loads(printed.out)["kind"] == "InternalError"
    assert "in broken" in kept.read_text()
    monkeypatch.setenv("DQ_LOG_LEVEL", "DEBUG")
    assert run(["plan", "--images", "3"]) == 1
    assert "in broken" in capsys.readouterr().err
    monkeypatch.setenv("DQ_LOG_LEVEL", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert run(["plan", "--images", "3"]) == 1
    assert "in broken" in capsys.readouterr().err


def test_nobody_reads_the_output(index: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*COMMAND, "index", "list", index]
    for more in ([], ["--json"]):
        done = subprocess.run([*command, *more], stdout=writer, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr) == (1, "")
        silent = subprocess.run([*command, *more], stdout=writer, stderr=writer)
        assert silent.returncode == 1
    os.close(writer)


def test_the_output_has_no_room(index: str) -> None:
    with open("/dev/full", "w") as full:
        command = [*COMMAND, "index", "list", index, "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"


def test_interrupted(index: str) -> None:
    command = [*COMMAND, "index", "delete", index, "--ids-file", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"1\n" * (1 << 18))  # more than a pipe holds: it is being read
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert said.startswith(b"SIGINT: stopping")
    assert said.count(b"\n") == 1
    assert Index.at(index).versions() == [1]


def test_places_named_by_the_environment_are_the_same_everywhere(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DQ_CACHE", "cache")
    assert run(["plan", "--images", "3"]) == 0
    assert os.environ["DQ_CACHE"] == f"{tmp_path.resolve()}/cache"


def test_a_name_of_any_bytes_can_be_said() -> None:
    command: list[str | bytes] = [*COMMAND, "index", "list", b"/absent/\xff\xe9"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: /absent/\\udcff\\udce9 holds no published index")


def test_a_closed_output_is_no_mistake(index: str) -> None:
    code = f"exec {sys.executable} -c 'from dq_cluster.cli import main; main()' index list {index}"
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(["bash", "-c", f"{code} {closed}"], capture_output=True, text=True)
        assert done.returncode == 0
        assert done.stderr == ""


def test_a_place_of_the_environment_that_is_none(
    monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DQ_CACHE", "gs://bucket")
    assert run(["plan", "--images", "3"]) == 2
    assert capsys.readouterr().err.startswith("error: DQ_CACHE: 'gs://bucket': scheme 'gs'")
