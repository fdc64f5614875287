"""The chunks of a PNG that decide its pixels."""

import struct
import zlib

from dq_cluster.images.metadata import MOST_PROFILE, MOST_TEXT, About, Essence
from dq_cluster.images.rejects import Reason, RejectError

_XMP = b"XML:com.adobe.xmp\0"


def png(data: bytes) -> Essence:
    """Its essence. Raises RejectError for a chunk that decides pixels and is cut or damaged."""
    about, kept, at = About(), [data[:8]], 8
    depth = colour = None
    seen: set[bytes] = set()
    while at + 8 <= len(data):
        length, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        start, end = at + 8, at + 12 + length
        if name == b"IEND":
            break
        decisive = name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
        if end > len(data):
            if decisive or b"IDAT" not in seen:
                raise RejectError(Reason.TRUNCATED)
            break
        intact = zlib.crc32(memoryview(data)[at + 4 : end - 4]) == int.from_bytes(
            data[end - 4 : end]
        )
        if decisive and not intact:
            raise RejectError(Reason.CORRUPT)
        seen.add(name)
        if name == b"IHDR" and length == 13:
            depth, colour = data[start + 8], data[start + 9]
        if name == b"tRNS":
            kept.append(_as_pillow_reads(data[start : end - 4], depth, colour))
        elif decisive:
            kept.append(data[at:end])
        elif intact:
            _png_remark(name, data[start : end - 4], about)
        at = end
    if b"IDAT" not in seen:
        raise RejectError(Reason.CORRUPT if data[at + 4 : at + 8] == b"IEND" else Reason.TRUNCATED)
    return about.of(b"".join([*kept, _chunk(b"IEND", b"")]))


def _as_pillow_reads(transparent: bytes, depth: int | None, colour: int | None) -> bytes:
    """The tRNS chunk with the transparent colour as samples of the depth that Pillow decodes to:
    it compares as if they were, but takes them from the file unscaled."""
    if colour not in (0, 2) or depth is None or len(transparent) < 2 * (colour + 1):
        return _chunk(b"tRNS", transparent)
    count = colour + 1
    samples = struct.unpack(f">{count}H", transparent[: 2 * count])
    if depth < 8:
        samples = tuple((n & (2**depth - 1)) * (255 // (2**depth - 1)) for n in samples)
    elif depth == 8:
        samples = tuple(n & 255 for n in samples)
    elif colour == 2:
        samples = tuple(n >> 8 for n in samples)
    return _chunk(b"tRNS", struct.pack(f">{count}H", *samples))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png_remark(name: bytes, data: bytes, about: About) -> None:
    if name == b"eXIf":
        about.read_exif(data)
    elif name == b"iCCP":
        _, _, compressed = data.partition(b"\0")
        about.profile = about.profile or _inflated(compressed[1:], MOST_PROFILE, whole=True)
    elif name == b"iTXt" and data.startswith(_XMP):
        compressed, text = data[len(_XMP) :][:1], data[len(_XMP) + 2 :].split(b"\0", 2)[-1]
        about.read_xmp(_inflated(text, MOST_TEXT) or b"" if compressed == b"\1" else text)
    elif name in (b"tEXt", b"zTXt") and data.startswith(b"Raw profile type "):
        keyword, _, text = data.partition(b"\0")
        if name == b"zTXt":
            text = _inflated(text[1:], MOST_TEXT) or b""
        if keyword[17:] in (b"exif", b"APP1"):
            about.read_exif(_unhexed(text[:MOST_TEXT]))


def _inflated(data: bytes, limit: int, whole: bool = False) -> bytes | None:
    """At most `limit` bytes; None for what is damaged or, where it must be whole, longer."""
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(data, limit)
    except zlib.error:
        return None
    return None if whole and not stream.eof else inflated


def _unhexed(text: bytes) -> bytes:
    """The bytes of a profile that ImageMagick wrote as text: a name, a length, hexadecimals."""
    try:
        return bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    except ValueError:
        return b""
