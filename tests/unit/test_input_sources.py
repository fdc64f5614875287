"""The section on sources of docs/input.md, held against the code, row by row."""

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dq_cluster.images import names, tables, tars
from dq_cluster.images.config import ImageLimits, SourceSettings
from dq_cluster.images.formats import is_readable
from dq_cluster.images.sources import open_source
from tests.pictures import crops, write_folder

DOC = Path(__file__).parents[2] / "docs" / "input.md"
JPEG, OTHER = crops(2)
LIMIT = 4000


def table(heading: str) -> Iterator[list[str]]:
    """The rows of the first table below a heading, without its own."""
    section = DOC.read_text().split(f"### {heading}\n")[1].split("\n#")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    for row in rows[2:]:
        yield [cell.strip() for cell in row.strip("|").split("|")]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


FOLDER = list(table("Names in a folder"))


@pytest.mark.parametrize(("shown", "outcome"), FOLDER)
def test_names_in_a_folder(tmp_path: Path, shown: str, outcome: str) -> None:
    listed = quoted(shown)
    if outcome.startswith("skipped: folders"):
        files, expected = {f"{name}/a.jpg": JPEG for name in listed}, dict.fromkeys(listed, 1)
    elif outcome.startswith("skipped as"):
        files = {".hidden": JPEG, ".hidden.d/a.jpg": JPEG}
        expected = {"hidden": 2}
    elif outcome.startswith("the first bytes"):
        files = {"a.any": JPEG, "a": JPEG, "b.any": b"words", "c.any": b"", "b": b"words"}
        expected = {".any": 2, names.suffix_of("b") or "no suffix": 1}
    else:
        files, expected = {f"a{suffix.upper()}": JPEG for suffix in listed}, {}
        if outcome.startswith("skipped"):
            expected = dict.fromkeys(listed, 1)
    write_folder(tmp_path, files)
    source = open_source(SourceSettings(kind="folder", uri=str(tmp_path)))
    read = {unit.path for unit in source.units()}
    skipped = source.skipped.take()
    if len(expected) > 20:
        assert sum(skipped.values()) == len(expected)
        assert skipped.keys() - {"others"} < expected.keys()
    else:
        assert skipped == expected
    assert len(read) + sum(expected.values()) == len(files)
    assert source.skipped.formats == (
        {"camera raw": len(listed)} if "camera raw" in outcome else {}
    )


def test_every_name_that_the_code_knows_is_in_the_table() -> None:
    read, optional, raw, others, *_, folders = (set(quoted(row[0])) for row in FOLDER)
    assert read == names._PICTURES
    assert optional == set(names._OPTIONAL)
    assert raw == names._CAMERA_RAW
    assert others == names._OTHERS
    assert folders == names.SYSTEM_FOLDERS


def test_a_picture_without_its_plugin_is_skipped_by_its_bytes(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.heic": b"\0\0\0\x18ftypheic" + bytes(40), "b.heic": JPEG})
    source = open_source(SourceSettings(kind="folder", uri=str(tmp_path)))
    read = [unit.path for unit in source.units()]
    assert read == (["a.heic", "b.heic"] if is_readable("HEIC") else ["b.heic"])


def test_files_of_the_other_kinds() -> None:
    kinds = (quoted(row[1]) for row in table("Files of the other kinds"))
    of_parquet, of_arrays, of_tars = kinds
    assert of_parquet == list(tables.SUFFIXES)
    assert of_arrays == [tables.ARRAY]
    assert of_tars == list(tars.SUFFIXES)


REG, LINK = tarfile.REGTYPE, tarfile.LNKTYPE
SMALL, LARGE = b'{"n": 1}', b"x" * (LIMIT + 1)
# Members of a tar for each row of the table: names, contents, types.
EXAMPLES: dict[str, list[tuple[str, bytes, bytes]]] = {
    "`001.jpg`, or any suffix of a picture": [("001.jpg", JPEG, REG)],
    "`001.image`, or another extension, with the first bytes of a picture": [
        ("001.image", JPEG, REG)
    ],
    "`001`, with the first bytes of a picture": [("001", JPEG, REG)],
    "`001.mask.png` beside `001.jpg`": [("001.mask.png", OTHER, REG), ("001.jpg", JPEG, REG)],
    "`001.json`, `001.txt`, … beside a picture": [
        ("001.jpg", JPEG, REG),
        ("001.json", SMALL, REG),
        ("001.txt", b"1", REG),
    ],
    "`001.txt` alone": [("001.txt", b"words", REG)],
    "a picture of more than `limits.max_bytes`": [("001.jpg", LARGE, REG)],
    "another member of more than `limits.max_bytes` beside a picture": [
        ("001.jpg", JPEG, REG),
        ("001.txt", LARGE, REG),
    ],
    "a link `001.jpg`": [("001.jpg", b"", LINK)],
    "a link `001.txt`": [("001.txt", b"", LINK)],
    "`README`, without an extension": [("README", b"words", REG)],
    "`._001.jpg`": [("._001.jpg", JPEG, REG)],
    "`__meta__`, `__about__/001.jpg`": [("__about__/001.jpg", JPEG, REG)],
    "a pipe, a device": [("001.jpg", b"", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize(("shown", "outcome"), list(table("Members of a tar")))
def test_members_of_a_tar(tmp_path: Path, shown: str, outcome: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data, form in EXAMPLES[shown]:
            info = tarfile.TarInfo(name)
            info.type, info.size = form, len(data)
            tar.addfile(info, io.BytesIO(data))
    settings = SourceSettings(
        kind="webdataset",
        uri=str(tmp_path),
        columns=("n", "txt") if outcome == "data" else (),
        limits=ImageLimits(max_bytes=LIMIT),
    )
    source = open_source(settings)
    rows = [row for t in source.read(source.units(), 5) for row in t.to_pylist()]
    skipped = source.skipped.take()
    kind, _, name = outcome.partition(": ")
    name = name.strip("`")
    pictures = [row["image"] for row in rows if row["reason"] is None]
    if kind == "picture":
        assert (pictures, skipped) == ([JPEG], {})
    elif kind == "data":
        assert (rows[0]["n"], rows[0]["txt"], len(rows), skipped) == ("1", "1", 1, {})
    elif kind == "rejected":
        assert [row["reason"] for row in rows] == [name]
    else:
        assert (kind, skipped) == ("skipped", {name: 1})
        assert pictures == ([JPEG] if "beside" in shown else [])


def test_every_example_is_in_the_table() -> None:
    assert [row[0] for row in table("Members of a tar")] == list(EXAMPLES)
