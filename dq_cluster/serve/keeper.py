"""Who says which version is served: one process, so that routers and replicas agree."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from dq_cluster.errors import DqError, UnavailableError
from dq_cluster.index.catalog import Index
from dq_cluster.observe.log import configure_logging
from dq_cluster.search.placement import Layout
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.versions import Versions

logger = logging.getLogger(__name__)

FOLLOW_S = 1.0  # how often routers ask, seconds
_RELEASE_S = 10.0  # how long replicas may take to forget versions
_AGAIN_S = 60.0  # replicas that missed it, or loaded for a query that came late, are told again


class Memory(Protocol):
    """Where the served version is kept while no process has it; see ClusterMemory."""

    def read(self) -> int | None: ...
    def write(self, version: int) -> None: ...


class VersionKeeper:
    """Says which version is served, and switches it. What it said survives its own restart.

    Replicas get one order at a time, to load or to release, so that none of them forgets what
    another order is loading.
    """

    async def __init__(  # type: ignore[misc]
        self,
        settings: ServeSettings,
        shards: Sequence[DeploymentHandle],
        memory: Memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        configure_logging()
        self._settings, self._shards, self._memory, self._clock = settings, shards, memory, clock
        serving = await asyncio.to_thread(self._first)
        self._versions = Versions(serving, settings.shards, clock)
        self._order = asyncio.Lock()
        self._kept: frozenset[Layout] | None = None  # what every replica was told to keep
        self._told = clock()
        self._tidying = asyncio.ensure_future(self._tidy_forever())

    def _first(self) -> int:
        first = self._memory.read()
        if first is None:
            first = self._settings.version
        if first is None:
            first = Index.at(self._settings.index).current()
        self._memory.write(first)  # CURRENT may move before the first switch
        return first

    async def serving(self) -> int:
        """The version that is served."""
        return self._versions.serving

    async def follow(self, router: str, in_use: frozenset[Layout]) -> int:
        """A router reports what it answers from, and learns which version it should serve."""
        return self._versions.report(router, in_use)

    async def switch(self, version: int) -> DqError | None:
        """Load `version` on every replica, then serve it. Returns why not, or None."""
        async with self._order:
            if version == self._versions.serving:
                return None
            self._kept = None  # some may hold more from now on, whether it succeeds or not
            limit = self._settings.load_timeout_s
            layout = Layout(version, self._settings.shards)
            refused = _refusal(await self._broadcast("load", layout, limit), limit)
            if refused:
                return refused
            try:
                await asyncio.to_thread(self._memory.write, version)
            except RayError as error:
                return UnavailableError(f"the head of the cluster does not answer: {error}")
            self._versions.serving = version
            return None

    async def tidy(self) -> None:
        """Have the replicas forget what nobody needs; again now and then, and if one missed it."""
        keep = self._versions.needed()
        if keep is None or (keep == self._kept and self._clock() - self._told < _AGAIN_S):
            return
        async with self._order:
            keep = self._versions.needed()  # a switch may have come first
            answers = await self._broadcast("release", keep, _RELEASE_S)
        missed = [a for a in answers if isinstance(a, BaseException) or any(a)]
        self._kept, self._told = (None if missed else keep), self._clock()

    async def _tidy_forever(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                await self.tidy()
            except Exception as error:
                logger.warning("cannot release versions", extra={"why": repr(error)})

    async def _broadcast(self, method: str, argument: Any, timeout_s: float) -> list[Any]:
        """For each shard the answer of every replica, or an exception in its place."""
        return await asyncio.gather(
            *(
                shard.broadcast(method, argument).results_async(
                    timeout_s=timeout_s, return_exceptions=True
                )
                for shard in self._shards
            ),
            return_exceptions=True,
        )


def _refusal(answers: Sequence[Any], limit_s: float) -> DqError | None:
    """Why a switch cannot happen, from every replica's answer to `load`; None if it can.

    A replica that died or hangs does not hold up a switch while another of its shard is ready:
    Serve replaces it, and the new one loads what is served then.
    """
    for number, replicas in enumerate(answers):
        if isinstance(replicas, TimeoutError):
            return UnavailableError(
                f"shard {number} did not load in {limit_s:g} s (load_timeout_s)"
            )
        answered = [] if isinstance(replicas, BaseException) else replicas
        for answer in answered:
            if isinstance(answer, DqError):
                return answer
        if None not in answered:
            return UnavailableError(f"shard {number} has no replica that could load")
    return None
