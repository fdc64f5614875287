"""The ids that a version has, so that only what is new is added to it."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dq_cluster.errors import NothingNewError
from dq_cluster.images.skipped import Skipped
from dq_cluster.images.units import Unit
from dq_cluster.index.ids import TEXT
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.tombstones import live_ids
from dq_cluster.storage import Storage

IN_THE_INDEX = "in the index already"  # the kind under which `Skipped` counts them
_DIGEST_BYTES = 16
_BATCH = 4096


class KnownIds(NamedTuple):
    """A set of ids: sorted keys (n,), numbers themselves, of texts a digest of 128 bits."""

    keys: np.ndarray

    def holds(self, ids: pa.Array) -> np.ndarray:
        """Which of the ids (n,) are in the set, bool (n,); a null is not."""
        if not len(self.keys):
            return np.zeros(len(ids), bool)
        valid = ids.is_valid().to_numpy(zero_copy_only=False)
        held = np.zeros(len(ids), bool)
        if pa.types.is_null(ids.type):
            return held
        keys = _keys(ids.drop_null())
        if keys.dtype != self.keys.dtype:
            return held
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        held[valid] = self.keys[places] == keys
        return held

    def new_files(self, units: Iterable[Unit], skipped: Skipped) -> Iterator[Unit]:
        """The units, whose ids are their paths, that are not in the set.

        Raises NothingNewError at the end if there were some, and none is new.
        """
        stream, new, old = iter(units), 0, 0
        while batch := list(itertools.islice(stream, _BATCH)):
            for unit, held in zip(batch, self.holds(pa.array(u.path for u in batch)), strict=True):
                if held:
                    old += 1
                    skipped.add(IN_THE_INDEX)
                else:
                    new += 1
                    yield unit
        if old and not new:
            raise NothingNewError(f"nothing is new: all {old:,} images are {IN_THE_INDEX}")

    def new_rows(self, tables: Iterable[pa.Table], skipped: Skipped) -> Iterator[pa.Table]:
        """The tables without the rows whose `id` is in the set."""
        for table in tables:
            held = self.holds(table.column("id").combine_chunks())
            for _ in range(int(held.sum())):
                skipped.add(IN_THE_INDEX)
            yield table.filter(pa.array(~held)) if held.any() else table


def known_ids(storage: Storage, manifest: Manifest) -> KnownIds:
    """The ids of a version without those that were deleted. 8 bytes a number, 16 a text."""
    dtype = f"S{_DIGEST_BYTES}" if manifest.id_type == TEXT else np.int64
    keys = [np.empty(0, dtype), *(_keys(ids) for _, ids in live_ids(storage, manifest))]
    return KnownIds(np.sort(np.concatenate(keys)))


def _keys(ids: pa.Array) -> np.ndarray:
    if pa.types.is_integer(ids.type):
        return ids.to_numpy(zero_copy_only=False).astype(np.int64)  # of uint64 the same 64 bits
    digests = (hashlib.blake2b(id.encode(), digest_size=_DIGEST_BYTES) for id in ids.to_pylist())
    return np.array([d.digest() for d in digests], f"S{_DIGEST_BYTES}")
