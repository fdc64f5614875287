"""Every kind of file shows the pixels it holds, however it says to turn them."""

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dq_cluster.images import samples
from dq_cluster.images.config import ImageLimits
from dq_cluster.images.decode import Reason, RejectError, decode_image
from dq_cluster.images.metadata import Essence
from dq_cluster.images.samples import open_ended
from dq_cluster.images.thumbnail import thumbnail
from tests import picture_kinds, rasters
from tests.pictures import encoded, write_folder

KINDS = list(picture_kinds.kinds())
READ = [kind for kind in KINDS if not isinstance(kind.shown, Reason)]
PAGE = Path(__file__).parents[2] / "docs" / "input.md"


@pytest.mark.parametrize("kind", KINDS, ids=[f"{each.group} {each.name}" for each in KINDS])
def test_a_kind_of_file_shows_its_pixels_or_has_its_reason(kind: picture_kinds.Kind) -> None:
    refused = isinstance(kind.shown, Reason)
    assert kind.outcome() == (f"rejected: `{kind.shown}`" if refused else kind.rule)


def test_the_page_says_what_the_decoder_does() -> None:
    """After a change: python -m tests.picture_kinds."""
    assert picture_kinds.table() in PAGE.read_text()


def test_every_mode_that_pillow_has_becomes_grey_rgb_or_cmyk() -> None:
    """Also those that no reader of ours gives today."""
    for mode in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr",
                 "LAB", "HSV", "I", "I;16", "I;16B", "I;16L", "F"):  # fmt: skip
        image = Image.new(mode, (4, 4))
        if mode in ("P", "PA"):
            image.putpalette(bytes(range(256)) * 3)
        found = samples.eight_bits(image, Essence(b""))
        assert found.mode in ("L", "RGB", "CMYK")


# Orientation

EXIF_WAYS: dict[str, Callable[[np.ndarray, bytes], bytes]] = {
    "png eXIf": lambda a, exif: rasters.png(a, extra=rasters.chunk(b"eXIf", exif)),
    "png eXIf at the end": lambda a, exif: rasters.png(a, after=rasters.chunk(b"eXIf", exif)),
    "png as ImageMagick writes it": lambda a, exif: rasters.png(
        a, extra=rasters.raw_profile(b"exif", b"Exif\0\0" + exif)
    ),
    "webp": lambda a, exif: rasters.with_riff_chunks(
        encoded(Image.fromarray(a), "WEBP", lossless=True), a.shape[1], a.shape[0], (b"EXIF", exif)
    ),
    "webp, with a prefix": lambda a, exif: rasters.with_riff_chunks(
        encoded(Image.fromarray(a), "WEBP", lossless=True),
        a.shape[1],
        a.shape[0],
        (b"EXIF", b"Exif\0\0" + exif),
    ),
    "jpeg": lambda a, exif: rasters.with_segments(
        jpeg(a), rasters.segment(0xE1, b"Exif\0\0" + exif)
    ),
    "mpo": lambda a, exif: encoded(
        Image.fromarray(a), "MPO", save_all=True, append_images=[Image.fromarray(a[::-1])],
        exif=b"Exif\0\0" + exif, quality=98, subsampling=0,
    ),
}  # fmt: skip
XMP_WAYS: dict[str, Callable[[np.ndarray, bytes], bytes]] = {
    "png": lambda a, xmp: rasters.png(a, extra=rasters.itxt(xmp)),
    "png, compressed": lambda a, xmp: rasters.png(a, extra=rasters.itxt(xmp, compressed=True)),
    "webp": lambda a, xmp: rasters.with_riff_chunks(
        encoded(Image.fromarray(a), "WEBP", lossless=True), a.shape[1], a.shape[0], (b"XMP ", xmp)
    ),
    "jpeg": lambda a, xmp: rasters.with_segments(
        jpeg(a), rasters.segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    ),
    "tiff": lambda a, xmp: rasters.tiff(a, tags=[(700, 1, xmp)]),
}


def jpeg(picture: np.ndarray) -> bytes:
    return encoded(Image.fromarray(picture), quality=98, subsampling=0)


def off(data: bytes, upright: np.ndarray) -> float:
    """How far the pixels of a file are from those of a picture: of the worst 4 by 4 pixels."""
    size = min(upright.shape[:2]) // 4 * 4
    difference = decode_image(data, size).astype(float) - decode_image(rasters.png(upright), size)
    return abs(difference.reshape(size // 4, 4, size // 4, 4, 3).mean(axis=(1, 3))).max()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(48, 64), (65, 48), (49, 63)], ids=str)
def test_every_way_to_say_the_orientation_shows_the_upright_picture(
    shape: tuple[int, int], orientation: int
) -> None:
    upright = rasters.scene(*shape)
    turned = np.ascontiguousarray(rasters.stored(upright, orientation))
    for order, kind in (("<", 3), (">", 3), ("<", 4)):
        exif = rasters.exif(orientation, order, kind)
        for name, write in EXIF_WAYS.items():
            assert off(write(turned, exif), upright) < 4, name
    for element in (False, True):
        xmp = rasters.xmp(orientation, element)
        for name, write in XMP_WAYS.items():
            assert off(write(turned, xmp), upright) < 4, name
    for options in ({}, {"deflate": True}, {"order": ">"}, {"big": True}, {"tile": 16}):
        data = rasters.tiff(turned, tags=[(274, 3, [orientation])], **options)
        assert off(data, upright) == 0, options
    tags = Image.Exif()
    tags[274] = orientation
    avif = encoded(Image.fromarray(turned), "AVIF", exif=tags, quality=95, subsampling="4:4:4")
    assert off(avif, upright) < 8


@pytest.mark.parametrize(
    "exif",
    [
        *(rasters.exif(value) for value in (0, 9, 65535)),
        rasters.exif(7 << 16, kind=4),
        rasters.exif(b"6\0", kind=2),
        rasters.exif(6)[:14],
        b"",
        b"not a directory of tags",
        b"II*\0\xff\xff\xff\xff" + bytes(20),
        b"MM\0*" + struct.pack(">IH", 8, 65535),
    ],
    ids=["0", "9", "65535", "too long", "text", "cut", "none", "garbage", "beyond", "endless"],
)
def test_an_orientation_that_says_nothing_leaves_the_picture_as_it_is(exif: bytes) -> None:
    upright = rasters.scene()
    for name, write in EXIF_WAYS.items():
        assert off(write(upright, exif), upright) < 4, name
    for tag in ((274, 3, [0]), (274, 3, [9]), (274, 2, b"six\0"), (274, 3, [])):
        assert off(rasters.tiff(upright, tags=[tag]), upright) == 0


def test_exif_comes_before_xmp() -> None:
    upright = rasters.scene()
    turned = np.ascontiguousarray(rasters.stored(upright, 6))
    both = rasters.itxt(rasters.xmp(3)) + rasters.chunk(b"eXIf", rasters.exif(6))
    assert off(rasters.png(turned, extra=both), upright) == 0


def test_avif_is_turned_by_its_boxes_alone() -> None:
    """EXIF and XMP of another orientation are left there by programs that turned the pixels."""
    upright = rasters.scene()
    image = Image.fromarray(upright)
    exif = Image.Exif()
    exif[0x010E] = "abc"  # in the place of an orientation, which Pillow would leave out
    data = encoded(image, "AVIF", exif=exif.tobytes(), xmp=rasters.xmp(6), quality=95,
                   subsampling="4:4:4")  # fmt: skip
    text = b"\x01\x0e\0\2\0\0\0\4abc\0"
    assert text in data
    for entry in (text, rasters.exif_entry(1), rasters.exif_entry(6), b"\xff" * len(text)):
        assert off(data.replace(text, entry), upright) < 8


@settings(max_examples=60)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    orientation=st.integers(1, 8),
    size=st.sampled_from([8, 17, 32]),
    depth=st.sampled_from([8, 16]),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_turned_files_give_the_very_pixels_of_the_upright_one(
    height: int, width: int, orientation: int, size: int, depth: int, channels: int, seed: int
) -> None:
    picture = np.random.default_rng(seed).integers(0, 2**depth, (height, width, channels))
    turned = rasters.stored(picture, orientation)
    expected = decode_image(rasters.png(picture, depth), size)
    chunk = rasters.chunk(b"eXIf", rasters.exif(orientation))
    tag = (274, 3, [orientation])
    for data in (
        rasters.png(turned, depth, extra=chunk),
        rasters.png(turned, depth, extra=chunk, interlaced=True),
        rasters.tiff(turned, depth, tags=[tag]),
        rasters.tiff(turned, depth, tags=[tag], order=">", tile=16, planar=channels > 1),
        rasters.tiff(turned, depth, tags=[tag], deflate=True, big=True),
    ):
        np.testing.assert_array_equal(decode_image(data, size), expected)


def test_the_middle_of_a_huge_jpeg_is_where_it_was() -> None:
    """libjpeg decodes it at an eighth; the sides are no multiples of that."""
    upright = rasters.scene(601, 813)
    for orientation in range(1, 9):
        turned = np.ascontiguousarray(rasters.stored(upright, orientation))
        data = EXIF_WAYS["jpeg"](turned, rasters.exif(orientation))
        difference = decode_image(data, 48).astype(int) - decode_image(rasters.png(upright), 48)
        assert abs(difference).mean() < 2.5, orientation


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 5000), (7, 6)], ids=str)
def test_extreme_sides_are_read(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    middle = picture_kinds.centre(picture).mean(axis=(0, 1))
    for data in (rasters.png(picture), rasters.tiff(picture), rasters.bmp(picture)):
        assert abs(decode_image(data, 16).mean(axis=(0, 1)) - middle).max() < 30
    decode_image(jpeg(picture), 16)


def test_a_thumbnail_is_turned_and_converted_as_the_encoder_did(tmp_path: Path) -> None:
    upright = rasters.scene()
    wide = rasters.stored(upright, 6).astype(np.uint16) * 257
    write_folder(tmp_path, {"a.tif": rasters.tiff(wide, 16, tags=[(274, 3, [6])], planar=True)})
    small = thumbnail(f"{tmp_path}/a.tif", ImageLimits(), 48)
    assert off(small, upright) < 24


# Numbers without a range


@pytest.mark.parametrize("limit", [1, 255, 65535])
def test_numbers_that_fill_a_usual_range_keep_its_scale(limit: int) -> None:
    dark = np.linspace(0, limit / 4, 64).reshape(8, 8)
    np.testing.assert_array_equal(open_ended(dark), np.linspace(0, 63.75, 64).round().reshape(8, 8))
    beyond = np.linspace(-0.005 * limit, 1.005 * limit, 64)
    assert abs(open_ended(beyond).astype(int) - np.linspace(-1, 256, 64).clip(0, 255)).max() <= 1


@settings(max_examples=60)
@given(low=st.floats(-1e9, 1e9), span=st.floats(1e-3, 1e9), seed=st.integers(0, 9))
def test_numbers_of_any_range_are_never_all_black_or_white(
    low: float, span: float, seed: int
) -> None:
    values = low + span * np.random.default_rng(seed).random((16, 16))
    grey = open_ended(values)
    assert (
        np.ptp(grey) >= 15
        or np.ptp(values) < 16 * np.spacing(abs(low) + 1)
        or (
            low >= -655 and np.ptp(values) < low  # a picture of little contrast in a usual range
        )
    )
    order = np.argsort(values, axis=None, kind="stable")
    assert (np.diff(grey.ravel()[order].astype(int)) >= 0).all()


def test_missing_numbers_are_black_and_change_nothing_else() -> None:
    values = np.linspace(-50.0, 77.0, 64)
    holed = values.copy()
    holed[[3, 30, 60]] = np.nan, -np.inf, -3.4028235e38
    expected = open_ended(values)
    expected[[3, 30, 60]] = 0
    np.testing.assert_array_equal(open_ended(holed), expected)
    assert (open_ended(np.full((4, 4), np.nan)) == 0).all()


# Reasons


@pytest.mark.parametrize("name", ["HEIC", "JPEG XL"])
def test_a_format_without_its_plugin_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = {"HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "JPEG XL": b"\xff\x0a" + bytes(40)}[name]
    monkeypatch.setattr("dq_cluster.images.formats.find_spec", lambda _: None)
    with pytest.raises(RejectError, match=f"unsupported_format .*{name}.*pip install") as raised:
        decode_image(head, 16)
    assert raised.value.reason is Reason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize(("name", "module"), [("HEIC", "pillow_heif"), ("JXL", "pillow_jxl")])
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_a_format_with_its_plugin_is_read(name: str, module: str, orientation: int) -> None:
    """JPEG XL and HEIC are turned by their decoders; EXIF in JPEG XL does not count."""
    plugin = pytest.importorskip(module)
    if name == "HEIC":
        plugin.register_heif_opener()
    upright = rasters.scene()
    turned = upright
    if name == "HEIC":
        turned = np.ascontiguousarray(rasters.stored(upright, orientation))
    exif = Image.Exif()
    exif[274] = orientation
    kind = "HEIF" if name == "HEIC" else name
    data = encoded(Image.fromarray(turned), kind, exif=exif.tobytes(), quality=95)
    assert off(data, upright) < 16


def test_half_a_file_is_truncated_in_every_container() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = Image.fromarray(picture)
    for name, data in {
        "png": rasters.png(picture),
        "jpeg": jpeg(picture),
        "webp": encoded(image, "WEBP"),
        "gif": encoded(image, "GIF"),
        "bmp": rasters.bmp(picture),
        "tiff": rasters.tiff(picture),
        "tiff, compressed": encoded(image, "TIFF", compression="tiff_lzw"),
        "ppm": rasters.netpbm(picture),
        "avif": encoded(image, "AVIF"),
    }.items():
        for share in (0.5, 0.8, 0.95):
            with pytest.raises(RejectError) as raised:
                decode_image(data[: int(len(data) * share)], 16)
            assert raised.value.reason is Reason.TRUNCATED, (name, share)


@pytest.mark.parametrize("kind", READ, ids=[f"{each.group} {each.name}" for each in READ])
def test_a_file_that_was_cut_shows_the_picture_or_nothing(kind: picture_kinds.Kind) -> None:
    for data in {kind.files[0], kind.files[-1]}:
        whole = decode_image(data, 16)
        for end in range(len(data) // 13, len(data), len(data) // 13):
            with contextlib.suppress(RejectError):
                np.testing.assert_array_equal(decode_image(data[:end], 16), whole)


@pytest.mark.parametrize("planar", [False, True])
def test_wrong_sizes_of_uncompressed_strips_do_not_matter(planar: bool) -> None:
    """Nor that there are none: what rows need is known."""
    wide = rasters.scene().astype(np.uint16) * 257
    data = rasters.tiff(wide, 16, planar=planar)
    place = data.index(struct.pack("<HH", 279, 4))
    count, at = struct.unpack_from("<II", data, place + 4)
    huge = data[:at] + struct.pack("<I", 2**31) * count + data[at + 4 * count :]
    missing = data[:place] + struct.pack("<HH", 65000, 4) + data[place + 4 :]
    for damaged in (huge, missing):
        assert off(damaged, rasters.scene()) == 0
