"""Every kind of picture decodes to about the same pixels; everything else has its reason."""

import contextlib

import numpy as np
import pytest
from PIL import Image

from dq_cluster.images.config import ImageLimits
from dq_cluster.images.decode import Reason, RejectError, decode_image
from tests.pictures import encoded, photograph

SIZE = 64


def reference() -> np.ndarray:
    return decode_image(encoded(photograph(), "PNG"), SIZE).astype(int)


def grey16() -> Image.Image:
    return Image.fromarray(np.asarray(photograph().convert("L")).astype(np.uint16) * 257)


def grey32() -> Image.Image:
    return Image.fromarray(np.asarray(photograph().convert("L")).astype(np.float32) / 255)


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encoded(photograph(), "JPEG", quality=95), 2),
        (encoded(photograph().convert("CMYK"), "JPEG", quality=95), 2),
        (encoded(photograph().convert("P"), "PNG"), 3),
        (encoded(photograph().convert("RGBA"), "PNG"), 1),
        (encoded(photograph(), "WEBP"), 3),
        (encoded(photograph(), "TIFF"), 1),
        (encoded(photograph().convert("LAB"), "TIFF"), 3),
        (
            encoded(photograph(), "GIF", save_all=True, append_images=[photograph().rotate(90)]),
            4,
        ),
    ],
    ids=["jpeg", "cmyk", "palette", "rgba", "webp", "tiff", "lab", "animated gif"],
)
def test_a_colour_picture_keeps_its_colours(data: bytes, tolerance: float) -> None:
    assert abs(decode_image(data, SIZE) - reference()).mean() < tolerance


@pytest.mark.parametrize(
    "data",
    [
        encoded(photograph().convert("L"), "PNG"),
        encoded(photograph().convert("LA"), "PNG"),
        encoded(grey16(), "PNG"),
        encoded(grey16(), "TIFF"),
        encoded(grey32(), "TIFF"),
    ],
    ids=["8 bits", "8 bits and alpha", "16 bits png", "16 bits tiff", "float tiff"],
)
def test_a_grey_picture_keeps_its_brightness(data: bytes) -> None:
    pixels = decode_image(data, SIZE)
    assert pixels.shape == (SIZE, SIZE, 3)
    expected = decode_image(encoded(photograph().convert("L").convert("RGB"), "PNG"), SIZE)
    assert abs(pixels.astype(int) - expected).mean() < 1


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    turned = photograph().rotate(90, expand=True)
    data = encoded(turned, "JPEG", exif=exif, quality=95)
    assert abs(decode_image(data, SIZE) - reference()).mean() < 2


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert (decode_image(encoded(clear, "PNG"), 16) == 255).all()


def test_the_centre_of_a_wide_picture_is_kept() -> None:
    wide = Image.new("RGB", (300, 100), "black")
    wide.paste("white", (100, 0, 200, 100))
    assert decode_image(encoded(wide, "PNG"), SIZE).mean() > 250


def test_a_tiny_picture_is_scaled_up() -> None:
    assert (decode_image(encoded(Image.new("RGB", (1, 1), "red"), "PNG"), 8) == [255, 0, 0]).all()


PHOTO, PNG = encoded(photograph()), encoded(photograph(), "PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY),
        (PHOTO[: len(PHOTO) // 2], Reason.TRUNCATED),
        (PNG[: len(PNG) // 2], Reason.TRUNCATED),
        (PNG[:3000] + b"\0" * 64 + PNG[3064:], Reason.CORRUPT),
        (b"hello world" * 50, Reason.NOT_AN_IMAGE),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Reason.NOT_AN_IMAGE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Reason.NOT_AN_IMAGE),
        (encoded(Image.new("1", (12000, 12000)), "PNG"), Reason.TOO_MANY_PIXELS),
    ],
    ids=["empty", "half a jpeg", "half a png", "damaged png", "text", "svg", "eps", "bomb"],
)
def test_what_is_no_picture_is_rejected_with_its_reason(data: bytes, reason: Reason) -> None:
    with pytest.raises(RejectError) as raised:
        decode_image(data, SIZE)
    assert raised.value.reason is reason


def test_the_limits_are_limits() -> None:
    with pytest.raises(RejectError) as raised:
        decode_image(PHOTO, SIZE, ImageLimits(max_bytes=len(PHOTO) - 1))
    assert raised.value.reason is Reason.TOO_LARGE
    limits = ImageLimits(max_pixels=photograph().width * photograph().height - 1)
    with pytest.raises(RejectError) as raised:
        decode_image(PHOTO, SIZE, limits)
    assert raised.value.reason is Reason.TOO_MANY_PIXELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_no_damage_escapes_as_another_exception(kind: str) -> None:
    data = encoded(photograph().resize((64, 64)), kind)
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for place in rng.integers(len(data), size=8):
            damaged[place] = rng.integers(256)
        with contextlib.suppress(RejectError):
            pixels = decode_image(bytes(damaged[: rng.integers(1, len(data))]), 16)
            assert pixels.shape == (16, 16, 3)
