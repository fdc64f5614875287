"""Which version is served, and which ones somebody still needs. Pure bookkeeping."""

import time
from collections.abc import Callable

_SILENT_S = 30.0  # a router that reported nothing for so long is gone


class Versions:
    """The served version and what every router last said that it answers from."""

    def __init__(self, first: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.serving = first
        self._clock = clock
        self._routers: dict[str, tuple[int, float]] = {}
        self._heard = False

    def report(self, router: str, version: int | None) -> int:
        """Router `router` answers from `version` (None: from none yet); what it should serve.

        The first report of a version decides what is served: after a restart of its keeper, the
        routers know what had been switched to.
        """
        if version is not None:
            if not self._heard:
                self.serving, self._heard = version, True
            self._routers[router] = (version, self._clock())
        return self.serving

    def switch(self, version: int) -> None:
        """From now on `version` is served."""
        self.serving, self._heard = version, True

    def needed(self) -> frozenset[int]:
        """The served version and those that a router still answers from."""
        oldest = self._clock() - _SILENT_S
        self._routers = {r: (v, t) for r, (v, t) in self._routers.items() if t >= oldest}
        return frozenset({self.serving, *(version for version, _ in self._routers.values())})
