"""Which version is served, and which ones somebody still needs. Pure bookkeeping."""

import time
from collections.abc import Callable, Iterable

from dq_cluster.errors import DqError, IntegrityError, StorageError, UnavailableError

SILENT_S = 30.0  # a router that reported nothing for so long is gone


class Versions:
    """The served version, and those that routers answer from."""

    def __init__(self, serving: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.serving = serving
        self._clock = clock
        self._born = clock()
        self._routers: dict[str, tuple[frozenset[int], float]] = {}

    def report(self, router: str, in_use: Iterable[int]) -> int:
        """Router `router` answers from the versions `in_use`; returns which it should serve."""
        self._routers[router] = (frozenset(in_use), self._clock())
        return self.serving

    def needed(self) -> frozenset[int] | None:
        """The versions to keep; None while routers that were not heard of yet may need others.

        That is so at the start, which may be a restart beside routers that have been running.
        """
        now = self._clock()
        if now - self._born < SILENT_S:
            return None
        self._routers = {r: (v, t) for r, (v, t) in self._routers.items() if now - t < SILENT_S}
        used = (version for versions, _ in self._routers.values() for version in versions)
        return frozenset({self.serving, *used})


def still_serving(version: int, error: DqError) -> DqError:
    """Why a refresh failed, and that `version` is served as before."""
    kind = type(error) if isinstance(error, StorageError | UnavailableError) else IntegrityError
    return kind(f"still serving version {version}: {error}")
