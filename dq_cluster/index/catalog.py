"""The catalog of an index: its versions, and which of them readers use.

<index>/versions/<n>.json   a manifest, created once and never changed
<index>/CURRENT             the version readers use by default; moved by compare-and-swap
"""

from collections.abc import Callable
from dataclasses import dataclass

from dq_cluster.errors import ConflictError, IntegrityError, NotFoundError
from dq_cluster.index.manifest import Manifest, parse_manifest
from dq_cluster.storage import Storage

_CURRENT = "CURRENT"
_ATTEMPTS = 20


@dataclass(frozen=True)
class Index:
    """An index on storage. Cheap to pickle; every call reads storage afresh."""

    storage: Storage

    @classmethod
    def at(cls, uri: str) -> "Index":
        return cls(Storage(uri))

    def versions(self) -> list[int]:
        """All version numbers, ascending; empty for a new index."""
        names = (info.path.rpartition("/")[2] for info in self.storage.list("versions"))
        return sorted(int(n.removesuffix(".json")) for n in names if n[:1].isdigit())

    def current(self) -> int:
        """The version readers use. Raises NotFoundError when nothing was published yet."""
        try:
            text = self.storage.read(_CURRENT)
        except NotFoundError:
            raise NotFoundError(
                f"{self.storage.uri} holds no published index; run an encode job to make one"
            ) from None
        if not text.strip().isdigit():
            raise IntegrityError(f"{self.storage.uri}/{_CURRENT} is not a version number: {text!r}")
        return int(text)

    def manifest(self, version: int | None = None) -> Manifest:
        """The manifest of `version`, by default the current one.

        Raises NotFoundError, listing what exists, for an unknown version.
        """
        number = self.current() if version is None else version
        name = f"versions/{number}.json"
        try:
            data = self.storage.read(name)
        except NotFoundError:
            known = ", ".join(map(str, self.versions())) or "none"
            raise NotFoundError(
                f"{self.storage.uri} has no version {number}; versions: {known}"
            ) from None
        manifest = parse_manifest(data, f"{self.storage.uri}/{name}")
        if manifest.version != number:
            raise IntegrityError(
                f"{self.storage.uri}/{name} calls itself version {manifest.version}"
            )
        return manifest

    def publish(self, make: Callable[[int, int | None], Manifest]) -> Manifest:
        """Create the next version and point CURRENT at it.

        `make(version, parent)` builds the manifest; it is called again with a higher number
        when another writer takes the first one.
        """
        for _ in range(_ATTEMPTS):
            known = self.versions()
            parent = self._pointer()
            number = (known[-1] if known else 0) + 1
            manifest = make(number, int(parent) if parent else None)
            if not self.storage.create(f"versions/{number}.json", manifest.to_json()):
                continue
            self._move_to(number, keep_newer=True)
            return manifest
        raise ConflictError(f"{self.storage.uri}: {_ATTEMPTS} other writers were first; try again")

    def rollback(self, version: int) -> Manifest:
        """Point CURRENT at an existing `version`; nothing else changes."""
        manifest = self.manifest(version)
        self._move_to(version, keep_newer=False)
        return manifest

    def _pointer(self) -> bytes | None:
        try:
            return self.storage.read(_CURRENT)
        except NotFoundError:
            return None

    def _move_to(self, version: int, *, keep_newer: bool) -> None:
        for _ in range(_ATTEMPTS):
            seen = self._pointer()
            if keep_newer and seen is not None and int(seen) > version:
                return
            if self.storage.replace(_CURRENT, str(version).encode(), seen):
                return
        raise ConflictError(
            f"{self.storage.uri}/{_CURRENT} kept changing; version {version} exists, "
            "make it current with 'index rollback'"
        )
