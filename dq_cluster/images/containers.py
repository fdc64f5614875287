"""The part of a picture file that decides its pixels, without the rest.

Files contain text, previews, editing histories, and whole other pictures. A decoder that reads
them rejects good pictures because of a damaged comment, so they are removed before. What decides
how pixels are shown, the orientation and the colour profile, is read here; if damaged, it counts
as missing.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from dq_cluster.images import tiff
from dq_cluster.images.metadata import About, Essence
from dq_cluster.images.png import png
from dq_cluster.images.rejects import Reason, RejectError


def essence(data: bytes, name: str) -> Essence:
    """What decides the pixels of a file of the format `name`.

    Raises RejectError for a file that ends early or breaks the rules of its container.
    """
    reduce = _CONTAINERS.get(name)
    return reduce(data) if reduce else Essence(data)


# JPEG

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # of a segment with content, or the end


def _jpeg(data: bytes) -> Essence:
    about, kept, at = About(), [data[:2]], 2
    profile: dict[int, bytes] = {}
    parts = 0
    while True:
        match = _MARKER.search(data, at)  # what lies between segments is skipped
        if match is None or match.start() + 4 > len(data):
            raise RejectError(Reason.TRUNCATED)
        at = match.start()
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        end = at + 2 + length
        if marker == 0xDA:  # start of scan: pixels from here on
            kept.append(data[at:])
            break
        if marker == 0xD9:
            raise RejectError(Reason.CORRUPT)
        if length < 2:
            at += 2
            continue
        if end > len(data):
            raise RejectError(Reason.TRUNCATED)
        body = data[at + 4 : end]
        if marker == 0xE1 and body.startswith(b"Exif\0"):
            about.read_exif(body)
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            about.read_xmp(body)
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            profile[body[12]], parts = body[14:], body[13]
        # Adobe's segment, and JFIF's, tell libjpeg in which colours the samples are.
        colours = body.startswith({0xE0: b"JFIF\0", 0xEE: b"Adobe"}.get(marker, b"-"))
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or (colours and len(body) >= 12):
            kept.append(data[at:end])
        at = end
    if profile and sorted(profile) == list(range(1, parts + 1)):
        about.profile = b"".join(profile[n] for n in sorted(profile))
    return about.of(b"".join(kept))


# WebP


def _webp(data: bytes) -> Essence:
    about, kept, at = About(), [], 12
    pictured = False
    while at + 8 <= len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length
        body = data[at + 8 : end]
        decisive = name in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
        if end > len(data):
            if decisive and not pictured:
                raise RejectError(Reason.TRUNCATED)
            break
        if name == b"VP8X":
            # Without the flags of a profile, EXIF, and XMP, which are left out.
            body = bytes([body[0] & ~0x2C]) + body[1:] if body else body
        if name == b"EXIF":
            about.read_exif(body)
        elif name == b"XMP ":
            about.read_xmp(body)
        elif name == b"ICCP":
            about.profile = body
        elif decisive and not pictured:
            kept.append(name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2))
            pictured = name in (b"VP8 ", b"VP8L", b"ANMF")  # the first frame of an animation
        at = end + length % 2
    if not pictured:
        raise RejectError(Reason.TRUNCATED)
    body = b"WEBP" + b"".join(kept)
    return about.of(b"RIFF" + struct.pack("<I", len(body)) + body)


# GIF

_BLOCK = re.compile(b"[!,;]")


def _gif(data: bytes) -> Essence:
    if len(data) < 13:
        raise RejectError(Reason.TRUNCATED)
    start = at = 13 + _gif_table(data[10])
    control = b""
    while block := _BLOCK.search(data, at):
        at = block.start()
        if block[0] == b"!":
            end = _gif_blocks(data, at + 2)
            if data[at + 1 : at + 2] == b"\xf9":
                control = data[at:end]
            at = end
        elif block[0] == b"," and at + 10 <= len(data):
            end = _gif_blocks(data, at + 11 + _gif_table(data[at + 9]))
            return Essence(data[:start] + control + data[at:end] + b";")
        elif block[0] == b";":
            raise RejectError(Reason.CORRUPT)
        else:
            break
    raise RejectError(Reason.TRUNCATED)


def _gif_table(flags: int) -> int:
    """The bytes of a table of colours."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _gif_blocks(data: bytes, at: int) -> int:
    """Where the blocks that begin at `at` end."""
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return min(at + 1, len(data))


# BMP


def _bmp(data: bytes) -> Essence:
    if len(data) < 54:
        return Essence(data)
    start, header = struct.unpack_from("<II", data, 10)
    (bits,) = struct.unpack_from("<H", data, 28)
    (colours,) = struct.unpack_from("<I", data, 46)
    if start > len(data):
        raise RejectError(Reason.TRUNCATED)
    if header < 40 or bits not in (4, 8) or not 0 < colours < 1 << bits:
        return Essence(data)
    # Pillow takes the number of colours for the depth where there are two. A full table of
    # colours leaves it nothing to guess.
    table = 14 + header
    palette = data[table : table + 4 * colours].ljust(4 << bits, b"\0")
    body = data[start or table + 4 * colours :]
    head = data[:10] + struct.pack("<I", table + len(palette)) + data[14:46] + bytes(4)
    return Essence(head + data[50:table] + palette + body)


# PGM and PPM

_NETPBM = re.compile(rb"(P[56])" + rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})" * 3 + rb"\s")


def _ppm(data: bytes) -> Essence:
    """In 8 bits. Pillow scales other samples one by one in Python: minutes for a photograph."""
    header = _NETPBM.match(data, 0, 1 << 12)
    if header is None:
        return Essence(data)
    width, height, limit = (int(header[n]) for n in (2, 3, 4))
    count = width * height * (3 if header[1] == b"P6" else 1)
    form = np.dtype(np.uint8 if limit < 256 else ">u2")
    if limit == 255 or not 0 < limit < 65536:
        return Essence(data)
    if len(data) < header.end() + count * form.itemsize:
        raise RejectError(Reason.TRUNCATED)
    levels = (np.arange(2 ** (8 * form.itemsize)).clip(max=limit) * 255 + limit // 2) // limit
    scaled = levels.astype(np.uint8)[np.frombuffer(data, form, count, header.end())]
    return Essence(b"%b\n%d %d\n255\n" % (header[1], width, height) + scaled.tobytes())


# TIFF


def _tiff(data: bytes) -> Essence:
    directory = tiff.read_directory(data)
    if directory is None:
        raise RejectError(Reason.TRUNCATED)
    about = About(exif=directory.orientation())
    if tiff.XMP in directory.entries:
        about.read_xmp(directory.entries[tiff.XMP].raw)
    if tiff.PROFILE in directory.entries:
        about.profile = directory.entries[tiff.PROFILE].raw
    bare, inverted = tiff.bare(data, directory)
    return replace(
        about.of(bare),
        bits=directory.number(tiff.BITS, 1),
        kind=directory.number(tiff.SAMPLE_FORMAT, 1),
        inverted=inverted,
    )


# AVIF and HEIC


_DECISIVE = (b"meta", b"moov", b"mdat")


def _heic(data: bytes) -> Essence:
    """The file itself, if it holds the boxes that decide the pixels whole."""
    ends = {name: end for name, _, end in _boxes(data, 0, len(data)) if name in _DECISIVE}
    if not ends or max(ends.values()) > len(data):
        raise RejectError(Reason.TRUNCATED)
    return Essence(data)


def _avif(data: bytes) -> Essence:
    """Items of EXIF and XMP get another name: the format says that the orientation is not theirs
    to tell, but that of the boxes irot and imir, which Pillow reads."""
    _heic(data)
    patched = bytearray(data)
    for meta, end in _inside(data, 0, len(data), b"meta"):
        for table, stop in _inside(data, meta + 4, end, b"iinf"):
            first = table + (6 if data[table : table + 1] == b"\0" else 8)
            for item, _ in _inside(data, first, stop, b"infe"):
                kind = item + (10 if data[item : item + 1] == b"\3" else 8)
                if data[kind : kind + 4] in (b"Exif", b"mime"):
                    patched[kind : kind + 4] = b"skip"
    return Essence(bytes(patched))


def _inside(data: bytes, start: int, end: int, box: bytes) -> Iterator[tuple[int, int]]:
    """Where the content of each box of a name starts and ends, of the boxes between two places."""
    for name, at, stop in _boxes(data, start, end):
        if name == box:
            yield at, min(stop, end)


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The name, and the start and end of the content, of each box between two places. The end may
    be beyond."""
    while at + 8 <= end:
        size, head = int.from_bytes(data[at : at + 4]), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16]), 16
        stop = end if size == 0 else at + size
        if stop < at + head:
            return
        yield data[at + 4 : at + 8], at + head, stop
        at = stop


_CONTAINERS: dict[str, Callable[[bytes], Essence]] = {
    "PNG": png,
    "JPEG": _jpeg,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
    "PPM": _ppm,
    "TIFF": _tiff,
    "AVIF": _avif,
    "HEIC": _heic,
}
