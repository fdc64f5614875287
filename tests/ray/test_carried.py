"""Piles whose files have different types, encoded and appended, come back as one table."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.client import Client
from dq_cluster.encoding.config import EncodeSettings, PoolSettings
from dq_cluster.encoding.run import encode
from dq_cluster.errors import InputError
from dq_cluster.images.config import SourceSettings
from dq_cluster.index.codefile import carried_schema
from dq_cluster.index.compact import compact
from dq_cluster.index.verify import verify
from tests.carrying import DIM, trained

pytestmark = pytest.mark.ray
ROWS = 4


def pile(folder: Path, first: int, *files: dict[str, pa.Array]) -> SourceSettings:
    """Features whose files carry these columns; their ids count from `first`."""
    folder.mkdir()
    for number, columns in enumerate(files):
        start = first + ROWS * number
        matrix = np.random.default_rng(start).normal(size=(ROWS, DIM)).astype("f4")
        lists = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), DIM)
        table = pa.table({"id": np.arange(start, start + ROWS), "feature": lists, **columns})
        pq.write_table(table, folder / f"{number}.parquet")
    return SourceSettings(kind="features", uri=str(folder), columns=tuple(files[0]))


def test_files_of_other_types_are_one_table(ray_cluster: None, tmp_path: Path) -> None:
    index, card = trained(str(tmp_path / "index"))

    def run(source: SourceSettings) -> dict[str, Any]:
        settings = EncodeSettings(
            index=index.storage.uri,
            model=card.digest,
            source=source,
            append=True,
            fragment_rows=2 * ROWS,
            pool=PoolSettings(encoders=1, decoders=1),
        )
        return encode(settings)

    words = pa.array(["b", "a", None, "b"])
    nothing = pa.nulls(ROWS)
    first = pile(
        tmp_path / "one",
        0,
        {"n": nothing, "t": nothing, "tags": nothing, "empty": nothing},
        {
            "n": pa.array([1, 2, None, 4], pa.int8()),
            "t": words.dictionary_encode(),
            "tags": pa.array([[1], [], None, [2, 3]], pa.list_(pa.int8())),
            "empty": nothing,
        },
        {
            "n": pa.array([2**40, -1, None, 7], pa.int64()),
            "t": words.cast(pa.large_string()),
            "tags": pa.array([[2**40]] * ROWS, pa.large_list(pa.int64())),
            "empty": nothing,
        },
    )
    assert run(first)["rows"] == 3 * ROWS
    second = pile(
        tmp_path / "two",
        100,
        {
            "n": pa.array([8] * ROWS, pa.uint16()),
            "t": words,
            "tags": nothing,
            "empty": pa.array([1.5, None, 2.5, 3.5]),
        },
    )
    version = run(second)["version"]
    other = {"n": words, "t": words, "tags": nothing, "empty": nothing}
    with pytest.raises(InputError, match="column 'n' is string, but int64 in version 2"):
        run(pile(tmp_path / "three", 200, other))

    def read(**asked: Any) -> dict[int, dict[str, Any]]:
        with Client(index.storage.uri) as client:
            hits = client.search(id=0, k=100, include=first.columns, **asked).hits[0]
        return {int(hit.id): hit.columns for hit in hits}

    def check() -> None:
        rows = read()
        assert len(rows) == 4 * ROWS
        assert rows[0] == dict.fromkeys(first.columns)
        assert rows[4] == {"n": 1, "t": "b", "tags": [1], "empty": None}
        assert rows[8] == {"n": 2**40, "t": "b", "tags": [2**40], "empty": None}
        assert rows[100] == {"n": 8, "t": "b", "tags": None, "empty": 1.5}
        assert sorted(read(filter={"n": {"ge": 4}})) == [7, 8, 11, 100, 101, 102, 103]
        assert sorted(read(filter={"t": "a", "empty": {"ne": 0}})) == []
        assert sorted(read(filter={"empty": {"gt": 1.5}})) == [102, 103]
        assert verify(index, ids=True).problems == ()

    check()
    assert index.current() == version == 2
    compact(index)
    check()
    assert [str(kind) for kind in carried_schema(index.storage, index.manifest()).types] == [
        "int64",
        "string",
        "list<item: int64>",
        "double",
    ]
