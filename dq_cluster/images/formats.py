"""What a picture is, told by its first bytes: names of files lie, and often say nothing."""

HEAD = 32
"""Bytes from the start of a file that `identify` looks at."""

# Only formats that Pillow decodes in this process: EPS, for one, would start Ghostscript.
READABLE = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "PSD"),
)
_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
}


def identify(head: bytes) -> str | None:
    """The format of the picture that begins with `head`; None for what is no picture we know.

    The name is one of READABLE, or that of a format that is known but not read.
    """
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brands = {head[at : at + 4] for at in range(8, len(head) - 3, 4) if at != 12}
        for name, known in _BRANDS.items():
            if brands.intersection(known):
                return name
        return "HEIC" if brands & {b"mif1", b"msf1"} else None
    if head[:2] == b"BM":
        return "BMP"
    if (
        head[:1] == b"P"
        and head[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6")
        and head[2:3].isspace()
    ):
        return "PPM"
    return None
