"""Tars, read as a stream from first to last member; damage is never taken for the end.

`tarfile` takes a damaged header, or a file that was cut between two members, for the end of the
archive. Here only an end marker, a block of zeros, is an end; there are several where tars are
concatenated. The first bytes decide the compression: gzip, bzip2, xz, zstd.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
from collections.abc import Iterator
from typing import IO, Any, Self, cast

import pyarrow as pa

from dq_cluster.errors import DqError
from dq_cluster.storage import Storage

_BUFFER = 1 << 20


class DamagedTarError(Exception):
    """What follows in the tar cannot be read."""


class _Forward:
    """What tarfile needs of a file that is read once from front to back.

    No read gives more than `limit` bytes, whatever a header says.
    """

    def __init__(self, file: Any, limit: int) -> None:
        self._file, self._limit, self._at = file, limit, 0

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> None:
        if position < self._at:
            raise DamagedTarError("a header leads backwards")
        while self._at < position:
            if not self.read(min(position - self._at, _BUFFER)):
                raise DamagedTarError("unexpected end of data")

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._limit:
            raise DamagedTarError(f"a header of {size:,} bytes")
        pieces = []
        while size and (piece := self._file.read(min(size, _BUFFER))):
            pieces.append(piece)
            size -= len(piece)
            self._at += len(piece)
        return b"".join(pieces)


class _Tar(tarfile.TarFile):
    members: list[tarfile.TarInfo]


def _strict() -> type[tarfile.TarInfo]:
    """Headers for one tar, that tell its end from damage."""
    ended = False

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            nonlocal ended
            if len(buf) < tarfile.BLOCKSIZE and not ended:
                raise DamagedTarError("no end marker")
            ended = not any(buf)
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as error:
                if ended or len(buf) < tarfile.BLOCKSIZE:
                    raise  # TarFile knows: an end marker, or the end of the file
                raise DamagedTarError(str(error)) from None

    return Header


@contextlib.contextmanager
def _damage_found() -> Iterator[None]:
    """Turn what tarfile and the decoders raise on damage into DamagedTarError."""
    try:
        yield
    except (DamagedTarError, DqError, MemoryError):
        raise  # DqError: from storage
    except Exception as error:
        # Their parsers raise any exception on hostile data.
        raise DamagedTarError(str(error)) from None


@contextlib.contextmanager
def open_archive(storage: Storage, path: str, max_bytes: int) -> Iterator["Archive"]:
    """The tar at `path`, to be read once; of its members, those of at most `max_bytes` can be.

    Raises DamagedTarError, as do the methods of Archive, or StorageError.
    """
    limit = max(max_bytes, _BUFFER) + tarfile.BLOCKSIZE
    with storage.open(path) as file:
        raw = io.BufferedReader(file, _BUFFER)
        with _damage_found():
            tar = _Tar(
                fileobj=cast(IO[bytes], _Forward(_decompressed(raw), limit)),
                tarinfo=_strict(),
                ignore_zeros=True,  # tars put one behind the other
                errors="replace",
            )
        yield Archive(tar)


class Archive:
    """An open tar."""

    def __init__(self, tar: _Tar) -> None:
        self._tar = tar

    def members(self) -> Iterator[tarfile.TarInfo]:
        """The members in order; the content of each can be read until the next is asked for."""
        while True:
            with _damage_found():
                member = self._tar.next()
            if member is None:
                return
            yield member
            self._tar.members = []  # it would keep all headers, and none is needed again

    def read(self, member: tarfile.TarInfo) -> bytes:
        """The bytes of a regular member."""
        with _damage_found():
            file = self._tar.extractfile(member)
            data = file.read() if file is not None else b""
        if len(data) != member.size:
            raise DamagedTarError("unexpected end of data")
        return data


def _decompressed(file: Any) -> Any:
    start = file.peek(6)
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if start.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(file)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")
    return file
