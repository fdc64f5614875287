"""A location means the same wherever it is used: absolute, or a clear refusal."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.errors import InputError
from dq_cluster.location import absolute, absolute_prefix
from dq_cluster.storage import Storage

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("photos", "{here}/photos"),
        ("./photos/", "{here}/photos"),
        ("../photos", "{above}/photos"),
        (" photos ", "{here}/ photos "),
        ("Album #2", "{here}/Album #2"),
        ("a::b", "{here}/a::b"),
        ("50%20", "{here}/50%20"),
        ("~", "{home}"),
        ("~/photos", "{home}/photos"),
        ("./~x", "{here}/~x"),
        ("/data//photos/", "/data/photos"),
        ("//data", "/data"),
        ("/data/a://b", "/data/a:/b"),
        ("file:///data/a b/", "/data/a b"),
        ("file:///data/50%20", "/data/50%20"),
        ("s3://bucket", "s3://bucket"),
        ("S3://bucket/key/", "s3://bucket/key"),
        ("s3://bucket/a b#c", "s3://bucket/a b#c"),
    ],
)
def test_meaning(given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path.resolve() / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", "/home/me")
    expected = meant.format(here=here, above=here.parent, home="/home/me")
    assert absolute(given) == expected
    assert Storage(given).uri == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("gs://bucket/x", "scheme 'gs' is not file or s3"),
        ("hf://datasets/x", "scheme 'hf'"),
        ("https://example.com/x", "scheme 'https'"),
        ("file://data/x", "absolute path"),
        ("file:/data/x", "neither a path"),
        ("s3:/bucket/key", "neither a path"),
        ("s3://", "no bucket"),
        ("s3:///key", "no bucket"),
        ("C:\\photos", r"\./C:"),
        ("C:/photos", r"\./C:"),
        ("~nobody-of-that-name/x", "no such user"),
    ],
)
def test_refusals_are_one_line(given: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        absolute(given)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        Storage(given)


@given(TEXT)
def test_once_is_enough(text: str) -> None:
    try:
        found = absolute(text)
    except InputError:
        return
    assert absolute(found) == found
    assert found.startswith(("/", "s3://"))


@given(TEXT)
def test_a_path_below_a_folder_is_that_path(name: str) -> None:
    """Whatever a file is called: no part of a name is taken for a scheme, a home, or a comment."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..") and "\0" not in part]
    path = "/".join(["/data", *parts])
    assert absolute(path) == path
    assert absolute(f"file://{path}") == path


def test_symbolic_links_keep_their_names_and_lead_where_they_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path.resolve()
    (top / "real" / "inner").mkdir(parents=True)
    (top / "real" / "here.txt").write_text("x")
    (top / "link").symlink_to(top / "real" / "inner")
    monkeypatch.chdir(top)
    assert absolute("link") == f"{top}/link"
    assert absolute("link/../here.txt") == f"{top}/real/here.txt"
    assert os.path.exists(absolute("link/../here.txt"))


def test_the_folder_a_command_runs_in_may_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(InputError, match="gone"):
        absolute("photos")
    assert absolute("/data") == "/data"


def test_prefixes_keep_their_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_prefix("photos/") == f"{tmp_path.resolve()}/photos/"
    assert absolute_prefix("/") == "/"
    for same in ("/data/", "https://example.com/a/", "s3://bucket/", "file:///data/"):
        assert absolute_prefix(same) == same
    assert absolute_prefix("HTTPS://example.com/A/") == "https://example.com/A/"
    with pytest.raises(InputError, match="gs"):
        absolute_prefix("gs://bucket/")
