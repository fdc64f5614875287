"""The demo's own pieces: its journal, its split, and how it reads DQ_DATA."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dq_cluster.demo.journal import Journal
from dq_cluster.demo.pictures import find_pictures
from dq_cluster.demo.queries import picture_bytes
from dq_cluster.demo.run import DemoRequest
from dq_cluster.demo.split import split_features
from dq_cluster.errors import ConfigError, InputError, NotFoundError
from dq_cluster.images.features import open_features
from dq_cluster.run import Run
from dq_cluster.storage import Storage


def test_journal_does_each_stage_once(tmp_path: Path) -> None:
    calls = []

    def work() -> dict[str, object]:
        calls.append(1)
        return {"rate": 2.0}

    storage = Storage(str(tmp_path))
    assert Journal(storage).stage("train", work)["rate"] == 2.0
    assert Journal(storage).stage("train", work)["rate"] == 2.0
    assert len(calls) == 1


def test_journal_forgets_a_stage_that_failed(tmp_path: Path) -> None:
    def fail() -> dict[str, object]:
        raise InputError("broken")

    storage = Storage(str(tmp_path))
    with pytest.raises(InputError):
        Journal(storage).stage("train", fail)
    assert Journal(storage).stage("train", lambda: {"rate": 1})["rate"] == 1


def test_a_demo_of_an_older_release_goes_on(tmp_path: Path) -> None:
    old = {"request": {"images": 5, "data": "public"}, "stages": {"train": {"rate": 3.0}}}
    (tmp_path / "demo.json").write_text(json.dumps(old))
    run = Run(Storage(str(tmp_path)))
    journal = Journal(run.storage)
    run.claim(DemoRequest(images=5, data="public"), journal.recorded)
    assert journal.stage("train", lambda: {"rate": 1})["rate"] == 3.0
    with pytest.raises(ConfigError, match=r"was begun with images 5 \(now 6\);"):
        run.claim(DemoRequest(images=6, data="public"), journal.recorded)


def write_features(path: Path, rows: int) -> None:
    flat = pa.array(np.random.default_rng(0).normal(size=rows * 4).astype(np.float32))
    table = pa.table(
        {
            "id": pa.array([f"i{row}" for row in range(rows)]),
            "feature": pa.FixedSizeListArray.from_arrays(flat, 4),
        }
    )
    path.mkdir()
    pq.write_table(table.slice(0, rows // 3), path / "a.parquet")
    pq.write_table(table.slice(rows // 3), path / "b.parquet")


def test_split_divides_without_loss_or_overlap(tmp_path: Path) -> None:
    write_features(tmp_path / "all", 2000)
    at = {name: str(tmp_path / name) for name in ("all", "database", "queries")}
    sizes = split_features(at["all"], at["database"], at["queries"])
    assert sizes == {"database": 1900, "queries": 100}
    ids = {name: open_features(uri).ids(0, 3000).tolist() for name, uri in at.items()}
    assert sorted(ids["database"] + ids["queries"]) == sorted(ids["all"])
    assert not set(ids["database"]) & set(ids["queries"])


def test_split_of_too_few_images_is_refused(tmp_path: Path) -> None:
    write_features(tmp_path / "all", 30)
    with pytest.raises(InputError, match=r"30 images.*500"):
        split_features(str(tmp_path / "all"), str(tmp_path / "database"), str(tmp_path / "queries"))


def test_named_data_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pile = tmp_path / "pile" / "cats"
    pile.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(pile / f"{number}.png")
    monkeypatch.setenv("DQ_DATA", str(tmp_path / "pile"))
    pictures = find_pictures(tmp_path / "demo", 100)
    assert pictures.source.kind == "folder"
    found = picture_bytes(pictures.source, ["cats/1.png"])
    assert found == {"cats/1.png": (pile / "1.png").read_bytes()}


def test_named_data_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQ_DATA", str(tmp_path / "absent"))
    with pytest.raises(NotFoundError, match="absent"):
        find_pictures(tmp_path, 100)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.parquet", "parquet"), ("a.tar", "webdataset"), ("a/b.jpg", "folder")]
)
def test_kind_of_named_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    monkeypatch.setenv("DQ_DATA", str(tmp_path))
    assert find_pictures(tmp_path / "demo", 10).source.kind == kind
