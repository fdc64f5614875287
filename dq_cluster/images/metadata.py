"""What files say of their pixels, in EXIF, XMP, and colour profiles.

What is damaged counts as missing.
"""

import re
from dataclasses import dataclass

from dq_cluster.images import tiff

MOST_TEXT = 1 << 20  # bytes of text that are searched for an orientation
MOST_PROFILE = 4 << 20  # bytes of a colour profile; those of printers have one or two million
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*["'<]""")


@dataclass(frozen=True)
class Essence:
    """What a decoder needs to know of a file.

    data: the file with nothing but what decides the pixels. orientation: 1 to 8, as EXIF numbers
    them; how to turn the decoded pixels. profile: the ICC profile. bits, kind, inverted: of the
    samples of a TIFF, `kind` being its SampleFormat (1 unsigned, 2 signed, 3 float).
    """

    data: bytes
    orientation: int = 1
    profile: bytes | None = None
    bits: int = 8
    kind: int = 1
    inverted: bool = False


@dataclass
class About:
    """What a file says of its pixels, piece by piece."""

    exif: int | None = None
    xmp: int | None = None
    profile: bytes | None = None

    def read_exif(self, block: bytes) -> None:
        prefix = b"Exif\0\0"  # some write it twice
        directory = tiff.read_directory(block.removeprefix(prefix).removeprefix(prefix))
        self.exif = self.exif or (directory.orientation() if directory else None)

    def read_xmp(self, text: bytes) -> None:
        match = _XMP_ORIENTATION.search(text, 0, MOST_TEXT)
        self.xmp = self.xmp or (int(match[1]) if match else None)

    def of(self, data: bytes) -> Essence:
        return Essence(data, self.exif or self.xmp or 1, self.profile)
