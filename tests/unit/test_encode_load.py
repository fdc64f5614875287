"""Loading sets rejects apart and keeps rows and payload in step."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dq_cluster.encoding.load import Expectation, load
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.decode import decode_image
from dq_cluster.images.sources import open_source
from tests.pictures import crops, write_parquet


def test_features_of_another_form_are_rejected(tmp_path: Path) -> None:
    good = [[float(n), 0.5] for n in range(6)]
    features = [
        good[0],
        None,
        good[1],
        [1.0],
        [np.nan, 0.0],
        good[2],
        [np.inf, 1.0],
        good[3],
        good[4],
    ]
    columns = {
        "id": [0, 1, 2, 3, 4, 5, 6, 7, None],
        "feature": pa.array(features, pa.list_(pa.float32())),
        "tag": list("abcdefghi"),
    }
    write_parquet(tmp_path / "f.parquet", columns)
    source = SourceSettings(kind="features", uri=str(tmp_path), columns=("tag",))
    (chunk,) = load(source, list(open_source(source).units()), Expectation(0, 2))
    assert chunk.rows.select(["id", "tag"]).to_pylist() == [
        {"id": 0, "tag": "a"},
        {"id": 2, "tag": "c"},
        {"id": 5, "tag": "f"},
        {"id": 7, "tag": "h"},
    ]
    np.testing.assert_array_equal(chunk.payload, np.array(good[:4], np.float32))
    reasons = dict(
        zip(*(chunk.rejects.column(n).to_pylist() for n in ("id", "reason")), strict=True)
    )
    assert reasons == dict.fromkeys([1, 3, 4, 6], "bad_feature") | {None: "no_id"}


def test_chunks_of_pictures_are_bounded_in_bytes(tmp_path: Path) -> None:
    images = list(crops(40))
    write_parquet(tmp_path / "p.parquet", {"id": range(40), "image": [*images[:39], b"no"]})
    source = SourceSettings(kind="parquet", uri=str(tmp_path))
    size = 362  # 384 KiB of pixels each: 21 fill a chunk
    chunks = list(load(source, list(open_source(source).units()), Expectation(size, 0)))
    assert [len(chunk.payload) for chunk in chunks] == [21, 18]
    assert [chunk.rows.num_rows for chunk in chunks] == [21, 18]
    assert chunks[1].rejects.to_pylist() == [
        {"id": 39, "uri": f"{tmp_path}/p.parquet#39", "reason": "not_an_image"}
    ]
    np.testing.assert_array_equal(chunks[1].payload[0], decode_image(images[21], size))


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.large_list(pa.float64()), pa.list_view(pa.float64())]
)
def test_features_beyond_float32_are_rejected_by_row(tmp_path: Path, kind: pa.DataType) -> None:
    rows = [[1.5, 2.0], [1e300, 1.0], [], None, [1.0, None], [3.0, -4.0]]
    write_parquet(tmp_path / "f.parquet", {"id": range(6), "emb": pa.array(rows, kind)})
    source = SourceSettings(kind="features", uri=str(tmp_path))
    (chunk,) = load(source, list(open_source(source).units()), Expectation(0, 2))
    assert chunk.payload.dtype == np.float32
    assert chunk.payload.tolist() == [rows[0], rows[5]]
    assert chunk.rejects.column("id").to_pylist() == [1, 2, 3, 4]
    assert set(chunk.rejects.column("reason").to_pylist()) == {"bad_feature"}
