"""A folder of images: what it plans, what it leaves out, and that it says so."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_cluster.errors import InputError, StorageRefusedError
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.names import suffix_of
from dq_cluster.images.skipped import NO_SUFFIX, Skipped, most_frequent, skipped_text
from dq_cluster.images.sources import Source, open_source
from dq_cluster.storage import Storage
from tests.pictures import crops, write_folder, write_parquet

JPEG = crops(1)[0]
HEIC = b"\0\0\0\x18ftypheic" + bytes(40)
JXL = b"\xff\x0a" + bytes(40)


def folder(uri: object) -> Source:
    return open_source(SourceSettings(kind="folder", uri=str(uri)))


def planned(uri: object) -> tuple[list[str], dict[str, int], dict[str, int]]:
    """Paths, what was skipped, and pictures of formats that are not read."""
    source = folder(uri)
    return [unit.path for unit in source.units()], source.skipped.take(), source.skipped.formats


@contextlib.contextmanager
def not_root() -> Iterator[None]:
    """Without the rights of root, which no permission stops."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


NAMES = {
    **dict.fromkeys(
        ["a.jpg", "b.JPEG", "c.jfif", "d.jpe", "f.jpg?w=640", "g.jpg_large", "h.mpo", "k.JPG.1"]
        + ["l", "m.png.tmp", "n..", "o .jpg", "café.jpeg", "p.webp", "q.x" + "y" * 40],
        JPEG,
    ),
    **dict.fromkeys(["s.txt", "t.json", "u.mp4", "Thumbs.db", "LICENSE", "v.unknown"], b"words"),
    "i.heic": HEIC,
    "j.jxl": JXL,
    "w.NEF": b"II*\0" + bytes(40),
    "empty": b"",
    "empty.png": b"",
}
SKIPPED = {
    ".txt": 1,
    ".json": 1,
    ".mp4": 1,
    ".db": 1,
    ".unknown": 1,
    ".heic": 1,
    ".jxl": 1,
    ".nef": 1,
    NO_SUFFIX: 2,
}


def check_names(paths: list[str], skipped: dict[str, int], formats: dict[str, int]) -> None:
    assert paths == sorted([n for n, data in NAMES.items() if data == JPEG] + ["empty.png"])
    assert skipped == SKIPPED
    assert formats == {"HEIC": 1, "JPEG XL": 1, "camera raw": 1}
    assert len(paths) + sum(skipped.values()) == len(NAMES)


@pytest.mark.usefixtures("no_plugins")
class TestNames:
    def test_content_decides_where_the_name_does_not(self, tmp_path: Path) -> None:
        write_folder(tmp_path, NAMES)
        check_names(*planned(tmp_path))

    def test_the_same_on_s3(self, s3: str) -> None:
        for name, data in NAMES.items():
            Storage(s3).write(f"pile/{name}", data)
        check_names(*planned(f"{s3}/pile"))

    def test_no_file_is_opened_whose_name_is_clear(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = []
        head = Storage.head

        def recorded(self: Storage, name: str, size: int) -> bytes:
            opened.append(name)
            return head(self, name, size)

        monkeypatch.setattr(Storage, "head", recorded)
        write_folder(tmp_path, {f"{n}.JPG": JPEG for n in range(50)} | {"a.txt": b"", "b": JPEG})
        assert len(planned(tmp_path)[0]) == 51
        assert opened == ["b"]

    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1))
    @settings(max_examples=60)
    def test_a_picture_of_any_name_is_read_or_counted(self, name: str) -> None:
        if name in (".", "..") or len(name.encode()) > 250:
            return
        with tempfile.TemporaryDirectory() as where:
            Path(where, name).write_bytes(JPEG)
            paths, skipped, _ = planned(where)
        assert paths == [name] or (paths == [] and sum(skipped.values()) == 1)
        assert skipped.keys() <= {"hidden", suffix_of(name)}

    def test_system_and_hidden_folders_are_counted(self, tmp_path: Path) -> None:
        names = ["__MACOSX/a.jpg", "x/@eaDir/a.jpg/t.jpg", ".git/a.jpg", "x/.thumbs/a.jpg", "b.jpg"]
        write_folder(tmp_path, dict.fromkeys([*names, "._c.jpg", "a/x.JPG"], JPEG))
        paths, skipped, _ = planned(tmp_path)
        assert paths == ["a/x.JPG", "b.jpg"]
        assert skipped == {"hidden": 3, "@eaDir": 1, "__MACOSX": 1}

    def test_what_is_no_file_is_counted(self, tmp_path: Path) -> None:
        write_folder(tmp_path, {"a/1.jpg": JPEG})
        (tmp_path / "gone.jpg").symlink_to("nowhere")
        (tmp_path / "self.jpg").symlink_to("self.jpg")
        (tmp_path / "a" / "up").symlink_to(tmp_path)
        (tmp_path / "link.jpg").symlink_to("a/1.jpg")
        os.mkfifo(tmp_path / "pipe.jpg")
        paths, skipped, _ = planned(tmp_path)
        assert paths == ["a/1.jpg", "link.jpg"]
        assert skipped == {"broken link": 2, "link back": 1, "not a file": 1}

    def test_folders_that_lead_to_each_other_end(self, tmp_path: Path) -> None:
        write_folder(tmp_path, {"a/1.jpg": JPEG, "b/2.jpg": JPEG})
        (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
        (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
        paths, skipped, _ = planned(tmp_path)
        assert paths == ["a/1.jpg", "a/b/2.jpg", "b/2.jpg", "b/a/1.jpg"]
        assert skipped == {"link back": 2}


class TestPermissions:
    @pytest.fixture
    def pile(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as where:
            path = write_folder(Path(where), {"a/1.jpg": JPEG, "b/2.jpg": JPEG, "c": JPEG})
            path.chmod(0o755)
            yield path

    def test_a_folder_that_cannot_be_listed_is_named(self, pile: Path) -> None:
        for mode in (0o000, 0o444):
            (pile / "b").chmod(mode)
            with not_root(), pytest.raises(StorageRefusedError, match=f"{pile}/b: permission"):
                planned(pile)

    def test_a_file_that_cannot_be_read_is_a_reject(self, pile: Path) -> None:
        for name in ("a/1.jpg", "c"):
            (pile / name).chmod(0)
        with not_root():
            source = folder(pile)
            (table,) = source.read(source.units(), 10)
        found = dict(zip(*(table.column(n).to_pylist() for n in ("id", "reason")), strict=True))
        assert found == {"a/1.jpg": "forbidden", "b/2.jpg": None, "c": "forbidden"}


class TestChangedImages:
    def test_another_file_of_the_name_is_an_error(self, tmp_path: Path) -> None:
        write_folder(tmp_path, {"a.jpg": JPEG})
        units = list(folder(tmp_path).units())
        list(folder(tmp_path).read(units, 1))
        os.utime(tmp_path / "a.jpg", ns=(0, 0))
        with pytest.raises(InputError) as raised:
            list(folder(tmp_path).read(units, 1))
        text = str(raised.value)
        assert f"{tmp_path}/a.jpg changed since the run was planned" in text
        assert f"{len(JPEG):,} bytes of 1970-01-01 00:00:00.000000 UTC" in text
        assert "start a new run" in text
        # As plans of earlier versions have it: nothing is known, nothing is checked.
        (table,) = folder(tmp_path).read([units[0]._replace(size=None, stamp=None)], 1)
        assert table.column("reason").to_pylist() == [None]

    def test_another_object_of_the_key_is_an_error(self, s3: str) -> None:
        storage = Storage(s3)
        large = JPEG + bytes(20 << 20)  # stored in several pieces
        storage.write("a.jpg", large)
        storage.write("b.jpg", JPEG)
        units = list(folder(s3).units())
        assert [t.num_rows for t in folder(s3).read(units, 5)] == [2]
        storage.write("a.jpg", large[:-1] + b"x")
        with pytest.raises(InputError, match=r"a\.jpg changed since .* with another ETag"):
            list(folder(s3).read(units, 5))

    def test_one_that_is_gone_is_a_reject(self, tmp_path: Path) -> None:
        write_folder(tmp_path, {"a.jpg": JPEG})
        units = list(folder(tmp_path).units())
        (tmp_path / "a.jpg").unlink()
        (table,) = folder(tmp_path).read(units, 1)
        assert table.column("reason").to_pylist() == ["missing"]


class TestSkipped:
    def test_it_stays_small(self) -> None:
        skipped = Skipped()
        for n in range(5000):
            skipped.add_file(f"a.{n}")
        skipped.add_file("a.txt")
        for _ in range(3):
            skipped.add_file("a.7")
        kinds = skipped.take()
        assert len(kinds) == 21
        assert next(iter(kinds.items())) == (".7", 4)
        assert list(kinds)[-1] == "others"
        assert sum(kinds.values()) == 5004
        assert skipped.take() == {}

    def test_in_words(self) -> None:
        assert skipped_text({}, {}) == ""
        assert skipped_text({".heic": 2, ".txt": 1}, {"HEIC": 2}) == (
            "3 skipped (.heic 2, .txt 1); 2 HEIC: pip install pillow-heif"
        )

    def test_others_come_last(self) -> None:
        assert list(most_frequent({"others": 9, ".a": 1, ".b": 2})) == [".b", ".a", "others"]


class TestParquetFiles:
    def test_names_that_writers_use(self, tmp_path: Path) -> None:
        names = ["a.parquet", "b.parq", "c.pq", "d.snappy.parquet", "e.parquet.gzip", "f.PARQUET"]
        for n, name in enumerate(names):
            write_parquet(tmp_path / name, {"id": [n], "image": [JPEG]})
        write_folder(tmp_path, {"_SUCCESS": b"", "_metadata": b"x", "a.csv": b"", ".a.crc": b""})
        source = open_source(SourceSettings(kind="parquet", uri=str(tmp_path)))
        assert [unit.path for unit in source.units()] == names
        assert source.skipped.take() == {NO_SUFFIX: 2, ".csv": 1, "hidden": 1}

    def test_another_file_of_the_name_is_an_error(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", {"id": [1, 2], "image": [JPEG] * 2})
        source = open_source(SourceSettings(kind="parquet", uri=str(path)))
        units = list(source.units())
        write_parquet(path, {"id": [3, 4], "image": [JPEG] * 2})
        os.utime(path, ns=(0, 0))
        with pytest.raises(InputError, match=r"a\.parquet changed since the run was planned"):
            list(source.read(units, 5))
        path.unlink()
        with pytest.raises(InputError, match="was planned and is gone"):
            list(source.read(units, 5))

    def test_damage_of_a_file_that_changed_is_a_change(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", {"id": [1, 2], "image": [JPEG] * 2})
        source = open_source(SourceSettings(kind="parquet", uri=str(path)))
        units = list(source.units())
        tables = source.read(units, 1)
        next(tables)
        path.write_bytes(b"x" * 50)
        with pytest.raises(InputError, match="changed since the run was planned"):
            list(tables)
