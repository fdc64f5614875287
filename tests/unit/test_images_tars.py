"""Of a tar, every member is in a row, a reject, or counted; damage never passes for the end."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_cluster.errors import InputError
from dq_cluster.images.config import ImageLimits, SourceSettings
from dq_cluster.images.sources import open_source
from dq_cluster.images.tars import choose_image
from dq_cluster.storage import Storage
from tests.pictures import crops, write_folder, write_tar

IMAGES = crops(12)
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = "elsewhere"
    return info, data


def tar_bytes(members: list[Member], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
    ".tar.zst": zstd,
}


def read(folder: str | Path, **values: object) -> tuple[list[dict[str, object]], dict[str, int]]:
    """All rows of the tars in a folder, and what was counted as skipped."""
    source = open_source(SourceSettings(kind="webdataset", uri=str(folder), **values))
    rows = [row for t in source.read(source.units(), 5) for row in t.to_pylist()]
    return rows, source.skipped.take()


def reasons(rows: list[dict[str, object]]) -> dict[object, object]:
    return {row["id"]: row["reason"] for row in rows}


keys = st.sampled_from(["a", "b", "d/c", "d/" + "long" * 40, "Ü", "d.x/e"])
one_member = st.one_of(
    st.tuples(keys, st.sampled_from(["jpg", "PNG", "left.png", "json", "txt", "jpg_large"])).map(
        lambda parts: (".".join(parts), tarfile.REGTYPE)
    ),
    st.sampled_from(
        [
            ("README", tarfile.REGTYPE),
            ("photo", tarfile.REGTYPE),
            (".hidden.jpg", tarfile.REGTYPE),
            ("d/._a.jpg", tarfile.REGTYPE),
            ("__meta__", tarfile.REGTYPE),
            ("__about__/x.jpg", tarfile.REGTYPE),
            ("d", tarfile.DIRTYPE),
            ("a.jpg", tarfile.SYMTYPE),
            ("b.txt", tarfile.LNKTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
        ]
    ),
)
archives = st.lists(one_member, max_size=14)
forms = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])


def build(listed: list[tuple[str, bytes]], form: int) -> bytes:
    """A tar of these names; pictures get bytes that no other member has."""
    members = []
    for number, (name, kind) in enumerate(listed):
        data = b""
        if kind == tarfile.REGTYPE:
            picture = name == "photo" or name.rpartition(".")[2].lower() in PICTURES
            data = IMAGES[number % 12] + b"%d" % number if picture else b'{"n": %d}' % number
        members.append(member(name, data, kind))
    return tar_bytes(members, form)


PICTURES = ("jpg", "png", "jpg_large")


@given(archives, forms, st.sampled_from(sorted(COMPRESSIONS)))
@settings(max_examples=60)
def test_every_member_is_in_a_row_or_counted(
    listed: list[tuple[str, bytes]], form: int, suffix: str
) -> None:
    with TemporaryDirectory() as folder:
        Path(folder, f"x{suffix}").write_bytes(COMPRESSIONS[suffix](build(listed, form)))
        rows, skipped = read(folder)
    names = [name for name, kind in listed if kind == tarfile.REGTYPE]
    kept = [name for name in names if "/." not in f"/{name}" and not name.startswith("__")]
    pictures = [n for n in kept if n == "photo" or n.rpartition(".")[2].lower() in PICTURES]
    links = [n for n, kind in listed if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)]
    # A picture is the picture of a row, or counted beside one. A link to one is without bytes.
    used = [row["image"] for row in rows if row["image"] is not None]
    others = skipped.get("further image of a sample", 0)
    linked = links.count("a.jpg")
    assert len(used) == len(set(used))
    assert 0 <= len(pictures) + linked - len(used) - others <= linked
    assert skipped.get("hidden", 0) == sum("/." in f"/{name}" for name in names)
    assert skipped.get("tar member named __…__", 0) == sum(n.startswith("__") for n in names)
    assert skipped.get("link in a tar", 0) == links.count("b.txt")
    assert skipped.get("not a file", 0) == sum(kind == tarfile.FIFOTYPE for _, kind in listed)
    assert skipped.get("no suffix", 0) == names.count("README")
    # Nothing is a row without a picture or a reason, and no key of a sample is lost.
    assert all((row["image"] is None) != (row["reason"] is None) for row in rows)
    stems = {os.path.dirname(n) + "/" + os.path.basename(n).partition(".")[0] for n in kept}
    ids = {str(row["id"]).removeprefix(f"x{suffix}/") for row in rows}
    assert ids >= {stem.lstrip("/") for stem in stems} - {"README"}


@given(archives.filter(bool), forms, st.data())
@settings(max_examples=80)
def test_damage_is_always_told(
    listed: list[tuple[str, bytes]], form: int, data: st.DataObject
) -> None:
    whole = build(listed, form)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        infos = tar.getmembers()
    damaged = bytearray(whole)
    if data.draw(st.booleans(), "cut"):
        end = infos[-1].offset_data + -(-infos[-1].size // 512) * 512
        cut_at = st.one_of(st.integers(0, end), st.sampled_from([info.offset for info in infos]))
        del damaged[data.draw(cut_at, "at") :]
    else:
        at = data.draw(st.sampled_from(infos), "member").offset + data.draw(st.integers(0, 511))
        damaged[at] ^= data.draw(st.integers(1, 255))
    with TemporaryDirectory() as folder:
        Path(folder, "x.tar").write_bytes(whole)
        before, skipped_before = read(folder)
        Path(folder, "x.tar").write_bytes(damaged)
        after, skipped_after = read(folder)
    if (before, skipped_before) == (after, skipped_after):
        return  # a byte that says nothing
    assert after[-1]["reason"] == "unreadable_file"
    assert after[-1]["id"] == "x.tar"
    read_rows = [row for row in after[:-1] if row["reason"] != "unreadable_file"]
    # What is read of the tar is what is read of the whole one, but that the last sample may have
    # lost members that were not needed.
    for ours, theirs in zip(read_rows, before, strict=False):
        assert ours["id"] == theirs["id"]
    images = [row["image"] for row in read_rows]
    assert set(images) <= {row["image"] for row in before} | {None}


class TestDamage:
    @pytest.fixture
    def whole(self) -> bytes:
        return tar_bytes([member(f"{n:03d}.jpg", data) for n, data in enumerate(IMAGES)])

    def test_a_flipped_byte_in_a_header(self, tmp_path: Path, whole: bytes) -> None:
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            at = tar.getmembers()[5].offset + 10
        damaged = bytearray(whole)
        damaged[at] ^= 255
        write_folder(tmp_path, {"a.tar": bytes(damaged)})
        rows, _ = read(tmp_path)
        expected = {f"a.tar/{n:03d}": None for n in range(5)} | {"a.tar": "unreadable_file"}
        assert reasons(rows) == expected

    def test_a_tar_that_ends_between_two_members(self, tmp_path: Path, whole: bytes) -> None:
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            at = tar.getmembers()[5].offset
        write_folder(tmp_path, {"a.tar": whole[:at]})
        rows, _ = read(tmp_path)
        assert len(rows) == 6
        assert reasons(rows)["a.tar"] == "unreadable_file"

    @pytest.mark.parametrize("suffix", [".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"])
    def test_compressed_data_that_end_early(
        self, tmp_path: Path, whole: bytes, suffix: str
    ) -> None:
        packed = COMPRESSIONS[suffix](whole)
        for cut in (3, len(packed) // 2, len(packed) - 1):
            write_folder(tmp_path, {f"a{suffix}": packed[:cut]})
            rows, _ = read(tmp_path)
            assert reasons(rows)[f"a{suffix}"] == "unreadable_file" or len(rows) == 12, cut

    def test_a_sample_cut_short_is_kept_only_with_all_its_columns(self, tmp_path: Path) -> None:
        members = [member("1.jpg", IMAGES[0]), member("1.json", b'{"caption": "one"}')]
        whole = tar_bytes([*members, member("2.jpg", IMAGES[1]), member("2.json", b"{}")])
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            at = tar.getmembers()[3].offset
        write_folder(tmp_path, {"a.tar": whole[:at]})
        rows, _ = read(tmp_path)
        assert reasons(rows) == {"a.tar/1": None, "a.tar/2": None, "a.tar": "unreadable_file"}
        rows, _ = read(tmp_path, columns=("caption",))
        cut = {"a.tar/2": "unreadable_file", "a.tar": "unreadable_file"}
        assert reasons(rows) == {"a.tar/1": None} | cut

    @pytest.mark.parametrize("data", [b"", b"x", b"x" * 511, b"x" * 512, b"\x1f\x8b", b"BZh"])
    def test_what_is_no_tar(self, tmp_path: Path, data: bytes) -> None:
        write_folder(tmp_path, {"a.tar": data})
        assert reasons(read(tmp_path)[0]) == {"a.tar": "unreadable_file"}

    def test_a_member_that_says_a_size_beyond_the_end(self, tmp_path: Path) -> None:
        info = tarfile.TarInfo("1.jpg")
        info.size = 1 << 50
        write_folder(tmp_path, {"a.tar": info.tobuf() + IMAGES[0]})
        rows, _ = read(tmp_path)
        assert reasons(rows)["a.tar"] == "unreadable_file"

    def test_hostile_pax_records(self, tmp_path: Path) -> None:
        for number, records in enumerate(
            [
                {"size": "-512"},
                {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x"},
                {"GNU.sparse.map": "a,b"},
                {"GNU.sparse.size": "many"},
            ]
        ):
            info, data = member("1.jpg", IMAGES[0])
            info.pax_headers = records
            write_folder(tmp_path / str(number), {"a.tar": tar_bytes([(info, data)])})
            rows, _ = read(tmp_path / str(number))
            assert rows, records


class TestSamples:
    def test_tars_one_behind_the_other(self, tmp_path: Path) -> None:
        one, two = (tar_bytes([member(f"{n}.jpg", IMAGES[n])]) for n in range(2))
        packed = gzip.compress(one) + gzip.compress(two)
        write_folder(tmp_path, {"a.tar": one + two, "b.tar.gz": packed})
        rows, _ = read(tmp_path)
        assert reasons(rows) == dict.fromkeys(["a.tar/0", "a.tar/1", "b.tar.gz/0", "b.tar.gz/1"])

    def test_an_empty_tar_has_no_rows(self, tmp_path: Path) -> None:
        write_folder(tmp_path, {"a.tar": tar_bytes([])})
        assert read(tmp_path) == ([], {})

    @pytest.mark.parametrize("suffix", sorted(COMPRESSIONS))
    def test_compression_is_told_by_the_bytes(self, tmp_path: Path, suffix: str) -> None:
        packed = COMPRESSIONS[suffix](tar_bytes([member("1.jpg", IMAGES[0])]))
        write_folder(tmp_path, {f"a{suffix.upper()}": packed, "b.tar": packed})
        rows, _ = read(tmp_path)
        assert [row["image"] for row in rows] == [IMAGES[0]] * 2

    def test_a_key_that_comes_again_keeps_both(self, tmp_path: Path) -> None:
        members = [member("1.jpg", IMAGES[0]), member("1.jpg", IMAGES[1])]
        members += [member("2.jpg", IMAGES[2]), member("1.jpg", IMAGES[3])]
        write_folder(tmp_path, {"a.tar": tar_bytes(members)})
        rows, _ = read(tmp_path)
        assert [row["id"] for row in rows] == ["a.tar/1", "a.tar/1", "a.tar/2", "a.tar/1"]
        assert [row["image"] for row in rows] == list(IMAGES[:4])

    def test_the_picture_of_a_sample_with_several(self, tmp_path: Path) -> None:
        names = ["1.depth.png", "1.jpg", "2.left.png", "2.right.png"]
        members = [member(name, IMAGES[n]) for n, name in enumerate(names)]
        write_folder(tmp_path, {"a.tar": tar_bytes(members)})
        rows, skipped = read(tmp_path)
        assert [row["image"] for row in rows] == [IMAGES[1], IMAGES[2]]
        assert skipped == {"further image of a sample": 2}
        assert choose_image([]) is None

    def test_a_picture_under_another_extension(self, tmp_path: Path) -> None:
        names = ["1.image", "2.jpg_large", "3", "4.JFIF", "5.heic"]
        heic = b"\0\0\0\x18ftypheic" + bytes(100)
        members = [member(n, IMAGES[0] if "heic" not in n else heic) for n in names]
        write_folder(tmp_path, {"a.tar": tar_bytes([*members, member("LICENSE", b"MIT")])})
        rows, skipped = read(tmp_path)
        assert [row["image"] for row in rows] == [IMAGES[0]] * 4 + [heic]
        assert skipped == {"no suffix": 1}

    def test_links_and_sparse_and_large_members(self, tmp_path: Path) -> None:
        members = [
            member("1.jpg", IMAGES[0]),
            member("2.jpg", kind=tarfile.LNKTYPE),
            member("3.jpg", b"x" * 5000),
            member("4.jpg", IMAGES[1]),
            member("4.json", b'"' + b"x" * 5000 + b'"'),
        ]
        write_folder(tmp_path, {"a.tar": tar_bytes(members)})
        rows, skipped = read(tmp_path, limits=ImageLimits(max_bytes=4999))
        assert list(reasons(rows).values()) == [None, "missing", "too_large", None]
        assert skipped == {"large member beside an image": 1}

    def test_one_tar_may_be_the_source(self, tmp_path: Path) -> None:
        tar = write_tar(tmp_path / "a.tar", {"1.jpg": IMAGES[0]})
        write_tar(tmp_path / "b.tar", {"1.jpg": IMAGES[0]})
        assert reasons(read(tar)[0]) == {"a.tar/1": None}

    def test_other_files_are_counted(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "00000.tar", {"1.jpg": IMAGES[0]})
        others = {"00000.parquet": b"x", "00000_stats.json": b"{}", "_SUCCESS": b"", ".x.tar": b""}
        write_folder(tmp_path, others)
        rows, skipped = read(tmp_path)
        assert len(rows) == 1
        assert skipped == {".json": 1, ".parquet": 1, "hidden": 1, "no suffix": 1}


class TestChangedTars:
    def test_another_tar_is_an_error(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "a.tar", {"1.jpg": IMAGES[0]})
        source = open_source(SourceSettings(kind="webdataset", uri=str(tmp_path)))
        units = list(source.units())
        os.utime(write_tar(tmp_path / "a.tar", {"1.jpg": IMAGES[1]}), ns=(0, 0))
        with pytest.raises(InputError, match=r"a\.tar changed since .* start a new run"):
            list(source.read(units, 5))
        (tmp_path / "a.tar").unlink()
        with pytest.raises(InputError, match=r"a\.tar was planned and is gone"):
            list(source.read(units, 5))

    def test_a_change_while_it_is_read(self, tmp_path: Path) -> None:
        tar = write_tar(tmp_path / "a.tar", {f"{n}.jpg": d for n, d in enumerate(IMAGES)})
        source = open_source(SourceSettings(kind="webdataset", uri=str(tmp_path)))
        tables = source.read(list(source.units()), 1)
        next(tables)
        os.utime(tar, ns=(0, 0))
        with pytest.raises(InputError, match="changed"):
            list(tables)

    def test_the_same_on_s3(self, s3: str, tmp_path: Path) -> None:
        tar = write_tar(tmp_path / "a.tar", {"1.jpg": IMAGES[0]})
        Storage(s3).upload(tar, "a.tar")
        source = open_source(SourceSettings(kind="webdataset", uri=s3))
        units = list(source.units())
        assert [t.num_rows for t in source.read(units, 5)] == [1]
        Storage(s3).upload(write_tar(tar, {"1.jpg": IMAGES[1][:-1] + b"x"}), "a.tar")
        with pytest.raises(InputError, match="changed since"):
            list(source.read(units, 5))
