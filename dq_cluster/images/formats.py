"""The format of a picture, by its first bytes: file names can be wrong or say nothing."""

from importlib.util import find_spec

HEAD = 32
"""Bytes from the start of a file that `identify` looks at."""

# Only formats that Pillow decodes in this process: EPS, for one, would start Ghostscript.
READABLE = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

PLUGINS = {"HEIC": "pillow_heif", "JPEG XL": "pillow_jxl"}
"""Formats that are read where a plugin of Pillow is installed, and the module to import."""

INSTALL = {"HEIC": "pip install pillow-heif", "JPEG XL": "pip install pillow-jxl-plugin"}
"""How to install the plugins."""

_STARTS = (
    (b"\xff\xd8\xff\xf7", "JPEG-LS"),
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
    (b"II\xbc\x01", "JPEG XR"),
    (b"8BPS", "PSD"),
    (b"P7\n", "PAM"),
    (b"PF\n", "PFM"),
    (b"qoif", "QOI"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"\0\0\1\0", "ICO"),
    (b"icns", "ICNS"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"IIRO", "camera raw"),
    (b"IIU\0", "camera raw"),
)
_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    "camera raw": (b"crx ",),
}
_NETPBM = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf")
_AFTER_SPACE = b"0123456789#"


def identify(head: bytes) -> str | None:
    """The format of the picture that begins with `head`; None for what is no picture we know.

    The name is one of READABLE, or that of a format that is known but not, or not always, read.
    """
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brands = {head[at : at + 4] for at in range(8, len(head) - 3, 4) if at != 12}
        for name, members in _BRANDS.items():
            if brands.intersection(members):
                return name
        return "HEIC" if brands & {b"mif1", b"msf1"} else None
    # Two letters are little, and text begins with them too: look at what must follow.
    if head[:2] == b"BM" and not any(head[15:18]):
        return "BMP"
    if head[:2] in _NETPBM and head[2:3].isspace() and head[2:].lstrip()[:1] in _AFTER_SPACE:
        return "PPM"
    return None


def is_readable(name: str) -> bool:
    """Whether pictures of a format that `identify` names are read here."""
    return name in READABLE or (name in PLUGINS and find_spec(PLUGINS[name]) is not None)


def advice(name: str) -> str:
    """What to tell who sent a picture of a format that is not read."""
    if name in INSTALL:
        return f"it is {name}, which is read where its plugin is installed: {INSTALL[name]}"
    return f"it is {name}, which is not read: convert it to JPEG or PNG"
