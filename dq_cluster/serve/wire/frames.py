"""What goes over a connection between a router and a replica: frames, as bytes. No sockets here.

A frame is, in little-endian order:

    u32  length of what follows
    u8   version of this format, 1
    u8   kind
    u32  number of the request that it asks or answers
    …    body

A body is the length of a JSON object (u32), the object, and the bytes of arrays, one after the
other. The object's `arrays` lists the type and the shape of each. Nothing is unpickled: bytes from
a connection can be wrong, but never run.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

VERSION = 1
MAX_BYTES = 256 << 20  # of a frame; more than any answer to the largest request that is allowed
MAX_BYTES_BEFORE_PROOF = 256  # of a frame from somebody who is not known yet
_HEAD = struct.Struct("<IBBI")
_LENGTH = struct.Struct("<I")
_REST = _HEAD.size - _LENGTH.size
_TYPES: dict[str, np.dtype[Any]] = {
    "f4": np.dtype("<f4"),
    "i8": np.dtype("<i8"),
    "u1": np.dtype("u1"),
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


class WireError(Exception):
    """What came is not in this format. The connection is closed: what follows means nothing."""


class Kind(IntEnum):
    """What a frame is."""

    CHALLENGE = 1  # replica to router: a nonce
    PROOF = 2  # router to replica: a nonce, and that it knows the secret
    WELCOME = 3  # replica to router: that it knows the secret too
    SEARCH = 16
    FIND = 17
    TAKE = 18
    ANSWER = 32
    FAILURE = 33


_KINDS = {kind.value: kind for kind in Kind}


class Frame(NamedTuple):
    """One frame. `body` may be a view of a buffer that lives as long as the view does."""

    kind: Kind
    request: int
    body: bytes | memoryview


def pack(kind: Kind, request: int, body: bytes) -> tuple[bytes, bytes]:
    """A frame as two pieces to be written one after the other: the body is not copied."""
    return _HEAD.pack(_REST + len(body), VERSION, kind, request), body


class FrameReader:
    """Cuts a stream of bytes into frames. `limit`: bytes that a frame may have, from now on."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with `data`. Raises WireError."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if not _REST <= length <= self.limit:
                raise WireError(f"a frame of {length:,} bytes; {_REST} to {self.limit:,} may come")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            _, version, kind, request = _HEAD.unpack_from(self._buffer)
            body = bytes(memoryview(self._buffer)[_HEAD.size : end])
            del self._buffer[:end]
            if version != VERSION:
                raise WireError(f"format {version}; this dq_cluster speaks {VERSION}")
            if kind not in _KINDS:
                raise WireError(f"a frame of the unknown kind {kind}")
            yield Frame(_KINDS[kind], request, body)


def pack_body(values: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()) -> bytes:
    """A body of plain values (what JSON can say) and arrays of float32, int64, or uint8."""
    described = [[_NAMES[array.dtype], list(array.shape)] for array in arrays]
    head = json.dumps({**values, "arrays": described}).encode()
    pieces = [_LENGTH.pack(len(head)), head, *(array.tobytes() for array in arrays)]
    return b"".join(pieces)


def unpack_body(body: bytes | memoryview) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The values and arrays of a body; the arrays are read-only views. Raises WireError."""
    view = memoryview(body)
    try:
        (length,) = _LENGTH.unpack_from(view)
        place = _LENGTH.size + length
        if place > len(view):
            raise WireError("a body that is shorter than it says")
        values = json.loads(bytes(view[_LENGTH.size : place]))
        described = [(_TYPES[name], _shape(shape)) for name, shape in values.pop("arrays")]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"a body that cannot be read: {error!r}") from None
    sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in described]
    if sum(sizes) != len(view) - place:
        raise WireError("arrays of other sizes than they say")
    arrays = []
    for (dtype, shape), size in zip(described, sizes, strict=True):
        arrays.append(np.frombuffer(view[place : place + size], dtype).reshape(shape))
        place += size
    return values, arrays


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > 4:
        raise ValueError(f"shape {shape!r}")
    for length in shape:
        if type(length) is not int or not 0 <= length <= MAX_BYTES:
            raise ValueError(f"shape {shape!r}")
    return tuple(shape)
