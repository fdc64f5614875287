"""The versions that one process holds in memory."""

import asyncio
from collections.abc import Callable, Mapping, Set
from typing import Generic, TypeVar

T = TypeVar("T")


class Held(Generic[T]):
    """Each version is loaded once, whoever asks; what is released while it loads is not kept.

    load: reads one version, in a thread. held: what is there already. Works within one event loop.
    """

    def __init__(self, load: Callable[[int], T], held: Mapping[int, T] | None = None) -> None:
        self._load = load
        self._held = dict(held or {})
        self._loading: dict[int, asyncio.Task[T]] = {}
        self._released: set[int] = set()  # of those that are loading

    @property
    def versions(self) -> frozenset[int]:
        """Those that are held, and those that will be once they are loaded."""
        return frozenset({*self._held, *self._loading} - self._released)

    async def get(self, version: int) -> T:
        """The version, loaded if need be. Raises what loading raises."""
        if version in self._held:
            return self._held[version]
        self._released.discard(version)
        if version not in self._loading:
            self._loading[version] = asyncio.ensure_future(self._read(version))
        # Whoever stops waiting does not stop it for the others.
        return await asyncio.shield(self._loading[version])

    def release(self, keep: Set[int]) -> None:
        """Forget every version but those in `keep`, also what is still being loaded."""
        self._held = {version: held for version, held in self._held.items() if version in keep}
        self._released |= self._loading.keys() - keep

    async def _read(self, version: int) -> T:
        try:
            loaded = await asyncio.to_thread(self._load, version)
            if version not in self._released:
                self._held[version] = loaded
            return loaded
        finally:
            del self._loading[version]
            self._released.discard(version)
