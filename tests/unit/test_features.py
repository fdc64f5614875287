"""Features on storage: what is read, and what is said about those that cannot be used."""

import io
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.images.backbone import PREPROCESSING
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.features import open_features
from dq_cluster.images.sources import open_source
from dq_cluster.storage import Storage
from dq_cluster.training.node import Part, mapped
from dq_cluster.training.rows import TrainingRows
from dq_cluster.training.split import Split

VALUES = np.arange(60, dtype=np.float32).reshape(20, 3)


def write(
    path: Path,
    values: np.ndarray,
    *,
    preprocessing: bytes = b'{"backbone": "x"}',
    **columns: object,
) -> None:
    feature = pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
    table = pa.table({"id": range(len(values)), "feature": feature, **columns})
    table = table.replace_schema_metadata({PREPROCESSING: preprocessing})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "b.parquet", VALUES[11:], label=list(range(11, 20)))
    write(tmp_path / "a.parquet", VALUES[:11], label=list(range(11)))
    return tmp_path


def test_rows_are_numbered_by_file_then_row(folder: Path) -> None:
    features = open_features(str(folder))
    assert (features.rows, features.dim, features.dtype) == (20, 3, "float32")
    assert features.labelled
    assert features.preprocessing == {"backbone": "x"}
    for start, stop in [(0, 20), (3, 4), (4, 8), (9, 13), (10, 12), (19, 20), (7, 7)]:
        np.testing.assert_array_equal(features.read(start, stop), VALUES[start:stop])
        np.testing.assert_array_equal(features.labels(start, stop), np.arange(start, stop))


def test_a_single_file_is_a_feature_set_too(folder: Path) -> None:
    features = open_features(str(folder / "b.parquet"))
    np.testing.assert_array_equal(features.read(0, features.rows), VALUES[11:])


def test_float16_stays_float16(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", VALUES.astype(np.float16))
    assert open_features(str(tmp_path)).read(2, 5).dtype == np.float16


def test_labels_may_be_a_dictionary_but_not_lists(tmp_path: Path) -> None:
    names = pa.array(["cat", "dog"] * 10).dictionary_encode()
    write(tmp_path / "a.parquet", VALUES, label=names)
    features = open_features(str(tmp_path))
    assert features.labels(3, 6).tolist() == ["dog", "cat", "dog"]
    write(tmp_path / "a.parquet", VALUES, label=[[1, 2]] * 20)
    assert not open_features(str(tmp_path)).labelled


def test_a_feature_set_in_a_bucket(s3: str) -> None:
    features = pa.FixedSizeListArray.from_arrays(VALUES.ravel(), 3)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": range(20), "feature": features}), sink, row_group_size=7)
    Storage(s3).write("features/a.parquet", sink.getvalue().to_pybytes())
    found = open_features(f"{s3}/features")
    assert found.preprocessing == {}
    np.testing.assert_array_equal(found.read(5, 18), VALUES[5:18])


def test_rewriting_a_file_changes_the_fingerprint(folder: Path) -> None:
    before = open_features(str(folder)).fingerprint
    assert open_features(str(folder)).fingerprint == before
    write(folder / "b.parquet", VALUES[11:] + 1, label=list(range(9)))
    assert open_features(str(folder)).fingerprint != before


def test_no_features(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no Parquet or \.npy files"):
        open_features(str(tmp_path / "nowhere"))


def test_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"a\.parquet is not readable Parquet"):
        open_features(str(tmp_path))


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "a": [[0.5]], "b": [[1.5]]}), tmp_path / "a.parquet")
    message = r"no column 'feature'; columns: id, a, b; set feature_column to a or b"
    with pytest.raises(InputError, match=message):
        open_features(str(tmp_path))
    assert open_features(str(tmp_path), "b").read(0, 1).tolist() == [[1.5]]


def test_a_list_of_another_length_is_located(tmp_path: Path) -> None:
    pq.write_table(pa.table({"feature": [None, [0.5], [0.5, 1.0]]}), tmp_path / "a.parquet")
    features = open_features(str(tmp_path))
    assert features.dim == 1
    with pytest.raises(
        InputError, match=r"a\.parquet row 2: the feature has 2 numbers, others .* 1"
    ):
        features.read(1, 3)


@pytest.mark.parametrize(
    ("values", "preprocessing", "message"),
    [
        (VALUES[:, :2], b'{"backbone": "x"}', r"c\.parquet has features of 2 .*, a\.parquet of 3"),
        (VALUES, b'{"backbone": "y"}', r"c\.parquet differs from a\.parquet"),
    ],
)
def test_files_must_agree(
    folder: Path, values: np.ndarray, preprocessing: bytes, message: str
) -> None:
    write(folder / "c.parquet", values, preprocessing=preprocessing, label=[0] * 20)
    with pytest.raises(InputError, match=message):
        open_features(str(folder))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_located(tmp_path: Path, bad: float) -> None:
    values = VALUES.copy()
    values[13, 1] = bad
    write(tmp_path / "a.parquet", values)
    with pytest.raises(InputError, match=r"a\.parquet row 13: the feature is not finite"):
        open_features(str(tmp_path)).read(5, 20)


def test_a_missing_feature_is_located(tmp_path: Path) -> None:
    rows = [[1.0, 2.0], [1.0, 2.0], None]
    column = pa.array(rows, pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"feature": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet row 2: the feature is null"):
        open_features(str(tmp_path)).read(1, 3)


def test_pieces_cover_every_row_once(folder: Path) -> None:
    rows = TrainingRows(open_features(str(folder)), Split(20, 0.3, seed=1))
    pieces = rows.pieces()
    trained = np.concatenate([rows.read(piece) for piece in pieces])
    held_out = np.concatenate([rows.read_held_out(piece) for piece in pieces])
    assert len(trained) == rows.count == pieces[-1].last
    assert 0 < len(held_out) < 20
    np.testing.assert_array_equal(np.sort(np.concatenate([trained, held_out]), axis=0), VALUES)
    np.testing.assert_array_equal(trained, VALUES[rows.split.training()])


def test_a_node_copies_once(tmp_path: Path) -> None:
    asked = []

    def parts() -> list[Part]:
        asked.append(True)
        rest = np.arange(7, len(VALUES))[::-1]  # in any order
        return [(rest, VALUES[rest]), (slice(0, 7), VALUES[:7])]

    for _ in range(2):
        copy = mapped(tmp_path / "copy.npy", VALUES.shape, "float32", parts)
        np.testing.assert_array_equal(copy, VALUES)
    assert len(asked) == 1


def test_a_copy_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    def cut_off() -> list[Part]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mapped(tmp_path / "copy.npy", VALUES.shape, "float32", cut_off)
    copy = mapped(tmp_path / "copy.npy", VALUES.shape, "float32", lambda: [(slice(None), VALUES)])
    np.testing.assert_array_equal(copy, VALUES)


HALVES = np.arange(60, dtype=np.float16).reshape(20, 3) / 8


def clip_retrieval(folder: Path, rows: tuple[int, ...] = (8, 12)) -> Path:
    """What `clip-retrieval inference` writes: embeddings of images and texts, and metadata."""
    for kind in ("img_emb", "text_emb", "metadata"):
        (folder / kind).mkdir(parents=True)
    first = 0
    for n, count in enumerate(rows):
        np.save(folder / f"img_emb/img_emb_{n}.npy", HALVES[first : first + count])
        np.save(folder / f"text_emb/text_emb_{n}.npy", HALVES[first : first + count] * 0)
        paths = [f"{first + row:03d}.jpg" for row in range(count)]
        table = pa.table({"image_path": paths, "caption": ["words"] * count})
        pq.write_table(table, folder / f"metadata/metadata_{n}.parquet")
        first += count
    return folder


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", "i1", "u1"])
def test_arrays_that_numpy_saved(tmp_path: Path, dtype: str) -> None:
    values = np.arange(60).reshape(20, 3).astype(dtype)
    np.save(tmp_path / "b.npy", values[11:])
    np.save(tmp_path / "a.npy", values[:11])
    features = open_features(str(tmp_path))
    assert (features.rows, features.dim) == (20, 3)
    assert features.dtype == ("float16" if dtype == "<f2" else "float32")
    for start, stop in [(0, 20), (3, 4), (9, 13), (19, 20), (7, 7)]:
        found = features.read(start, stop)
        assert found.dtype == features.dtype
        np.testing.assert_array_equal(found, values[start:stop])
    assert features.ids(5, 15).tolist() == list(range(5, 15))
    alone = open_features(str(tmp_path / "b.npy"))
    np.testing.assert_array_equal(alone.read(0, alone.rows), values[11:])


def test_arrays_in_a_bucket_are_read_in_ranges(tmp_path: Path, s3: str) -> None:
    for path in clip_retrieval(tmp_path / "clip").rglob("*.*"):
        Storage(s3).upload(path, str(path.relative_to(tmp_path)))
    features = open_features(f"{s3}/clip")
    np.testing.assert_array_equal(features.read(5, 18), HALVES[5:18])
    assert features.ids(7, 9).tolist() == ["007.jpg", "008.jpg"]


def test_a_folder_of_clip_retrieval(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clip_retrieval(tmp_path)
    monkeypatch.setattr(logging.getLogger("dq_cluster"), "propagate", True)
    with caplog.at_level("INFO"):
        features = open_features(str(folder))
        assert features.ids(6, 10).tolist() == ["006.jpg", "007.jpg", "008.jpg", "009.jpg"]
    assert "2 skipped (.npy 2)" in caplog.text
    assert "ids are from column 'image_path'" in caplog.text
    np.testing.assert_array_equal(features.read(0, 20), HALVES)
    source = open_source(SourceSettings(kind="features", uri=str(folder), columns=("caption",)))
    table = pa.concat_tables(source.read(source.units(), 5))
    assert table.column("id").to_pylist() == [f"{n:03d}.jpg" for n in range(20)]
    assert set(table.column("caption").to_pylist()) == {"words"}
    assert table.column("feature").to_pylist() == HALVES.tolist()
    assert source.skipped.take() == {".npy": 2}
    texts = open_features(str(folder / "text_emb"))
    assert texts.ids(0, 2).tolist() == [0, 1]


def test_metadata_of_other_rows_is_refused(tmp_path: Path) -> None:
    folder = clip_retrieval(tmp_path)
    pq.write_table(pa.table({"image_path": ["x"]}), folder / "metadata/metadata_1.parquet")
    with pytest.raises(InputError, match=r"img_emb_1\.npy has 12 rows, the metadata beside it 1"):
        open_features(str(folder))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5, np.float32), r"holds float32 of shape \(5,\), not float16"),
        (np.zeros((5, 1, 2), np.float32), "save one vector per row"),
        (np.zeros((5, 2), np.int64), "holds int64 of shape"),
        (np.zeros((5, 0), np.float32), "save one vector per row"),
        (np.asfortranarray(np.zeros((5, 2))), "stored by columns"),
        (np.array([[1.0, None]], object), "holds object of shape"),
        (np.zeros((0, 2), np.float32), "hold no rows"),
        (np.array([[1.0, np.nan]]), r"a\.npy row 0: the feature is not finite"),
        (np.array([[1.0, 2.0], [1e300, 1.0]]), r"a\.npy row 1: the feature is not finite"),
    ],
)
def test_arrays_that_are_no_features(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        open_features(str(tmp_path)).read(0, 2)


def test_a_damaged_array_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VALUES)
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:-5])
    with pytest.raises(InputError, match=r"a\.npy has 363 bytes, its header says 368; restore it"):
        open_features(str(tmp_path))
    for damaged in (b"", b"no array", data[:40]):
        (tmp_path / "a.npy").write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.npy is not a readable \.npy file"):
            open_features(str(tmp_path))


def test_what_holds_the_features_must_be_plain(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", VALUES)
    np.save(tmp_path / "b.npy", VALUES)
    with pytest.raises(InputError, match=r"1 \.npy and 1 other files \(b\.npy, …\); name"):
        open_features(str(tmp_path))
    (tmp_path / "other").mkdir()
    np.savez(tmp_path / "other" / "a.npz", VALUES)
    with pytest.raises(NotFoundError, match=r"no Parquet or \.npy files .*\(1 skipped \(\.npz 1\)"):
        open_features(str(tmp_path / "other"))


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float64()),
        pa.large_list(pa.float32()),
        pa.list_view(pa.float32()),
        pa.list_(pa.float64(), 3),
        pa.list_(pa.int8()),
    ],
)
def test_features_of_any_list(tmp_path: Path, kind: pa.DataType) -> None:
    values = np.arange(60).reshape(20, 3)
    rows = values.tolist() if kind.value_type == pa.int8() else values.astype(float).tolist()
    for name, part in {"a": rows[:11], "b": rows[11:]}.items():
        table = pa.table({"feature": pa.array(part, kind)})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=4)
    features = open_features(str(tmp_path))
    for start, stop in [(0, 20), (3, 4), (9, 13)]:
        np.testing.assert_array_equal(features.read(start, stop), values[start:stop])
    assert features.ids(10, 12).tolist() == [10, 11]


def test_the_only_list_of_floats_is_the_feature(tmp_path: Path) -> None:
    table = pa.table({"id": range(20), "emb": VALUES.tolist(), "tokens": [[1, 2]] * 20})
    pq.write_table(table, tmp_path / "a.parquet")
    features = open_features(str(tmp_path))
    assert features.column == "emb"
    np.testing.assert_array_equal(features.read(0, 20), VALUES)
    pq.write_table(table.rename_columns(["id", "feature", "tokens"]), tmp_path / "a.parquet")
    one = open_features(str(tmp_path)).fingerprint
    os.utime(tmp_path / "a.parquet", (0, 0))
    assert open_features(str(tmp_path)).fingerprint != one


def test_ids_are_those_that_encoding_gives(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", VALUES, key=[f"k{n}" for n in range(20)])
    for column in ("id", "key", "row", "path"):
        source = open_source(SourceSettings(kind="features", uri=str(tmp_path), id_column=column))
        encoded = [i for t in source.read(source.units(), 7) for i in t.column("id").to_pylist()]
        assert open_features(str(tmp_path), ids=column).ids(0, 20).tolist() == encoded
    with pytest.raises(InputError, match="no column 'name'; columns: id, feature, key; set id_col"):
        open_features(str(tmp_path), ids="name").ids(0, 1)


def test_a_damaged_page_is_located(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", VALUES)
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(1)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    start = group.dictionary_page_offset or group.data_page_offset
    data[start : start + 20] = b"\xff" * 20
    (tmp_path / "a.parquet").write_bytes(data)
    features = open_features(str(tmp_path))
    with pytest.raises(InputError, match=r"a\.parquet rows 3 to 9 cannot be read"):
        features.read(3, 9)


def test_an_id_that_is_not_there_is_located(tmp_path: Path) -> None:
    ids = pa.array([1, None, 2**63], pa.uint64())
    table = pa.table({"id": ids, "feature": VALUES[:3].tolist()})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet row 1: the id is null"):
        open_features(str(tmp_path)).ids(0, 3)


def test_every_file_needs_the_ids_of_the_first(tmp_path: Path) -> None:
    folder = clip_retrieval(tmp_path)
    (folder / "metadata/metadata_1.parquet").unlink()
    with pytest.raises(InputError, match=r"img_emb_1\.npy has no column 'image_path'"):
        open_features(str(folder)).ids(0, 20)


def test_files_may_differ_in_how_they_keep_their_features(tmp_path: Path) -> None:
    kinds = [pa.list_(pa.float32(), 3), pa.list_(pa.float64()), pa.large_list(pa.float16())]
    for n, kind in enumerate(kinds):
        part = VALUES[5 * n : 5 * n + 5]
        rows = part.astype(np.float16 if kind.value_type == pa.float16() else np.float64)
        ids = pa.array(range(5 * n, 5 * n + 5), [pa.int8(), pa.uint64(), pa.int64()][n])
        table = pa.table({"id": ids, "feature": pa.array(list(rows.tolist()), kind)})
        pq.write_table(table, tmp_path / f"{n}.parquet")
    features = open_features(str(tmp_path))
    assert features.dtype == "float32"
    np.testing.assert_array_equal(features.read(0, 15), VALUES[:15])
    source = open_source(SourceSettings(kind="features", uri=str(tmp_path)))
    tables = list(source.read(source.units(), 10))
    assert [v for t in tables for v in t.column("feature").to_pylist()] == VALUES[:15].tolist()


def test_opening_reads_little_of_a_large_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).normal(size=(50_000, 32)).astype(np.float32)
    table = pa.table({"feature": pa.array(list(values), pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    counted = []

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            counted.append(super().readinto(buffer))
            return counted[-1]

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            counted.append(len(data))
            return data

    monkeypatch.setattr(Storage, "open", lambda self, name: Counting(self.path(name)))
    features = open_features(str(tmp_path))
    assert features.dim == 32
    assert 0 < sum(counted) < 3_000_000 < values.nbytes


def test_a_folder_may_be_named_like_a_file(tmp_path: Path, s3: str) -> None:
    write(tmp_path / "pile.parquet" / "part-00000.snappy.parquet", VALUES)
    Storage(s3).upload(tmp_path / "pile.parquet/part-00000.snappy.parquet", "x.parquet/0.parquet")
    for uri in (str(tmp_path / "pile.parquet"), f"{s3}/x.parquet", f"{s3}/x.parquet/0.parquet"):
        features = open_features(uri)
        np.testing.assert_array_equal(features.read(3, 9), VALUES[3:9])
        source = open_source(SourceSettings(kind="features", uri=uri))
        tables = source.read(source.units(), 100)
        assert sum(table.num_rows for table in tables) == 20
    with pytest.raises(NotFoundError, match=r"none\.parquet does not exist"):
        open_features(str(tmp_path / "none.parquet"))
