"""Settings: what was written is what is used; a mistake is one line that says what and where."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from dq_cluster.config import Location, LocationPrefix, Settings, load_settings
from dq_cluster.errors import ConfigError, InputError
from dq_cluster.location import absolute


class Inner(Settings):
    bits: int = 8


class Range(Settings):
    min: int
    max: int


class Outer(Settings):
    index: str
    inner: Inner = Inner()
    note: str | None = None
    place: Location | None = None
    allow: tuple[LocationPrefix, ...] = ()
    size: Literal[4, 8] = 8
    share: float = 0.5
    append: bool = False
    version: int | None = 1
    columns: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()
    mean: tuple[float, float] = (0, 0)
    workers: Annotated[int, Field(gt=0)] | Range = 1


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


def given_as(*overrides: str) -> dict[str, Any]:
    """What the overrides set, besides `index`."""
    found = load_settings(Outer, None, ["index=/i", *overrides])
    return found.model_dump(exclude_unset=True, exclude={"index"})


def test_file_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "index: /a\ninner: {bits: 16}\n")
    loaded = load_settings(Outer, path, ["inner.bits=32"])
    assert loaded == Outer(index="/a", inner=Inner(bits=32))


ODD_TEXTS = [
    "Album #2", "a: b", "a=b", "null", "~", "true", "no", "1e5", "007", "0x10", "1_000", "12:30",
    "2024-01-01", "${x}", "${oc.env:HOME}", "{a}", "[a, b]", '"a"', "'a'", " a ", "%20", "*a",
    "&a", "!a", "é中🙂", "",
]  # fmt: skip


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")))
def test_text_on_the_command_line_is_used_as_typed(text: str) -> None:
    _as_typed(text)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_text_that_yaml_would_guess_about(text: str) -> None:
    _as_typed(text)


def _as_typed(text: str) -> None:
    assert load_settings(Outer, None, [f"index={text}"]).index == text
    assert given_as(f"note={text}") == {"note": text or None}
    quoted = json.dumps([text, text])
    assert given_as(f"columns={quoted}") == {"columns": (text, text)}
    try:
        place = absolute(text) if text else None
    except InputError:
        with pytest.raises(ConfigError, match="'place'"):
            given_as(f"place={text}")
    else:
        assert given_as(f"place={text}") == {"place": place}


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("no")
@example("0012")
@example("2024-01-01")
@example("~")
def test_text_in_a_file_is_used_as_written(tmp_path_factory: Any, text: str) -> None:
    values = {"index": text, "note": text, "columns": [text]}
    path = write(tmp_path_factory.mktemp("config"), yaml.safe_dump(values))
    assert load_settings(Outer, path).model_dump(include=set(values)) == {
        "index": text,
        "note": text,
        "columns": (text,),
    }


@pytest.mark.parametrize(
    "text", ["0012", "5e10", "no", "on", "2024-01-01", "1:30", "0x1f", "=", "<<<"]
)
def test_plain_text_in_a_file_is_not_guessed_about(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, f"index: {text}\ncolumns: [{text}, b]\n")
    loaded = load_settings(Outer, path)
    assert (loaded.index, loaded.columns) == (text, (text, "b"))


def test_a_file_says_null_and_shares_by_anchors(tmp_path: Path) -> None:
    path = write(
        tmp_path, "index: &i /a\nnote: ~\nversion: null\nplace:\nworkers: &w {min: 1, max: 2}\n"
    )
    loaded = load_settings(Outer, path)
    assert (loaded.note, loaded.version, loaded.place) == (None, None, None)
    path = write(tmp_path, "index: &i /a\nnote: *i\nworkers: {<<: {min: 1, max: 2}, max: 3}\n")
    loaded = load_settings(Outer, path)
    assert loaded.note == "/a"
    assert loaded.workers == Range(min=1, max=3)


@pytest.mark.parametrize(
    ("overrides", "meant"),
    [
        (["note="], {"note": None}),
        (["place="], {"place": None}),
        (["version="], {"version": None}),
        (["version=null"], {"version": None}),
        (["version=7"], {"version": 7}),
        (["inner.bits=1_000"], {"inner": {"bits": 1000}}),
        (["inner={bits: 4}"], {"inner": {"bits": 4}}),
        (['inner={"bits": 4}'], {"inner": {"bits": 4}}),
        (["size=4"], {"size": 4}),
        (["share=1e-3"], {"share": 0.001}),
        (["append=true"], {"append": True}),
        (["append=no"], {"append": False}),
        (["columns=label"], {"columns": ("label",)}),
        (["columns=a, b"], {"columns": ("a, b",)}),
        (["columns=[label,uri]"], {"columns": ("label", "uri")}),
        (["columns=[no, 007, 1e5]"], {"columns": ("no", "007", "1e5")}),
        (['columns=["a,b", "c]", " d "]'], {"columns": ("a,b", "c]", " d ")}),
        (["columns="], {"columns": ()}),
        (["columns=[]"], {"columns": ()}),
        (["columns=[a]", "columns=[b]"], {"columns": ("b",)}),
        (["widths=512"], {"widths": (512,)}),
        (["widths=[512, 256]"], {"widths": (512, 256)}),
        (["mean=[0.5, 1]"], {"mean": (0.5, 1.0)}),
        (["allow=[s3://b/x#y/,/data/]"], {"allow": ("s3://b/x#y/", "/data/")}),
        (["workers=4"], {"workers": 4}),
        (["workers={min: 1, max: 4}"], {"workers": {"min": 1, "max": 4}}),
        (["workers.min=1", "workers.max=4"], {"workers": {"min": 1, "max": 4}}),
        (["workers={min: 1, max: 4}", "workers.max=2"], {"workers": {"min": 1, "max": 2}}),
        (["workers=4", "workers=2"], {"workers": 2}),
    ],
)
def test_the_type_of_a_setting_says_what_its_text_means(
    overrides: list[str], meant: dict[str, Any]
) -> None:
    assert given_as(*overrides) == meant


def test_an_override_replaces_what_the_file_says_in_another_form(tmp_path: Path) -> None:
    path = write(tmp_path, "index: /a\nworkers: {min: 2, max: 8}\ncolumns: label\n")
    assert load_settings(Outer, path).workers == Range(min=2, max=8)
    assert load_settings(Outer, path).columns == ("label",)
    assert load_settings(Outer, path, ["workers.max=4"]).workers == Range(min=2, max=4)
    assert load_settings(Outer, path, ["workers=3"]).workers == 3
    path = write(tmp_path, "index: /a\nworkers: 4\n")
    assert load_settings(Outer, path, ["workers.min=1", "workers.max=2"]).workers == Range(
        min=1, max=2
    )


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("index: /a\nindx: 1\n", [], r"unknown key 'indx' \(known: .*, index, inner,"),
        ("index: /a\ninner: {bit: 1}\n", [], r"unknown key 'inner.bit' \(known: bits\)"),
        (
            "index: /a\n",
            ["inner.bits=many"],
            "and command line: 'inner.bits'.*integer.*'many'",
        ),
        ("inner: {bits: 8}\n", [], "'index' is required"),
        ("- a list\n", [], "mapping|list"),
        ("just text\n", [], "expected a mapping"),
        ("index: [unclosed\n", [], "settings.yaml: line 2, column 1: "),
        ("index: /a\nindex: /b\n", [], "line 2, column 1: 'index' is given twice"),
        ("index: /a\ninner: {bits: 1, bits: 2}\n", [], "'bits' is given twice"),
        ("index: /a\n---\nindex: /b\n", [], "single document"),
        ("index: *nothing\n", [], "undefined alias"),
        ("index: !!python/name:os.system x\n", [], "line 1.*could not determine a constructor"),
        ("index: null\n", [], "'index'.*valid string, got null"),
        ("index: ${oc.env:HOME}/index\n", [], "not filled in any more"),
        ("index: " + "[" * 3000, [], "nested too deeply"),
        ("index: /a\n? [b]\n: c\n", [], "unhashable key"),
        ("index: /a\nnull: c\n", [], "Keys should be strings"),
        ("index: /a\nshare: .nan\n", [], "'share'.*number, got '.nan'"),
        ("index: /a\n", ["share=nan"], "'share'.*finite"),
        ("index: /a\n", ["inner.bits=0x10"], "'inner.bits'.*integer"),
        ("index: /a\n", ["inner.bits=1e5"], "'inner.bits'.*integer"),
        ("index: /a\n", ["append=maybe"], "'append'.*boolean.*'maybe'"),
        ("index: /a\n", ["size=5"], "'size': Input should be 4 or 8, got 5"),
        ("index: /a\n", ["widths=16,32"], "'widths.0'.*'16,32'"),
        ("index: /a\n", ["columns=[a #b]"], "command line: 'columns': .*expected"),
        ("index: /a\n", ["columns=[null]"], "'columns.0'.*valid string, got null"),
        ("index: /a\n", ["inner=3"], "'inner': expected a group of settings: bits, got '3'"),
        ("index: /a\n", ["inner.bits.more=1"], "'inner.bits'.*integer"),
        ("index: /a\n", ["bogus.x=1"], "unknown key 'bogus'"),
        ("index: /a\n", ["inner"], "'inner' is not KEY=VALUE.*--config"),
        ("index: /a\n", ["=1"], "not KEY=VALUE"),
        ("index: /a\n", ["workers=4", "workers.min=1"], "'workers.min' contradicts"),
        ("index: /a\n", ["workers.min=1", "workers=4"], "'workers' contradicts"),
        ("index: /a\n", ["workers=many"], "'workers'.*integer.*'many'$"),
        ("index: /a\n", ["workers=0"], "'workers': Input should be greater than 0, got 0$"),
        ("index: /a\n", ["workers.min=1"], "command line: 'workers.max' is required$"),
        ("index: /a\n", ["workers.mn=1"], r"unknown key 'workers.mn' \(known: max, min\)"),
        ("index: /a\n", ["place=gs://b"], "'place'.*scheme 'gs'"),
        ("index: /a\n", ["allow=[gs://b/]"], "'allow.0'.*scheme 'gs'"),
        ("index: /a\n", ["allow=https://a"], "'allow.0'.*end with /"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings(Outer, write(tmp_path, text), overrides)
    assert "\n" not in str(caught.value)


def test_a_large_mistake_is_a_short_line(tmp_path: Path) -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 30)
    )
    groups = "a0: &a0 {x: x, y: y}\n" + "".join(
        f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 60)
    )
    endless = "index: &a {x: *a}\ninner: &b {inner: *b}\ncolumns: &c [*c]\n"
    many = f"widths: [{'x, ' * 10_000}]\n"
    for text in (laughs, groups, endless, many, f"index: /a\nshare: {'9' * 100_000}x\n"):
        with pytest.raises(ConfigError) as caught:
            load_settings(Outer, write(tmp_path, text))
        assert len(str(caught.value)) < 2000


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_settings(Outer, tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_settings(Outer, tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes("index: /é\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 8\)"):
        load_settings(Outer, path)
    path.write_bytes(b"index: /a\0b\n")
    with pytest.raises(ConfigError, match="special characters"):
        load_settings(Outer, path)
    path.write_bytes("index: /é\n".encode("utf-8-sig"))
    assert load_settings(Outer, path).index == "/é"


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert load_settings(Outer, write(tmp_path, "# nothing\n"), ["index=/a"]) == Outer(index="/a")
