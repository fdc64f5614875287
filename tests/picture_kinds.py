"""Every kind of picture file that a pile may hold, with the pixels it shows or why it is refused.

`python -m tests.picture_kinds` prints the table of docs/input.md.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dq_cluster.images.decode import Reason, RejectError, decode_image
from tests import rasters
from tests.pictures import encoded

SCENE, GREY = rasters.scene(), rasters.grey_scene()
SIZE = min(GREY.shape)
ALPHA = np.linspace(0, 255, GREY.size).reshape(GREY.shape).round().astype(np.uint8)
WIDE = SCENE.astype(np.uint16) * 257
WIDE_GREY = GREY.astype(np.uint16) * 257
# A palette of 6 x 6 x 6 colours, and the picture in it.
_STEPS = (SCENE.astype(int) + 25) // 51
CUBE = np.stack(np.meshgrid(*[np.arange(6) * 51] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
INDICES = _STEPS @ (36, 6, 1)
IN_PALETTE = CUBE[INDICES].astype(np.uint8)


def over_white(picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """A picture (h, w, 3) with alpha (h, w), both uint8, over white."""
    share = alpha[..., None] / 255
    return picture * share + 255 * (1 - share)


def as_grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values)[..., None], 3, axis=2)


def centre(picture: np.ndarray) -> np.ndarray:
    """The square in the middle of (h, w, 3), as float; between two pixels for odd margins."""
    picture = np.asarray(picture, float)
    for axis in (0, 1):
        margin = picture.shape[axis] - min(picture.shape[:2])
        halves = [
            np.take(picture, range(start, picture.shape[axis] - margin + start), axis)
            for start in (margin // 2, margin - margin // 2)
        ]
        picture = (halves[0] + halves[1]) / 2
    return picture


def _blurred(difference: np.ndarray, lossy: bool) -> np.ndarray:
    side = 4 if lossy else 1
    parts = difference.reshape(len(difference) // side, side, -1, side, 3)
    return parts.mean(axis=(1, 3))


@dataclass(frozen=True)
class Kind:
    """`shown`: the pixels (h, w, 3), or the reason of the rejection. `rule`: what the page says."""

    group: str
    name: str
    files: tuple[bytes, ...]
    shown: np.ndarray | Reason
    rule: str = "read"
    tolerance: float = 1.01
    lossy: bool = False  # compare means of squares of 4 pixels: codecs move sharp edges

    def outcome(self) -> str:
        """What the decoder makes of the files, in the words of the page."""
        found = set()
        for data in self.files:
            try:
                pixels = decode_image(data, SIZE).astype(float)
                assert isinstance(self.shown, np.ndarray), f"{self.group}, {self.name}: read"
                worst = abs(_blurred(pixels - centre(self.shown), self.lossy)).max()
                assert worst <= self.tolerance, f"{self.group}, {self.name}: off by {worst}"
                found.add(self.rule)
            except RejectError as error:
                found.add(f"rejected: `{error.reason.value}`")
        (only,) = found
        return only


def kinds() -> Iterator[Kind]:
    yield from _png()
    yield from _jpeg_webp_avif()
    yield from _gif_bmp_ppm()
    yield from _tiff()
    yield from _others()


def _png() -> Iterator[Kind]:
    def kind(name: str, shown: np.ndarray, rule: str = "read", **options: object) -> Kind:
        files = tuple(
            rasters.png(interlaced=interlaced, **options)  # type: ignore[arg-type]
            for interlaced in (False, True)
        )
        return Kind("PNG", name, files, shown, rule)

    for depth in (1, 2, 4):
        samples = GREY >> (8 - depth)
        levels = as_grey(samples * (255 // (2**depth - 1)))
        yield kind(f"grey, {depth}-bit", levels, samples=samples, depth=depth)
        clear = samples == samples[0, 0]
        yield kind(
            f"grey, {depth}-bit, a transparent level",
            np.where(clear[..., None], 255, levels),
            "over white",
            samples=samples,
            depth=depth,
            transparent=struct.pack(">H", samples[0, 0]),
        )
    yield kind("grey, 8-bit", as_grey(GREY), samples=GREY)
    yield kind("grey, 16-bit", as_grey(GREY), "high 8 bits", samples=WIDE_GREY, depth=16)
    yield kind(
        "grey, 16-bit, a transparent level",
        np.where((GREY[0, 0] == GREY)[..., None], 255, as_grey(GREY)),
        "over white",
        samples=WIDE_GREY,
        depth=16,
        transparent=struct.pack(">H", WIDE_GREY[0, 0]),
    )
    both = np.dstack([GREY, ALPHA])
    shown = over_white(as_grey(GREY), ALPHA)
    yield kind("grey and alpha, 8-bit", shown, "over white", samples=both)
    yield kind(
        "grey and alpha, 16-bit",
        shown,
        "over white",
        samples=both.astype(np.uint16) * 257,
        depth=16,
    )
    yield kind("palette, 8-bit", IN_PALETTE, samples=INDICES, palette=CUBE)
    for depth in (1, 2, 4):
        few, indices = CUBE[[0, 200, 7, 36, 100, 55, 9, 150]][: 2**depth], INDICES % 2**depth % 8
        shown = few[indices]
        yield kind(f"palette, {depth}-bit", shown, samples=indices, palette=few, depth=depth)
    see = np.random.default_rng(0).integers(0, 256, 216, np.uint8)
    yield kind(
        "palette with alphas",
        over_white(IN_PALETTE, see[INDICES]),
        "over white",
        samples=INDICES,
        palette=CUBE,
        transparent=see.tobytes(),
    )
    place = int(INDICES[5, 20])
    yield kind(
        "palette with a transparent entry",
        np.where(np.equal(INDICES, place)[..., None], 255, IN_PALETTE),
        "over white",
        samples=INDICES,
        palette=CUBE,
        transparent=b"\xff" * place + b"\0",
    )
    yield kind("RGB, 8-bit", SCENE, samples=SCENE)
    yield kind("RGB, 16-bit", SCENE, "high 8 bits", samples=WIDE, depth=16)
    for depth, deep in ((8, SCENE), (16, WIDE)):
        yield kind(
            f"RGB, {depth}-bit, a transparent colour",
            np.where((SCENE[40, 60] == SCENE).all(axis=2)[..., None], 255, SCENE),
            "over white",
            samples=deep,
            depth=depth,
            transparent=struct.pack(">3H", *deep[40, 60]),
        )
    four = np.dstack([SCENE, ALPHA])
    shown = over_white(SCENE, ALPHA)
    yield kind("RGB and alpha, 8-bit", shown, "over white", samples=four)
    yield kind(
        "RGB and alpha, 16-bit",
        shown,
        "over white",
        samples=four.astype(np.uint16) * 257,
        depth=16,
    )
    control = struct.pack(">IIIIIHHBB", 0, 64, 48, 0, 0, 1, 10, 0, 0)
    second = struct.pack(">I", 2) + zlib.compress(bytes(48 * (1 + 64 * 3)))
    yield Kind(
        "PNG",
        "animation",
        (
            rasters.png(
                SCENE,
                extra=rasters.chunk(b"acTL", struct.pack(">II", 2, 0))
                + rasters.chunk(b"fcTL", control),
                after=rasters.chunk(b"fcTL", struct.pack(">I", 1) + control[4:])
                + rasters.chunk(b"fdAT", second),
            ),
        ),
        SCENE,
        "its still picture, the first frame",
    )


def _jpeg_webp_avif() -> Iterator[Kind]:
    picture, grey = Image.fromarray(SCENE), Image.fromarray(GREY)
    good: dict[str, Any] = {"quality": 98, "subsampling": 0}
    ways: dict[str, dict[str, Any]] = {
        "RGB": {},
        "RGB, progressive": {"progressive": True},
        "RGB, stored as RGB": {"keep_rgb": True},
    }
    for name, options in ways.items():
        yield Kind(
            "JPEG", name, (encoded(picture, **good, **options),), SCENE, lossy=True, tolerance=4
        )
    yield Kind("JPEG", "grey", (encoded(grey, **good),), as_grey(GREY), lossy=True, tolerance=4)
    inks = (255 - np.dstack([SCENE, np.zeros_like(GREY)])).astype(np.uint8)
    inks[..., 3] = 40
    shown = (255 - inks[..., :3].astype(float)) * (215 / 255)
    cmyk = encoded(Image.frombuffer("CMYK", (64, 48), inks.tobytes()), **good)
    yield Kind("JPEG", "CMYK, as Adobe writes it: inverted", (cmyk,), shown, "as RGB", 4, True)
    other = encoded(picture.rotate(180), **good)
    frames = encoded(picture, "MPO", save_all=True, append_images=[picture.rotate(180)], **good)
    yield Kind("JPEG", "several pictures (MPO)", (frames,), SCENE, "the first", 4, True)
    yield Kind("JPEG", "another JPEG behind it", (cmyk + other,), shown, "the first", 4, True)
    deep = encoded(picture, **good)
    at = deep.index(b"\xff\xc0") + 4
    deep = deep[:at] + b"\x0c" + deep[at + 1 :]
    yield Kind("JPEG", "12-bit", (deep,), Reason.UNSUPPORTED_FORMAT)
    alpha = Image.fromarray(np.dstack([SCENE, ALPHA]))
    for group, options, tolerance in (
        ("WEBP", {"lossless": True, "exact": True}, 1.01),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4", "max_threads": 1}, 4),
    ):
        yield Kind(group, "RGB", (encoded(picture, group, **options),), SCENE, "read", tolerance,
                   tolerance > 2)  # fmt: skip
        yield Kind(
            group,
            "RGB and alpha",
            (encoded(alpha, group, **options),),
            over_white(SCENE, ALPHA),
            "over white",
            tolerance,
            tolerance > 2,
        )
        moving = encoded(
            picture, group, save_all=True, append_images=[picture.rotate(180)], **options
        )
        yield Kind(group, "animation", (moving,), SCENE, "the first frame", tolerance,
                   tolerance > 2)  # fmt: skip
    small = rasters.small_frame(encoded(picture, "WEBP", lossless=True), (64, 48), (80, 64), 8)
    yield Kind("WEBP", "a first frame smaller than the picture", (small,), _framed(SCENE),
               "white around it")  # fmt: skip
    lossy = encoded(picture, "WEBP", quality=98)
    yield Kind("WEBP", "RGB, lossy", (lossy,), SCENE, lossy=True, tolerance=14)


def _gif_bmp_ppm() -> Iterator[Kind]:
    paletted = Image.fromarray(INDICES.astype(np.uint8))
    paletted.putpalette(CUBE.astype(np.uint8).tobytes())
    plain = encoded(paletted, "GIF", interlace=False)
    yield Kind("GIF", "palette", (plain, encoded(paletted, "GIF", interlace=True)), IN_PALETTE)
    place = int(INDICES[5, 20])
    shown = np.where(np.equal(INDICES, place)[..., None], 255, IN_PALETTE)
    clear = encoded(paletted, "GIF", transparency=place, optimize=False)
    yield Kind("GIF", "a transparent colour", (clear,), shown, "over white")
    moving = encoded(paletted, "GIF", save_all=True, append_images=[paletted.rotate(180)])
    yield Kind("GIF", "animation", (moving,), IN_PALETTE, "the first frame")
    at = plain.index(b",", 13 + (3 << (plain[10] & 7) + 1))
    small = plain[:6] + struct.pack("<HH", 80, 64) + plain[10:]
    small = small[: at + 1] + struct.pack("<HH", 8, 8) + small[at + 5 :]
    yield Kind(
        "GIF",
        "a first frame smaller than the picture",
        (small,),
        _framed(IN_PALETTE),
        "white around it",
    )

    for header in (12, 40, 108, 124):
        options: dict[str, Any] = {"header": header}
        grey = rasters.bmp(INDICES, 8, palette=CUBE[:216], colours=216, **options)
        if header > 12:
            yield Kind("BMP", f"palette, header of {header}", (grey,), IN_PALETTE)
        yield Kind("BMP", f"24-bit, header of {header}", (rasters.bmp(SCENE, **options),), SCENE)
    two = np.array([[10, 20, 30], [240, 200, 90]])
    black_white = np.array([[0] * 3, [255] * 3])
    half = GREY >> 7
    yield Kind(
        "BMP",
        "palette of two colours, 1-, 4-, or 8-bit",
        tuple(rasters.bmp(half, depth, palette=two, colours=2) for depth in (1, 4, 8)),
        two[half],
    )
    yield Kind(
        "BMP",
        "black and white, 1-, 4-, or 8-bit",
        tuple(rasters.bmp(half, depth, palette=black_white, colours=2) for depth in (1, 4, 8)),
        black_white[half],
    )
    yield Kind(
        "BMP",
        "white and black",
        tuple(rasters.bmp(half, d, palette=black_white[::-1], colours=2) for d in (1, 4, 8)),
        black_white[1 - half],
    )
    yield Kind("BMP", "from the top down", (rasters.bmp(SCENE, top_down=True),), SCENE)
    four = np.dstack([SCENE, ALPHA])
    unused = rasters.bmp(four, 32)
    yield Kind("BMP", "32-bit", (unused,), SCENE, "the fourth byte is unused")
    words = four.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1, 1 << 24], np.uint32)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    yield Kind(
        "BMP",
        "32-bit with a mask of alpha",
        (rasters.bmp(words, 32, masks=masks, header=108),),
        over_white(SCENE, ALPHA),
        "over white",
    )
    yield Kind(
        "BMP",
        "32-bit with a mask of alpha, all of it 0",
        (rasters.bmp(words & 0xFFFFFF, 32, masks=masks, header=108),),
        SCENE,
        "alpha is ignored",
    )
    five = (SCENE >> 3).astype(np.uint16) @ np.array([1 << 10, 1 << 5, 1], np.uint16)
    yield Kind("BMP", "16-bit", (rasters.bmp(five, 16),), (SCENE >> 3) * (255 / 31))

    yield Kind(
        "PPM",
        "black and white (PBM)",
        tuple(rasters.netpbm(1 - half, 1, plain=plain) for plain in (False, True)),
        as_grey(half * 255),
    )
    for limit in (100, 255, 1000, 65535):
        for name, picture in (("grey (PGM)", GREY), ("RGB (PPM)", SCENE)):
            samples = (picture * (limit / 255)).round().astype(int)
            shown = as_grey(samples) if samples.ndim == 2 else samples
            yield Kind(
                "PPM",
                f"{name}, up to {limit}",
                tuple(rasters.netpbm(samples, limit, plain=plain) for plain in (False, True)),
                shown * (255 / limit),
                "scaled to 255" if limit != 255 else "read",
            )
    floats = b"Pf\n64 48\n-1.0\n" + (GREY / 255).astype("<f4")[::-1].tobytes()
    yield Kind("PPM", "grey float (PFM)", (floats,), as_grey(GREY), "as a float TIFF")


def _framed(frame: np.ndarray) -> np.ndarray:
    """What browsers show of a picture whose frame is smaller, at the size the table compares."""
    whole = np.full((64, 80, 3), 255, np.uint8)
    whole[8:56, 8:72] = frame
    square = Image.fromarray(whole).resize((SIZE, SIZE), 2, box=(8, 0, 72, 64), reducing_gap=2.0)
    return np.asarray(square)


def _tiff() -> Iterator[Kind]:
    def kind(
        name: str,
        samples: np.ndarray,
        depth: int,
        shown: np.ndarray | Reason,
        rule: str = "read",
        tolerance: float = 1.01,
        orders: str = "<>",
        layouts: tuple[dict[str, object], ...] = ({}, {"tile": 16}),
        **options: object,
    ) -> Kind:
        files = tuple(
            rasters.tiff(samples, depth, order=order, deflate=deflate, big=big, **layout, **options)  # type: ignore[arg-type]
            for order in orders
            for deflate in (False, True)
            for big in (False, True)
            for layout in layouts
        )
        return Kind("TIFF", name, files, shown, rule, tolerance)

    for depth in (1, 2, 4):
        samples = GREY >> (8 - depth)
        shown = as_grey(samples * (255 // (2**depth - 1)))
        yield kind(f"grey, {depth}-bit", samples, depth, shown)
        flipped = 2**depth - 1 - samples
        yield kind(f"grey, {depth}-bit, 0 is white", flipped, depth, shown, photometric=0)
    shown = as_grey(GREY)
    yield kind("grey, 8-bit", GREY, 8, shown)
    yield kind("grey, 8-bit, 0 is white", 255 - GREY, 8, shown, photometric=0)
    twelve = GREY.astype(np.uint16) * 16
    yield kind("grey, 12-bit", twelve, 12, shown, "high 8 bits", orders="<")
    yield kind("grey, 12-bit, big-endian", twelve, 12, Reason.UNSUPPORTED_FORMAT, orders=">")
    yield kind("grey, 16-bit", WIDE_GREY, 16, shown, "high 8 bits")
    inverse = 65535 - WIDE_GREY
    yield kind("grey, 16-bit, 0 is white", inverse, 16, shown, "high 8 bits", photometric=0)
    stretched = "see *Numbers without a range*"
    shifted = GREY.astype(np.int64)
    for name, values, depth, form in (
        ("grey, 8-bit signed", shifted // 2 - 60, 8, 2),
        ("grey, 16-bit signed", shifted * 100 - 9000, 16, 2),
        ("grey, 32-bit signed", shifted * 9000000 - 1000000000, 32, 2),
    ):
        signed = values.astype(f"i{depth // 8}")
        exact = (values - values.min()) / np.ptp(values) * 255
        yield kind(name, signed, depth, as_grey(exact), stretched, kind=form)
    whole = (GREY.astype(np.uint32) << 24) + 7
    yield kind("grey, 32-bit unsigned", whole, 32, shown, stretched, orders="<")
    refused = Reason.UNSUPPORTED_FORMAT
    yield kind("grey, 32-bit unsigned, big-endian", whole, 32, refused, orders=">")
    for name, scale in (("1", 1 / 255), ("255", 1.0), ("65535", 257.0)):
        samples = (GREY * scale).astype(np.float32)
        yield kind(f"grey, float up to {name}", samples, 32, shown, stretched, kind=3)
    samples = (GREY * 0.8 - 90).astype(np.float32)
    samples[3, 30] = np.nan
    samples[4, 31] = -3.4e38
    exact = shown.astype(float)
    exact[3, 30] = exact[4, 31] = 0
    yield kind("grey, float of another range", samples, 32, exact, stretched, kind=3)
    yield kind("grey, float, 0 is white", 1 - GREY.astype(np.float32) / 255, 32, shown, stretched,
               kind=3, photometric=0)  # fmt: skip
    half = (GREY / 255).astype(np.float16)
    yield kind("grey, 16- or 64-bit float", half, 16, refused, kind=3)
    both = np.dstack([GREY, ALPHA])
    blended = over_white(shown, ALPHA)
    yield kind("grey and alpha, 8-bit", both, 8, blended, "over white", extra=[2], photometric=1)
    premultiplied = np.dstack([(GREY * (ALPHA / 255)).round().astype(np.uint8), ALPHA])
    yield kind("grey and premultiplied alpha", premultiplied, 8, blended, "over white", 3,
               extra=[1], photometric=1)  # fmt: skip
    yield kind("grey and alpha, separate planes", both, 8, refused, extra=[2], photometric=1,
               layouts=({"planar": True},))  # fmt: skip
    yield kind("grey and alpha, 16-bit", both.astype(np.uint16) * 257, 16, refused, extra=[2],
               photometric=1)  # fmt: skip
    layouts: tuple[dict[str, object], ...] = (
        {},
        {"tile": 16},
        {"planar": True},
        {"planar": True, "tile": 32},
    )
    yield kind("palette", INDICES, 8, IN_PALETTE, palette=np.vstack([CUBE, np.zeros((40, 3), int)]))
    yield kind("RGB, 8-bit", SCENE, 8, SCENE, layouts=layouts)
    yield kind("RGB, 16-bit", WIDE, 16, SCENE, "high 8 bits", layouts=layouts)
    yield kind("RGB, float", SCENE.astype(np.float32) / 255, 32, refused, kind=3)
    four = np.dstack([SCENE, ALPHA])
    blended = over_white(SCENE, ALPHA)
    yield kind("RGB and alpha, 8-bit", four, 8, blended, "over white", extra=[2], layouts=layouts)
    yield kind("RGB and alpha, 16-bit", four.astype(np.uint16) * 257, 16, blended, "over white",
               extra=[2], layouts=layouts)  # fmt: skip
    premultiplied = np.dstack([(SCENE * (ALPHA / 255)[..., None]).round(), ALPHA])
    yield kind("RGB and premultiplied alpha", premultiplied.astype(np.uint8), 8, blended,
               "over white", 3, extra=[1])  # fmt: skip
    yield kind("RGB and one more sample", four, 8, SCENE, "the fourth is ignored", extra=[0])
    inks = np.dstack([255 - SCENE, np.full_like(GREY, 40)])
    printed = SCENE * (215 / 255)
    yield kind("CMYK, 8-bit", inks, 8, printed, "as RGB", photometric=5, layouts=layouts)
    yield kind("CMYK, 16-bit", inks.astype(np.uint16) * 257, 16, printed, "as RGB", photometric=5,
               layouts=layouts)  # fmt: skip
    luma = np.asarray(Image.fromarray(SCENE).convert("YCbCr"))
    yield kind("YCbCr", luma, 8, SCENE, "as RGB", 3, photometric=6, tags=[(530, 3, [1, 1])])
    lab = np.asarray(Image.fromarray(SCENE).convert("LAB"))
    yield kind("LAB", lab, 8, SCENE, "as RGB", 8, photometric=8)
    first = rasters.tiff(SCENE)
    pages = encoded(
        Image.fromarray(SCENE), "TIFF", save_all=True,
        append_images=[Image.fromarray(SCENE).rotate(180)],
    )  # fmt: skip
    yield Kind("TIFF", "several pages", (pages, first), SCENE, "the first")
    for method in ("tiff_lzw", "packbits", "tiff_adobe_deflate"):
        data = encoded(Image.fromarray(SCENE), "TIFF", compression=method)
        yield Kind("TIFF", f"compressed, {method.removeprefix('tiff_')}", (data,), SCENE)
    data = encoded(Image.fromarray(SCENE), "TIFF", compression="jpeg", quality=98)
    yield Kind("TIFF", "compressed, JPEG", (data,), SCENE, lossy=True, tolerance=8)
    fax = encoded(Image.fromarray(GREY > 127), "TIFF", compression="group4")
    yield Kind("TIFF", "compressed, fax group 4", (fax,), as_grey((GREY > 127) * 255))
    raw = rasters.tiff(SCENE, tags=[(50706, 1, [1, 4, 0, 0])])
    yield Kind("TIFF", "camera raw (DNG)", (raw,), refused)


def _others() -> Iterator[Kind]:
    heads = {
        "JPEG 2000": encoded(Image.fromarray(SCENE), "JPEG2000"),
        "JPEG-LS": b"\xff\xd8\xff\xf7" + bytes(60),
        "JPEG XR": b"II\xbc\x01" + bytes(60),
        "PSD": b"8BPS\0\1" + bytes(60),
        "OpenEXR": b"\x76\x2f\x31\x01" + bytes(60),
        "Radiance HDR": b"#?RADIANCE\n" + bytes(60),
        "ICO": encoded(Image.fromarray(SCENE), "ICO"),
        "QOI": encoded(Image.fromarray(SCENE), "QOI"),
        "PAM": b"P7\nWIDTH 2\n",
        "colour PFM": b"PF\n2 2\n-1.0\n",
        "camera raw (CR3)": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    }
    for name, data in heads.items():
        yield Kind("other", name, (data,), Reason.UNSUPPORTED_FORMAT)
    for name, data in {
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "PDF": b"%PDF-1.7\n",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0",
        "text": b"a picture of a cat",
    }.items():
        yield Kind("other", name, (data,), Reason.NOT_AN_IMAGE)


def table() -> str:
    """The table of docs/input.md, from what the decoder does."""
    rows: dict[tuple[str, str], list[str]] = {}
    for kind in kinds():
        rows.setdefault((kind.group, kind.outcome()), []).append(kind.name)
    lines = ["| format | kinds | what becomes of them |", "|---|---|---|"]
    lines += [f"| {group} | {'; '.join(names)} | {to} |" for (group, to), names in rows.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
