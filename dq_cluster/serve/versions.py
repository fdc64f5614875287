"""Which version is served, and which ones somebody still needs. Pure bookkeeping."""

import time
from collections.abc import Callable, Iterable

from dq_cluster.errors import DqError, IntegrityError, StorageError, UnavailableError
from dq_cluster.search.placement import Layout

SILENT_S = 30.0  # a router that reported nothing for so long is gone


class Versions:
    """The served version, in how many shards, and what routers answer from."""

    def __init__(
        self, serving: int, shards: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.serving, self._shards = serving, shards
        self._clock = clock
        self._born = clock()
        self._routers: dict[str, tuple[frozenset[Layout], float]] = {}

    def report(self, router: str, in_use: Iterable[Layout]) -> int:
        """Router `router` answers from `in_use`; returns the version that it should serve."""
        self._routers[router] = (frozenset(in_use), self._clock())
        return self.serving

    def needed(self) -> frozenset[Layout] | None:
        """What replicas must keep; None while routers that were not heard of yet may need others.

        That is so at the start, which may be a restart beside routers that were there before.
        """
        now = self._clock()
        if now - self._born < SILENT_S:
            return None
        self._routers = {r: (v, t) for r, (v, t) in self._routers.items() if now - t < SILENT_S}
        used = (layout for layouts, _ in self._routers.values() for layout in layouts)
        return frozenset({Layout(self.serving, self._shards), *used})


def still_serving(version: int, error: DqError) -> DqError:
    """Why a refresh failed, and that `version` is served as before."""
    kind = type(error) if isinstance(error, StorageError | UnavailableError) else IntegrityError
    return kind(f"still serving version {version}: {error}")
