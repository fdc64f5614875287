"""The format on storage: models, code files, manifests, and the catalog that moves CURRENT."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.errors import InputError, IntegrityError, NotFoundError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import code_table, open_code_file, read_codes, write_code_file
from dq_cluster.index.manifest import FileEntry, Manifest, Producer, parse_manifest
from dq_cluster.index.models import ModelCard, find_model, read_card, read_tensors, write_model
from dq_cluster.run import Run
from dq_cluster.storage import Storage

GEOMETRY = CodeGeometry(dim=8, m=4)
IVF = CodeGeometry(dim=8, m=4, nlist=3)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "index"))


def codes_for(rows: int, geometry: CodeGeometry = GEOMETRY) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, geometry.code_size), np.uint8)


def manifest_of(version: int, parent: int | None, files: tuple[FileEntry, ...] = ()) -> Manifest:
    return Manifest(
        version=version,
        parent=parent,
        model="m",
        geometry=GEOMETRY,
        id_type="int64",
        files=files,
        rows=sum(file.rows for file in files),
        producer=Producer(dq_cluster="test", run="r"),
    )


class TestGeometry:
    def test_sizes(self) -> None:
        assert CodeGeometry(dim=64, m=8).code_size == 8
        assert CodeGeometry(dim=64, m=16, nbits=4).code_size == 8

    @pytest.mark.parametrize("wrong", [{"dim": 10, "m": 4}, {"dim": 9, "m": 3, "nbits": 4}])
    def test_refuses(self, wrong: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=r"multiple|pairs"):
            CodeGeometry(**wrong)


class TestCodeFiles:
    def test_round_trip_and_readable_by_plain_parquet(self, storage: Storage) -> None:
        codes = codes_for(1000)
        carried = pa.table({"label": pa.array(["a", "b"] * 500)})
        table = code_table(pa.array(range(1000), pa.int64()), codes, GEOMETRY, carried)
        entry = write_code_file(storage, "data/r/part.parquet", table, model="m", geometry=GEOMETRY)
        assert entry.rows == 1000
        assert entry.stats["id"].min == 0
        assert entry.stats["id"].max == 999
        assert entry.stats["label"].min == "a"
        with open_code_file(storage, entry, model="m", geometry=GEOMETRY) as file:
            for local in (storage.local(entry.path), None):  # copied from the disk, and decoded
                ((read, cells),) = read_codes(file, GEOMETRY, local)
                assert cells is None
                np.testing.assert_array_equal(read, codes)
        plain = pq.read_table(storage.path(entry.path))
        assert plain.column_names == ["id", "code", "label"]
        assert plain.column("code")[7].as_py() == codes[7].tobytes()

    @pytest.mark.parametrize("geometry", [GEOMETRY, IVF], ids=["flat", "ivf"])
    @pytest.mark.parametrize("most", [1, 2**62], ids=["numbered", "random"])
    def test_storage_per_image_is_bounded(
        self, storage: Storage, geometry: CodeGeometry, most: int
    ) -> None:
        rows, rng = 50_000, np.random.default_rng(0)
        ids = np.arange(rows) + rng.integers(most, size=rows)
        cells = rng.integers(geometry.nlist, size=rows) if geometry.nlist else None
        table = code_table(pa.array(ids), codes_for(rows, geometry), geometry, cells=cells)
        entry = write_code_file(storage, "p.parquet", table, model="m", geometry=geometry)
        assert entry.size / rows <= 1.2 * (geometry.code_size + 8)

    def test_ivf_rows_are_ordered_by_cell(self, storage: Storage) -> None:
        codes = codes_for(6, IVF)
        cells = np.array([2, 0, 1, 0, 2, 1])
        table = code_table(pa.array([f"{i}" for i in range(6)]), codes, IVF, cells=cells)
        entry = write_code_file(storage, "p.parquet", table, model="m", geometry=IVF)
        with open_code_file(storage, entry, model="m", geometry=IVF) as file:
            ((read, read_cells),) = read_codes(file, IVF, storage.local(entry.path))
        assert read_cells is not None
        assert read_cells.tolist() == [0, 0, 1, 1, 2, 2]
        np.testing.assert_array_equal(read, codes[[1, 3, 2, 5, 0, 4]])

    def test_codes_are_packed_as_faiss_packs(self) -> None:
        geometry = CodeGeometry(dim=8, m=4, nbits=4)
        quantizer = faiss.ProductQuantizer(8, 4, 4)
        vectors = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
        quantizer.train(vectors)
        codes = quantizer.compute_codes(vectors)
        assert codes.shape[1] == geometry.code_size
        code_table(pa.array(range(500), pa.int64()), codes, geometry)

    @pytest.mark.parametrize(
        ("model", "geometry", "rows", "what"),
        [("other", GEOMETRY, 3, "model"), ("m", IVF, 3, "geometry"), ("m", GEOMETRY, 4, "rows")],
    )
    def test_disagreement_with_the_manifest_is_refused(
        self, storage: Storage, model: str, geometry: CodeGeometry, rows: int, what: str
    ) -> None:
        table = code_table(pa.array([1, 2, 3], pa.int64()), codes_for(3), GEOMETRY)
        entry = write_code_file(storage, "p.parquet", table, model="m", geometry=GEOMETRY)
        wrong = entry.model_copy(update={"rows": rows})
        with pytest.raises(IntegrityError, match=what):
            open_code_file(storage, wrong, model=model, geometry=geometry)

    def test_missing_and_corrupt_files_are_named(self, storage: Storage) -> None:
        entry = FileEntry(path="gone.parquet", rows=1, size=1, sha256="0")
        with pytest.raises(IntegrityError, match=r"gone\.parquet.*missing"):
            open_code_file(storage, entry, model="m", geometry=GEOMETRY)
        storage.write("gone.parquet", b"not parquet at all")
        with pytest.raises(IntegrityError, match="not readable Parquet"):
            open_code_file(storage, entry, model="m", geometry=GEOMETRY)

    def test_wrong_shapes_and_names_are_refused(self) -> None:
        ids = pa.array([1, 2], pa.int64())
        with pytest.raises(InputError, match=r"\(2, 4\)"):
            code_table(ids, codes_for(3), GEOMETRY)
        with pytest.raises(InputError, match="reserved"):
            code_table(ids, codes_for(2), GEOMETRY, pa.table({"code": [1, 2]}))
        with pytest.raises(InputError, match="int64, uint64, or string"):
            code_table(pa.array([1.0, 2.0]), codes_for(2), GEOMETRY)


class TestModels:
    def write(self, storage: Storage, seed: int = 0) -> ModelCard:
        codebooks = np.random.default_rng(seed).normal(size=(4, 256, 2)).astype(np.float32)
        return write_model(
            storage,
            {"codebooks": codebooks, "layer": np.eye(3, dtype=np.float32)},
            geometry=GEOMETRY,
            feature_dim=3,
            network={"hidden": [3]},
            preprocessing={},
            training={"epochs": 1},
            evaluation={},
        )

    def test_round_trip_by_digest_and_prefix(self, storage: Storage) -> None:
        card = self.write(storage)
        assert self.write(storage).digest == card.digest
        assert self.write(storage, seed=1).digest != card.digest
        assert read_card(storage, card.digest[:10]) == card
        assert read_tensors(storage, card)["layer"].shape == (3, 3)

    def test_unknown_digest_lists_what_exists(self, storage: Storage) -> None:
        card = self.write(storage)
        with pytest.raises(NotFoundError, match=card.digest[:12]):
            read_card(storage, "ffff")

    def test_models_are_found_by_the_names_people_know(self, storage: Storage) -> None:
        one, newer = self.write(storage), self.write(storage, seed=1)
        os.utime(storage.path(f"models/{newer.digest}/model.json"), (2e9, 2e9))
        Run(storage.child("runs/photos-2024/train")).finish(one.digest)
        Run(storage.child("runs/half/train")).claim(GEOMETRY)
        assert find_model(storage, "latest") == newer
        assert find_model(storage, "photos-2024") == one
        assert find_model(storage, newer.digest[:9]) == newer
        for absent in ("half", "no/run", "../x"):
            with pytest.raises(NotFoundError, match="or 'latest', or the name of"):
                find_model(storage, absent)
        with pytest.raises(NotFoundError, match="has no model yet"):
            find_model(storage.child("empty"), "latest")

    def test_changed_weights_are_refused(self, storage: Storage) -> None:
        card = self.write(storage)
        name = f"models/{card.digest}/model.safetensors"
        weights = bytearray(storage.read(name))
        weights[-1] ^= 1
        storage.write(name, bytes(weights))
        with pytest.raises(IntegrityError, match="hashes to"):
            read_tensors(storage, card)

    def test_wrong_codebook_shape_is_refused(self, storage: Storage) -> None:
        with pytest.raises(IntegrityError, match="codebooks"):
            write_model(
                storage,
                {"codebooks": np.zeros((4, 16, 2), np.float32)},
                geometry=GEOMETRY,
                feature_dim=3,
                network={},
                preprocessing={},
                training={},
                evaluation={},
            )


class TestCatalog:
    def test_an_empty_index_says_so(self, storage: Storage) -> None:
        index = Index(storage)
        assert index.versions() == []
        with pytest.raises(NotFoundError, match="no published index"):
            index.current()

    def test_publish_and_rollback(self, storage: Storage) -> None:
        index = Index(storage)
        index.publish(manifest_of)
        second = index.publish(manifest_of)
        assert (second.version, second.parent) == (2, 1)
        assert index.versions() == [1, 2]
        assert index.manifest().version == 2
        index.rollback(1)
        assert index.current() == 1
        third = index.publish(manifest_of)
        assert (third.version, third.parent) == (3, 1)
        assert index.current() == 3

    def test_unknown_version_lists_what_exists_and_moves_nothing(self, storage: Storage) -> None:
        index = Index(storage)
        index.publish(manifest_of)
        with pytest.raises(NotFoundError, match=r"no version 9; versions: 1"):
            index.rollback(9)
        assert index.current() == 1

    def test_concurrent_publishers_build_on_each_other(self, storage: Storage) -> None:
        index = Index(storage)
        with ThreadPoolExecutor(6) as pool:
            published = list(pool.map(lambda _: index.publish(manifest_of).version, range(6)))
        lineage = []
        number: int | None = index.current()
        while number is not None:
            lineage.append(number)
            number = index.manifest(number).parent
        assert sorted(lineage) == sorted(published)

    def test_a_manifest_that_contradicts_itself_is_refused(self) -> None:
        entry = FileEntry(path="p", rows=5, size=1, sha256="0")
        good = manifest_of(1, None, (entry,))
        assert parse_manifest(good.to_json(), "x") == good
        with pytest.raises(IntegrityError, match="7 rows but its files hold 5"):
            parse_manifest(good.model_copy(update={"rows": 7}).to_json(), "x")
        newer = json.loads(good.to_json()) | {"format": 99}
        with pytest.raises(IntegrityError, match="format 99"):
            parse_manifest(json.dumps(newer).encode(), "x")
        with pytest.raises(IntegrityError, match="not a valid manifest"):
            parse_manifest(b"{}", "x")
