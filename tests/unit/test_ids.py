"""Ids from the command line and from files: exact, bounded, and one line where they cannot be."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.cli import ids_file as module
from dq_cluster.cli.ids_file import read_ids
from dq_cluster.errors import InputError
from dq_cluster.index.ids import to_id, to_ids

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(INT64))
def test_numbers_come_back_however_they_are_given(numbers: list[int]) -> None:
    distinct = list(dict.fromkeys(numbers))
    assert to_ids(numbers, "int64").to_pylist() == distinct
    assert to_ids(list(map(str, numbers)), "int64").to_pylist() == distinct
    assert [to_id(str(number), "int64") for number in numbers] == numbers


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))))
def test_text_comes_back_from_a_file(tmp_path_factory: pytest.TempPathFactory, texts: Any) -> None:
    path = tmp_path_factory.mktemp("ids") / "ids.txt"
    path.write_text("".join(f"{text}\n" for text in texts), newline="")
    if texts:  # a mark of UTF-8 is no part of the first id
        texts[0] = texts[0].removeprefix("\ufeff")
    assert read_ids(str(path)).to_pylist() == [text for text in texts if text]


@pytest.mark.parametrize(
    ("given", "id_type", "message"),
    [
        (["1", "99999999999999999999"], "int64", "id 99999999999999999999 is outside the ids"),
        (["9223372036854775808"], "int64", "id 9223372036854775808 is outside the ids"),
        (pa.array([2**63], pa.uint64()), "int64", f"id {2**63} is outside the ids"),
        ([10**30], "int64", "found others"),
        (["1", "three", "x"], "int64", "whole numbers; found 'three' and 1 more"),
        (["0x10"], "int64", "found '0x10'"),
        (["1.0"], "int64", "found '1.0'"),
        ([" 1"], "int64", "found ' 1'"),
        (["--jsn"], "int64", "found '--jsn'"),
        ([""], "int64", "found ''"),
        ([1.5], "int64", "not double"),
        ([True], "int64", "not bool"),
        ([1, "a"], "int64", "found others"),
        ([1], "string", "ids of this index are string, not int64"),
        (pa.array([1, None]), "int64", "1 of the 2 ids given are null"),
    ],
)
def test_what_cannot_be_an_id(given: Any, id_type: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_ids(given, id_type)


@pytest.mark.parametrize("given", [True, 1.5, "1_000", " 5", "٣", "", "9" * 5000, None])
def test_one_id_is_as_exact(given: Any) -> None:
    with pytest.raises(InputError):
        to_id(given, "int64")


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, table = tmp_path / "ids.txt", tmp_path / "ids.parquet"
    text.write_bytes(b"\xef\xbb\xbf3\r\n\r\n-5\n7")
    assert read_ids(str(text)).to_pylist() == ["3", "-5", "7"]
    names = pa.array(["a", "b", "a"]).dictionary_encode()
    pq.write_table(pa.table({"id": [3, 5, 3], "name": names}), table)
    assert to_ids(read_ids(str(table)), "int64").to_pylist() == [3, 5]
    assert to_ids(read_ids(str(table), "name"), "string").to_pylist() == ["a", "b"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"1\n2\n")))
    assert read_ids("-").to_pylist() == ["1", "2"]
    begins_alike = tmp_path / "alike.txt"
    begins_alike.write_text("PAR1-0001\nPAR1-0002\n")
    assert read_ids(str(begins_alike)).to_pylist() == ["PAR1-0001", "PAR1-0002"]


def test_files_that_hold_no_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, cut, latin = tmp_path / "ids.parquet", tmp_path / "cut.parquet", tmp_path / "latin"
    pq.write_table(pa.table({"key": [3, 5]}), table)
    whole = table.read_bytes()
    cut.write_bytes(whole[:40] + whole[-4:])
    latin.write_bytes(b"a\n\xe9\n")
    for path, message in (
        (tmp_path / "absent", "absent: No such file"),
        (tmp_path, "Is a directory"),
        (table, r"no column 'id'; columns: key; name one with --ids-column"),
        (cut, "is damaged"),
        (latin, "line 2 is not UTF-8"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            read_ids(str(path))
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(module, "MOST", 1)
    (tmp_path / "two").write_text("1\n2\n")
    for path, column in ((tmp_path / "two", "id"), (table, "key")):
        with pytest.raises(InputError, match="more than 1 ids; divide it"):
            read_ids(str(path), column)
