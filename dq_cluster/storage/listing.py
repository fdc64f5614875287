"""What is known of a stored file without reading it, and what a listing leaves out."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

# Told the path of what a listing leaves out, and why: `hidden`, `broken link`, `link back`,
# `not a file`.
LeftOut = Callable[[str, str], None]


@dataclass(frozen=True)
class FileInfo:
    """A stored file: path relative to its Storage, size in bytes, modification time (UTC).

    stamp: another number once the file is written anew: the modification time in nanoseconds,
    or, on object storage, a digest of the ETag.
    """

    path: str
    size: int
    modified: datetime
    stamp: int
