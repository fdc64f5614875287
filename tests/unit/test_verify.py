"""Verification names every kind of damage; deletes and compaction keep exactly the other rows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dq_cluster import __version__
from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index import verify as verify_module
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import code_table, open_code_file, write_code_file, write_parquet
from dq_cluster.index.compact import compact
from dq_cluster.index.manifest import Manifest, Producer
from dq_cluster.index.models import write_model
from dq_cluster.index.tombstones import delete_ids, deleted_ordinals, live_ids, read_tombstones
from dq_cluster.index.verify import verify

ROWS, FILES = 50, 6


@pytest.fixture(params=["flat", "ivf"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Index:
    nlist = 4 if request.param == "ivf" else 0
    return make_version(tmp_path / "index", pa.array(range(ROWS * FILES)), nlist)


def make_version(folder: Path, ids: pa.Array, nlist: int = 0) -> Index:
    """A version of 6 files of 50 rows; codes and the carried column tell the id's position."""
    index = Index.at(str(folder))
    geometry = CodeGeometry(dim=8, m=4, nlist=nlist)
    rng = np.random.default_rng(0)
    tensors = {"codebooks": rng.normal(size=(4, 256, 2)).astype(np.float32)}
    if nlist:
        tensors["coarse_centroids"] = rng.normal(size=(nlist, 8)).astype(np.float32)
    card = write_model(
        index.storage,
        tensors,
        geometry=geometry,
        feature_dim=8,
        network={},
        preprocessing={},
        training={},
        evaluation={},
    )
    files = []
    for number in range(FILES):
        positions = np.arange(number * ROWS, (number + 1) * ROWS, dtype=np.int32)
        table = code_table(
            ids.slice(number * ROWS, ROWS),
            positions.view(np.uint8).reshape(ROWS, 4),
            geometry,
            pa.table({"position": positions}),
            positions % nlist if nlist else None,
        )
        files.append(
            write_code_file(
                index.storage,
                f"data/r/part-{number}.parquet",
                table,
                model=card.digest,
                geometry=geometry,
            )
        )
    reject = write_parquet(index.storage, "data/r/rejects.parquet", pa.table({"id": [1]}))
    index.publish(
        lambda version, parent: Manifest(
            version=version,
            parent=parent,
            model=card.digest,
            geometry=geometry,
            id_type=str(ids.type),
            columns=("position",),
            files=tuple(files),
            rows=ROWS * FILES,
            rejects=(reject,),
            rejected=1,
            producer=Producer(dq_cluster=__version__, run="r"),
        )
    )
    return index


def rows_of(index: Index) -> pa.Table:
    """The live rows of the current version, by position."""
    manifest = index.manifest()
    deleted = read_tombstones(index.storage, manifest)
    parts = []
    for file in manifest.files:
        opened = open_code_file(
            index.storage, file, model=manifest.model, geometry=manifest.geometry
        )
        alive = np.setdiff1d(np.arange(file.rows), deleted.get(file.path, []))
        parts.append(opened.read().take(pa.array(alive, pa.int64())))
    return pa.concat_tables(parts).sort_by("position")


class TestVerify:
    def test_a_whole_version_has_no_problems(self, index: Index) -> None:
        report = verify(index, ids=True)
        assert report.problems == ()
        assert report.files == FILES + 1
        assert report.bytes > ROWS * FILES * 4

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda data: data[:-1], "bytes, the manifest says"),
            (lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:], "hashes to"),
        ],
        ids=["shorter", "one bit"],
    )
    @pytest.mark.parametrize("name", ["part-3", "rejects"])
    def test_damage_is_named(
        self, index: Index, name: str, damage: Callable[[bytes], bytes], message: str
    ) -> None:
        path = f"data/r/{name}.parquet"
        index.storage.write(path, damage(index.storage.read(path)))
        (problem,) = verify(index).problems
        assert f"/{path}: " in problem
        assert message in problem

    def test_what_is_missing_is_named(self, index: Index) -> None:
        manifest = index.manifest()
        index.storage.delete(manifest.files[2].path)
        index.storage.delete(f"models/{manifest.model}/model.safetensors")
        model, file = verify(index).problems
        assert "model.safetensors does not exist" in model
        assert file.endswith("part-2.parquet: named by the manifest but missing")

    def test_a_file_of_another_model_is_named(self, index: Index) -> None:
        manifest = index.manifest()
        opened = open_code_file(
            index.storage, manifest.files[0], model=manifest.model, geometry=manifest.geometry
        )
        foreign = write_code_file(
            index.storage,
            "data/r/part-0.parquet",
            opened.read(),
            model="feed",
            geometry=manifest.geometry,
        )
        index.publish(
            lambda version, parent: manifest.model_copy(
                update={"version": version, "files": (foreign, *manifest.files[1:])}
            )
        )
        (problem,) = verify(index).problems
        assert "part-0.parquet: model is feed, the manifest says" in problem

    def test_tombstones_must_fit(self, index: Index) -> None:
        manifest = delete_ids(index, [3])
        index.publish(
            lambda version, parent: manifest.model_copy(
                update={"version": version, "deleted": 2, "files": manifest.files[1:], "rows": 250}
            )
        )
        beyond, count = verify(index).problems
        assert "which the version does not have" in beyond
        assert "says 2 deleted rows, the tombstones name 1" in count


class TestDuplicates:
    @pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
    def test_ids_of_two_rows_are_named(
        self, tmp_path: Path, kind: pa.DataType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids = list(range(ROWS * FILES))
        ids[120], ids[299] = 7, 7
        index = make_version(tmp_path / "index", pa.array(ids).cast(kind))
        monkeypatch.setattr(verify_module, "_IDS_AT_ONCE", 64)
        name = 7 if kind == pa.int64() else "'7'"
        assert verify(index, ids=True).problems == (f"id {name} has 3 rows",)
        assert verify(index).problems == ()
        delete_ids(index, [7] if kind == pa.int64() else ["7"])
        assert index.manifest().deleted == 3
        assert verify(index, ids=True).problems == ()


class TestDeletes:
    def test_the_rows_and_no_others_are_gone(self, index: Index) -> None:
        before = index.manifest()
        gone = [0, 49, 50, 299, 123]
        after = delete_ids(index, gone)
        assert (after.version, after.parent, after.rows, after.deleted) == (2, 1, 300, 5)
        assert after.files == before.files
        expected = sorted(set(range(300)) - set(gone))
        assert rows_of(index).column("id").to_pylist() == expected
        assert sorted(
            id for _, ids in live_ids(index.storage, after) for id in ids.to_pylist()
        ) == (expected)
        all_rows = rows_of(Index(index.storage))  # the old version still has them
        assert len(all_rows) == 295
        index.rollback(1)
        assert len(rows_of(index)) == 300

    def test_ordinals_are_positions_in_the_version(self, index: Index) -> None:
        after = delete_ids(index, [5, 77, 299])
        files = [
            open_code_file(index.storage, f, model=after.model, geometry=after.geometry).read()
            for f in after.files
        ]
        ids = pa.concat_tables(files).column("id").to_numpy()
        ordinals = deleted_ordinals(index.storage, after)
        assert sorted(ids[ordinals]) == [5, 77, 299]
        assert (np.diff(ordinals) > 0).all()

    def test_deletes_add_up(self, index: Index) -> None:
        delete_ids(index, [1, 2])
        after = delete_ids(index, [3])
        assert (after.deleted, len(after.tombstones)) == (3, 2)
        with pytest.raises(NotFoundError, match=r"1 of 2 ids are not in version 3 \(2\)"):
            delete_ids(index, [2, 4])
        assert index.versions() == [1, 2, 3]

    def test_unknown_ids_and_types_change_nothing(self, index: Index) -> None:
        with pytest.raises(NotFoundError, match=r"5 of 5 ids .* \(900, 901, 902, …\)"):
            delete_ids(index, range(900, 905))
        with pytest.raises(InputError, match="are whole numbers; found 'seven'"):
            delete_ids(index, ["seven"])
        assert index.versions() == [1]


class TestCompaction:
    def test_small_files_become_one_and_keep_every_live_row(self, index: Index) -> None:
        before = rows_of(index)
        delete_ids(index, [10, 260])
        after = compact(index, target_rows=200)
        assert (after.rows, after.deleted, after.tombstones) == (298, 0, ())
        assert [file.rows for file in after.files] == [199, 99]
        expected = before.filter(pa.array([n not in (10, 260) for n in range(300)]))
        assert rows_of(index).equals(expected)
        assert verify(index, ids=True).problems == ()
        if after.geometry.nlist:
            for file in after.files:
                cells = pa.concat_tables(
                    [
                        open_code_file(
                            index.storage, file, model=after.model, geometry=after.geometry
                        ).read(columns=["cell"])
                    ]
                ).column("cell")
                assert (np.diff(cells.to_numpy()) >= 0).all()

    def test_big_whole_files_are_shared(self, index: Index) -> None:
        before = index.manifest()
        delete_ids(index, [75])
        after = compact(index, target_rows=100)
        assert after.files[0] == before.files[0]
        assert after.files[2:] == before.files[2:]
        assert after.files[1].rows == ROWS - 1

    def test_nothing_to_do_is_no_new_version(self, index: Index) -> None:
        assert compact(index, target_rows=100) == index.manifest()
        assert index.versions() == [1]

    def test_a_file_of_only_deleted_rows_goes(self, index: Index) -> None:
        delete_ids(index, range(50, 100))
        after = compact(index, target_rows=60)
        assert [file.rows for file in after.files] == [ROWS] * (FILES - 1)
