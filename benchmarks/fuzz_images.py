"""Whether a damaged picture ever ends its decoder, and damaged metadata ever changes a pixel.

    python -m benchmarks.fuzz_images [--files 30000] [--seed 1] [--out FILE]

Files of every kind that tests/picture_kinds.py knows are damaged: bits flipped, bytes overwritten,
parts cut out, doubled, mixed with those of another file, numbers set to extremes. Each is decoded
in a guarded child. A quarter of the files is damaged within its metadata only: these must decode to
the pixels of the whole file. Bytes of a colour profile decide colours, so there a damaged file must
decode, to whatever colours. The same seed makes the same files.
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, features

from dq_cluster.images.config import ImageLimits
from dq_cluster.images.guard import ChildDecoder, Decode
from dq_cluster.images.rejects import Reason, RejectError
from tests import picture_kinds, rasters
from tests.pictures import encoded

SIZE = 48
LIMITS = ImageLimits(max_pixels=10_000_000, max_seconds=10)
EXTREMES = [
    bytes(4),
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\1",
    b"\1\0\0\0",
]
TEXT = b"a remark of some length. " * 8
SCENE = rasters.scene()


@dataclass
class Tally:
    """What became of the files of one format."""

    files: int = 0
    decoded: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    crashes: int = 0
    metadata_files: int = 0
    silent_differences: int = 0


def fuzz(files: int, seed: int, decode: Decode) -> tuple[dict[str, Tally], list[tuple[str, bytes]]]:
    """Damage and decode `files` files; also the files that crashed or differ, and in what."""
    rng = random.Random(seed)
    whole: dict[str, list[bytes]] = {}
    for kind in picture_kinds.kinds():
        if isinstance(kind.shown, np.ndarray):
            whole.setdefault(kind.group, []).extend(kind.files)
    remarks = {name: [(*each, decode(each[0], SIZE)) for each in found]
               for name, found in _with_metadata().items()}  # fmt: skip
    names, tallies, found = sorted(whole), {name: Tally() for name in whole}, []
    for number in range(files):
        name = names[number % len(names)]
        tally, expected = tallies[name], None
        if number // len(names) % 4 == 0 and name in remarks:
            base, start, end, colours, expected = rng.choice(remarks[name])
            data = base[:start] + _overwritten(base[start:end], rng) + base[end:]
            tally.metadata_files += 1
        else:
            one, other = rng.choice(whole[name]), rng.choice(whole[name])
            by_chunk = name == "PNG" and rng.random() < 0.7
            data = _damaged_chunk(one, other, rng) if by_chunk else _damaged(one, other, rng)
        tally.files += 1
        try:
            pixels = decode(data, SIZE)
            tally.decoded += 1
            same = expected is None or colours or bool((pixels == expected).all())
        except RejectError as error:
            tally.rejected[error.reason.value] += 1
            same = expected is None
            if error.reason is Reason.CRASHED_DECODER:
                tally.crashes += 1
                found.append((f"{name}: crash", data))
        if not same:
            tally.silent_differences += 1
            found.append((f"{name}: metadata", data))
    return tallies, found


def _damaged(data: bytes, other: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 4))):
        # Headers decide most: two thirds of the damage are near the start or the end.
        last = len(data) - 1
        near = min(rng.randrange(200), last)
        at = rng.choice((near, last - near, rng.randint(0, last)))
        size = min(rng.choice((1, 2, 4, 8, 30, 200)), len(data) - at)
        damage = rng.randrange(8)
        if damage == 0:
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif damage == 1:
            data = data[:at] + rng.randbytes(size) + data[at + size :]
        elif damage == 2:
            data = data[:at]
        elif damage == 3:
            data = data[:at] + data[at + size :]
        elif damage == 4:
            data = data[: at + size] + data[at:]
        elif damage == 5:
            data = data[:at] + rng.choice(EXTREMES) + data[at + 4 :]
        elif damage == 6:
            data = data[:at] + other[rng.randrange(len(other)) :]
        else:
            data = data[:at] + rng.randbytes(size) + data[at:]
        if not data:
            break
    return data


def _damaged_chunk(png: bytes, other: bytes, rng: random.Random) -> bytes:
    """A PNG with damage that its checksums do not tell."""
    chunks, at = [], 8
    while at + 8 <= len(png):
        size = int.from_bytes(png[at : at + 4])
        chunks.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + size]))
        at += 12 + size
    place = rng.randrange(len(chunks))
    name, body = chunks[place]
    chunks[place] = (name, _damaged(body or b"\0", other, rng))
    if rng.random() < 0.3:
        chunks.insert(rng.randrange(len(chunks)), rng.choice(chunks))
    return png[:8] + b"".join(rasters.chunk(*each) for each in chunks)


def _overwritten(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 4, 30))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _with_metadata() -> dict[str, list[tuple[bytes, int, int, bool]]]:
    """Files with a remark, where its content starts and ends, and whether it decides colours."""
    image = Image.fromarray(SCENE)
    exif = Image.Exif()
    exif[0x010E], exif[0x0131] = TEXT.decode(), "a program"
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    jpeg, webp = encoded(image, quality=90), encoded(image, "WEBP")
    gif = encoded(image, "GIF")
    table = 13 + (3 << (gif[10] & 7) + 1)
    segment, chunk = rasters.segment, rasters.chunk
    files: dict[str, list[tuple[bytes, bytes, bool]]] = {
        "PNG": [
            *(
                (rasters.png(SCENE, extra=chunk(name, data)), data, name == b"iCCP")
                for name, data in (
                    (b"tEXt", b"key\0" + TEXT),
                    (b"zTXt", b"key\0\0" + TEXT),
                    (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TEXT),
                    (b"eXIf", block),
                    (b"iCCP", b"name\0\0" + TEXT),
                    (b"gAMA", b"\0\0\xb1\x8f"),
                    (b"pHYs", b"\0\0\x0b\x13\0\0\x0b\x13\1"),
                    (b"acTL", b"\0\0\0\2\0\0\0\0"),
                )
            ),
        ],
        "JPEG": [
            (rasters.with_segments(jpeg, segment(marker, data)), content, content is icc)
            for marker, data, content in (
                (0xE1, b"Exif\0\0" + block, block),
                (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + TEXT, TEXT),
                (0xE2, b"ICC_PROFILE\0\1\1" + icc, icc),
                (0xE2, b"MPF\0" + TEXT, TEXT),
                (0xED, b"Photoshop 3.0\0" + TEXT, TEXT),
                (0xFE, TEXT, TEXT),
            )
        ],
        "WEBP": [
            (rasters.with_riff_chunks(webp, 64, 48, (name, data)), data, name == b"ICCP")
            for name, data in ((b"EXIF", block), (b"XMP ", TEXT), (b"ICCP", icc), (b"junk", TEXT))
        ],
        "GIF": [
            (gif[:table] + b"!\xfe\xc8" + TEXT + b"\0" + gif[table:], TEXT, False),
            (gif[:table] + b"!\xff\xc8" + TEXT + b"\0" + gif[table:], TEXT, False),
        ],
        "TIFF": [
            (rasters.tiff(SCENE, tags=[(tag, 7, content)], order=order), content, tag == 34675)
            for tag, content in ((270, TEXT), (700, TEXT), (34675, icc), (33723, TEXT))
            for order in "<>"
        ],
        "AVIF": [(encoded(image, "AVIF", exif=exif.tobytes(), max_threads=1), block, False)],
        "BMP": [(rasters.bmp(SCENE) + TEXT, TEXT, False)],
        "PPM": [(rasters.netpbm(SCENE) + TEXT, TEXT, False)],
    }
    return {
        name: [(data, at := data.index(part), at + len(part), colours)
               for data, part, colours in each]
        for name, each in files.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the result here too")
    parser.add_argument("--keep", type=Path, help="write files that crashed or differ here")
    asked = parser.parse_args()
    started = time.monotonic()
    with ChildDecoder(LIMITS) as decode:
        tallies, found = fuzz(asked.files, asked.seed, decode)
    for number, (why, data) in enumerate(found):
        print(why, len(data), "bytes", file=sys.stderr)
        if asked.keep:
            asked.keep.mkdir(parents=True, exist_ok=True)
            (asked.keep / f"{number}-{why.replace(': ', '-')}").write_bytes(data)
    libraries = ("jpg", "libtiff", "webp", "avif", "zlib", "littlecms2")
    result = {
        "command": f"python -m benchmarks.fuzz_images --files {asked.files} --seed {asked.seed}",
        "hardware": f"{_cores()} cores {_processor()}",
        "versions": {"python": platform.python_version(), "pillow": version("pillow")}
        | {name: features.version(name) for name in libraries},
        "seconds": round(time.monotonic() - started),
        "files": sum(tally.files for tally in tallies.values()),
        "crashes": sum(tally.crashes for tally in tallies.values()),
        "silent_differences": sum(tally.silent_differences for tally in tallies.values()),
        "formats": {name: vars(tally) for name, tally in sorted(tallies.items())},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(text + "\n")
    sys.exit(bool(found))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
