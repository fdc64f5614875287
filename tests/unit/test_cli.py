"""The command line: exit statuses, one-line errors, and JSON that is nothing but JSON."""

import json
from pathlib import Path

import pytest

from dq_cluster.cli.main import run
from dq_cluster.cli.output import emit
from dq_cluster.index.catalog import Index
from tests.support import make_model, make_version


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
        (["index", "gc", "{index}", "--grace-hours", "nan"], "must be a number of hours"),
        (["index", "gc", "{index}", "--training", "first"], "no training first"),
        (["index", "list", "{index}-absent"], "no published index"),
        (["train", "indx=/x"], "unknown key 'indx'"),
        (["train", "--config", "/absent.yaml"], "/absent.yaml does not exist"),
        (["encode", "index=/x", "bogus=1"], "unknown key 'bogus'"),
        (["serve", "index=/x", "shards=none"], "'shards'"),
        (["plan", "--images", "0"], "greater than 0"),
        (["search", "{index}"], "--image FILE or --id ID"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    index: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in Path(index).rglob("*"))
    assert run([argument.format(index=index) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert sorted((p, p.stat().st_mtime_ns) for p in Path(index).rglob("*")) == before


def test_errors_as_json(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "show", index, "--version", "9", "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["kind"] == "NotFoundError"


def test_of_a_history_the_last_entry_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    history = [{"terms": {"triplet": 0.5}}, {"terms": {"triplet": 0.25}}]
    emit({"training": {"run": "first", "history": history}}, as_json=False)
    line = "training: run first, history 2 in all, the last: terms triplet 0.25\n"
    assert capsys.readouterr().out == line


def test_wrong_usage_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bogus"]) == 2
    assert "No such command" in capsys.readouterr().err


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
    assert run(["index", "delete", index, "three"]) == 2
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
    assert run([*arguments, "--nprobe", "-1"]) == 2
    assert run(["search", index, "--id", "123456"]) == 2
    assert run(["search", index, "--image", "absent.png"]) == 2
