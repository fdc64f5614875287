"""Encoding on real Ray: whatever the source, the codes are those of one process."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from dq_cluster.client import Client
from dq_cluster.config import load_settings
from dq_cluster.encoding.config import EncodeSettings, FeaturizeSettings
from dq_cluster.encoding.featurize import featurize
from dq_cluster.encoding.run import encode
from dq_cluster.errors import ConfigError, InputError, NotFoundError, QualityGateError
from dq_cluster.evaluate.config import EvaluateSettings
from dq_cluster.evaluate.version import evaluate_version
from dq_cluster.images.config import BackboneSettings, ImageLimits, SourceSettings
from dq_cluster.images.features import open_features
from dq_cluster.images.thumbnail import thumbnail
from dq_cluster.index.models import ModelCard
from dq_cluster.model.bundle import load_model, save_model
from dq_cluster.model.cells import learn_cells
from dq_cluster.storage import Storage
from tests.encoding import (
    codes_of,
    current,
    features_of,
    read_rejects,
    read_version,
    settings_for,
    tiny_backbone,
    tiny_model,
)
from tests.pictures import crops, write_folder, write_parquet, write_tar

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

IMAGES = list(crops(70))


@pytest.fixture
def backbone(tmp_path: Path) -> BackboneSettings:
    return tiny_backbone(tmp_path)


@pytest.fixture
def index(tmp_path: Path) -> str:
    return str(tmp_path / "index")


@pytest.fixture
def card(index: str, backbone: BackboneSettings) -> ModelCard:
    return tiny_model(Storage(index), backbone)


def pile(tmp_path: Path, images: list[bytes] = IMAGES, name: str = "pile") -> SourceSettings:
    columns = {
        "id": pa.array(range(1000, 1000 + len(images))),
        "image": images,
        "label": [f"class {n % 3}" for n in range(len(images))],
    }
    path = write_parquet(tmp_path / f"{name}.parquet", columns, row_group_size=7)
    return SourceSettings(kind="parquet", uri=str(path), columns=("label",))


def test_parquet_in_codes_out(
    tmp_path: Path, index: str, card: ModelCard, backbone: BackboneSettings
) -> None:
    settings = settings_for(index, card, pile(tmp_path))
    summary = encode(settings)
    catalog, manifest = current(index)
    table = read_version(catalog.storage, manifest)
    assert table.column("id").to_pylist() == list(range(1000, 1070))
    assert table.column("label").to_pylist() == [f"class {n % 3}" for n in range(70)]
    assert table.column("code").to_pylist() == codes_of(
        catalog.storage, card, features_of(IMAGES, backbone)
    )
    assert len(set(table.column("code").to_pylist())) >= 20
    assert (manifest.rows, manifest.rejected, manifest.id_type) == (70, 0, "int64")
    assert len(manifest.files) == 4  # of 21, 21, 21 and 7 rows: whole row groups of 7
    assert summary["version"] == 1
    assert summary["load_rows_per_second"] > 0

    assert encode(settings)["version"] == 1
    assert catalog.versions() == [1]


def test_folders_tars_and_inventories_give_the_same_codes(
    tmp_path: Path, index: str, card: ModelCard, backbone: BackboneSettings, s3: str
) -> None:
    names = [f"{n:03d}.jpg" for n in range(len(IMAGES))]
    write_folder(tmp_path / "pictures" / "cats", dict(zip(names, IMAGES, strict=True)))
    for name, data in zip(names, IMAGES, strict=True):
        Storage(s3).write(f"pile/{name}", data)
    write_tar(tmp_path / "tars" / "a.tar", dict(zip(names[:40], IMAGES[:40], strict=True)))
    write_tar(tmp_path / "tars" / "b.tar", dict(zip(names[40:], IMAGES[40:], strict=True)))
    uris = [f"{tmp_path}/pictures/cats/{name}" for name in names]
    listed = write_parquet(tmp_path / "list.parquet", {"id": range(70), "uri": uris})
    sources = [
        SourceSettings(kind="folder", uri=str(tmp_path / "pictures"), columns=("label",)),
        SourceSettings(kind="folder", uri=f"{s3}/pile"),
        SourceSettings(kind="webdataset", uri=str(tmp_path / "tars")),
        SourceSettings(kind="inventory", uri=str(listed), allow=(f"{tmp_path}/pictures/",)),
    ]
    expected = codes_of(Storage(index), card, features_of(IMAGES, backbone))
    ids = []
    for source in sources:
        encode(settings_for(index, card, source))
        catalog, manifest = current(index)
        table = read_version(catalog.storage, manifest)
        assert table.column("code").to_pylist() == expected
        ids.append(table.column("id")[41].as_py())
    assert ids == ["cats/041.jpg", "041.jpg", "b.tar/041", 41]
    assert catalog.versions() == [1, 2, 3, 4]


def test_relative_places_are_of_the_folder_the_command_runs_in(
    tmp_path: Path, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers run in another folder, the one in which the cluster was started."""
    monkeypatch.chdir(tmp_path)
    write_folder(Path("Album #2"), {f"{n}.jpg": data for n, data in enumerate(IMAGES[:8])})
    source = ["source.kind=folder", "source.uri=Album #2"]
    asked = ["index=index", f"model={card.digest}", *source, "source.columns=uri"]
    encode(load_settings(EncodeSettings, None, asked))
    catalog, manifest = current("index")
    uris = read_version(catalog.storage, manifest).column("uri").to_pylist()
    assert uris == [f"{tmp_path}/Album #2/{n}.jpg" for n in range(8)]
    backbone = ["backbone.kind=onnx", "backbone.path=fields.onnx", "backbone.image_size=16"]
    featurize(load_settings(FeaturizeSettings, None, [*source, *backbone, "output=features"]))
    assert open_features("features").rows == 8


def test_features_then_codes(
    tmp_path: Path, index: str, card: ModelCard, backbone: BackboneSettings
) -> None:
    output = str(tmp_path / "features")
    settings = FeaturizeSettings(
        source=pile(tmp_path), output=output, backbone=backbone, fragment_rows=20
    )
    summary = featurize(settings)
    assert (summary["rows"], summary["files"], summary["rejected"]) == (70, 4, 0)
    stored = open_features(output)
    half = features_of(IMAGES, backbone).astype(np.float16)
    assert (stored.rows, stored.dim) == (70, half.shape[1])
    assert stored.preprocessing == card.preprocessing
    np.testing.assert_array_equal(stored.read(0, 70), half)

    before = {info.path: info.modified for info in Storage(output).list()}
    assert featurize(settings)["rows"] == 70
    assert {info.path: info.modified for info in Storage(output).list()} == before

    source = SourceSettings(kind="features", uri=output, columns=("label", "uri"))
    encode(settings_for(index, card, source))
    catalog, manifest = current(index)
    table = read_version(catalog.storage, manifest)
    assert table.column("code").to_pylist() == codes_of(
        catalog.storage, card, half.astype(np.float32)
    )
    # The picture is where it was, whatever road it took into the index.
    encode(settings_for(index, card, pile(tmp_path).model_copy(update={"columns": ("uri",)})))
    _, direct = current(index)
    uris = read_version(catalog.storage, direct).column("uri")
    assert table.column("uri").to_pylist() == uris.to_pylist()
    assert thumbnail(uris[0].as_py(), ImageLimits())[:2] == b"\xff\xd8"


def test_every_bad_input_is_a_reject_with_its_reason(
    tmp_path: Path, index: str, card: ModelCard
) -> None:
    images = [*IMAGES[:40], b"", b"words", IMAGES[0][:500], None]
    columns = {"id": [*range(42), None, 5], "image": images}
    path = write_parquet(tmp_path / "bad.parquet", columns, row_group_size=100)
    source = SourceSettings(kind="parquet", uri=str(path))
    strict = settings_for(index, card, source, max_reject_fraction=0.05)
    with pytest.raises(QualityGateError, match="4 of 44 inputs are rejects"):
        encode(strict)
    with pytest.raises(NotFoundError):
        current(index)

    written = [info.path for info in Storage(index).list("data")]
    encode(strict.model_copy(update={"max_reject_fraction": 0.1}))
    assert [info.path for info in Storage(index).list("data")] == written
    catalog, manifest = current(index)
    assert (manifest.rows, manifest.rejected) == (40, 4)
    rejects = read_rejects(catalog.storage, manifest)
    assert sorted(rejects.select(["id", "reason"]).to_pylist(), key=str) == [
        {"id": 40, "reason": "empty"},
        {"id": 41, "reason": "not_an_image"},
        {"id": 5, "reason": "missing"},
        {"id": None, "reason": "no_id"},
    ]
    assert rejects.column("uri")[0].as_py().startswith(f"{path}#")


def test_of_a_damaged_tar_the_rest_is_one_reject(
    tmp_path: Path, index: str, card: ModelCard
) -> None:
    members = {f"{n:02d}.jpg": data for n, data in enumerate(IMAGES[:20])}
    whole = write_tar(tmp_path / "tars" / "a.tar", members).read_bytes()
    (tmp_path / "tars" / "b.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "tars" / "c.tar").write_bytes(b"no tar at all")
    source = SourceSettings(kind="webdataset", uri=str(tmp_path / "tars"))
    encode(settings_for(index, card, source, max_reject_fraction=0.1))
    catalog, manifest = current(index)
    ids = read_version(catalog.storage, manifest).column("id").to_pylist()
    half = [f"b.tar/{n:02d}" for n in range(len(ids) - 20)]
    assert ids == [f"a.tar/{n:02d}" for n in range(20)] + half
    assert 5 < len(half) < 15
    assert read_rejects(catalog.storage, manifest).select(["id", "reason"]).to_pylist() == [
        {"id": name, "reason": "unreadable_file"} for name in ("b.tar", "c.tar")
    ]


def test_an_id_that_comes_twice_in_a_fragment_is_rejected_the_second_time(
    tmp_path: Path, index: str, card: ModelCard
) -> None:
    columns = {"id": ["a", "b", "a", "c", "b"], "image": IMAGES[:5]}
    path = write_parquet(tmp_path / "twice.parquet", columns, row_group_size=2)
    source = SourceSettings(kind="parquet", uri=str(path))
    encode(settings_for(index, card, source, max_reject_fraction=0.5))
    catalog, manifest = current(index)
    assert read_version(catalog.storage, manifest).column("id").to_pylist() == ["a", "b", "c"]
    rejects = read_rejects(catalog.storage, manifest)
    assert rejects.column("id").to_pylist() == ["a", "b"]
    assert set(rejects.column("reason").to_pylist()) == {"duplicate_id"}


def test_a_lost_fragment_alone_is_encoded_again(
    tmp_path: Path, index: str, card: ModelCard
) -> None:
    settings = settings_for(index, card, pile(tmp_path), run="r", max_reject_fraction=1)
    encode(settings)
    catalog, manifest = current(index)
    catalog.storage.delete("runs/r/published")
    catalog.storage.delete("versions/1.json")
    catalog.storage.delete("CURRENT")
    catalog.storage.delete("runs/r/ledger/00000001.json")
    encode(settings)
    again = catalog.manifest()
    same = [a == b for a, b in zip(manifest.files, again.files, strict=True)]
    assert same == [True, False, True, True]
    assert read_version(catalog.storage, again).column("id").to_pylist() == list(range(1000, 1070))


def test_a_driver_that_died_after_publishing_does_not_publish_again(
    tmp_path: Path, index: str, card: ModelCard
) -> None:
    settings = settings_for(index, card, pile(tmp_path), run="r", append=True)
    encode(settings)
    catalog, manifest = current(index)
    catalog.storage.delete("runs/r/published")
    catalog.storage.delete("CURRENT")
    assert encode(settings)["version"] == 1
    assert catalog.manifest() == manifest


def test_appending_shares_the_old_files(
    tmp_path: Path, index: str, card: ModelCard, backbone: BackboneSettings
) -> None:
    encode(settings_for(index, card, pile(tmp_path, IMAGES[:30])))
    more = pile(tmp_path, IMAGES[30:], "more")
    encode(settings_for(index, card, more, append=True))
    catalog, second = current(index)
    first = catalog.manifest(1)
    assert (second.parent, second.rows) == (1, 70)
    assert second.files[: len(first.files)] == first.files
    assert read_version(catalog.storage, second).column("code").to_pylist() == codes_of(
        catalog.storage, card, features_of(IMAGES, backbone)
    )
    other = more.model_copy(update={"columns": ()})
    with pytest.raises(InputError, match="its columns is"):
        encode(settings_for(index, card, other, append=True))
    foreign = tiny_model(Storage(index), backbone.model_copy(update={"mean": (0.5, 0.5, 0.5)}))
    with pytest.raises(InputError, match="its model is"):
        encode(settings_for(index, foreign, more, append=True))


def test_cells_are_stored_with_the_codes_and_order_them(
    tmp_path: Path, index: str, card: ModelCard, backbone: BackboneSettings
) -> None:
    network, _ = load_model(Storage(index), card.digest)
    features = torch.from_numpy(features_of(list(crops(200)), backbone))
    cells = learn_cells(network.embed(features).detach().numpy(), 5, "l2")
    ivf = save_model(
        Storage(index),
        network,
        cells=cells,
        preprocessing=card.preprocessing,
        training={},
        evaluation={},
    )
    encode(settings_for(index, ivf, pile(tmp_path)))
    catalog, manifest = current(index)
    assert manifest.geometry.nlist == 5
    flat = codes_of(catalog.storage, card, features_of(IMAGES, backbone))
    for file in manifest.files:
        one = manifest.model_copy(update={"files": (file,)})
        table = read_version(catalog.storage, one)
        cells = table.column("cell").to_numpy()
        assert (np.diff(cells) >= 0).all()
        assert table.column("code").to_pylist() == [
            flat[n - 1000] for n in table.column("id").to_pylist()
        ]
    assert len(set(read_version(catalog.storage, manifest).column("cell").to_pylist())) > 1


def test_on_object_storage(s3: str, tmp_path: Path, backbone: BackboneSettings) -> None:
    card = tiny_model(Storage(f"{s3}/index"), backbone)
    encode(settings_for(f"{s3}/index", card, pile(tmp_path)))
    catalog, manifest = current(f"{s3}/index")
    assert read_version(catalog.storage, manifest).column("code").to_pylist() == codes_of(
        catalog.storage, card, features_of(IMAGES, backbone)
    )


def test_mistakes_are_found_before_the_work(
    tmp_path: Path, index: str, card: ModelCard, backbone: BackboneSettings
) -> None:
    source = pile(tmp_path)
    with pytest.raises(NotFoundError, match="no model 'feed'"):
        encode(settings_for(index, card, source, model="feed"))
    absent = source.model_copy(update={"uri": f"{tmp_path}/absent"})
    with pytest.raises(NotFoundError, match=r"source\.uri .*absent does not exist"):
        encode(settings_for(index, card, absent))
    with pytest.raises(InputError, match="the cluster has"):
        encode(settings_for(index, card, source, pool={"encoders": 500}))
    encode(settings_for(index, card, source, run="r"))
    Path(str(backbone.path)).unlink()
    with pytest.raises(NotFoundError, match=r"fields\.onnx does not exist"):
        encode(settings_for(index, card, source, run="r2"))
    Storage(index).delete("runs/r/published")
    with pytest.raises(ConfigError, match=r"begun with fragment_rows 20 \(now 30\)"):
        encode(settings_for(index, card, source, run="r", fragment_rows=30))
    none = BackboneSettings(kind="none")
    with pytest.raises(ConfigError, match="needs images and a backbone"):
        featurize(FeaturizeSettings(source=source, output=str(tmp_path / "f"), backbone=none))


def test_features_of_another_backbone_are_refused(
    tmp_path: Path, index: str, card: ModelCard, backbone: BackboneSettings
) -> None:
    output = str(tmp_path / "features")
    other = backbone.model_copy(update={"mean": (0.5, 0.5, 0.5)})
    featurize(FeaturizeSettings(source=pile(tmp_path), output=output, backbone=other))
    source = SourceSettings(kind="features", uri=output)
    with pytest.raises(InputError, match=r"another backbone .* \(they differ in mean\)"):
        encode(settings_for(index, card, source))


def test_input_that_changed_since_it_was_planned_ends_the_run(
    tmp_path: Path, index: str, card: ModelCard
) -> None:
    folder = write_folder(
        tmp_path / "pictures", {f"{n}.jpg": data for n, data in enumerate(IMAGES[:5])}
    )
    (folder / "bad.jpg").write_bytes(b"words")
    source = SourceSettings(kind="folder", uri=str(folder))
    strict = settings_for(index, card, source, run="r", max_reject_fraction=0)
    with pytest.raises(QualityGateError):
        encode(strict)
    for entry in list(Storage(index).list("runs/r/ledger")):
        Storage(index).delete(entry.path)
    (folder / "3.jpg").write_bytes(IMAGES[9] + b"x")
    lenient = strict.model_copy(update={"max_reject_fraction": 0.5})
    with pytest.raises(InputError, match=r"3\.jpg changed since the run was planned"):
        encode(lenient)
    with pytest.raises(NotFoundError):
        current(index)


@pytest.mark.usefixtures("no_plugins")
def test_what_a_run_leaves_out_is_in_its_result(
    tmp_path: Path, index: str, card: ModelCard, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["1.jpg", "2.jfif", "3", "notes.txt", "4.heic"]
    heic = b"\0\0\0\x18ftypheic" + bytes(20)
    contents = [*IMAGES[:3], b"words", heic]
    folder = write_folder(tmp_path / "pictures", dict(zip(names, contents, strict=True)))
    settings = settings_for(index, card, SourceSettings(kind="folder", uri=str(folder)))
    summary = encode(settings)
    assert (summary["rows"], summary["skipped"]) == (3, {".heic": 1, ".txt": 1})
    assert "not_covered" not in summary
    assert "1 HEIC: pip install pillow-heif" in capsys.readouterr().err

    (folder / "5.jpg").write_bytes(IMAGES[5])
    again = encode(settings)
    assert (again["version"], again["not_covered"]) == (1, 1)
    assert again["skipped"] == summary["skipped"]
    assert "files there now that are not in it: 1" in capsys.readouterr().err

    members = {"1.jpg": IMAGES[0], "1.right.jpg": IMAGES[1], "__meta__": b"x"}
    write_tar(tmp_path / "tars" / "a.tar", members)
    source = SourceSettings(kind="webdataset", uri=str(tmp_path / "tars"))
    summary = encode(settings_for(index, card, source))
    counted = {"further image of a sample": 1, "tar member named __…__": 1}
    assert (summary["rows"], summary["skipped"]) == (1, counted)


def test_hashes_as_ids_and_images_as_hugging_face_writes_them(
    tmp_path: Path, index: str, card: ModelCard, backbone: BackboneSettings
) -> None:
    hashes = [2**63 + 5 + n if n > 35 else n for n in range(70)]
    for name, rows in {"a": range(35), "b": range(35, 70)}.items():
        columns = {
            "image": [{"bytes": IMAGES[n], "path": f"{n}.jpg"} for n in rows],
            "hash": pa.array([hashes[n] for n in rows], pa.uint64()),
        }
        write_parquet(tmp_path / "pile" / f"{name}.parquet", columns, row_group_size=7)
    source = SourceSettings(kind="parquet", uri=str(tmp_path / "pile"), id_column="hash")
    encode(settings_for(index, card, source))
    catalog, manifest = current(index)
    table = read_version(catalog.storage, manifest)
    expected = codes_of(catalog.storage, card, features_of(IMAGES, backbone))
    assert (manifest.id_type, manifest.rejected) == ("uint64", 0)
    assert sorted(table.column("id").to_pylist()) == hashes
    assert table.column("code").to_pylist() == expected

    more = pile(tmp_path / "more").model_copy(update={"columns": ()})
    encode(settings_for(index, card, more, append=True, run="more"))
    catalog, manifest = current(index)
    assert (manifest.id_type, manifest.rows) == ("uint64", 140)
    with Client(index) as client:
        assert {hit.id for hit in client.search(id=hashes[-1], k=140).hits[0]} == {
            *hashes,
            *range(1000, 1070),
        }
    numbered = source.model_copy(update={"id_column": "row"})
    with pytest.raises(InputError, match="which start at 0 again"):
        encode(settings_for(index, card, numbered, append=True))


def test_embeddings_as_clip_retrieval_writes_them(
    tmp_path: Path, index: str, card: ModelCard, backbone: BackboneSettings
) -> None:
    folder = tmp_path / "clip"
    features = features_of(IMAGES, backbone).astype(np.float16)
    for n, part in enumerate(np.array_split(features, 3)):
        (folder / "img_emb").mkdir(parents=True, exist_ok=True)
        np.save(folder / "img_emb" / f"img_emb_{n}.npy", part)
        paths = {"image_path": [f"{n}/{row}.jpg" for row in range(len(part))]}
        write_parquet(folder / "metadata" / f"metadata_{n}.parquet", paths)
    source = SourceSettings(kind="features", uri=str(folder))
    encode(settings_for(index, card, source))
    catalog, manifest = current(index)
    table = read_version(catalog.storage, manifest)
    wanted = codes_of(catalog.storage, card, features.astype(np.float32))
    assert table.column("code").to_pylist() == wanted
    assert table.column("id").to_pylist()[:2] == ["0/0.jpg", "0/1.jpg"]
    asked = {"index": index, "database": str(folder), "queries": str(folder / "img_emb"), "k": 10}
    assert evaluate_version(EvaluateSettings(**asked))["queries"] == 70
    np.save(tmp_path / "other.npy", features[:, :-1])
    other = SourceSettings(kind="features", uri=str(tmp_path / "other.npy"))
    with pytest.raises(InputError, match=r"have 47 numbers, those that model .* 48"):
        encode(settings_for(index, card, other))
