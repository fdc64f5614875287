"""Units: the pieces of a source that can be read on their own, and the check that they are still
what was planned."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.storage import FileInfo, Storage


class Unit(NamedTuple):
    """A piece of the input that can be read on its own.

    path: of a file of the source; start, rows: which of its rows. An image file is one row, a
    Parquet row group its rows. A tar tells its rows only when read: 0 means not known.
    size, stamp: those of the whole file when it was planned (see FileInfo); None in plans that
    do not have them. base: rows in the files before this one, where they are numbered.
    """

    path: str
    start: int = 0
    rows: int = 1
    size: int | None = None
    stamp: int | None = None
    base: int = 0


def check_unchanged(storage: Storage, unit: Unit, info: FileInfo) -> None:
    """Raise InputError where `info` is another file than the one that was planned.

    A plan without stamps is not checked.
    """
    if unit.stamp is None or (unit.size, unit.stamp) == (info.size, info.stamp):
        return
    planned = f"{unit.size:,} bytes"
    if storage.is_local:
        planned += f" of {_time(datetime.fromtimestamp(unit.stamp / 1e9, UTC))}"
    raise InputError(
        f"{storage.uri}/{unit.path} changed since the run was planned: planned were {planned}, "
        f"found are {info.size:,} bytes of {_time(info.modified)}"
        f"{'' if storage.is_local else ' with another ETag'}; start a new run, or put the "
        "planned file back"
    )


@contextlib.contextmanager
def as_planned(storage: Storage, unit: Unit) -> Iterator[None]:
    """Check the file of `unit` before and after it is read.

    Raises InputError where it changed or is gone: it holds many rows, which one reject must not
    stand for.
    """
    _check_stored(storage, unit)
    try:
        yield
    except Exception:
        _check_stored(storage, unit)  # a change explains the failure better
        raise
    _check_stored(storage, unit)


def _check_stored(storage: Storage, unit: Unit) -> None:
    try:
        info = storage.info(unit.path)
    except NotFoundError:
        raise InputError(
            f"{storage.uri}/{unit.path} was planned and is gone; put it back, or start a new run"
        ) from None
    check_unchanged(storage, unit, info)


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S.%f} UTC"
