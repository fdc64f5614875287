"""Picture files written from arrays with `struct` and `zlib` alone.

What a decoder makes of them can be compared with the array; no picture library had a hand in it.
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))


def scene(height: int = 48, width: int = 64) -> np.ndarray:
    """(height, width, 3) uint8 that no turn, mirror, swap of channels, or inversion leaves alike.

    Its parts are large, so that scaling and lossy codecs keep them.
    """
    y, x = np.mgrid[0:height, 0:width]
    y, x = y / height, x / width
    red = 40 + 200 * x * (0.4 + 0.6 * y)
    green = 30 + 190 * (1 - y) * (0.5 + 0.5 * x)
    blue = 60 + 90 * ((x - 0.3) ** 2 + (y - 0.6) ** 2)
    picture = np.stack([red, green, blue], axis=2)
    picture[(y < 0.3) & (x > 0.35) & (x < 0.5)] = (250, 240, 20)
    picture[(y > 0.7) & (x > 0.6)] = (15, 30, 120)
    return picture.clip(0, 255).astype(np.uint8)


def grey_scene(height: int = 48, width: int = 64) -> np.ndarray:
    """(height, width) uint8, from black to white, as asymmetric as `scene`."""
    grey = scene(height, width).astype(float) @ (0.5, 0.35, 0.15)
    return ((grey - grey.min()) / np.ptp(grey) * 255).round().astype(np.uint8)


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The array to store so that `orientation` (EXIF, 1 to 8) says how to see `upright`."""
    return {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[::-1],  # seen by a quarter turn clockwise
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[:, ::-1],
    }[orientation](upright)


def exif(orientation: object = None, order: str = "<", kind: int = 3) -> bytes:
    """An EXIF block (without the `Exif` prefix) whose IFD0 says the orientation.

    kind: the TIFF type of the value: 3 a short, 4 a long, 2 text.
    """
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    value = orientation if isinstance(orientation, bytes) else None
    if value is None:
        value = struct.pack(order + {3: "H", 4: "I"}[kind], orientation)
    entry = struct.pack(order + "HHI", 274, kind, 1) + value.ljust(4, b"\0")[:4]
    return head + struct.pack(order + "H", 1) + entry + bytes(4)


def exif_entry(orientation: int) -> bytes:
    """The entry of the orientation in the EXIF that Pillow writes."""
    return struct.pack(">HHIHH", 274, 3, 1, orientation, 0)


def raw_profile(name: bytes, data: bytes) -> bytes:
    """A PNG chunk with a profile as ImageMagick writes it: hexadecimals in compressed text."""
    text = b"\n" + name + b"\n%8d\n" % len(data)
    digits = data.hex().encode()
    text += b"".join(digits[at : at + 72] + b"\n" for at in range(0, len(digits), 72))
    return chunk(b"zTXt", b"Raw profile type " + name + b"\0\0" + zlib.compress(text))


def itxt(xmp: bytes, compressed: bool = False) -> bytes:
    """A PNG chunk with an XMP packet."""
    text = zlib.compress(xmp) if compressed else xmp
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0" + bytes([compressed, 0]) + b"\0\0" + text)


def xmp(orientation: int, element: bool = False) -> bytes:
    """An XMP packet that says the orientation, as an attribute or an element."""
    said = (
        f"><tiff:Orientation>{orientation}</tiff:Orientation></rdf:Description>"
        if element
        else f' tiff:Orientation="{orientation}"/>'
    )
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-'
        'rdf-syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
        f"{said}</rdf:RDF></x:xmpmeta>"
    ).encode()


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    """A PNG chunk, with its true checksum if none is given."""
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def png(
    samples: np.ndarray,
    depth: int = 8,
    *,
    palette: np.ndarray | None = None,
    transparent: bytes | None = None,
    interlaced: bool = False,
    extra: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG of samples (h, w) or (h, w, 1 to 4), each in `depth` bits.

    palette: (n, 3) uint8; the samples are indices. transparent: the data of tRNS. extra, after:
    chunks before and after the pixels.
    """
    samples = samples[..., None] if samples.ndim == 2 else samples
    height, width, channels = samples.shape
    colour = 3 if palette is not None else {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    passes = [samples]
    if interlaced:
        passes = [samples[y::dy, x::dx] for x, y, dx, dy in (*_ADAM7, (0, 1, 1, 2))]
    lines = b"".join(b"\0" + packed(row, depth) for part in passes if part.size for row in part)
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            extra,
            b"" if palette is None else chunk(b"PLTE", palette.astype(np.uint8).tobytes()),
            b"" if transparent is None else chunk(b"tRNS", transparent),
            chunk(b"IDAT", zlib.compress(lines)),
            after,
            chunk(b"IEND", b""),
        ]
    )


def packed(row: np.ndarray, depth: int, order: str = ">") -> bytes:
    """Samples of a row (w, c) in `depth` bits each, most significant bits first."""
    if depth >= 16:
        return row.astype(f"{order}{row.dtype.kind}{depth // 8}").tobytes()
    if depth == 8:
        return row.astype(np.uint8).tobytes()
    bits = (row.reshape(-1, 1).astype(np.uint16) >> np.arange(depth)[::-1]) & 1
    return np.packbits(bits.astype(np.uint8).ravel()).tobytes()


def tiff(
    samples: np.ndarray,
    depth: int = 8,
    *,
    photometric: int | None = None,
    order: str = "<",
    big: bool = False,
    deflate: bool = False,
    planar: bool = False,
    tile: int | None = None,
    kind: int = 1,
    extra: Sequence[int] = (),
    palette: np.ndarray | None = None,
    tags: Sequence[tuple[int, int, Sequence[int] | bytes]] = (),
    trailer: bytes = b"",
) -> bytes:
    """A TIFF of samples (h, w) or (h, w, c), each in `depth` bits.

    kind: SampleFormat (1 unsigned, 2 signed, 3 float). tile: its side; strips of 7 rows without.
    palette: (2**depth, 3) uint8. tags: more entries (number, type, values).
    """
    samples = samples[..., None] if samples.ndim == 2 else samples
    height, width, channels = samples.shape
    if photometric is None:
        photometric = 3 if palette is not None else (2 if channels >= 3 else 1)
    planes = np.split(samples, channels, axis=2) if planar else [samples]
    step = tile or 7
    blocks = [
        b"".join(packed(row, depth, order) for row in block)
        for plane in planes
        for block in _blocks(plane, step, tile)
    ]
    if deflate:
        blocks = [zlib.compress(block) for block in blocks]
    entries: dict[int, tuple[int, Sequence[int] | bytes]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [depth] * channels),
        259: (3, [8 if deflate else 1]),
        262: (3, [photometric]),
        277: (3, [channels]),
        284: (3, [2 if planar else 1]),
        339: (3, [kind] * channels),
    }
    if extra:
        entries[338] = (3, list(extra))
    if palette is not None:
        entries[320] = (3, (palette.T.astype(int) * 257).ravel().tolist())
    for number, form, values in tags:
        entries[number] = (form, values)
    places, sizes = (324, 325) if tile else (273, 279)
    entries |= {322: (3, [tile]), 323: (3, [tile])} if tile else {278: (4, [step])}
    start = 16 if big else 8
    offsets = (start + np.cumsum([0, *map(len, blocks)])).tolist()[:-1]
    entries[places], entries[sizes] = (4, offsets), (4, [len(block) for block in blocks])
    body = b"".join(blocks)
    body += b"\0" * (len(body) % 2)
    mark = b"II" if order == "<" else b"MM"
    at = start + len(body)
    head = struct.pack(order + "HHHQ", 43, 8, 0, at) if big else struct.pack(order + "HI", 42, at)
    return mark + head + body + _directory(entries, at, order, big) + trailer


def _blocks(plane: np.ndarray, step: int, tile: int | None) -> list[np.ndarray]:
    if not tile:
        return [plane[y : y + step] for y in range(0, len(plane), step)]
    found = []
    for y in range(0, plane.shape[0], tile):
        for x in range(0, plane.shape[1], tile):
            block = plane[y : y + tile, x : x + tile]
            missing = ((0, tile - block.shape[0]), (0, tile - block.shape[1]), (0, 0))
            found.append(np.pad(block, missing))
    return found


def _directory(
    entries: dict[int, tuple[int, Sequence[int] | bytes]], at: int, order: str, big: bool
) -> bytes:
    word, count = ("Q", "Q") if big else ("I", "H")
    room = 8 if big else 4
    size = struct.calcsize(order + count) + len(entries) * (4 + 2 * room) + room
    table, beyond = [struct.pack(order + count, len(entries))], b""
    for number, (form, values) in sorted(entries.items()):
        letter = {1: "B", 2: "B", 3: "H", 4: "I", 7: "B", 13: "I"}[form]
        data = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(data) > room:
            place, beyond = at + size + len(beyond), beyond + data + b"\0" * (len(data) % 2)
            data = struct.pack(order + word, place)
        table.append(struct.pack(order + "HH" + word, number, form, len(values)))
        table.append(data.ljust(room, b"\0"))
    return b"".join([*table, bytes(room), beyond])


def bmp(
    samples: np.ndarray,
    depth: int = 24,
    *,
    palette: np.ndarray | None = None,
    colours: int = 0,
    masks: Sequence[int] | None = None,
    top_down: bool = False,
    header: int = 40,
) -> bytes:
    """A BMP of samples (h, w, 3 or 4) uint8 RGB(A), of indices (h, w) into a palette, or of words.

    masks: those of BITFIELDS; the samples are then words (h, w). header: its size, 12 to 124.
    """
    height, width = samples.shape[:2]
    if samples.ndim == 3:
        swapped = samples[..., [2, 1, 0, 3][: samples.shape[2]]]
        rows = [row.tobytes() for row in swapped]
    elif depth >= 16:
        rows = [row.astype(f"<u{depth // 8}").tobytes() for row in samples]
    else:
        rows = [packed(row[:, None], depth) for row in samples]
    rows = [row + b"\0" * (-len(row) % 4) for row in rows]
    data = b"".join(rows if top_down else rows[::-1])
    table = b""
    if palette is not None:
        pad = np.zeros((len(palette), 1), int) if header > 12 else np.zeros((len(palette), 0), int)
        table = np.hstack([palette[:, ::-1], pad]).astype(np.uint8).tobytes()
    compression = 3 if masks else 0
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, depth)
    else:
        info = struct.pack(
            "<IiiHHIIiiII",
            header,
            width,
            -height if top_down else height,
            1,
            depth,
            compression,
            len(data),
            2835,
            2835,
            colours,
            0,
        )
        if masks:
            info += struct.pack(f"<{len(masks)}I", *masks)
        info = info.ljust(header, b"\0")
    start = 14 + len(info) + len(table)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + table + data


def netpbm(samples: np.ndarray, limit: int = 255, *, plain: bool = False) -> bytes:
    """A PGM or PPM (plain: in decimal digits) of samples from 0 to `limit`; a PBM for limit 1."""
    height, width = samples.shape[:2]
    colour = samples.ndim == 3
    magic = (1 if limit == 1 else 3 if colour else 2) + (0 if plain else 3)
    head = f"P{magic}\n# a comment\n{width} {height}\n" + ("" if limit == 1 else f"{limit}\n")
    if plain:
        return head.encode() + " ".join(map(str, samples.ravel().tolist())).encode() + b"\n"
    if limit == 1:
        return head.encode() + b"".join(packed(row[:, None], 1) for row in samples)
    return head.encode() + samples.astype(np.uint8 if limit < 256 else ">u2").tobytes()


def segment(marker: int, data: bytes) -> bytes:
    """A JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments, directly after its start."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def with_riff_chunks(webp: bytes, width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A simple WebP in the extended form, with chunks such as EXIF after its pixels."""
    flags = sum({b"EXIF": 8, b"XMP ": 4, b"ICCP": 32}.get(name, 0) for name, _ in chunks)
    if webp[12:16] == b"VP8L":
        flags |= 16
    size = struct.pack("<II", width - 1, height - 1)
    head = struct.pack("<I", flags) + size[:3] + size[4:7]
    body = b"WEBP" + _riff(b"VP8X", head)
    body += b"".join(_riff(*each) for each in chunks if each[0] == b"ICCP") + webp[12:]
    body += b"".join(_riff(*each) for each in chunks if each[0] != b"ICCP")
    return b"RIFF" + struct.pack("<I", len(body)) + body


def small_frame(webp: bytes, size: tuple[int, int], whole: tuple[int, int], at: int) -> bytes:
    """An animation of `whole` pixels whose frames are a simple WebP, `at` pixels from the edges."""

    def three(*numbers: int) -> bytes:
        return b"".join(number.to_bytes(3, "little") for number in numbers)

    frame = three(at // 2, at // 2, size[0] - 1, size[1] - 1, 100) + b"\0" + webp[12:]
    body = b"WEBP" + _riff(b"VP8X", b"\x12\0\0\0" + three(whole[0] - 1, whole[1] - 1))
    body += _riff(b"ANIM", b"\xff" * 4 + bytes(2)) + _riff(b"ANMF", frame) * 2
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _riff(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
