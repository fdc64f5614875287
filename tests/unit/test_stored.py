"""What is stored, by later versions too, and what else lies beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dq_cluster.demo.journal import Journal
from dq_cluster.document import Document, parse_record
from dq_cluster.encoding.plan import Plan, find_plan
from dq_cluster.encoding.run import _published
from dq_cluster.errors import DqError, IntegrityError, NotFoundError
from dq_cluster.evaluate.rows import Row, RowFiles
from dq_cluster.fragments.ledger import Ledger, Receipt
from dq_cluster.index.catalog import Index
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.models import ModelCard, list_models, read_card
from dq_cluster.knn.duplicates import DuplicatesManifest
from dq_cluster.knn.result import NeighboursManifest
from dq_cluster.run import Run
from dq_cluster.storage import Storage
from dq_cluster.training.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from tests.support import make_model, make_version

RECEIPT = Receipt(
    fragment=1, rows=2, rejected=0, reasons={}, files=(), rejects=(), columns={}, seconds={}
)
NEIGHBOURS = NeighboursManifest(model="m", version=1, settings={}, files=(), queries=2, full=0)
DUPLICATES = DuplicatesManifest(
    version=1, within=-1.0, keep="first", groups=1, images=3, others=2, full=0
)
PLAN = Plan(path="p", fragments=1, units=1, rows=1, request={})

RESULTS = (NEIGHBOURS, DUPLICATES)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    uri = str(tmp_path / "index")
    make_version(uri, make_model(uri), rows=300, files=3)
    return Index.at(uri)


def documents(index: Index) -> list[Document]:
    manifest = index.manifest()
    return [manifest, read_card(index.storage, manifest.model), PLAN, RECEIPT, *RESULTS]


def changed(document: Document, **values: Any) -> bytes:
    return json.dumps(document.model_dump(mode="json") | values).encode()


# What a later format may have added or changed.
MORE: list[dict[str, object]] = [
    {},
    {"shards": []},
    {"path": None, "rows": "many", "geometry": 3},
]


def test_a_later_format_is_refused_by_its_number(index: Index) -> None:
    kinds = set()
    for document in documents(index):
        kind = type(document)
        kinds.add(kind)
        for more in MORE:
            with pytest.raises(IntegrityError) as caught:
                kind.parse(changed(document, format=2, **more), "HERE")
            assert str(caught.value) == (
                "HERE has format 2; this dq_cluster reads format 1: upgrade"
            )
        with pytest.raises(IntegrityError, match=r"has format 0; this dq_cluster reads format 1$"):
            kind.parse(changed(document, format=0), "HERE")
    assert kinds == set(Document.__subclasses__())


def test_documents_without_a_format_are_of_the_first(index: Index) -> None:
    for document in documents(index):
        values = document.model_dump(mode="json")
        assert values.pop("format") == 1
        assert type(document).parse(json.dumps(values).encode(), "HERE") == document


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"3", b"\xff", b"[" * 100_000, b"{}"])
def test_what_is_no_document_is_one_line(data: bytes) -> None:
    for kind in Document.__subclasses__():
        with pytest.raises(IntegrityError, match=f"^HERE is not a valid {kind.NAME}: ") as caught:
            kind.parse(data, "HERE")
        assert "\n" not in str(caught.value)
    if data != b"{}":
        with pytest.raises(IntegrityError, match="HERE is not a JSON object"):
            parse_record(data, "HERE")


def test_an_unknown_field_of_this_format_is_named(index: Index) -> None:
    for document in documents(index):
        with pytest.raises(IntegrityError, match=f"not a valid {document.NAME}: shards: "):
            type(document).parse(changed(document, shards=[]), "HERE")


def test_readers_of_every_record_refuse_a_later_format(index: Index, tmp_path: Path) -> None:
    storage, later = index.storage, json.dumps({"format": 2, "new": 1}).encode()
    manifest = index.manifest()
    checkpoints = storage.child("checkpoints")
    save_checkpoint(checkpoints, Checkpoint(3, {"w": torch.zeros(2)}))
    Journal(Storage(str(tmp_path / "demo")))
    for name, read in (
        ("versions/1.json", lambda: index.manifest(1)),
        (f"models/{manifest.model}/model.json", lambda: read_card(storage, manifest.model)),
        ("runs/r/plan.json", lambda: find_plan(storage, "runs/r")),
        ("runs/r/ledger/00000001.json", lambda: list(Ledger(storage, "runs/r").receipts())),
        ("checkpoints/epoch-00003.json", lambda: latest_checkpoint(checkpoints)),
        ("../demo/demo.json", lambda: Journal(Storage(str(tmp_path / "demo")))),
    ):
        (Path(storage.uri) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(storage.uri) / name).write_bytes(later)
        with pytest.raises(IntegrityError, match=r"format 2; .* reads format 1: upgrade") as caught:
            read()
        assert Path(name).name in str(caught.value)


STRAYS = [
    "1 (copy).json",
    "0001.json",
    "0.json",
    "²3.json",
    "1.json~",
    "1.json.bak",
    "notes.txt",
    "old/2.json",
    "99999999999999999999.json",
    "-1.json",
]


def test_files_that_are_no_manifests_are_passed_over_and_named(index: Index) -> None:
    data = index.storage.read("versions/1.json")
    for name in STRAYS:
        index.storage.write(f"versions/{name}", data)
    (Path(index.storage.uri) / "versions" / "5.json").mkdir()
    index.storage.write("CURRENT~", b"9")
    assert index.versions() == [1]
    assert set(index.strays()) == {f"versions/{name}" for name in STRAYS}
    assert index.manifest().version == 1
    with pytest.raises(NotFoundError, match=r"versions: 1$"):
        index.manifest(2)


@pytest.mark.parametrize("text", [b"", b"one", b"-1", b"1.0", b"9" * 5000, "²".encode(), b"\xff"])
def test_a_pointer_that_is_no_number(index: Index, text: bytes) -> None:
    index.storage.write("CURRENT", text)
    index.storage.write("runs/r/published", text)
    for read in (index.current, lambda: index.publish(lambda *_: pytest.fail("published"))):
        with pytest.raises(IntegrityError, match="CURRENT is not a version number"):
            read()
    with pytest.raises((IntegrityError, NotFoundError), match=r"published|not a version number"):
        _published(index, "r", Run(index.storage.child("runs/r")).result())
    assert index.rollback(1).version == index.current() == 1


def test_files_that_are_no_models_are_passed_over(index: Index) -> None:
    digest = index.manifest().model
    data = index.storage.read(f"models/{digest}/model.json")
    for name in (f"{digest} copy", f"old/{digest}", digest[:20], "notes"):
        index.storage.write(f"models/{name}/model.json", data)
    index.storage.write(f"models/{digest}/old/model.json", data)
    index.storage.write("models/model.json", data)
    assert list_models(index.storage) == [digest]
    assert read_card(index.storage, digest[:6]).digest == digest


def test_files_that_are_no_receipts_or_checkpoints_are_passed_over(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    ledger, checkpoints = Ledger(storage, "runs/r"), storage.child("checkpoints")
    ledger.commit(RECEIPT)
    save_checkpoint(checkpoints, Checkpoint(3, {"w": torch.zeros(2)}))
    for name in ("00000001 (1).json", "1.json", "000000001.json", "notes.txt", "old/00000002.json"):
        storage.write(f"runs/r/ledger/{name}", b"{}")
    for name in ("epoch-00004 (1).json", "epoch-4.json", "epoch-x.json", "old/epoch-00009.json"):
        storage.write(f"checkpoints/{name}", b"{}")
    assert ledger.done() == [1]
    assert list(ledger.receipts()) == [RECEIPT]
    found = latest_checkpoint(checkpoints)
    assert found is not None
    assert found.epoch == 3
    save_checkpoint(checkpoints, Checkpoint(5, {"w": torch.zeros(2)}))


def test_kept_rows_of_a_comparison(tmp_path: Path) -> None:
    files = RowFiles(Storage(str(tmp_path)), {"k": 1}, "code")
    row = Row(
        method="PQ",
        bits=16,
        map=(float("nan"), 0.5),
        recall=(float("inf"),),
        training={},
        curve=(),
        ap=(),
        first=(),
        seconds=1.0,
    )
    files.write(row)
    (folder,) = (tmp_path / "rows").iterdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "PQ-16.json~").write_text("{}")
    found = files.read()[("PQ", 16)]
    assert np.isnan(found.map[0])
    assert found.model_copy(update={"map": ()}) == row.model_copy(update={"map": ()})
    (folder / "PQ-32.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"PQ-32.json is no row .*delete it"):
        files.read()


def test_nothing_of_this_raises_anything_else(index: Index) -> None:
    """A damaged manifest is an error of ours whatever byte is wrong."""
    path = Path(index.storage.uri) / "versions" / "1.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), 37):
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        with pytest.raises(DqError):
            index.manifest(1)
        path.write_bytes(whole[:at])
        with pytest.raises(DqError):
            index.manifest(1)
    path.write_bytes(whole)
    assert isinstance(index.manifest(1), Manifest)
    assert isinstance(read_card(index.storage, index.manifest(1).model), ModelCard)
