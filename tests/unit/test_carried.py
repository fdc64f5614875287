"""A version has one type for each carried column, whatever its files have, old versions too."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.client import Client
from dq_cluster.encoding.config import EncodeSettings
from dq_cluster.encoding.fragment import EncodeJob, FragmentEncoder, _Gathered
from dq_cluster.encoding.load import load
from dq_cluster.encoding.outputs import CodeOutput
from dq_cluster.encoding.plan import Plan, PlanReader, make_plan
from dq_cluster.encoding.publish import publish_run
from dq_cluster.encoding.run import encode
from dq_cluster.errors import InputError, IntegrityError
from dq_cluster.fragments.ledger import Ledger, Receipt
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.sources import open_source, source_schema
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import carried_schema, open_code_file
from dq_cluster.index.columns import pack_schema
from dq_cluster.index.compact import compact
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.models import ModelCard
from dq_cluster.index.tombstones import delete_ids
from dq_cluster.index.verify import verify
from dq_cluster.search.shard import load_whole
from tests.carrying import GEOMETRY, publish_carrying, trained, types_of, write_rows

INT32 = pa.table({"x": pa.array([1, None, 3], pa.int32())})
INT64 = pa.table({"x": pa.array([4, 2**40, 5], pa.int64())})
NULLS = pa.table({"x": pa.nulls(3)})
TEXT = pa.table({"x": ["a", "b", "c"]})
LARGE = pa.table({"x": pa.array(["a", "d", None], pa.large_string())})
BARE = pa.table({"y": [1, 2, 3]})
WORDS = pa.table({"x": pa.array(["a", "e", "a"]).dictionary_encode()})


@pytest.fixture
def made(tmp_path: Path) -> tuple[Index, ModelCard]:
    return trained(str(tmp_path / "index"))


def labels(index: Index, **asked: Any) -> list[Any]:
    """The carried column of every row that a search of the current version finds, by id."""
    with Client(index.storage.uri) as client:
        hits = client.search(embedding=[0.0] * 8, k=100, include=["x"], **asked).hits[0]
    return [hit.columns["x"] for hit in sorted(hits, key=lambda hit: hit.id)]


@pytest.mark.parametrize("recorded", [True, False], ids=["new", "old"])
@pytest.mark.parametrize(
    ("files", "kind", "condition", "found"),
    [
        ([INT32, INT64], pa.int64(), {"gt": 3}, [4, 2**40, 5]),
        ([NULLS, INT32, INT64], pa.int64(), {"le": 3}, [1, 3]),
        ([TEXT, LARGE, WORDS], pa.string(), "a", ["a", "a", "a", "a"]),
        ([NULLS, NULLS], pa.null(), 3, []),
    ],
    ids=["integers", "nulls first", "text", "only nulls"],
)
def test_files_of_types_that_go_together(
    made: tuple[Index, ModelCard],
    files: list[pa.Table],
    kind: pa.DataType,
    condition: Any,
    found: list[Any],
    recorded: bool,
) -> None:
    index, card = made
    schema = pa.schema([("x", kind)])
    manifest = publish_carrying(index, card, files, schema if recorded else None)
    assert carried_schema(index.storage, manifest) == schema
    assert load_whole(index, manifest).rows.schema == pa.schema([("id", pa.int64()), *schema])
    values = [value for file in files for value in file.column("x").to_pylist()]
    assert labels(index) == values
    assert labels(index, filter={"x": condition}) == found
    assert verify(index, ids=True).problems == ()

    delete_ids(index, [0])
    after = compact(index, target_rows=100)
    assert labels(index) == values[1:]
    (file,) = after.files
    opened = open_code_file(index.storage, file, model=card.digest, geometry=GEOMETRY)
    assert opened.schema_arrow.field("x").type == kind
    assert carried_schema(index.storage, after) == schema
    assert verify(index, ids=True).problems == ()


@pytest.mark.parametrize(
    "files", [[INT64, TEXT], [TEXT, INT64], [NULLS, INT32, TEXT]], ids=["n-t", "t-n", "0-n-t"]
)
def test_an_old_version_of_types_that_do_not(
    made: tuple[Index, ModelCard], files: list[pa.Table]
) -> None:
    index, card = made
    publish_carrying(index, card, [INT64])
    publish_carrying(index, card, files)
    wrong = f"data/r1/part-{len(files) - 1}.parquet"
    (problem,) = verify(index).problems
    assert wrong in problem
    with pytest.raises(IntegrityError, match=f"{wrong}: column 'x' is .*rollback"):
        Client(index.storage.uri)
    with pytest.raises(IntegrityError, match=f"{wrong}: column 'x' is .*rollback"):
        load_whole(index, index.manifest())
    delete_ids(index, [0])
    with pytest.raises(IntegrityError, match=wrong):
        compact(index, target_rows=100)
    index.rollback(1)
    assert labels(index) == [4, 2**40, 5]


def test_verify_reads_what_a_search_reads(made: tuple[Index, ModelCard]) -> None:
    index, card = made
    good = publish_carrying(index, card, [INT64, INT64], types_of(INT64))
    first, second = good.files

    def problems(entry: Any, **others: Any) -> tuple[str, ...]:
        index.publish(
            lambda version, parent: good.model_copy(
                update={"version": version, "files": (first, entry), **others}
            )
        )
        with pytest.raises(IntegrityError):
            Client(index.storage.uri)
        return verify(index).problems

    text = write_rows(index, card, "data/r/text.parquet", 3, TEXT)
    (problem,) = problems(text)
    assert problem.startswith(f"{index.storage.uri}/data/r/text.parquet: column 'x' is string, but")
    bare = write_rows(index, card, "data/r/bare.parquet", 3, BARE)
    (problem,) = problems(bare)
    assert "bare.parquet" in problem
    assert "0 columns 'x'" in problem
    # The manifest is wrong, not the file.
    assert good.arrow_schema is not None
    for schema in ("AAAA", "no base64", good.arrow_schema[:40]):
        (problem,) = problems(second, arrow_schema=schema)
        assert "arrow_schema of version" in problem
    (problem,) = problems(second, arrow_schema=pack_schema(types_of(BARE)))
    assert "carries x, its arrow_schema has y" in problem
    old, _ = problems(second, arrow_schema=pack_schema(types_of(NULLS)))
    assert "part-0.parquet: its columns are x int64, the manifest says x null" in old


def test_verify_decodes_every_page(made: tuple[Index, ModelCard]) -> None:
    """A file that was damaged before it was hashed: its hash is right, and its pages are not."""
    index, card = made
    rng = np.random.default_rng(0)
    column = pa.table({"x": pa.array(rng.integers(2**60, size=5000))})
    good = publish_carrying(index, card, [column], types_of(column))
    (entry,) = good.files
    data = bytearray(index.storage.read(entry.path))
    metadata = pq.read_metadata(pa.BufferReader(bytes(data)))
    chunk = metadata.row_group(0).column(metadata.schema.to_arrow_schema().get_field_index("x"))
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + 200] = bytes(200)
    index.storage.write("data/r/damaged.parquet", bytes(data))
    digest = hashlib.sha256(data).hexdigest()
    broken = entry.model_copy(update={"path": "data/r/damaged.parquet", "sha256": digest})
    index.publish(
        lambda version, parent: good.model_copy(update={"version": version, "files": (broken,)})
    )
    (problem,) = verify(index).problems
    assert "damaged.parquet" in problem


def features(folder: Path, **columns: pa.Table) -> None:
    """Files of features that carry these columns."""
    folder.mkdir()
    for number, (name, table) in enumerate(columns.items()):
        matrix = np.random.default_rng(number).normal(size=(table.num_rows, 8))
        lists = pa.FixedSizeListArray.from_arrays(pa.array(matrix.astype("f4").ravel()), 8)
        ids = pa.array(np.arange(table.num_rows) + 1000 * number)
        table = table.add_column(0, "id", ids).add_column(1, "feature", lists)
        pq.write_table(table, folder / f"{name}.parquet")


def encoding(index: Index, card: ModelCard, folder: Path, **others: Any) -> EncodeSettings:
    source = SourceSettings(kind="features", uri=str(folder), columns=("x",))
    values = {"index": index.storage.uri, "model": card.digest, "source": source, "append": True}
    return EncodeSettings.model_validate(values | others)


@pytest.mark.parametrize(
    ("appended", "message"),
    [
        (
            {"a": TEXT},
            "cannot append to version 1: .*: column 'x' is string, but int64 in version 1",
        ),
        (
            {"a": NULLS, "b": INT32, "c": TEXT},
            "c.parquet: column 'x' is string, but int32 in the files be",
        ),
        ({"a": pa.table({"x": pa.nulls(3, pa.list_view(pa.int8()))})}, "cannot be carried"),
        ({"a": pa.table([pa.array([1]), pa.array([1])], names=["x", "x"])}, "more than one col"),
    ],
    ids=["other type", "within the pile", "no JSON", "twice"],
)
def test_types_are_compared_before_work_starts(
    made: tuple[Index, ModelCard], tmp_path: Path, appended: dict[str, pa.Table], message: str
) -> None:
    index, card = made
    publish_carrying(index, card, [INT64])
    features(tmp_path / "pile", **appended)
    with pytest.raises(InputError, match=message):
        encode(encoding(index, card, tmp_path / "pile"))
    assert [info.path for info in index.storage.list("runs")] == []
    assert index.versions() == [1]


def test_ids_of_another_type_are_refused_before_work_starts(
    made: tuple[Index, ModelCard], tmp_path: Path
) -> None:
    index, card = made
    publish_carrying(index, card, [INT64])
    features(tmp_path / "pile", a=INT64)
    table = pq.read_table(tmp_path / "pile/a.parquet")
    table = table.set_column(0, "id", table.column("id").cast(pa.string()))
    pq.write_table(table, tmp_path / "pile/a.parquet")
    with pytest.raises(InputError, match=r"its ids are int64, those of .* are string"):
        encode(encoding(index, card, tmp_path / "pile"))


def test_a_source_has_one_type_for_all_files(tmp_path: Path) -> None:
    features(tmp_path / "pile", a=NULLS, b=INT32, c=INT64)
    source = SourceSettings(kind="features", uri=str(tmp_path / "pile"), columns=("x", "uri"))
    with pytest.raises(InputError, match="no column 'y'"):
        source_schema(source.model_copy(update={"columns": ("y",)}))
    wanted = pa.schema([("id", pa.int64()), ("x", pa.int64()), ("uri", pa.string())])
    assert source_schema(source) == wanted
    folder = SourceSettings(kind="folder", uri=str(tmp_path), columns=("label",))
    assert source_schema(folder) == pa.schema([("id", pa.string()), ("label", pa.string())])
    (tmp_path / "none").mkdir()
    empty = source_schema(source.model_copy(update={"uri": str(tmp_path / "none")}))
    assert empty.names == ["id", "x", "uri"]


def test_fragments_of_one_pile_have_its_types(
    made: tuple[Index, ModelCard], tmp_path: Path
) -> None:
    index, card = made
    features(tmp_path / "pile", a=NULLS, b=INT32, c=INT64, d=NULLS)
    source = SourceSettings(kind="features", uri=str(tmp_path / "pile"), columns=("x",))
    units = open_source(source).units()
    plan = make_plan(index.storage, "runs/r", units, fragment_rows=6)
    schema = source_schema(source).remove(0)
    output = CodeOutput(index.storage, card.digest, "data/r", False, ("x",), 64, 1)
    job = EncodeJob(source, schema, output, index.storage, "runs/r", "data/r", plan, 1)
    worker, encoder = FragmentEncoder(job), output.open()
    for number in range(plan.fragments):
        gathered = _Gathered()
        fragment = PlanReader(index.storage, plan).fragment(number)
        for chunk in load(source, fragment, encoder.expects):
            gathered.rows[0].append(chunk.rows)
            gathered.arrays[0].append(encoder(chunk.payload))
        receipt = worker._commit(number, gathered)
        assert receipt.columns["x"] == "int64"
    manifest = publish(index, card, "r", plan)
    assert manifest.rows == 12
    assert carried_schema(index.storage, manifest) == types_of(INT64)
    assert labels(index) == [None] * 3 + [1, None, 3, 4, 2**40, 5] + [None] * 3
    assert verify(index, ids=True).problems == ()


def finish(index: Index, card: ModelCard, run: str, *files: pa.Table) -> Plan:
    """A run whose fragments, a file each, are all committed."""
    for number, columns in enumerate(files):
        path = f"data/{run}/part-{number}.parquet"
        entry = write_rows(index, card, path, 1000 * number, columns)
        receipt = Receipt(
            fragment=number,
            rows=entry.rows,
            rejected=0,
            reasons={},
            files=(entry,),
            rejects=(),
            columns={"id": "int64", "x": str(columns.schema.field("x").type)},
            seconds={},
        )
        Ledger(index.storage, f"runs/{run}").commit(receipt)
    rows = sum(columns.num_rows for columns in files)
    return Plan(path="p", fragments=len(files), units=1, rows=rows, request={})


def publish(index: Index, card: ModelCard, run: str, plan: Plan) -> Manifest:
    options: dict[str, Any] = {
        "append": True,
        "columns": ("x",),
        "max_reject_fraction": 0.0,
    }
    return publish_run(index, run, plan, card, **options)


def test_a_version_published_meanwhile_is_compared_too(made: tuple[Index, ModelCard]) -> None:
    index, card = made
    numbers, more = finish(index, card, "a", INT32), finish(index, card, "b", NULLS, INT64)
    text = finish(index, card, "c", TEXT)
    publish(index, card, "a", numbers)
    with pytest.raises(InputError, match="cannot append to version 1: run c: column 'x' is string"):
        publish(index, card, "c", text)
    assert index.versions() == [1]
    manifest = publish(index, card, "b", more)
    assert carried_schema(index.storage, manifest) == types_of(INT64)
    assert sorted(filter(None, labels(index))) == [1, 3, 4, 5, 2**40]
    assert verify(index).problems == ()


def test_appending_to_an_old_version_records_the_types(made: tuple[Index, ModelCard]) -> None:
    index, card = made
    publish_carrying(index, card, [INT32])
    manifest = publish(index, card, "b", finish(index, card, "b", INT64))
    assert manifest.arrow_schema is not None
    assert carried_schema(index.storage, manifest) == types_of(INT64)
    index.rollback(1)
    assert labels(index) == [1, None, 3]
