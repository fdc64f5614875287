"""What a file says besides its pixels never changes them, and never gets a picture rejected."""

import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from dq_cluster.images.decode import Reason, RejectError, decode_image
from tests import rasters
from tests.pictures import encoded

SCENE = rasters.scene()
IMAGE = Image.fromarray(SCENE)
NOISE = random.Random(0).randbytes(3000)
PNG = rasters.png(SCENE)
JPEG = encoded(IMAGE, quality=90)
WEBP = encoded(IMAGE, "WEBP")
GIF = encoded(IMAGE, "GIF")
BMP = rasters.bmp(SCENE)
TIFF = rasters.tiff(SCENE)
BROKEN_EXIF = {
    "garbage": b"not-a-tiff",
    "noise": NOISE,
    "cut": rasters.exif(1)[:12],
    "beyond": b"II*\0\xff\xff\xff\x7f",
    "of itself": b"MM\0*\0\0\0\0" + bytes(30),
    "many entries": b"II*\0\x08\0\0\0\xff\xff" + bytes(30),
}


def png_files() -> Iterator[tuple[str, bytes]]:
    chunk = rasters.chunk
    long = b"a prompt " * 250_000
    packed = zlib.compress(long)
    chunks = {
        "2 MB of zTXt": chunk(b"zTXt", b"parameters\0\0" + packed),
        "2 MB of iTXt": chunk(b"iTXt", b"parameters\0\1\0\0\0" + packed),
        "2 MB of tEXt": chunk(b"tEXt", b"parameters\0" + long),
        "80 MB of text": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20))) * 80,
        "2 MB of XMP": rasters.itxt(long, compressed=True),
        "text of no known compression": chunk(b"zTXt", b"k\0\x09data"),
        "text that is not compressed": chunk(b"zTXt", b"k\0\0data"),
        "text without a key": chunk(b"tEXt", b"\0\0\0"),
        "text in no encoding": chunk(b"iTXt", b"\xff\0\0\0\xff\0\xff\0\xff"),
        "a profile of noise": chunk(b"iCCP", b"icc\0\0" + zlib.compress(NOISE)),
        "1.5 MB of profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(NOISE * 500)),
        "a profile that is a bomb": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(50 << 20))),
        "a profile that is not compressed": chunk(b"iCCP", b"icc\0\0" + NOISE),
        "a profile of no known compression": chunk(b"iCCP", b"icc\0\7" + NOISE),
        "an empty profile": chunk(b"iCCP", b""),
        "a raw profile of noise": chunk(b"zTXt", b"Raw profile type exif\0\0" + NOISE),
        "a raw profile of letters": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 9\nxyz"),
        "an animation of no frames": chunk(b"acTL", bytes(8)),
        "an animation out of order": chunk(b"acTL", struct.pack(">II", 2, 0))
        + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 7, 999, 999, 9, 9, 1, 10, 0, 0)),
        "a private chunk": chunk(b"prVt", NOISE),
        "an unknown chunk": chunk(b"ABCD", NOISE),
    }
    chunks |= {f"eXIf: {name}": chunk(b"eXIf", data) for name, data in BROKEN_EXIF.items()}
    for kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"pHYs",
                 b"bKGD", b"tIME", b"hIST", b"sBIT", b"acTL", b"fcTL", b"cICP"):  # fmt: skip
        for size in (0, 1, 3, 40):
            text = kind.decode()
            chunks[f"{text} of {size} bytes"] = chunk(kind, NOISE[:size])
            chunks[f"{text} of {size} bytes, wrong sum"] = chunk(kind, NOISE[:size], crc=1)
    for name, data in chunks.items():
        yield name, rasters.png(SCENE, extra=data)
        yield name + ", behind the pixels", rasters.png(SCENE, after=data)
    yield "something behind the end", PNG + NOISE
    yield "no end", PNG[:-12]
    yield "half an end", PNG[:-5]
    yield "a cut remark at the end", PNG[:-12] + chunk(b"tEXt", b"k\0" + NOISE)[:-100]
    at = PNG.index(b"IDAT") - 4
    (length,) = struct.unpack(">I", PNG[at : at + 4])
    pixels = PNG[at + 8 : at + 8 + length]
    parts = [chunk(b"IDAT", pixels[n : n + 100]) for n in range(0, length, 100)]
    yield "a remark between the pixels", PNG[:at] + chunk(b"tEXt", b"k\0v").join(parts)


def jpeg_files() -> Iterator[tuple[str, bytes]]:
    segment = rasters.segment
    segments = {f"APP{n}": segment(0xE0 + n, NOISE) for n in range(16)}
    segments |= {f"empty APP{n}": segment(0xE0 + n, b"") for n in range(16)}
    exif = {name: segment(0xE1, b"Exif\0\0" + data) for name, data in BROKEN_EXIF.items()}
    segments |= {f"EXIF: {name}": data for name, data in exif.items()}
    segments |= {
        "EXIF with an absurd resolution": segment(
            0xE1,
            b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x1a\0\5\0\0\0\1\xff\xff\xff\xff\0\0\0\0",
        ),
        "XMP of noise": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + NOISE),
        "a profile of noise": segment(0xE2, b"ICC_PROFILE\0\1\1" + NOISE),
        "a part of a profile": segment(0xE2, b"ICC_PROFILE\0\1\5" + NOISE),
        "a profile of no parts": segment(0xE2, b"ICC_PROFILE\0\0\0"),
        "pictures that are missing (MPF)": segment(0xE2, b"MPF\0" + NOISE),
        "a cut JFIF": segment(0xE0, b"JFIF\0"),
        "a cut Adobe": segment(0xEE, b"Adobe\0"),
        "Photoshop's noise": segment(0xED, b"Photoshop 3.0\x008BIM" + NOISE),
        "comments": segment(0xFE, NOISE) * 30,
        "a megabyte of remarks": segment(0xEB, bytes(65000)) * 16,
        "bytes that fill": b"\xff" * 100,
        "noise without markers": NOISE.replace(b"\xff", b""),
        "a segment without a length": b"\xff\xe5\0\0",
        "a segment shorter than it says": b"\xff\xe5\0\1",
        "a preview": segment(0xE1, b"Exif\0\0" + rasters.exif(1) + encoded(IMAGE.rotate(180))),
    }
    for name, data in segments.items():
        if data.startswith(b"\xff"):  # which is how a JPEG is told
            yield name, rasters.with_segments(JPEG, data)
        at = JPEG.index(b"\xff\xda")
        yield name + ", before the pixels", JPEG[:at] + data + JPEG[at:]
    yield "noise behind the end", JPEG + NOISE
    yield "another picture behind the end", JPEG + encoded(IMAGE.rotate(180))


def webp_files() -> Iterator[tuple[str, bytes]]:
    def extended(*chunks: tuple[bytes, bytes]) -> bytes:
        return rasters.with_riff_chunks(WEBP, 64, 48, *chunks)

    for name, data in BROKEN_EXIF.items():
        yield f"EXIF: {name}", extended((b"EXIF", data))
    for kind in (b"EXIF", b"XMP ", b"ICCP", b"junk", b"\0\xff\0\xff"):
        for size in (0, 1, 3000):
            yield f"{kind!r} of {size} bytes", extended((kind, NOISE[:size]))
    whole = extended((b"EXIF", rasters.exif(1)), (b"XMP ", rasters.xmp(1)))
    yield "a flag of what is missing", whole[: whole.index(b"EXIF")]
    yield "the end is missing from the last remark", whole[:-20]
    for size in (0, 10, len(whole) + 1000, 0xFFFFFFF0):
        yield f"{size} bytes, it says", whole[:4] + struct.pack("<I", size) + whole[8:]
        yield f"{size} bytes, it says, simple", WEBP[:4] + struct.pack("<I", size) + WEBP[8:]
    yield "noise behind the end", WEBP + NOISE
    yield "another picture behind the end", WEBP + encoded(IMAGE.rotate(180), "WEBP")[12:]


def gif_files() -> Iterator[tuple[str, bytes]]:
    start = 13 + (3 << (GIF[10] & 7) + 1)
    for name, block in {
        "a comment": b"!\xfe\x05hello\0",
        "a thousand comments": b"!\xfe\xff" + bytes(255) + b"\xff" + bytes(255) + b"\0",
        "a loop of nothing": b"!\xff\x0bNETSCAPE2.0\0",
        "an application's noise": b"!\xff\xff" + NOISE[:255] + b"\0",
        "plain text": b"!\x01\x0c" + bytes(12) + b"\x02hi\0",
        "an unknown extension": b"!\x77\x03abc\0",
        "an empty extension": b"!\x88\0",
    }.items():
        yield name, GIF[:start] + block + GIF[start:]
        yield name + ", at the end", GIF[:-1] + block + b";"
    yield "noise behind the end", GIF + NOISE
    yield "no end", GIF[:-1]


def bmp_files() -> Iterator[tuple[str, bytes]]:
    for place, size in ((2, 4), (6, 4), (34, 4), (38, 4), (42, 4), (50, 4), (26, 2)):
        yield f"noise at {place}", BMP[:place] + NOISE[:size] + BMP[place + size :]
    yield "noise behind the end", BMP + NOISE
    (start,) = struct.unpack_from("<I", BMP, 10)
    moved = BMP[:10] + struct.pack("<I", start + 100) + BMP[14:start] + NOISE[:100] + BMP[start:]
    yield "noise between header and pixels", moved
    profile = rasters.bmp(SCENE, header=124)
    yield "a profile beyond the end", profile[:126] + b"\xff" * 12 + profile[138:]


def tiff_files() -> Iterator[tuple[str, bytes]]:
    numbers = [254, 255, 263, 264, 265, *range(269, 273), *range(280, 284), 285, 286, 290, 291, 296]
    numbers += [297, 301, 305, 306, 315, 316, 318, 319, 330, 333, 336, 337, 340, 341, 700, 33432]
    numbers += [33550, 33723, 33922, 34377, 34665, 34675, 34735, 34853, 37724, 40965, 42112, 42113]
    numbers += [50838, 65000]
    for number in numbers:
        for form, values in ((1, NOISE[:99]), (2, b"text"), (3, [65535]), (4, [2**32 - 1])):
            if number not in (254, 330) or form == 1:
                yield f"{number} as {form}", rasters.tiff(SCENE, tags=[(number, form, values)])
                data = rasters.tiff(SCENE, order=">", big=True, tags=[(number, form, values)])
                yield f"{number} as {form}, big", data
    plain = rasters.tiff(SCENE, tags=[(270, 2, b"0123456789")])
    at = plain.index(struct.pack("<HHI", 270, 2, 10))
    for name, entry in {
        "text beyond the end": struct.pack("<HHII", 270, 2, 99, 2**31),
        "endless text": struct.pack("<HHII", 270, 2, 2**32 - 1, 8),
        "text of no known type": struct.pack("<HHII", 270, 99, 1, 8),
        "a ratio of nothing": struct.pack("<HHII", 282, 5, 1, 8),
    }.items():
        yield name, plain[:at] + entry + plain[at + 12 :]
    for next_one in (8, len(plain) - 5, 2**32 - 1):
        (directory,) = struct.unpack_from("<I", plain, 4)
        end = directory + 2 + 12 * struct.unpack_from("<H", plain, directory)[0]
        data = plain[:end] + struct.pack("<I", next_one) + plain[end + 4 :]
        yield f"next page at {next_one}", data
    yield "noise behind the end", TIFF + NOISE


FILES = {
    "PNG": (PNG, png_files),
    "JPEG": (JPEG, jpeg_files),
    "WEBP": (WEBP, webp_files),
    "GIF": (GIF, gif_files),
    "BMP": (BMP, bmp_files),
    "TIFF": (TIFF, tiff_files),
}


@pytest.mark.parametrize("kind", FILES)
def test_metadata_changes_no_pixel_and_rejects_no_picture(kind: str) -> None:
    plain, files = FILES[kind]
    expected, wrong = decode_image(plain, 48), []
    for name, data in files():
        try:
            if (decode_image(data, 48) != expected).any():
                wrong.append(f"{name}: other pixels")
        except RejectError as error:
            wrong.append(f"{name}: {error}")
    assert not wrong


def test_the_metadata_of_avif_changes_no_pixel() -> None:
    expected = decode_image(encoded(IMAGE, "AVIF", max_threads=1), 48)
    for data in (*BROKEN_EXIF.values(), NOISE):
        exif = Image.Exif()
        exif[0x010E] = "x" * len(data)
        whole = encoded(IMAGE, "AVIF", exif=exif.tobytes(), xmp=NOISE, max_threads=1)
        at = whole.index(b"x" * len(data))
        block = whole.rindex(b"MM\0*", 0, at)
        damaged = whole[:block] + data[: at - block] + whole[block + len(data[: at - block]) :]
        np.testing.assert_array_equal(decode_image(damaged, 48), expected)


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_a_wrong_checksum_of_what_decides_pixels_is_corrupt(name: bytes) -> None:
    palette = np.arange(256)[:, None] * [1, 1, 1]
    data = rasters.png(SCENE[..., 0], palette=palette, transparent=bytes(range(256)))
    at = data.index(name) - 4
    end = at + 12 + struct.unpack_from(">I", data, at)[0]
    decode_image(data, 48)
    for place in (at + 9, end - 1):
        damaged = bytearray(data)
        damaged[place] ^= 4
        with pytest.raises(RejectError) as raised:
            decode_image(bytes(damaged), 48)
        assert raised.value.reason is Reason.CORRUPT


def test_a_png_cut_anywhere_in_its_pixels_is_truncated() -> None:
    at = PNG.index(b"IDAT")
    for end in range(at + 5, len(PNG) - 16, 7):
        with pytest.raises(RejectError) as raised:
            decode_image(PNG[:end], 48)
        assert raised.value.reason is Reason.TRUNCATED
