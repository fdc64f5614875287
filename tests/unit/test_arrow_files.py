"""Arrow files, as Hugging Face `datasets` saves them, are read like Parquet."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dq_cluster.errors import InputError
from dq_cluster.images.config import ImageLimits, SourceSettings
from dq_cluster.images.features import open_features
from dq_cluster.images.kinds import kind_of
from dq_cluster.images.sources import open_source
from dq_cluster.images.tables import open_rows
from dq_cluster.images.thumbnail import thumbnail
from dq_cluster.storage import Storage
from tests.pictures import crops

PICTURES = crops(25)


def save(path: Path, table: pa.Table, rows: int = 10, *, stream: bool = True) -> None:
    """A file of record batches of `rows` rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink:
        make = pa.ipc.new_stream if stream else pa.ipc.new_file
        with make(sink, table.schema) as writer:
            writer.write_table(table, rows)


def saved_to_disk(folder: Path, *, stream: bool = True) -> Path:
    """What `Dataset.save_to_disk` leaves of two shards, and a cache that it kept beside them."""
    images = [{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(PICTURES)]
    table = pa.table({"image": images, "label": list(range(25))})
    save(folder / "data-00000-of-00002.arrow", table[:13], stream=stream)
    save(folder / "data-00001-of-00002.arrow", table[13:], stream=stream)
    save(folder / "cache-0123456789abcdef.arrow", table[:4])
    (folder / "state.json").write_text("{}")
    (folder / "dataset_info.json").write_text("{}")
    return folder


def read(uri: Path | str, **others: Any) -> tuple[pa.Table, dict[str, int]]:
    values = {"kind": "parquet", "uri": str(uri), "id_column": "row", "columns": ("label",)}
    source = open_source(SourceSettings.model_validate(values | others))
    units = list(source.units())
    return pa.concat_tables(source.read(units, 4)), source.skipped.take()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "file"])
def test_a_dataset_saved_to_disk(tmp_path: Path, stream: bool) -> None:
    table, skipped = read(saved_to_disk(tmp_path / "saved", stream=stream))
    assert table.column("id").to_pylist() == list(range(25))
    assert table.column("image").to_pylist() == list(PICTURES)
    assert table.column("label").to_pylist() == list(range(25))
    assert table.column("reason").null_count == 25
    assert skipped == {".json": 2, ".arrow": 1}
    uri = table.column("uri")[20].as_py()
    assert uri.endswith("data-00001-of-00002.arrow#7")
    assert thumbnail(uri, ImageLimits())[:2] == b"\xff\xd8"
    assert kind_of(str(tmp_path / "saved")) == "parquet"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "file"])
def test_any_range_of_rows(tmp_path: Path, stream: bool) -> None:
    save(tmp_path / "a.arrow", pa.table({"id": range(25), "x": range(25)}), 7, stream=stream)
    file = open_rows(Storage(str(tmp_path)), "a.arrow")
    assert file.groups == (7, 7, 7, 4)
    for start, stop in [(0, 25), (6, 8), (7, 7), (13, 22), (24, 25)]:
        parts = list(file.batches(start, stop, ["x"], 3))
        assert all(part.num_rows <= 3 for part in parts)
        assert [x for part in parts for x in part["x"].to_pylist()] == list(range(start, stop))
    assert file.head(["id"], 2).to_pylist() == [{"id": 0}, {"id": 1}]


def test_embeddings(tmp_path: Path) -> None:
    values = [[float(n), 1.0, 2.0] for n in range(12)]
    save(tmp_path / "data.arrow", pa.table({"id": range(12), "feature": values}), 5)
    features = open_features(str(tmp_path))
    assert (features.rows, features.dim) == (12, 3)
    assert features.read(4, 7)[:, 0].tolist() == [4.0, 5.0, 6.0]
    assert features.ids(4, 7).tolist() == [4, 5, 6]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "data.arrow"
    save(path, pa.table({"image": list(PICTURES[:3])}))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"data\.arrow is not a readable Arrow file: .*; restore"):
        read(path, columns=())
    path.write_bytes(b"no arrow at all")
    with pytest.raises(InputError, match=r"data\.arrow is not a readable Arrow file"):
        read(path, columns=())
    save(path, pa.table({"image": pa.array(list(PICTURES[:3])).dictionary_encode()}))
    with pytest.raises(InputError, match="columns of dictionaries"):
        read(path, columns=())


def test_a_file_in_a_bucket_is_refused(s3: str, tmp_path: Path) -> None:
    save(tmp_path / "data.arrow", pa.table({"image": list(PICTURES[:3])}))
    Storage(f"{s3}/pile").upload(tmp_path / "data.arrow", "data.arrow")
    with pytest.raises(InputError, match=r"read from a local disk only; .*Dataset\.to_parquet"):
        read(f"{s3}/pile", columns=())
