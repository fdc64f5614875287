"""What a build chooses, which units a sample has, what is new: decisions, without Ray."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_cluster.building.choose import Stages, choose_cells, choose_pool, forecast, on_all, passes
from dq_cluster.building.config import BuildSettings
from dq_cluster.building.probe import measure_stages
from dq_cluster.cli.workloads import _of_pile
from dq_cluster.cluster.room import Need, shortage
from dq_cluster.config import load_settings
from dq_cluster.encoding.config import EncodeSettings
from dq_cluster.encoding.known import IN_THE_INDEX, KnownIds, _keys, known_ids
from dq_cluster.encoding.sampling import sample_units
from dq_cluster.errors import ConfigError, InputError, NotFoundError, NothingNewError
from dq_cluster.images.backbone import load_backbone
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.kinds import kind_of
from dq_cluster.images.skipped import Skipped
from dq_cluster.images.sources import open_source
from dq_cluster.images.units import Unit
from dq_cluster.index.catalog import Index
from dq_cluster.index.tombstones import delete_ids
from tests.encoding import tiny_backbone
from tests.pictures import crops, write_folder, write_parquet, write_tar
from tests.support import make_model, make_version

SECONDS = st.floats(1e-5, 1, allow_nan=False)


@given(SECONDS, SECONDS, st.integers(1, 256))
@settings(deadline=None)
def test_a_pool_uses_all_cores_and_few_more(decode: float, embed: float, cpus: int) -> None:
    pool = choose_pool(Stages(decode, embed), cpus, max(8, cpus))
    busy = pool.encoders * (pool.threads + pool.decoders)
    assert 0.9 * cpus - 1 <= busy <= 1.3 * cpus + 3
    # Logical CPUs that Ray has on such a machine.
    assert pool.encoders * pool.cpus <= max(8, cpus)


def test_the_slower_stage_gets_the_cores() -> None:
    embedding = choose_pool(Stages(0.001, 0.02), 2, 8)
    assert (embedding.encoders, embedding.threads, embedding.decoders) == (1, 2, 1)
    decoding = choose_pool(Stages(0.014, 0.0034), 2, 8)
    assert (decoding.encoders, decoding.threads, decoding.decoders) == (1, 1, 2)
    many = choose_pool(Stages(0.01, 0.01), 16, 16)
    assert (many.encoders, many.threads, many.decoders) == (2, 4, 4)


@given(SECONDS, SECONDS, st.lists(st.integers(2, 64), min_size=1, max_size=6))
def test_a_pool_of_a_cluster_fits_its_nodes(decode: float, embed: float, nodes: list[int]) -> None:
    pool = on_all(choose_pool(Stages(decode, embed), max(nodes), max(nodes)), nodes)
    need = Need("encoders", pool.encoders, {"CPU": pool.cpus})
    assert shortage([need], [{"CPU": cpus} for cpus in nodes]) == ""
    alone = choose_pool(Stages(decode, embed), nodes[0], nodes[0])
    assert on_all(alone, [nodes[0]] * 3).encoders == 3 * alone.encoders


@given(st.integers(0, 10**10), st.integers(1, 10**6))
@settings(deadline=None)
def test_cells_can_be_trained_on_the_sample(images: int, sample: int) -> None:
    cells = choose_cells(images, sample)
    assert cells == 0 if images < 1_000_000 else cells >= 1
    assert cells <= max(1, sample // 39)


def test_a_pile_within_the_sample_is_decoded_once() -> None:
    assert passes(2_000, 50_000, 0.5) == (2_000, 3_000)
    assert passes(100_000, 50_000, 0.5) == (150_000, 175_000)
    expected = forecast(
        Stages(0.01, 0.02),
        2_000,
        50_000,
        second_views=0.5,
        cpus=2,
        feature_bytes=2_560,
        code_bytes=48,
    )
    assert expected.seconds == pytest.approx((2_000 * 0.01 + 3_000 * 0.02) / 2)
    assert expected.disk == 2_000 * 2_560 * 1.5 + 2_000 * 48


units_of = st.lists(st.integers(0, 40), min_size=1, max_size=60).map(
    lambda rows: [Unit(f"p{n:03}", rows=r, size=r * 1000) for n, r in enumerate(rows)]
)


@given(units_of, st.integers(1, 400))
@settings(deadline=None)
def test_a_sample_is_large_enough_ordered_and_the_same_again(units: list[Unit], rows: int) -> None:
    def held(chosen: Sequence[Unit]) -> int:
        return sum(
            unit.rows or max(1, unit.size // 100_000) for unit in chosen if unit.size is not None
        )

    chosen = sample_units(iter(units), rows)
    assert chosen == sorted(chosen)
    assert set(chosen) <= set(units)
    assert held(chosen) >= min(rows, held(units))
    assert held(chosen) - max(held([unit]) for unit in chosen) < rows
    assert sample_units(iter(units), rows) == chosen
    # What is chosen of a part stays a choice of its smallest hashes.
    assert set(sample_units(iter(reversed(units)), rows)) == set(chosen)


@given(st.lists(st.integers(-5, 5) | st.none()), st.lists(st.integers(-5, 5)))
@settings(deadline=None)
def test_known_ids_hold_what_they_were_made_of(asked: list[int | None], known: list[int]) -> None:
    for kind, spell in ((pa.int64(), int), (pa.string(), str)):
        ids = pa.array([None if i is None else spell(i) for i in asked], kind)
        dtype = np.int64 if kind == pa.int64() else "S16"
        keys = _keys(pa.array([spell(i) for i in known], kind)) if known else np.empty(0, dtype)
        held = KnownIds(np.sort(keys)).holds(ids)
        assert held.tolist() == [i is not None and i in known for i in asked]


def test_what_was_deleted_is_new_again(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    make_version(uri, make_model(uri), rows=300, files=3)
    index = Index.at(uri)
    delete_ids(index, pa.array([7]))
    known = known_ids(index.storage, index.manifest())
    assert known.holds(pa.array([6, 7, 8, 299, 300])).tolist() == [True, False, True, True, False]
    assert not known.holds(pa.array(["6"])).any()


def test_only_new_files_and_rows_are_left() -> None:
    known, skipped = KnownIds(np.sort(_keys(pa.array(["a", "b"])))), Skipped()
    units = [Unit(name) for name in ("a", "b", "c")]
    assert [unit.path for unit in known.new_files(units, skipped)] == ["c"]
    table = pa.table({"id": ["b", "d", None], "x": [1, 2, 3]})
    (left,) = known.new_rows([table], skipped)
    assert left.column("x").to_pylist() == [2, 3]
    assert skipped.take() == {IN_THE_INDEX: 3}
    with pytest.raises(NothingNewError, match="nothing is new: all 2 images are in the index"):
        list(known.new_files(units[:2], skipped))
    assert not list(known.new_files([], skipped))  # an empty source is another matter


def test_only_new_needs_append() -> None:
    with pytest.raises(ValueError, match="append=true"):
        EncodeSettings(
            index="i", model="m", source=SourceSettings(kind="folder", uri="p"), only_new=True
        )


def test_the_kind_of_a_pile(tmp_path: Path) -> None:
    images = crops(3)
    folder = write_folder(tmp_path / "folder", {f"{n}.jpg": data for n, data in enumerate(images)})
    (folder / "list.parquet").write_bytes(b"x")
    table = write_parquet(tmp_path / "tables" / "a.parquet", {"id": [1], "image": [images[0]]})
    tar = write_tar(tmp_path / "tars" / "a.tar.gz", {"k.jpg": images[0]})
    for place, kind in (
        (folder, "folder"),
        (table, "parquet"),
        (table.parent, "parquet"),
        (tar, "webdataset"),
        (tar.parent, "webdataset"),
    ):
        assert kind_of(str(place)) == kind
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no files"):
        kind_of(str(tmp_path / "empty"))
    with pytest.raises(NotFoundError, match="does not exist"):
        kind_of(str(tmp_path / "absent"))


def test_the_stages_are_measured_on_the_first_images(tmp_path: Path) -> None:
    backbone = load_backbone(tiny_backbone(tmp_path))
    images = {f"{n}.jpg": data for n, data in enumerate(crops(30))} | {"broken.jpg": b"\xff\xd8"}
    source = SourceSettings(kind="folder", uri=str(write_folder(tmp_path / "pile", images)))
    stages = measure_stages(source, open_source(source).units(), backbone)
    assert 0 < stages.embed_s < 1
    assert 0 < stages.decode_s < 1
    broken = write_folder(tmp_path / "broken", {"a.jpg": b"\xff\xd8", "b.jpg": b"\xff\xd8"})
    source = SourceSettings(kind="folder", uri=str(broken))
    with pytest.raises(InputError, match=r"none of the first 2 images of .* can be decoded"):
        measure_stages(source, open_source(source).units(), backbone)


def test_pile_and_index_come_as_words_or_in_a_file(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.png": crops(1)[0]})
    words = _of_pile(None, str(tmp_path), "index", ["sample=9"])
    asked = load_settings(BuildSettings, None, words)
    assert (asked.source.uri, asked.source.kind, asked.sample) == (str(tmp_path), "folder", 9)
    file = tmp_path / "build.yaml"
    file.write_text("source: {kind: parquet, uri: s3://pile}\nindex: s3://index\n")
    asked = load_settings(BuildSettings, file, _of_pile(file, "sample=9", None, []))
    assert (asked.source.uri, asked.index, asked.sample) == ("s3://pile", "s3://index", 9)
    with pytest.raises(ConfigError, match="PILE and INDEX, or --config"):
        _of_pile(None, str(tmp_path), None, [])
