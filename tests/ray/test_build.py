"""A pile of images becomes an index, and what is new joins it, on real Ray."""

import io
import re
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dq_cluster.building.config import AddSettings, BuildSettings
from dq_cluster.building.python import Picture, build_index
from dq_cluster.building.run import add, build
from dq_cluster.client import Client
from dq_cluster.encoding.run import encode
from dq_cluster.errors import InputError
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.decode import decode_image
from dq_cluster.index.catalog import Index
from dq_cluster.index.compact import compact
from dq_cluster.index.gc import collect_garbage
from dq_cluster.index.tombstones import delete_ids, live_ids
from dq_cluster.index.verify import verify
from dq_cluster.model.config import ModelSettings
from dq_cluster.plot import neighbours
from dq_cluster.search.export import export_faiss
from dq_cluster.storage import Storage
from tests.encoding import SIDE, settings_for, tiny_backbone, tiny_model
from tests.pictures import crops, encoded, photograph, write_folder, write_parquet, write_tar

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

IMAGES = crops(150)
MODEL = ModelSettings(bits=32, dim=8, hidden=(16,), components=8, neighbours=5, epochs=1)


def pictures(first: int, last: int) -> dict[str, bytes]:
    """JPEG files, every tenth of them a PNG, in two folders."""
    files = {f"{n % 2}/{n:03}.jpg": data for n, data in enumerate(IMAGES) if first <= n < last}
    for n in range(first, last, 10):
        del files[f"{n % 2}/{n:03}.jpg"]
        files[f"{n % 2}/{n:03}.png"] = encoded(photograph().crop((n, n, n + 48, n + 48)), "PNG")
    return files


def settings_of(tmp_path: Path, source: SourceSettings, **others: object) -> BuildSettings:
    values = {
        "source": source,
        "index": str(tmp_path / "index"),
        "backbone": tiny_backbone(tmp_path),
        "model": MODEL,
    }
    return BuildSettings.model_validate(values | others)


def ids_of(uri: str) -> list[object]:
    index = Index.at(uri)
    found = [id for _, ids in live_ids(index.storage, index.manifest()) for id in ids.to_pylist()]
    assert len(found) == len(set(found))
    return sorted(found)


def test_a_folder_and_what_is_new_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pile = write_folder(tmp_path / "pile", pictures(0, 120))
    source = SourceSettings(kind="folder", uri=str(pile), columns=("label",))
    settings = settings_of(tmp_path, source)
    built = build(settings)
    assert (built["version"], built["images"], built["rejected"]) == (1, 120, 0)
    assert built["next"] == f"dq-cluster serve {settings.index}"
    assert 0 < built["quality"]["recall_at_10"] <= 1
    said = capsys.readouterr().err
    assert "measured: decoding " in said
    assert "120 images, 120 of them to train on: about 0:00:0" in said

    with Client(settings.index) as client:
        hits = client.search(image=pile / "1/011.jpg", k=20, include=["uri", "label"]).hits[0]
    (hit,) = (hit for hit in hits if hit.id == "1/011.jpg")
    assert hit.columns["label"] == "1"
    assert str(hit.columns["uri"]).endswith("pile/1/011.jpg")

    # The same command again changes nothing.
    assert build(settings) == built

    more = AddSettings(source=source, index=settings.index)
    nothing = add(more)
    assert (nothing["version"], nothing["new"]) == (1, 0)
    write_folder(pile, pictures(120, 150))
    added = add(more)
    assert (added["version"], added["images"], added["new"]) == (2, 150, 30)
    assert ids_of(settings.index) == sorted(pictures(0, 120) | pictures(120, 150))
    assert add(more)["new"] == 0
    with Client(settings.index) as client:
        hits = client.search(image=pile / "1/131.jpg", k=20, include=["label"]).hits[0]
    assert ("1/131.jpg", "1") in [(hit.id, hit.columns["label"]) for hit in hits]

    # The pictures stay when the pile is gone, through deleting and compacting.
    shutil.rmtree(pile)
    index = Index.at(settings.index)
    assert sum(file.rows for file in index.manifest().thumbnails.values()) == 150
    delete_ids(index, pa.array(["1/011.jpg"]))
    compacted = compact(index)
    (small,) = compacted.thumbnails.values()
    assert (small.rows, compacted.rows) == (149, 149)
    assert small.path.startswith(compacted.files[0].path.rpartition("/")[0])
    assert verify(index).problems == ()
    with Client(settings.index) as client:
        for id in ("0/000.png", "1/131.jpg"):
            shown = np.asarray(Image.open(io.BytesIO(client.picture(id))), np.float32)
            assert shown.shape == (SIDE, SIDE, 3)
            original = decode_image(pictures(0, 150)[id], SIDE)
            assert np.abs(shown - original).mean() < 12
    exported = export_faiss(index, str(tmp_path / "faiss"))
    assert exported["thumbnails"] == 149
    collect_garbage(index, timedelta(0))
    assert verify(index).problems == ()
    index.storage.write(small.path, b"damaged")
    assert any("thumbnails" in problem for problem in verify(index).problems)


def test_a_pile_larger_than_the_sample(tmp_path: Path) -> None:
    pile = write_folder(tmp_path / "pile", pictures(0, 150))
    source = SourceSettings(kind="folder", uri=str(pile))
    settings = settings_of(tmp_path, source, sample=100, nlist=2)
    built = build(settings)
    assert built["images"] == 150
    features = Path(settings.index) / "features/build"
    rows = sum(pq.read_metadata(f).num_rows for f in features.glob("part-*.parquet"))
    assert rows == 100
    assert ids_of(settings.index) == sorted(pictures(0, 150))
    assert Index.at(settings.index).manifest().geometry.nlist == 2
    assert build(settings) == built


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_new_rows_of_tables_and_tars(tmp_path: Path, kind: str) -> None:
    def write(count: int) -> SourceSettings:
        if kind == "webdataset":
            members = {f"{n:03}.jpg": data for n, data in enumerate(IMAGES[:count])}
            return SourceSettings(kind=kind, uri=str(write_tar(tmp_path / "a.tar", members)))
        columns = {"id": list(range(count)), "image": list(IMAGES[:count])}
        path = write_parquet(tmp_path / "a.parquet", columns, row_group_size=40)
        return SourceSettings(kind="parquet", uri=str(path))

    index = str(tmp_path / "index")
    card = tiny_model(Storage(index), tiny_backbone(tmp_path))
    assert encode(settings_for(index, card, write(50)))["rows"] == 50
    assert add(AddSettings(source=write(50), index=index))["new"] == 0
    assert (added := add(AddSettings(source=write(70), index=index)))["new"] == 20
    assert (added["images"], added["rejected"]) == (70, 0)
    assert len(ids_of(index)) == 70


def test_too_few_images(tmp_path: Path) -> None:
    pile = write_folder(tmp_path / "pile", pictures(0, 20))
    settings = settings_of(tmp_path, SourceSettings(kind="folder", uri=str(pile)))
    with pytest.raises(InputError, match="holds 20 images; training needs 100 at least"):
        build(settings)
    assert not (tmp_path / "index/builds").exists()


def test_the_notebook_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/howto/notebook.md shows, as it is pasted, on a folder `photos`."""
    write_folder(tmp_path / "photos", pictures(0, 120))
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs/howto/notebook.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(first, "first", "exec"), {})
    with Image.open("neighbours.png") as drawn:
        assert drawn.width > 500
        assert len(drawn.getcolors(drawn.width * drawn.height) or []) > 1000
    export_faiss(Index.at("my-index"), "exported", shards=4)
    exec(compile(second, "second", "exec"), {})


def test_pictures_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (20, 24, 3), np.uint8) for _ in range(100)]
    mixed: list[Picture] = [
        *arrays,
        Image.fromarray(arrays[0]),
        encoded(photograph(), "PNG"),
        arrays[1][:, :, 0],
    ]
    values = {"model": MODEL.model_dump(), "backbone": tiny_backbone(tmp_path).model_dump()}
    place = tmp_path / "index"
    ids = [f"p{n}" for n in range(len(mixed))]
    built = build_index(mixed, place, ids=ids, **values)
    assert built["images"] == len(mixed)
    assert build_index(mixed, place, ids=ids, **values) == built
    with Client(place) as client:
        assert {hit.id for hit in client.search(id="p100", k=2).hits[0]} == {"p0", "p100"}
        assert client.picture("p101")[:2] == b"\xff\xd8"
        figure = neighbours(client, image=encoded(photograph(), "PNG"), k=3)
    assert next(place.get_title() for place in figure.axes) == "query"
    assert sum(bool(place.images) for place in figure.axes) == 4
    with pytest.raises(InputError, match="103 pictures have 1 ids"):
        build_index(mixed, place, ids=["a"])
    with pytest.raises(InputError, match=r"picture 0 is an array of float64 \(2, 2\)"):
        build_index([np.zeros((2, 2))], place)
