"""Who says which version is served: one process, so that routers and replicas agree."""

import asyncio
import contextlib
from typing import Any

from ray.serve.handle import DeploymentHandle

from dq_cluster.index.catalog import Index
from dq_cluster.observe.log import configure_logging
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.versions import Versions

FOLLOW_S = 0.5  # how often routers ask, seconds


class VersionKeeper:
    """Says which version is served; the only one, so that routers and replicas agree."""

    def __init__(self, settings: ServeSettings, shards: list[DeploymentHandle]) -> None:
        configure_logging()
        index = Index.at(settings.index)
        first = index.current() if settings.version is None else settings.version
        self._settings, self._shards = settings, shards
        self._versions = Versions(first)
        self._switching = asyncio.Lock()
        self._cleaning: asyncio.Task[None] | None = None

    async def serving(self) -> int:
        """The version that is served."""
        return self._versions.serving

    async def follow(self, router: str, version: int | None) -> int:
        """A router reports the version it answers from, and learns which it should."""
        return self._versions.report(router, version)

    async def switch(self, version: int) -> str:
        """Load `version` on every replica, then serve it. Returns why not, or an empty string."""
        async with self._switching:
            if version == self._versions.serving:
                return ""
            answers = await asyncio.gather(
                *(
                    shard.broadcast("load", version).results_async(
                        timeout_s=self._settings.load_timeout_s, return_exceptions=True
                    )
                    for shard in self._shards
                ),
                return_exceptions=True,
            )
            refused = _refusal(answers)
            if refused:
                await self._release(self._versions.needed())
                return refused
            self._versions.switch(version)
            self._cleaning = asyncio.ensure_future(self._release_when_unused())
            return ""

    async def _release_when_unused(self) -> None:
        while len(self._versions.needed()) > 1:
            await asyncio.sleep(FOLLOW_S)
        # The last queries that routers started on the old version are still under way.
        await asyncio.sleep(self._settings.limits.max_timeout_ms / 1e3)
        await self._release(self._versions.needed())

    async def _release(self, keep: frozenset[int]) -> None:
        for shard in self._shards:
            with contextlib.suppress(TimeoutError):
                await shard.broadcast("release", keep).results_async(
                    timeout_s=10, return_exceptions=True
                )


def _refusal(answers: list[Any]) -> str:
    """Why a switch cannot happen, from every replica's answer to `load`; empty if it can.

    A replica that died or hangs does not hold up a switch while another of its shard is ready:
    Serve replaces it, and the new one loads what is served then.
    """
    for number, replicas in enumerate(answers):
        if isinstance(replicas, BaseException):
            return f"shard {number} did not load in time"
        refused = [answer for answer in replicas if isinstance(answer, str) and answer]
        if refused:
            return str(refused[0])
        if "" not in replicas:
            return f"shard {number} has no replica that could load"
    return ""
