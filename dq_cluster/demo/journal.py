"""What the demo has already done, so that a killed one goes on where it stopped."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dq_cluster.errors import ConfigError
from dq_cluster.index.document import parse_record
from dq_cluster.storage import Storage

log = logging.getLogger(__name__)

_NAME = "demo.json"


class Journal:
    """Stages that are done and what they found, kept in `<folder>/demo.json`."""

    def __init__(self, folder: Path, request: dict[str, Any]) -> None:
        """Open or start the journal. Raises ConfigError if it belongs to another request."""
        self._storage = Storage(str(folder))
        fresh = {"request": request, "stages": {}}
        self._storage.create(_NAME, json.dumps(fresh).encode())
        self._content = parse_record(self._storage.read(_NAME), f"{folder}/{_NAME}")
        if self._content["request"] != request:
            raise ConfigError(
                f"{folder} holds a demo of {self._content['request']}, not of {request}; "
                "remove the folder or name another with --folder"
            )

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` found, now or in an earlier, interrupted demo; with its `seconds`."""
        done = self._content["stages"]
        if name in done:
            log.info("%s: done before", name)
            return done[name]
        log.info("%s …", name)
        started = time.monotonic()
        found = work()
        done[name] = {**found, "seconds": round(time.monotonic() - started, 1)}
        self._storage.write(_NAME, json.dumps(self._content, indent=1).encode())
        return done[name]
