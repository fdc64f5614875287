"""Embedded profiles: colours come out as they are meant, whatever numbers stand for them."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from dq_cluster.images.decode import decode_image
from tests import rasters
from tests.pictures import encoded

SCENE, GREY = rasters.scene(), rasters.grey_scene()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Of sRGB, adapted to the white of profiles (D50).
PRIMARIES = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
WHITE = (0.9642, 1.0, 0.8249)


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    """An ICC profile, written from its parts. space: 4 bytes such as `RGB `."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(*WHITE), **tags}
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, place + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(">I4sI4s4s4s", place + len(body), bytes(4), 0x02100000, kind, space, pcs)
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(*WHITE)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def display(order: tuple[int, int, int], gamma: float = 2.2) -> bytes:
    """A profile with the primaries of sRGB in another order."""
    tags = {}
    for name, place in zip((b"r", b"g", b"b"), order, strict=True):
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*PRIMARIES[place])
        tags[name + b"TRC"] = curve(gamma)
    return profile(b"RGB ", tags)


def press() -> bytes:
    """A profile of inks whose cyan is red, and that is otherwise white or, with black, black."""
    lab = np.zeros((2, 2, 2, 2, 3))
    lab[..., 0] = 100  # L; the corners in the order of cyan, magenta, yellow, black
    lab[1, ..., 0] = (54.3,)
    lab[1, ..., 1:] = (80.8, 69.9)
    lab[..., 1, :] = 0
    corners = np.stack([lab[..., 0] * 2.55, lab[..., 1] + 128, lab[..., 2] + 128], axis=-1)
    line = bytes(range(256))
    data = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    data += line * 4 + corners.round().astype(np.uint8).tobytes() + line * 3
    return profile(b"CMYK", {b"A2B0": data}, b"Lab ")


def as_srgb(linear: np.ndarray) -> np.ndarray:
    low = linear * 12.92
    return np.where(linear < 0.0031308, low, 1.055 * linear.clip(1e-9) ** (1 / 2.4) - 0.055) * 255


def iccp(data: bytes) -> bytes:
    return rasters.chunk(b"iCCP", b"a name\0\0" + zlib.compress(data))


Write = Callable[[np.ndarray, bytes], bytes]
WAYS: dict[str, Write] = {
    "png": lambda a, icc: rasters.png(a, extra=iccp(icc)),
    "png, 16 bits": lambda a, icc: rasters.png(a.astype(np.uint16) * 257, 16, extra=iccp(icc)),
    "png with alpha": lambda a, icc: rasters.png(
        np.dstack([a, np.full(a.shape[:2], 255, np.uint8)]), extra=iccp(icc)
    ),
    "tiff": lambda a, icc: rasters.tiff(a, tags=[(34675, 7, icc)]),
    "tiff, big": lambda a, icc: rasters.tiff(a, order=">", big=True, tags=[(34675, 7, icc)]),
    "webp": lambda a, icc: encoded(Image.fromarray(a), "WEBP", lossless=True, icc_profile=icc),
    "avif": lambda a, icc: encoded(
        Image.fromarray(a), "AVIF", quality=98, subsampling="4:4:4", icc_profile=icc
    ),
    "jpeg": lambda a, icc: encoded(
        Image.fromarray(a), quality=98, subsampling=0, icc_profile=icc
    ),
    "jpeg, in parts": lambda a, icc: rasters.with_segments(
        encoded(Image.fromarray(a), quality=98, subsampling=0),
        rasters.segment(0xE2, b"ICC_PROFILE\0\2\2" + icc[200:]),
        rasters.segment(0xE2, b"ICC_PROFILE\0\1\2" + icc[:200]),
    ),
}  # fmt: skip
LOSSY = ("avif", "jpeg")


def off(data: bytes, expected: np.ndarray) -> float:
    square = expected[:, 8:56].astype(float)
    difference = decode_image(data, 48) - square
    return abs(difference.reshape(12, 4, 12, 4, 3).mean(axis=(1, 3))).max()


@pytest.mark.parametrize("way", WAYS)
def test_colours_come_out_as_the_profile_means_them(way: str) -> None:
    write, room = WAYS[way], 8 if way.startswith(LOSSY) else 3
    meant = as_srgb((SCENE / 255) ** 2.2)
    assert off(write(SCENE, display((2, 0, 1))), meant[..., [1, 2, 0]]) < room
    dark = as_srgb(SCENE / 255)  # of linear light
    assert off(write(SCENE, display((0, 1, 2), 1.0)), dark) < room


@pytest.mark.parametrize("way", WAYS)
def test_a_profile_that_says_nothing_new_changes_no_pixel(way: str) -> None:
    write = WAYS[way]
    plain = decode_image(write(SCENE, b""), 48)
    noise = np.random.default_rng(0).bytes(5000)
    grey = profile(b"GRAY", {b"kTRC": curve(1.0)})
    black = display((0, 1, 2)).replace(fixed(*PRIMARIES[0]), fixed(0, 0, 0))
    for icc in (SRGB, noise, SRGB[:300], bytes(600), grey, press(), black, SRGB[:130] + noise):
        np.testing.assert_array_equal(decode_image(write(SCENE, icc), 48), plain)


def test_grey_has_profiles_too() -> None:
    icc = profile(b"GRAY", {b"kTRC": curve(1.0)})
    expected = np.repeat(as_srgb(GREY / 255)[..., None], 3, axis=2)
    for data in (
        rasters.png(GREY, extra=iccp(icc)),
        rasters.png(GREY.astype(np.uint16) * 257, 16, extra=iccp(icc)),
        rasters.tiff(GREY, tags=[(34675, 7, icc)]),
        encoded(Image.fromarray(GREY), quality=98, icc_profile=icc),
    ):
        assert off(data, expected) < 8


def test_inks_have_profiles_too() -> None:
    inks = np.zeros((48, 64, 4), np.uint8)
    inks[:24, :, 0] = 255
    inks[:, 32:, 3] = 255
    expected = np.full((48, 64, 3), 255.0)
    expected[:24] = (255, 0, 0)
    expected[:, 32:] = 0
    jpeg = Image.frombuffer("CMYK", (64, 48), inks.tobytes())
    for data in (
        rasters.tiff(inks, photometric=5, tags=[(34675, 7, press())]),
        encoded(jpeg, quality=98, icc_profile=press()),
    ):
        assert off(data, expected) < 12


def test_a_turned_picture_with_a_profile() -> None:
    turned = np.ascontiguousarray(rasters.stored(SCENE, 6))
    extra = rasters.chunk(b"eXIf", rasters.exif(6)) + iccp(display((2, 0, 1)))
    assert off(rasters.png(turned, extra=extra), as_srgb((SCENE / 255) ** 2.2)[..., [1, 2, 0]]) < 3
