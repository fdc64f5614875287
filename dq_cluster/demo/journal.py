"""The finished stages of the demo, so that it continues where it stopped."""

import json
import logging
import time
from collections.abc import Callable
from typing import Any

from dq_cluster.document import parse_record
from dq_cluster.storage import Storage

log = logging.getLogger(__name__)

_NAME = "demo.json"


class Journal:
    """Stages that are done and what they found, kept in `<folder>/demo.json`."""

    def __init__(self, storage: Storage) -> None:
        """Open the journal of the demo in folder `storage`, or begin one."""
        self._storage = storage
        storage.create(_NAME, b'{"stages": {}}')
        self._content = parse_record(storage.read(_NAME), f"{storage.uri}/{_NAME}")

    @property
    def recorded(self) -> dict[str, Any] | None:
        """What was asked of a demo that an older release began; `run.json` has it now."""
        return self._content.get("request")

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` found, now or in an earlier, interrupted demo; with its `seconds`."""
        done = self._content["stages"]
        if name in done:
            log.info("%s: done before", name)
            return done[name]
        log.info("%s …", name)
        started = time.monotonic()
        result = work()
        done[name] = {**result, "seconds": round(time.monotonic() - started, 1)}
        self._storage.write(_NAME, json.dumps(self._content, indent=1).encode())
        return done[name]
