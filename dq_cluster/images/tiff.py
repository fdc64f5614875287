"""Directories of TIFF, which EXIF is too: read from bytes, and written anew for Pillow.

Pillow reads TIFF well once the directory holds what decides the pixels and nothing else: it turns
pictures by itself in some cases, and stumbles over damaged entries that only describe the picture.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from dq_cluster.images.rejects import Reason, RejectError

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}  # of BigTIFF
_LETTERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 256, 257, 258, 259, 262, 274
SAMPLES, PLANAR, SAMPLE_FORMAT, XMP, PROFILE = 277, 284, 339, 700, 34675
_PREDICTOR = 317
_STRIPS, _TILES, _ROWS_PER_STRIP = 273, 324, 278
_PARTS = {_STRIPS: 279, _TILES: 325}  # the tags of offsets, and of sizes
_DECIDE_PIXELS = frozenset(
    [256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325]
    + [332, 338, 339, 347, *range(512, 522), *range(529, 533)]
)
_MOST_ENTRIES, _MOST_PARTS = 65535, 1 << 20
_REDUCED, _SUB_DIRECTORIES, _DNG_VERSION = 254, 330, 50706


@dataclass(frozen=True)
class Entry:
    """form: the TIFF type of the values; raw: their bytes, in the order of the file."""

    form: int
    count: int
    raw: bytes


@dataclass(frozen=True)
class Directory:
    """The first directory of a TIFF. order: that of bytes, `<` or `>`. cut: the tags whose values
    lie beyond the end; None in it stands for entries that do themselves."""

    order: str
    entries: dict[int, Entry]
    cut: frozenset[int | None] = frozenset()

    def numbers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The whole numbers of a tag; `default` where there are none."""
        entry = self.entries.get(tag)
        letter = _LETTERS.get(entry.form) if entry else None
        if entry is None or letter is None or not entry.count:
            return default
        return struct.unpack(f"{self.order}{entry.count}{letter}", entry.raw)

    def number(self, tag: int, default: int) -> int:
        return self.numbers(tag, (default,))[0]

    def orientation(self) -> int | None:
        """1 to 8 as EXIF numbers them; None where the tag is missing or says nothing sensible."""
        value = self.number(ORIENTATION, 0)
        return value if 1 <= value <= 8 else None


def read_directory(data: bytes) -> Directory | None:
    """The first directory of the TIFF in `data`, without entries of types that do not exist.

    None where there is no directory.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return None
    big = 43 in struct.unpack(order + "H", data[2:4])
    count, word, room = ("Q", "Q", 8) if big else ("H", "I", 4)
    head = struct.calcsize(order + count)
    (at,) = struct.unpack_from(order + word, data, 8 if big else 4)
    if at + head > len(data):
        return None
    length = min(struct.unpack_from(order + count, data, at)[0], _MOST_ENTRIES)
    step, at = 4 + 2 * room, at + head
    entries: dict[int, Entry] = {}
    cut: set[int | None] = {None} if at + length * step > len(data) else set()
    for place in range(at, min(at + length * step, len(data) - step + 1), step):
        tag, form, count_of = struct.unpack_from(order + "HH" + word, data, place)
        size = count_of * _SIZES.get(form, 0)
        start = place + 4 + room
        if size > room:
            (start,) = struct.unpack_from(order + word, data, start)
        if start + size > len(data):
            cut.add(tag)
        elif form in _SIZES:
            entries.setdefault(tag, Entry(form, count_of, data[start : start + size]))
    return Directory(order, entries, frozenset(cut))


def bare(data: bytes, directory: Directory) -> tuple[bytes, bool]:
    """The TIFF's first page with nothing but what decides its pixels; whether to invert them.

    Raises RejectError for what Pillow would read wrongly and for parts beyond the end.
    """
    entries = {tag: each for tag, each in directory.entries.items() if tag in _DECIDE_PIXELS}
    if _DNG_VERSION in directory.entries or (
        directory.number(_REDUCED, 0) & 1 and _SUB_DIRECTORIES in directory.entries
    ):
        raise RejectError(Reason.UNSUPPORTED_FORMAT, "it is camera raw; convert it to JPEG or PNG")
    if directory.cut & {None, *_DECIDE_PIXELS}:
        raise RejectError(Reason.TRUNCATED)
    if WIDTH not in entries or any(each.count > _MOST_PARTS for each in entries.values()):
        raise RejectError(Reason.CORRUPT)
    kept = Directory(directory.order, entries)
    planar, photometric = kept.number(PLANAR, 1) == 2, kept.number(PHOTOMETRIC, 0)
    if planar and kept.number(SAMPLES, 1) == 2:
        raise RejectError(Reason.UNSUPPORTED_FORMAT, "grey and alpha in separate planes")
    for places in _PARTS:
        if any(at + size > len(data) for at, size in _parts(kept, places)):
            raise RejectError(Reason.TRUNCATED)
    body = data[8:]
    if _is_raw(kept) and (planar or photometric == 6):
        # Pillow's own reader of uncompressed data garbles planes of 16 bits and subsampled
        # YCbCr; libtiff, which reads what is compressed, does not.
        body = _deflated(data, kept)
    inverted = photometric == 0 and max(kept.numbers(BITS, (1,))) > 8
    if inverted:  # which Pillow does for up to 8 bits only
        _set(kept, PHOTOMETRIC, 1)
    body += b"\0" * (len(body) % 2)
    mark = b"II" if kept.order == "<" else b"MM"
    at = 8 + len(body)
    head = mark + struct.pack(kept.order + "HI", 42, at)
    return head + body + _written(kept, at), inverted


def _is_raw(directory: Directory) -> bool:
    return directory.number(COMPRESSION, 1) == 1


def _parts(directory: Directory, places: int) -> Iterator[tuple[int, int]]:
    """The offset and size of each strip or tile. Of raw strips at most what their rows need, as
    their sizes in the file are sometimes wrong or missing, and never used."""
    height, bits = directory.number(HEIGHT, 0), directory.numbers(BITS, (1,))
    samples, planar = directory.number(SAMPLES, 1), directory.number(PLANAR, 1) == 2
    depth = bits[0] if planar else sum(bits) if len(bits) == samples else bits[0] * samples
    row = (directory.number(WIDTH, 0) * depth + 7) // 8
    rows = max(min(directory.number(_ROWS_PER_STRIP, height), height), 1)
    strips = -(-height // rows) or 1
    raw = _is_raw(directory)
    offsets = directory.numbers(places)
    sizes = directory.numbers(_PARTS[places], (2**32 if raw else 0,) * len(offsets))
    for number, (at, size) in enumerate(zip(offsets, sizes, strict=False)):
        if raw and places == _STRIPS:
            size = min(size, row * min(rows, height - number % strips * rows))
        yield at, size


def _set(directory: Directory, tag: int, *values: int) -> None:
    raw = struct.pack(f"{directory.order}{len(values)}I", *values)
    directory.entries[tag] = Entry(4, len(values), raw)


def _deflated(data: bytes, directory: Directory) -> bytes:
    """The body of a TIFF with each strip or tile of `data` in a wrap of deflate."""
    body = data[8:]
    for places, sizes in _PARTS.items():
        parts = [zlib.compress(data[at : at + size], 0) for at, size in _parts(directory, places)]
        if parts:
            starts = [8 + len(body)]
            for part in parts[:-1]:
                starts.append(starts[-1] + len(part))
            body += b"".join(parts)
            _set(directory, places, *starts)
            _set(directory, sizes, *map(len, parts))
            _set(directory, COMPRESSION, 8)
    directory.entries.pop(_PREDICTOR, None)  # which counts for compressed data only
    return body


def _written(directory: Directory, at: int) -> bytes:
    """The directory as it stands at `at` in a file. 64-bit numbers become 32-bit ones."""
    order, entries = directory.order, sorted(directory.entries.items())
    beyond_at = at + 2 + 12 * len(entries) + 4
    table, beyond = struct.pack(order + "H", len(entries)), b""
    for tag, entry in entries:
        form, raw = entry.form, entry.raw
        if _LETTERS.get(form) == "Q":
            numbers = (min(n, 2**32 - 1) for n in directory.numbers(tag))
            form, raw = 4, struct.pack(f"{order}{entry.count}I", *numbers)
        if len(raw) > 4:
            place = beyond_at + len(beyond)
            beyond += raw + b"\0" * (len(raw) % 2)
            raw = struct.pack(order + "I", place)
        table += struct.pack(order + "HHI", tag, form, entry.count) + raw.ljust(4, b"\0")
    return table + bytes(4) + beyond
