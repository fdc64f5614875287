"""Features on storage: what is read, and what is said about those that cannot be used."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.images.backbone import PREPROCESSING
from dq_cluster.images.features import open_features
from dq_cluster.storage import Storage
from dq_cluster.train.node import Part, mapped
from dq_cluster.train.rows import TrainingRows
from dq_cluster.train.split import Split

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
    message = r"no column 'feature'; columns: id, a, b; likely ones: a, b; set feature_column"
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
