"""Each kind of source lists and reads the same pictures, and says what it could not read."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dq_cluster.config import validate_settings
from dq_cluster.encoding.packing import divide
from dq_cluster.errors import ConfigError, InputError
from dq_cluster.images.config import ImageLimits, SourceSettings
from dq_cluster.images.decode import Reason
from dq_cluster.images.sources import open_source
from dq_cluster.images.units import Unit
from dq_cluster.storage import Storage
from tests.pictures import crops, write_folder, write_parquet, write_tar

IMAGES = crops(10)


def read_all(settings: SourceSettings, rows: int = 4) -> pa.Table:
    source = open_source(settings)
    tables = list(source.read(source.units(), rows))
    assert all(0 < table.num_rows <= rows for table in tables)
    return pa.concat_tables(tables)


class TestFolder:
    def test_reads_pictures_with_their_labels(self, tmp_path: Path) -> None:
        files = {f"{'ab'[n % 2]}/{n}.jpg": data for n, data in enumerate(IMAGES)}
        write_folder(tmp_path, files | {"a/notes.txt": b"no picture", ".hidden.jpg": b"x"})
        table = read_all(SourceSettings(kind="folder", uri=str(tmp_path), columns=("label",)))
        assert table.column("id").to_pylist() == sorted(files)
        assert table.column("label").to_pylist() == ["a"] * 5 + ["b"] * 5
        assert (
            dict(zip(*(table.column(n).to_pylist() for n in ("id", "image")), strict=True)) == files
        )
        assert table.column("reason").null_count == 10

    def test_says_what_is_gone_or_too_large(self, tmp_path: Path) -> None:
        write_folder(tmp_path, {"big.jpg": b"x" * 100, "ok.jpg": b"x" * 99})
        settings = SourceSettings(
            kind="folder", uri=str(tmp_path), limits=ImageLimits(max_bytes=99)
        )
        source = open_source(settings)
        (table,) = source.read([*source.units(), Unit("gone.jpg")], 10)
        assert table.column("reason").to_pylist() == ["too_large", None, "missing"]

    def test_the_same_from_s3(self, tmp_path: Path, s3: str) -> None:
        for n, data in enumerate(IMAGES):
            Storage(s3).write(f"pile/{n}.jpg", data)
        table = read_all(SourceSettings(kind="folder", uri=f"{s3}/pile"))
        assert table.column("image").to_pylist() == list(IMAGES)
        assert table.column("uri")[0].as_py() == f"{s3}/pile/0.jpg"

    def test_a_listing_goes_past_its_first_page(self, s3: str) -> None:
        storage = Storage(s3)
        names = [f"pile/{n:04d}.jpg" for n in range(1010)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda name: storage.write(name, b"x"), names))
        source = open_source(SourceSettings(kind="folder", uri=s3))
        assert [unit.path for unit in source.units()] == names

    def test_a_link_that_leads_back_is_not_followed(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "pile", {"a/1.jpg": b"x"})
        write_folder(tmp_path / "other", {"2.jpg": b"x"})
        (tmp_path / "pile" / "a" / "up").symlink_to(tmp_path / "pile")
        (tmp_path / "pile" / "linked").symlink_to(tmp_path / "other")
        source = open_source(SourceSettings(kind="folder", uri=f"{tmp_path}/pile"))
        assert [unit.path for unit in source.units()] == ["a/1.jpg", "linked/2.jpg"]

    def test_a_name_that_is_not_utf8_is_named(self, tmp_path: Path) -> None:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
        with pytest.raises(InputError, match=r"caf.*is not UTF-8; rename it"):
            list(open_source(SourceSettings(kind="folder", uri=str(tmp_path))).units())

    def test_other_columns_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="tags"):
            open_source(SourceSettings(kind="folder", uri=str(tmp_path), columns=("tags",)))


class TestWebDataset:
    def test_reads_samples(self, tmp_path: Path) -> None:
        members: dict[str, bytes] = {}
        for n, data in enumerate(IMAGES):
            members |= {f"d/{n:03d}.jpg": data, f"d/{n:03d}.cls": str(n % 3).encode()}
            members[f"d/{n:03d}.json"] = b'{"caption": "crop", "n": %d}' % n
        write_tar(tmp_path / "a.tar", members)
        columns = ("cls", "caption", "n")
        table = read_all(SourceSettings(kind="webdataset", uri=str(tmp_path), columns=columns))
        assert table.column("id").to_pylist() == [f"a.tar/d/{n:03d}" for n in range(10)]
        assert table.column("image").to_pylist() == list(IMAGES)
        assert table.column("cls").to_pylist() == [str(n % 3) for n in range(10)]
        assert table.column("n").to_pylist() == [str(n) for n in range(10)]
        assert set(table.column("caption").to_pylist()) == {"crop"}

    def test_the_same_from_s3(self, tmp_path: Path, s3: str) -> None:
        tar = write_tar(tmp_path / "a.tar", {f"{n}.jpg": data for n, data in enumerate(IMAGES)})
        Storage(s3).upload(tar, "tars/a.tar")
        table = read_all(SourceSettings(kind="webdataset", uri=f"{s3}/tars"))
        assert table.column("image").to_pylist() == list(IMAGES)

    def test_a_damaged_tar_is_one_reject_after_what_could_be_read(self, tmp_path: Path) -> None:
        tar = write_tar(tmp_path / "a.tar", {f"{n}.jpg": data for n, data in enumerate(IMAGES)})
        whole = tar.read_bytes()
        tar.write_bytes(whole[: len(whole) // 2])
        write_folder(tmp_path, {"b.tar": b"this is no tar at all" * 100})
        table = read_all(SourceSettings(kind="webdataset", uri=str(tmp_path)))
        reasons = dict(zip(*(table.column(n).to_pylist() for n in ("id", "reason")), strict=True))
        assert reasons.pop("a.tar") == reasons.pop("b.tar") == Reason.UNREADABLE_FILE
        assert 0 < len(reasons) < 10
        assert set(reasons.values()) == {None}

    def test_text_that_is_not_utf8_does_no_harm(self, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9")
        about = b'{"caption": "\\ud800"}'
        write_tar(tmp_path / "a.tar", {f"{name}.jpg": IMAGES[0], f"{name}.json": about})
        settings = SourceSettings(kind="webdataset", uri=str(tmp_path), columns=("caption",))
        (row,) = read_all(settings).to_pylist()
        assert (row["image"], row["caption"]) == (IMAGES[0], "?")

    def test_a_sample_without_a_picture_is_missing(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "a.tar", {"1.txt": b"words", "2.jpg": IMAGES[0]})
        table = read_all(SourceSettings(kind="webdataset", uri=str(tmp_path)))
        assert table.column("reason").to_pylist() == ["missing", None]


class TestParquet:
    def test_any_range_of_rows_is_read_and_no_other(self, tmp_path: Path) -> None:
        path = tmp_path / "pile.parquet"
        columns = {"key": pa.array(range(10), pa.int32()), "jpg": list(IMAGES), "tag": ["t"] * 10}
        write_parquet(path, columns, row_group_size=4)
        settings = SourceSettings(
            kind="parquet", uri=str(path), id_column="key", image_column="jpg", columns=("tag",)
        )
        source = open_source(settings)
        assert [(u.start, u.rows) for u in source.units()] == [(0, 4), (4, 4), (8, 2)]
        for start in range(10):
            for stop in range(start + 1, 11):
                unit = Unit("pile.parquet", start, stop - start)
                table = pa.concat_tables(source.read([unit], 3))
                assert table.column("id").to_pylist() == list(range(start, stop))
                assert table.column("id").type == pa.int64()
                assert table.column("image").to_pylist() == list(IMAGES[start:stop])
                assert table.column("uri")[0].as_py() == f"{path}#{start}"

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"image": [b"x"]}, "has no column 'id'; columns: image"),
            ({"id": [1.5], "image": [b"x"]}, "holds double, not integers or strings: floats"),
            ({"id": [1], "image": ["x"]}, "column 'image' holds string, not bytes"),
        ],
    )
    def test_another_schema_is_named(
        self, tmp_path: Path, columns: dict[str, object], message: str
    ) -> None:
        write_parquet(tmp_path / "a.parquet", columns)
        with pytest.raises(InputError, match=message):
            list(open_source(SourceSettings(kind="parquet", uri=str(tmp_path))).units())

    def test_files_must_agree(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "a.parquet", {"id": [1], "image": [b"x"]})
        write_parquet(tmp_path / "b.parquet", {"id": ["1"], "image": [b"x"]})
        message = r"b\.parquet: id is string from 'id', in the files before it int64 from 'id'"
        with pytest.raises(InputError, match=message):
            list(open_source(SourceSettings(kind="parquet", uri=str(tmp_path))).units())

    def test_what_is_no_parquet_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
        with pytest.raises(InputError, match=r"a\.parquet is not readable Parquet"):
            list(open_source(SourceSettings(kind="parquet", uri=str(tmp_path))).units())
        with pytest.raises(InputError, match=r"holds no \.parquet file"):
            list(open_source(SourceSettings(kind="parquet", uri=str(tmp_path / "none"))).units())

    def test_every_row_of_a_damaged_page_is_a_reject(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        table = pa.table({"id": list(range(8)), "image": list(crops(8))})
        pq.write_table(table, path, row_group_size=4, use_dictionary=False)
        group = pq.ParquetFile(path).metadata.row_group(1).column(1)
        data = bytearray(path.read_bytes())
        data[group.data_page_offset : group.data_page_offset + 64] = b"\xff" * 64
        path.write_bytes(data)
        source = open_source(SourceSettings(kind="parquet", uri=str(tmp_path)))
        reasons = [
            r for t in source.read(source.units(), 10) for r in t.column("reason").to_pylist()
        ]
        assert reasons == [None] * 4 + ["unreadable_file"] * 4

    def test_a_value_that_does_not_fit_is_not_damage(self, tmp_path: Path) -> None:
        ids = pa.array([Decimal(2), Decimal(2**64)], pa.decimal128(38, 0))
        write_parquet(tmp_path / "a.parquet", {"id": ids, "image": [b"x", b"y"]})
        with pytest.raises(
            InputError, match=r"a\.parquet row 1: the value of column 'id' \(decimal"
        ):
            read_all(SourceSettings(kind="parquet", uri=str(tmp_path)))

    def test_ids_that_do_not_go_together_are_not_damage(self, tmp_path: Path) -> None:
        ids = pa.array([Decimal(-2), Decimal(2**63)], pa.decimal128(38, 0))
        write_parquet(tmp_path / "a.parquet", {"id": ids, "image": [b"x", b"y"]})
        with pytest.raises(InputError, match=r"a\.parquet rows 0 to 2: values of column 'id'"):
            read_all(SourceSettings(kind="parquet", uri=str(tmp_path)))

    def test_text_that_is_not_utf8_is_located(self, tmp_path: Path) -> None:
        offsets, data = pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff")
        names = pa.Array.from_buffers(pa.string(), 2, [None, offsets, data])
        write_parquet(tmp_path / "a.parquet", {"id": names, "image": [b"x", b"y"]})
        with pytest.raises(InputError, match=r"a\.parquet row 1: .* Invalid UTF8"):
            read_all(SourceSettings(kind="parquet", uri=str(tmp_path)))

    def test_whole_numbers_of_any_width_are_ids_of_one_pile(self, tmp_path: Path) -> None:
        wanted = [[-5, 7], [2**40, 3], [2**63 + 5, 9], [2**63, 1]]
        kinds = [pa.int8(), pa.int64(), pa.uint64(), pa.decimal128(38, 0)]
        for n, (values, kind) in enumerate(zip(wanted, kinds, strict=True)):
            cast = Decimal if pa.types.is_decimal(kind) else int
            ids = pa.array([cast(value) for value in values], kind)
            write_parquet(tmp_path / f"{n}.parquet", {"id": ids, "image": [b"x", b"y"]})
        source = open_source(SourceSettings(kind="parquet", uri=str(tmp_path)))
        tables = list(source.read(source.units(), 10))
        assert [table.column("id").to_pylist() for table in tables] == wanted
        assert [str(t.column("id").type) for t in tables] == ["int64", "int64", "uint64", "uint64"]
        assert not any(table.column("reason").drop_null() for table in tables)

    @pytest.mark.parametrize("name", ["image", "image.bytes", "image.original.bytes"])
    def test_images_in_structs(self, tmp_path: Path, name: str) -> None:
        images: list[object] = [{"bytes": data, "path": "a.jpg"} for data in IMAGES]
        images[3] = {"bytes": None, "path": "b.jpg"}
        if name.count(".") == 2:
            images = [{"original": image} for image in images]
        write_parquet(tmp_path / "a.parquet", {"image": images, "label": range(10)})
        settings = SourceSettings(
            kind="parquet",
            uri=str(tmp_path),
            id_column="label",
            image_column="image" if name == "image" else name,
        )
        table = read_all(settings)
        assert table.column("image").to_pylist() == [*IMAGES[:3], None, *IMAGES[4:]]

    def test_paths_instead_of_images_are_refused(self, tmp_path: Path) -> None:
        images = [{"bytes": None, "path": f"{n}.jpg"} for n in range(3)]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        write_parquet(tmp_path / "a.parquet", {"id": [1, 2, 3], "image": pa.array(images, kind)})
        with pytest.raises(InputError, match="only the paths of its images"):
            read_all(SourceSettings(kind="parquet", uri=str(tmp_path)))

    def test_the_only_column_that_can_be_meant_is_read(
        self,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        path = write_parquet(tmp_path / "a.parquet", {"id": range(10), "jpg": list(IMAGES)})
        monkeypatch.setattr(logging.getLogger("dq_cluster"), "propagate", True)
        with caplog.at_level("INFO"):
            table = read_all(SourceSettings(kind="parquet", uri=str(tmp_path)))
        assert table.column("image").to_pylist() == list(IMAGES)
        assert "the image is column 'jpg'" in caplog.text
        write_parquet(path, {"id": range(10), "left": list(IMAGES), "right": list(IMAGES)})
        message = "no column 'image'; columns: id, left, right; set image_column to left or right"
        with pytest.raises(InputError, match=message):
            read_all(SourceSettings(kind="parquet", uri=str(tmp_path)))

    def test_ids_from_the_place_of_a_row_are_the_same_whoever_reads(self, tmp_path: Path) -> None:
        for name, count in {"a": 3, "b": 4, "empty": 0, "c/d": 3}.items():
            write_parquet(
                tmp_path / f"{name}.parquet",
                {"image": pa.array([b"x"] * count, pa.binary()), "label": range(count)},
                row_group_size=2,
            )
        places = [f"a.parquet#{n}" for n in range(3)] + [f"b.parquet#{n}" for n in range(4)]
        places += [f"c/d.parquet#{n}" for n in range(3)]
        for column, ids in {"row": list(range(10)), "path": places}.items():
            settings = SourceSettings(kind="parquet", uri=str(tmp_path), id_column=column)
            units = list(open_source(settings).units())
            for parts in range(1, 11):
                lanes = divide(units, parts)
                tables = [t for lane in lanes for t in open_source(settings).read(lane, 2)]
                assert [id for t in tables for id in t.column("id").to_pylist()] == ids
        message = "no column 'id'; columns: image, label; set id_column to one of them, to 'row'"
        with pytest.raises(InputError, match=message):
            read_all(SourceSettings(kind="parquet", uri=str(tmp_path)))

    def test_a_column_named_twice_is_said(self, tmp_path: Path) -> None:
        table = pa.table([[1], [2], [b"x"]], names=["id", "id", "image"])
        pq.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(InputError, match=r"a\.parquet has more than one column 'id'"):
            read_all(SourceSettings(kind="parquet", uri=str(tmp_path)))

    def test_features(self, tmp_path: Path) -> None:
        values = pa.array(np.arange(20, dtype=np.float16))
        feature = pa.FixedSizeListArray.from_arrays(values, 2)
        write_parquet(tmp_path / "a.parquet", {"id": list(range(10)), "feature": feature})
        table = read_all(SourceSettings(kind="features", uri=str(tmp_path)))
        assert table.column("feature").to_pylist() == np.arange(20).reshape(10, 2).tolist()


class TestInventory:
    @pytest.fixture
    def server(self) -> Iterator[str]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = {"/a.jpg": IMAGES[0], "/q?n=1": IMAGES[1]}
                if self.path in found:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(found[self.path])
                else:
                    self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()
        server.server_close()

    def test_reads_what_is_allowed(self, tmp_path: Path, server: str) -> None:
        write_folder(tmp_path / "pictures", {"1.jpg": IMAGES[2]})
        uris = [f"{server}a.jpg", f"{server}q?n=1", f"{tmp_path}/pictures/1.jpg", None]
        write_parquet(tmp_path / "list.parquet", {"id": [1, 2, 3, 4], "uri": uris})
        settings = SourceSettings(
            kind="inventory",
            uri=f"{tmp_path}/list.parquet",
            allow=(server, f"{tmp_path}/pictures/"),
        )
        table = read_all(settings)
        assert table.column("image").to_pylist() == [*IMAGES[:3], None]
        assert table.column("uri").to_pylist() == uris
        assert table.column("reason").to_pylist() == [None, None, None, "missing"]

    @pytest.mark.parametrize("prefix", ["https://example.com", "https://", ""])
    def test_a_prefix_that_allows_more_than_it_says_is_refused(self, prefix: str) -> None:
        values = {"kind": "inventory", "uri": "x", "allow": [prefix]}
        with pytest.raises(ConfigError, match="must name a host or folder and end with /"):
            validate_settings(SourceSettings, values, "test")

    def test_an_inventory_without_a_guard_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="needs allow"):
            validate_settings(SourceSettings, {"kind": "inventory", "uri": "x"}, "test")
