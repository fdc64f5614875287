"""An inventory: Parquet that names each image by its URI, and the guarded road to it.

An inventory is often written by somebody else. What it may make this machine read is therefore
named by the user: `allow` lists URI prefixes, and everything else is a reject. A host name that
leads to a private address is refused whatever it says, unless `allow` names that address itself.
"""

import http.client
import ipaddress
import socket
import time
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

import pyarrow as pa

from dq_cluster.errors import InputError, StorageRefusedError
from dq_cluster.images.config import ImageLimits, SourceSettings
from dq_cluster.images.decode import Reason, RejectError
from dq_cluster.images.files import map_ahead, read_image
from dq_cluster.images.parquet import ParquetRows
from dq_cluster.images.units import Unit
from dq_cluster.storage import FileInfo, Storage

_PIECE = 1 << 16


class Inventory:
    """Rows whose `uri_column` says where the image is; read many at a time."""

    def __init__(self, settings: SourceSettings) -> None:
        self._rows = ParquetRows(settings)
        self.skipped = self._rows.skipped
        self._allow, self._limits = settings.allow, settings.limits

    def units(self) -> Iterator[Unit]:
        return self._rows.units()

    def listing(self) -> Iterator[FileInfo]:
        return self._rows.listing()

    def holds(self, info: FileInfo) -> bool:
        return self._rows.holds(info)

    def read(self, units: Iterable[Unit], rows: int) -> Iterator[pa.Table]:
        for table in self._rows.read(units, rows):
            addresses = table.column("address").to_pylist()
            found = list(map_ahead(self._fetch, addresses))
            images = pa.array((data for data, _ in found), pa.binary())
            reasons = pa.array((reason for _, reason in found), pa.string())
            at = table.schema.get_field_index
            table = table.set_column(at("reason"), "reason", reasons)
            table = table.set_column(at("uri"), "uri", table.column("address"))
            yield table.set_column(at("address"), "image", images)

    def _fetch(self, uri: str | None) -> tuple[bytes | None, str | None]:
        try:
            if uri is None:
                raise RejectError(Reason.MISSING)
            return fetch(uri, self._allow, self._limits), None
        except RejectError as error:
            return None, error.reason.value


def fetch(uri: str, allow: tuple[str, ...], limits: ImageLimits) -> bytes:
    """The bytes at `uri`, which must start with one of the prefixes in `allow`.

    Raises RejectError, with the reason, for anything that cannot be fetched within the limits.
    """
    parts = urlsplit(uri)
    prefix = next((prefix for prefix in allow if uri.startswith(prefix)), None)
    if prefix is None or ".." in parts.path.split("/"):
        raise RejectError(Reason.FORBIDDEN)
    if parts.scheme not in ("http", "https"):
        folder, _, name = uri.rpartition("/")
        try:
            image = read_image(Storage(folder), Unit(name), limits.max_bytes)
        except (InputError, StorageRefusedError):
            raise RejectError(Reason.FORBIDDEN) from None
        if image["reason"]:
            raise RejectError(Reason(image["reason"]))
        return bytes(image["image"])
    try:
        return _get(uri, limits)
    except (OSError, http.client.HTTPException, ValueError):
        raise RejectError(Reason.UNREACHABLE) from None


def _get(uri: str, limits: ImageLimits) -> bytes:
    deadline = time.monotonic() + limits.max_seconds
    parts = urlsplit(uri)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=limits.max_seconds)
    # The one place where http.client resolves a name: check what it leads to, then connect to
    # that very address, so that a second answer of the name server cannot differ.
    connection._create_connection = _connect  # type: ignore[attr-defined]
    try:
        path = parts.path or "/"
        connection.request("GET", f"{path}?{parts.query}" if parts.query else path)
        answer = connection.getresponse()
        if answer.status != 200:
            gone = answer.status in (404, 410)
            raise RejectError(Reason.MISSING if gone else Reason.UNREACHABLE)
        data = b""
        while piece := answer.read1(_PIECE):
            data += piece
            if len(data) > limits.max_bytes:
                raise RejectError(Reason.TOO_LARGE)
            if time.monotonic() > deadline:
                raise RejectError(Reason.UNREACHABLE)
        if answer.length:
            raise RejectError(Reason.TRUNCATED)
        return data
    finally:
        connection.close()


def _connect(address: tuple[str, int], timeout: float, *_: object) -> socket.socket:
    host, port = address
    for answer in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        number = str(answer[-1][0])
        if number != host and not ipaddress.ip_address(number).is_global:
            raise RejectError(Reason.FORBIDDEN)
        return socket.create_connection((number, port), timeout)
    raise OSError(f"{host} has no address")
