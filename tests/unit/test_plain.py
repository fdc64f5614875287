"""Codes and ids read past Parquet are what Parquet would have decoded."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster import __version__
from dq_cluster.errors import DqError, IntegrityError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import code_table, open_code_file, row_schema, write_code_file
from dq_cluster.index.manifest import FileEntry, Manifest, Producer
from dq_cluster.index.plain import PlainColumn, plain_runs, read_runs
from dq_cluster.search.placement import Places
from dq_cluster.search.rows import Rows
from dq_cluster.search.segments import Segment
from dq_cluster.search.stored_rows import StoredRows
from dq_cluster.storage import Storage

GEOMETRY = CodeGeometry(dim=8, m=4)
RANDOM = np.random.default_rng(0)


def random_ids(rows: int) -> np.ndarray:
    return RANDOM.integers(-(2**63), 2**63, rows)


def write(folder: Path, name: str, ids: np.ndarray, columns: pa.Table | None = None) -> FileEntry:
    codes = RANDOM.integers(256, size=(len(ids), 4), dtype=np.uint8)
    table = code_table(pa.array(ids), codes, GEOMETRY, columns)
    storage = Storage(str(folder))
    return write_code_file(storage, name, table, model="m", geometry=GEOMETRY)


@pytest.mark.parametrize("rows", [1, 70_000, (1 << 20) + 5], ids=["one", "pages", "row groups"])
def test_values_are_found_where_they_lie(tmp_path: Path, rows: int) -> None:
    ids = random_ids(rows)
    entry = write(tmp_path, "part", ids)
    table = pq.read_table(tmp_path / "part")
    with open_code_file(Storage(str(tmp_path)), entry, model="m", geometry=GEOMETRY) as file:
        codes, numbers = plain_runs(file, "code", 4), plain_runs(file, "id", 8)
    assert codes is not None
    assert len(codes) == -(-rows >> 20)
    read = np.concatenate([block.copy() for block in read_runs(tmp_path / "part", codes, 4)])
    assert read.tobytes() == b"".join(table.column("code").to_pylist())
    if rows > 1:  # a single number is smaller encoded
        assert numbers is not None
        column = PlainColumn(tmp_path / "part", numbers, np.dtype("<i8"))
        assert len(column) == rows
        some = RANDOM.integers(rows, size=1000)
        np.testing.assert_array_equal(column.take(some), ids[some])
        for start, count in ((0, rows), (some[0], 0), (some[0], min(9, rows - some[0]))):
            np.testing.assert_array_equal(column.slice(start, count), ids[start : start + count])


def test_what_is_encoded_is_left_to_parquet(tmp_path: Path) -> None:
    entry = write(tmp_path, "numbered", np.arange(5000))
    with open_code_file(Storage(str(tmp_path)), entry, model="m", geometry=GEOMETRY) as file:
        assert plain_runs(file, "id", 8) is None
        assert plain_runs(file, "code", 4) is not None
    # Written by another tool: pages of a size that nobody here knows.
    pq.write_table(pq.read_table(tmp_path / "numbered"), tmp_path / "other", compression="NONE")
    table = pq.ParquetFile(tmp_path / "other").read().replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "other", compression="NONE", use_dictionary=False)
    assert plain_runs(pq.ParquetFile(tmp_path / "other"), "code", 4) is None


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    entry = write(tmp_path, "part", random_ids(1000))
    with open_code_file(Storage(str(tmp_path)), entry, model="m", geometry=GEOMETRY) as file:
        runs = plain_runs(file, "code", 4)
    assert runs is not None
    (tmp_path / "short").write_bytes((tmp_path / "part").read_bytes()[: runs[0].offset + 40])
    with pytest.raises(OSError, match="ends within"):
        list(read_runs(tmp_path / "short", runs, 4))


def test_a_file_cut_off_or_removed_under_a_reader(tmp_path: Path) -> None:
    ids = random_ids(1000)
    entry = write(tmp_path, "part", ids)
    with open_code_file(Storage(str(tmp_path)), entry, model="m", geometry=GEOMETRY) as file:
        runs = plain_runs(file, "id", 8)
    assert runs is not None
    column = PlainColumn(tmp_path / "part", runs, np.dtype("<i8"))
    (tmp_path / "other").hardlink_to(tmp_path / "part")
    (tmp_path / "part").unlink()
    np.testing.assert_array_equal(column.take(np.arange(1000)), ids)
    os.truncate(tmp_path / "other", runs[0].offset + 50 * 8 + 3)
    np.testing.assert_array_equal(column.take(np.arange(50)), ids[:50])
    with pytest.raises(IntegrityError, match="part ends within its values"):
        column.take(np.array([7, 50]))
    with pytest.raises(DqError, match="part ends within its values"):
        column.slice(7, 44)
    with pytest.raises(IntegrityError, match="other ends within its values"):
        PlainColumn(tmp_path / "other", runs, np.dtype("<i8"))


@pytest.mark.parametrize("carried", [(), ("label",)])
def test_ids_in_place_and_copied_ones_make_one_shard(
    tmp_path: Path, carried: tuple[str, ...]
) -> None:
    """Files whose ids are random, numbered, and random again, of more than one batch."""
    parts = [random_ids(70_000), np.arange(100), random_ids(70_001)]
    labels = np.arange(sum(map(len, parts)))
    entries, start = [], 0
    for number, ids in enumerate(parts):
        columns = pa.table({"label": labels[start : start + len(ids)]}) if carried else None
        entries.append(write(tmp_path, f"{number}", ids, columns))
        start += len(ids)
    manifest = Manifest(
        version=1,
        model="m",
        geometry=GEOMETRY,
        id_type="int64",
        columns=carried,
        files=tuple(entries),
        rows=start,
        producer=Producer(dq_cluster=__version__, run="test"),
    )
    index, segment = Index.at(str(tmp_path)), Segment(manifest.files)
    schema = row_schema(index.storage, manifest)
    stored = StoredRows.load(index, manifest, segment, schema)
    rows = Rows([stored], schema, Places([start], [0]))
    everything, ids = np.arange(start), np.concatenate(parts)
    found = rows.take(everything, ["id", *carried])
    np.testing.assert_array_equal(found.column("id").to_numpy(), ids)
    if carried:
        np.testing.assert_array_equal(found.column("label").to_numpy(), labels)
    assert rows.find(int(ids[-1])) == start - 1
    assert rows.find(7) == 70_007
