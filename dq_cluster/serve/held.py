"""What one process holds in memory: versions, or its shards of them."""

import asyncio
from collections.abc import Callable, Mapping, Set
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Held(Generic[K, T]):
    """Each is loaded once, for all callers; what is released while it loads is not kept.

    load: reads one, in a thread. held: what is there already. Works within one event loop.
    """

    def __init__(self, load: Callable[[K], T], held: Mapping[K, T] | None = None) -> None:
        self._load = load
        self._held = dict(held or {})
        self._loading: dict[K, asyncio.Task[T]] = {}
        self._released: set[K] = set()  # of those that are loading

    @property
    def keys(self) -> frozenset[K]:
        """Those that are held, and those that will be once they are loaded."""
        return frozenset({*self._held, *self._loading} - self._released)

    async def get(self, key: K) -> T:
        """Loaded if need be. Raises what loading raises."""
        if key in self._held:
            return self._held[key]
        self._released.discard(key)
        if key not in self._loading:
            self._loading[key] = asyncio.ensure_future(self._read(key))
        # A caller that stops waiting does not stop it for the others.
        return await asyncio.shield(self._loading[key])

    def release(self, keep: Set[K]) -> None:
        """Forget all but those in `keep`, also what is still being loaded."""
        self._held = {key: held for key, held in self._held.items() if key in keep}
        self._released |= self._loading.keys() - keep

    async def _read(self, key: K) -> T:
        try:
            loaded = await asyncio.to_thread(self._load, key)
            if key not in self._released:
                self._held[key] = loaded
            return loaded
        finally:
            del self._loading[key]
            self._released.discard(key)
