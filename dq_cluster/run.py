"""A run: a named piece of work on storage that can be resumed, and whose request may not change.

    <run>/run.json          the request; the first to create it decides
    <run>/alive/<driver>    a driver works on the run; rewritten every minute
    <run>/collecting/mark   garbage collection works on the run; likewise
    <run>/published         what the run has become, as JSON

A driver first writes its sign of life and then looks for the mark; garbage collection first sets
the mark and then looks for drivers. So at least one of them sees the other, and no file that a run
needs is removed.
"""

import contextlib
import itertools
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Self

from pydantic import ValidationError

from dq_cluster.config import Settings
from dq_cluster.document import parse_record
from dq_cluster.errors import ConfigError, IntegrityError, NotFoundError
from dq_cluster.storage import Storage

log = logging.getLogger(__name__)

BEAT_EVERY = 60.0  # seconds
# Who has not been heard of for so long is gone. Ten beats: storage may fail for a while.
ALIVE_FOR = timedelta(minutes=10)

_REQUEST = "run.json"
_PUBLISHED = "published"
_ALIVE = "alive"
_COLLECTING = "collecting"
_LOOK_EVERY = 5.0  # seconds between looks at a garbage collection that is waited for
_SAY_EVERY = 12  # looks
_SHOWN = 80  # characters of a value in a message


class Difference(NamedTuple):
    """A key, dotted, whose value is not the same on both sides; None where a side lacks it."""

    key: str
    stored: Any
    requested: Any

    def __str__(self) -> str:
        return f"{self.key} {_short(self.stored)} (now {_short(self.requested)})"


def differences(
    stored: Mapping[str, Any], request: Mapping[str, Any], prefix: str = ""
) -> list[Difference]:
    """Every leaf in which two nested mappings differ, in the order of their keys."""
    differing = []
    for key in sorted(stored.keys() | request.keys()):
        one, other = stored.get(key), request.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            differing += differences(one, other, f"{prefix}{key}.")
        elif one != other:
            differing.append(Difference(prefix + key, one, other))
    return differing


class Run:
    """The run whose own folder is `storage`. Cheap; every call reads storage afresh."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._heartbeat: Heartbeat | None = None

    def check(self, request: Settings, recorded: Mapping[str, Any] | None = None) -> None:
        """Raise ConfigError, naming every difference, if the run was begun with another request.

        recorded: the request of a run that an older release began without `run.json`.
        """
        stored = self.request() or recorded
        if stored is None:
            return
        values = request.model_dump(mode="json")
        with contextlib.suppress(ValidationError):  # fields that it lacks have their defaults
            stored = type(request).model_validate(stored).model_dump(mode="json")
        if differing := differences(stored, values):
            raise ConfigError(
                f"the run at {self.storage.uri} was begun with {', '.join(map(str, differing))}; "
                "continue it with what it was begun with, or begin another under another name"
            )

    def claim(self, request: Settings, recorded: Mapping[str, Any] | None = None) -> None:
        """Make this the run's request, unless it has one: then as `check`."""
        self.check(request, recorded)
        if not self.storage.create(_REQUEST, request.model_dump_json(indent=1).encode()):
            self.check(request)

    def finish(self, result: Any) -> None:
        """Record what the run has become, a JSON value."""
        self.storage.write(_PUBLISHED, json.dumps(result).encode())

    def result(self) -> Any:
        """What `finish` recorded last; None before that."""
        try:
            return json.loads(self.storage.read(_PUBLISHED))
        except NotFoundError:
            return None
        except ValueError as error:
            raise IntegrityError(f"{self.storage.uri}/{_PUBLISHED} is not JSON: {error}") from None

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Say meanwhile that a driver is at work; there may be several.

        Waits while garbage collection removes old files of the run.
        """
        with Heartbeat(self.storage, f"{_ALIVE}/{_driver()}") as self._heartbeat:
            self.confirm()
            yield
        self._heartbeat = None

    def confirm(self) -> None:
        """Say now that this driver is at work: from here on no file of the run is removed.

        For `at_work` only. A process that stood still for long (a laptop that slept) must look
        afterwards whether its files are still there.
        """
        assert self._heartbeat is not None
        for look in itertools.count():
            self._heartbeat.beat()
            now = self._heartbeat.written()
            mark = next(iter(self.storage.list(_COLLECTING)), None)
            if mark is None or now - mark.modified >= ALIVE_FOR:
                break
            if look % _SAY_EVERY == 0:
                log.warning(
                    "%s: waiting for a garbage collection that removes old files of this run; its "
                    "last sign of life is %.0f s old, after %.0f s it counts as dead",
                    self.storage.uri,
                    (now - mark.modified).total_seconds(),
                    ALIVE_FOR.total_seconds(),
                )
            _pause(_LOOK_EVERY)
        for dead in self.storage.list(_ALIVE):
            if now - dead.modified >= ALIVE_FOR:
                self.storage.delete(dead.path)

    def now(self) -> datetime:
        """The time by the clock that stamps files, for `at_work` only."""
        assert self._heartbeat is not None
        self._heartbeat.beat()
        return self._heartbeat.written()

    @contextlib.contextmanager
    def collecting(self, now: datetime) -> "Iterator[Heartbeat | None]":
        """Keep drivers that start meanwhile waiting. None where another collection does so."""
        mark = Heartbeat(self.storage, f"{_COLLECTING}/mark")
        if not mark.seize(now):
            yield None
            return
        with mark:
            yield mark

    def request(self) -> dict[str, Any] | None:
        """What the run was begun with; None before that."""
        try:
            record = parse_record(self.storage.read(_REQUEST), f"{self.storage.uri}/{_REQUEST}")
        except NotFoundError:
            return None
        record.pop("format", None)
        return record


class Heartbeat:
    """A file that is rewritten while a context lasts: as long as it is young, somebody is at work.

    A failing storage delays it and does not end it. At the end the file is removed.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        self._token, self._beats = _driver(), 0
        self._last = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def beat(self) -> None:
        """Write the file now."""
        began = time.time()
        self._storage.write(self._name, self._content())
        self._last = began

    def seize(self, now: datetime) -> bool:
        """Write the file unless a living process has it; return whether it was written."""
        self._last = time.time()
        if self._storage.create(self._name, self._content()):
            return True
        with contextlib.suppress(NotFoundError):  # released meanwhile: the next one to ask gets it
            before = self._storage.read(self._name)
            if now - self.written() >= ALIVE_FOR:
                return self._storage.replace(self._name, self._content(), before)
        return False

    def written(self) -> datetime:
        """When the file was written, by the clock of the storage. Raises NotFoundError."""
        folder = self._name.rpartition("/")[0]
        for info in self._storage.list(folder):
            if info.path == self._name:
                return info.modified
        raise NotFoundError(f"{self._storage.uri}/{self._name} does not exist")

    @property
    def fresh(self) -> bool:
        """Whether others are sure to see that its owner is at work."""
        return time.time() - self._last < ALIVE_FOR.total_seconds() / 2

    def __enter__(self) -> Self:
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)  # it may be waiting for storage
        try:
            if self._storage.read(self._name).startswith(self._token.encode()):
                self._storage.delete(self._name)
        except NotFoundError:
            pass
        except Exception as error:  # the work is done; a file that stays grows old
            log.warning("%s/%s could not be removed: %s", self._storage.uri, self._name, error)

    def _keep_beating(self) -> None:
        while not self._stop.wait(BEAT_EVERY):
            try:
                self.beat()
            except Exception as error:  # whatever storage does, the next beat may succeed
                log.warning("no sign of life to %s: %s", self._storage.uri, error)

    def _content(self) -> bytes:
        # Never the same twice: a compare-and-swap must notice a beat.
        self._beats += 1
        return f"{self._token} {self._beats}\n".encode()


def _driver() -> str:
    host = "".join(c if c.isalnum() or c in "-." else "-" for c in socket.gethostname())
    return f"{host or 'host'}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


_pause = time.sleep
