"""An inventory: Parquet that names each image by its URI, and safe access to these URIs.

An inventory is often written by somebody else. So the user says what it may make this machine
read: `allow` lists URI prefixes, and everything else is a reject. A host name that resolves to a
private address is refused, unless `allow` names that address itself.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator

import pyarrow as pa

from dq_cluster.errors import InputError, StorageRefusedError
from dq_cluster.images.address import climbs, is_web, web_address
from dq_cluster.images.config import ImageLimits, SourceSettings
from dq_cluster.images.decode import Reason, RejectError
from dq_cluster.images.files import map_ahead, read_image
from dq_cluster.images.parquet import ParquetRows
from dq_cluster.images.units import Unit
from dq_cluster.images.web import fetch_web
from dq_cluster.storage import FileInfo, Storage

_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


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
            fetched = list(map_ahead(self._fetch, addresses))
            images = pa.array((data for data, _ in fetched), pa.binary())
            reasons = pa.array((reason for _, reason in fetched), pa.string())
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
    """The bytes at `uri`, which must lie below one of the prefixes in `allow`.

    Raises RejectError, with the reason, for anything that cannot be fetched within the limits,
    and StorageError where `s3://` or a disk fails.
    """
    if is_web(uri):
        return fetch_web(web_address(uri), allow, limits)
    local = uri.removeprefix("file://")
    absolute = local.startswith("/") or uri.startswith("s3://")
    if not absolute or climbs(uri) or not uri.startswith(allow):
        raise RejectError(Reason.FORBIDDEN)
    if "\0" in uri:
        raise RejectError(Reason.MISSING)
    if not uri.startswith("s3://"):
        _check_is_file(local)
    folder, _, name = uri.rpartition("/")
    try:
        image = read_image(Storage(folder), Unit(name), limits.max_bytes)
    except (InputError, StorageRefusedError):
        raise RejectError(Reason.FORBIDDEN) from None
    if image["reason"]:
        raise RejectError(Reason(image["reason"]))
    return bytes(image["image"])


def _check_is_file(path: str) -> None:
    """Raise RejectError if there is no file at `path`, or a pipe or device, which may never end."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise RejectError(Reason.FORBIDDEN)
    except OSError as error:
        if error.errno in _NO_SUCH_FILE:
            raise RejectError(Reason.MISSING) from None
        # What else fails here fails when it is opened, and is translated there.
