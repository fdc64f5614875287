"""The ledger of a run: which fragments are committed, by which receipt.

    <run>/ledger/<fragment>.json   created if absent: the first writer wins

A fragment computed twice (a retried task, a second driver) is therefore counted once. Nothing
names the files of the other writer, so they do not exist for any reader.
"""

import contextlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from pydantic import Field

from dq_cluster.document import Document
from dq_cluster.errors import NotFoundError
from dq_cluster.index.manifest import FileEntry
from dq_cluster.storage import Storage

# Receipts are small; on object storage reading them is all waiting.
_READERS = 32
_ENTRY = re.compile(r"(\d{8}|[1-9]\d{8,17})\.json", re.ASCII)


class Receipt(Document):
    """What an encoding task reports about its fragment.

    files, rejects, thumbnails: what it wrote; rows, rejected: how many rows are in them;
    reasons: rejects by reason; columns: names and Arrow types of the columns of `files`; seconds:
    time spent per stage, summed over its workers; skipped: members of tars that are no input, by
    kind.
    """

    NAME: ClassVar[str] = "receipt"
    REMEDY: ClassVar[str] = "; delete it to encode its fragment again"

    fragment: int
    rows: int
    rejected: int
    reasons: dict[str, int]
    files: tuple[FileEntry, ...]
    rejects: tuple[FileEntry, ...]
    thumbnails: FileEntry | None = None
    columns: dict[str, str]
    seconds: dict[str, float]
    skipped: dict[str, int] = Field(default_factory=dict)

    @property
    def written(self) -> tuple[FileEntry, ...]:
        """All files."""
        small = () if self.thumbnails is None else (self.thumbnails,)
        return (*self.files, *self.rejects, *small)


class Ledger:
    """The ledger of the run in folder `run` of `storage`, or in `storage`. Cheap to pickle."""

    def __init__(self, storage: Storage, run: str) -> None:
        self._storage = storage
        self._folder = f"{run}/ledger" if run else "ledger"

    def done(self) -> list[int]:
        """Numbers of the committed fragments, ascending; foreign files are passed over."""
        names = (info.path.rpartition("/") for info in self._storage.list(self._folder))
        return sorted(
            int(match[1])
            for folder, _, name in names
            if folder == self._folder and (match := _ENTRY.fullmatch(name))
        )

    def contains(self, fragment: int) -> bool:
        return self._storage.exists(self._name(fragment))

    def commit(self, receipt: Receipt) -> Receipt:
        """Enter a receipt and return the one that counts: another's, if that was first."""
        data = receipt.model_dump_json().encode()
        if self._storage.create(self._name(receipt.fragment), data):
            return receipt
        # Not necessarily another's: a request whose answer was lost is sent again by the
        # client, and then finds its own entry.
        return self.read(receipt.fragment)

    def receipts(self) -> Iterator[Receipt]:
        """The receipts of all committed fragments, in order of the fragments."""
        with ThreadPoolExecutor(_READERS) as pool:
            yield from filter(None, pool.map(self._read_if_there, self.done()))

    def forget(self, fragment: int) -> None:
        """Let a fragment be encoded again, because files of it are gone."""
        self._storage.delete(self._name(fragment))

    def _read_if_there(self, fragment: int) -> Receipt | None:
        with contextlib.suppress(NotFoundError):  # another driver forgot it since it was listed
            return self.read(fragment)
        return None

    def read(self, fragment: int) -> Receipt:
        """The receipt of a committed fragment. Raises NotFoundError before that."""
        name = self._name(fragment)
        return Receipt.parse(self._storage.read(name), f"{self._storage.uri}/{name}")

    def _name(self, fragment: int) -> str:
        return f"{self._folder}/{fragment:08d}.json"
