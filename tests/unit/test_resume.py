"""What a driver starts with: the plan of its own request, and a ledger that holds what is there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.encoding.config import EncodeSettings
from dq_cluster.encoding.plan import Plan, find_plan
from dq_cluster.encoding.request import EncodeRequest
from dq_cluster.encoding.resume import check_request, check_source, resume
from dq_cluster.encoding.run import encode
from dq_cluster.errors import ConfigError, IntegrityError, NotFoundError
from dq_cluster.fragments.ledger import Ledger
from dq_cluster.images.config import SourceSettings
from dq_cluster.index.catalog import Index
from dq_cluster.index.gc import collect_garbage
from dq_cluster.index.tombstones import delete_ids
from dq_cluster.storage import Storage
from tests.unit.test_encode_publish import receipt_of
from tests.unit.test_gc import DAY, age_all
from tests.unit.test_verify import make_version

FOLDER = "runs/r"


@pytest.fixture
def source(tmp_path: Path) -> SourceSettings:
    features = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(24 * 8, np.float32)), 8)
    table = pa.table({"id": range(24), "feature": features})
    pq.write_table(table, tmp_path / "features.parquet", row_group_size=8)
    return SourceSettings(kind="features", uri=str(tmp_path / "features.parquet"))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "index"))


def request_of(source: SourceSettings, **others: object) -> EncodeRequest:
    values = {"source": source, "append": False, "fragment_rows": 8, "model": "m"}
    return EncodeRequest.model_validate(values | others)


def begin(storage: Storage, request: EncodeRequest) -> Plan:
    check_request(storage, FOLDER, request)
    check_source(storage, FOLDER, request.source)
    return resume(
        storage, FOLDER, request, request.source, fragment_rows=8, written=["data/r"], newest=0
    )


def commit(storage: Storage, fragment: int) -> None:
    receipt = receipt_of("r", fragment, rejected=1)
    for file in (*receipt.files, *receipt.rejects):
        storage.write(file.path, b"data")
    Ledger(storage, FOLDER).commit(receipt)


def test_the_input_is_planned_once(storage: Storage, source: SourceSettings) -> None:
    plan = begin(storage, request_of(source))
    assert (plan.fragments, plan.rows) == (3, 24)
    assert begin(storage, request_of(source)) == plan
    Path(source.uri).unlink()
    assert begin(storage, request_of(source)) == plan


def test_what_differs_is_said_before_anything_is_written(
    storage: Storage, source: SourceSettings
) -> None:
    begin(storage, request_of(source))
    before = {info.path: info.modified for info in storage.list()}
    limits = source.limits.model_copy(update={"max_bytes": 5})
    other = source.model_copy(update={"limits": limits})
    with pytest.raises(ConfigError) as caught:
        begin(storage, request_of(other, append=True))
    assert (
        "was begun with append false (now true), source.limits.max_bytes 67108864 (now 5);"
    ) in str(caught.value)
    assert {info.path: info.modified for info in storage.list()} == before


def test_a_run_of_an_older_release_goes_on(storage: Storage, source: SourceSettings) -> None:
    request = request_of(source)
    plan = begin(storage, request)
    storage.delete("runs/r/run.json")
    old = plan.model_dump(mode="json") | {"request": request.model_dump(mode="json")}
    del old["request"]["source"]["limits"]["max_seconds"]  # as if it were newer than the run
    storage.write("runs/r/plan.json", json.dumps(old).encode())
    with pytest.raises(ConfigError, match=r"append false \(now true\)"):
        begin(storage, request_of(source, append=True))
    assert begin(storage, request).path == plan.path


def test_a_source_without_images_leaves_the_name_free(
    storage: Storage, source: SourceSettings
) -> None:
    with pytest.raises(NotFoundError, match=r"source\.uri .*absent does not exist"):
        begin(storage, request_of(source.model_copy(update={"uri": f"{source.uri}/absent"})))
    broken = Path(source.uri).with_name("broken.parquet")
    broken.write_bytes(b"no parquet")
    with pytest.raises(Exception, match=r"broken\.parquet"):
        begin(storage, request_of(source.model_copy(update={"uri": str(broken)})))
    assert list(storage.list()) == []
    assert begin(storage, request_of(source)).fragments == 3


def test_two_drivers_with_different_requests(
    storage: Storage, source: SourceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower one is told, and its plan is gone."""

    def slow(*arguments: Any, **options: Any) -> object:
        monkeypatch.undo()
        begin(storage, request_of(source, model="faster"))
        return resume_module.open_source(*arguments, **options)

    from dq_cluster.encoding import resume as resume_module

    monkeypatch.setattr(resume_module, "open_source", slow)
    with pytest.raises(ConfigError, match=r'model "faster" \(now "m"\)'):
        begin(storage, request_of(source))
    plan = find_plan(storage, FOLDER)
    assert plan is not None
    plans = [info.path for info in storage.list("runs/r") if "plan-" in info.path]
    assert plans == [plan.path]


@pytest.mark.parametrize("lost", ["part", "rejects"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_fragment_whose_files_are_gone_is_encoded_again(
    storage: Storage,
    source: SourceSettings,
    capsys: pytest.CaptureFixture[str],
    lost: str,
    damage: str,
) -> None:
    begin(storage, request_of(source))
    for fragment in range(3):
        commit(storage, fragment)
    begin(storage, request_of(source))
    assert Ledger(storage, FOLDER).done() == [0, 1, 2]
    if damage == "gone":
        storage.delete(f"data/r/{lost}-1.parquet")
    else:
        storage.write(f"data/r/{lost}-1.parquet", b"dat")
    capsys.readouterr()
    begin(storage, request_of(source))
    assert Ledger(storage, FOLDER).done() == [0, 2]
    assert "1 of 3 committed fragments lost files" in capsys.readouterr().err


def test_a_ledger_without_its_plan_is_not_believed(
    storage: Storage, source: SourceSettings
) -> None:
    begin(storage, request_of(source))
    commit(storage, 0)
    storage.delete("runs/r/plan.json")
    with pytest.raises(IntegrityError, match=r"has 1 fragments in its ledger and no plan\.json"):
        begin(storage, request_of(source))


def test_a_run_without_a_name_is_called_as_ever() -> None:
    """These names were made by the release before `run.json`."""
    folder = SourceSettings(kind="folder", uri="s3://bucket/pile")
    inventory = SourceSettings.model_validate(
        {
            "kind": "inventory",
            "uri": "s3://b/i",
            "allow": ["https://a/"],
            "columns": ["label"],
            "limits": {"max_bytes": 5},
        }
    )
    model = "d" * 64
    one = EncodeRequest(source=folder, append=True, fragment_rows=65536, model=model)
    other = EncodeRequest(source=inventory, append=False, fragment_rows=65536, model=model)
    assert (one.names()[0], other.names()[0]) == ("38b724fb6e39", "476d591fdd5d")


class TestPublished:
    @pytest.fixture
    def index(self, tmp_path: Path) -> Index:
        index = make_version(tmp_path / "index", pa.array(range(300)))
        index.storage.write("runs/r/published", b"1")
        return index

    def settings(self, index: Index, source: SourceSettings) -> EncodeSettings:
        model = index.manifest().model
        return EncodeSettings(index=index.storage.uri, model=model, source=source, run="r")

    def test_it_is_not_encoded_again(
        self, index: Index, source: SourceSettings, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert encode(self.settings(index, source))["version"] == 1
        assert "run r is published already, as version 1;" in capsys.readouterr().err

    def test_its_version_is_gone_but_not_its_files(
        self, index: Index, source: SourceSettings, capsys: pytest.CaptureFixture[str]
    ) -> None:
        delete_ids(index, [1])
        age_all(index, 30)
        assert collect_garbage(index, DAY, keep=0).versions == (1,)
        assert encode(self.settings(index, source))["version"] == 2
        assert (
            "run r was published as version 1, which was removed since; its files are in version "
            "2, the current one"
        ) in capsys.readouterr().err

    def test_all_of_it_is_gone(self, index: Index, source: SourceSettings) -> None:
        settings = self.settings(index, source)
        index.storage.write("runs/r/published", b"7")
        manifest = index.manifest()
        moved = manifest.files[0].model_copy(update={"path": "data/other/part-0.parquet"})
        index.publish(
            lambda version, parent: manifest.model_copy(
                update={"version": version, "files": (moved,), "rows": moved.rows}
            )
        )
        with pytest.raises(NotFoundError) as caught:
            encode(settings)
        assert str(caught.value) == (
            "run r was published as version 7, which was removed since; to encode again give it "
            "another name with run=NAME"
        )

    def test_another_request_of_a_published_run_is_refused(
        self, index: Index, source: SourceSettings
    ) -> None:
        settings = self.settings(index, source)
        request = request_of(source, model=settings.model, fragment_rows=settings.fragment_rows)
        index.storage.write("runs/r/run.json", request.model_dump_json().encode())
        assert encode(settings)["version"] == 1
        with pytest.raises(ConfigError, match=r"append false \(now true\)"):
            encode(settings.model_copy(update={"append": True}))

    def test_a_damaged_record_is_named(self, index: Index, source: SourceSettings) -> None:
        index.storage.write("runs/r/published", b'"x"')
        with pytest.raises(IntegrityError, match="published is not a version number: 'x'"):
            encode(self.settings(index, source))
