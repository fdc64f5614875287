"""The catalog of an index: its versions, and which of them readers use.

<index>/versions/<n>.json   a manifest, created once and never changed
<index>/CURRENT             the version readers use by default; moved by compare-and-swap
<index>/superseded/<n>      when CURRENT last left version n: the time of this file; the newest one
                            stays when its version is dropped, so that no number comes twice

Garbage collection may drop a version at any moment. A writer that builds on one or points CURRENT
at it looks afterwards whether it is still there; garbage collection looks at CURRENT and at the
other versions after it dropped one. So at least one of them sees the other.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from dq_cluster.errors import ConflictError, IntegrityError, NotFoundError
from dq_cluster.index.manifest import Manifest, parse_manifest
from dq_cluster.storage import Storage

_CURRENT = "CURRENT"
_ATTEMPTS = 20
_MANIFEST = re.compile(r"versions/([1-9]\d{0,17})\.json", re.ASCII)
_POINTER = re.compile(rb"\d{1,18}")


def version_number(text: bytes, origin: str) -> int:
    """The version that a stored pointer names. Raises IntegrityError, naming `origin`."""
    if not _POINTER.fullmatch(text.strip()):
        raise IntegrityError(f"{origin} is not a version number: {text[:40]!r}")
    return int(text)


@dataclass(frozen=True)
class Index:
    """An index on storage. Cheap to pickle; every call reads storage afresh."""

    storage: Storage

    @classmethod
    def at(cls, uri: str) -> "Index":
        return cls(Storage(uri))

    def versions(self) -> list[int]:
        """All version numbers, ascending; empty for a new index. Foreign files are passed over."""
        matches = (_MANIFEST.fullmatch(info.path) for info in self.storage.list("versions"))
        return sorted(int(each[1]) for each in matches if each)

    def strays(self) -> list[str]:
        """The files among the manifests that are none, by name: copies, notes, sub-folders."""
        names = (info.path for info in self.storage.list("versions"))
        return [name for name in names if not _MANIFEST.fullmatch(name)]

    def current(self) -> int:
        """The version readers use. Raises NotFoundError when nothing was published yet."""
        try:
            return self._number(self.storage.read(_CURRENT))
        except NotFoundError:
            raise NotFoundError(
                f"{self.storage.uri} holds no published index; run an encode job to make one"
            ) from None

    def manifest(self, version: int | None = None) -> Manifest:
        """The manifest of `version`, by default the current one.

        Raises NotFoundError, listing what exists, for an unknown version.
        """
        number = self.current() if version is None else version
        name = f"versions/{number}.json"
        try:
            data = self.storage.read(name)
        except NotFoundError:
            if version is None and self.current() != number:
                return self.manifest()  # dropped since, when it was current no longer
            versions = ", ".join(map(str, self.versions())) or "none"
            raise NotFoundError(
                f"{self.storage.uri} has no version {number}; versions: {versions}"
            ) from None
        manifest = parse_manifest(data, f"{self.storage.uri}/{name}")
        if manifest.version != number:
            raise IntegrityError(
                f"{self.storage.uri}/{name} calls itself version {manifest.version}"
            )
        return manifest

    def publish(self, make: Callable[[int, int | None], Manifest]) -> Manifest:
        """Create the next version and point CURRENT at it.

        `make(version, parent)` builds the manifest, or returns one that exists already and is
        to become current. It is called again when another writer was first: with a higher
        number, or on a newer parent, so that nobody's version is built on what is no longer
        current.
        """
        for _ in range(_ATTEMPTS):
            number = self._next_number()
            seen = self._pointer()
            parent = None if seen is None else self._number(seen)
            try:
                manifest = make(number, parent)
            except NotFoundError:
                if self._pointer() == seen:
                    raise
                continue  # what it was to be built on is current no longer, and may be gone
            if manifest.version == number:
                if not self._created(manifest):
                    continue
                if parent is not None and self._dropped(parent) and self._pointer() != seen:
                    # Its files may be going; nobody was told of it yet.
                    self.storage.write(f"superseded/{number}", b"")
                    self.storage.delete(f"versions/{number}.json")
                    continue
            if self._moved(seen, manifest.version):
                return manifest
        raise ConflictError(f"{self.storage.uri}: {_ATTEMPTS} other writers were first; try again")

    def rollback(self, version: int) -> Manifest:
        """Point CURRENT at an existing `version`; nothing else changes."""
        for _ in range(_ATTEMPTS):
            manifest = self.manifest(version)
            if self._moved(self._pointer(), version):
                return manifest
        raise ConflictError(f"{self.storage.uri}/{_CURRENT} kept changing; try again")

    def _moved(self, seen: bytes | None, version: int) -> bool:
        """Point CURRENT, which held `seen`, at `version`. False if it did not stay so."""
        target = str(version).encode()
        if seen is not None and seen != target:
            with contextlib.suppress(IntegrityError):  # a damaged pointer is mended by a rollback
                self.storage.write(f"superseded/{self._number(seen)}", b"")
        if (
            seen != target
            and not self.storage.replace(_CURRENT, target, seen)
            and self._pointer() != target  # an answer that was lost is a move that succeeded
        ):
            return False
        if self._dropped(version):
            if seen is not None:
                self.storage.replace(_CURRENT, seen, target)
            return False
        return True

    def _next_number(self) -> int:
        """A number that no version ever had, not even one that was dropped."""
        left = (info.path.rpartition("/")[2] for info in self.storage.list("superseded"))
        return 1 + max([0, *self.versions(), *(int(n) for n in left if n.isdecimal())])

    def _dropped(self, version: int) -> bool:
        return not self.storage.exists(f"versions/{version}.json")

    def _created(self, manifest: Manifest) -> bool:
        name, data = f"versions/{manifest.version}.json", manifest.to_json()
        if self.storage.create(name, data):
            return True
        # A request whose answer was lost is sent again by the client and finds its own file.
        with contextlib.suppress(NotFoundError):
            return self.storage.read(name) == data
        return False

    def _number(self, pointer: bytes) -> int:
        return version_number(pointer, f"{self.storage.uri}/{_CURRENT}")

    def _pointer(self) -> bytes | None:
        try:
            return self.storage.read(_CURRENT)
        except NotFoundError:
            return None
