"""Verification: read everything a version names and say, file by file, what is wrong."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dq_cluster.config import Settings
from dq_cluster.errors import DqError, NotFoundError
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import open_code_file
from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.index.models import read_card, read_tensors
from dq_cluster.index.tombstones import live_ids, read_tombstones
from dq_cluster.storage import Storage

_PIECE = 8 << 20
_READERS = 8
# Ids looked at together when searching for duplicates: bounds memory, costs passes.
_IDS_AT_ONCE = 50_000_000


class VerifyReport(Settings):
    """What was read of a version, and everything found wrong with it."""

    version: int
    files: int
    bytes: int
    problems: tuple[str, ...]


def verify(index: Index, version: int | None = None, *, ids: bool = False) -> VerifyReport:
    """Hash every file of a version and check it against the manifest; `ids` finds duplicates.

    Problems are collected, not raised; only a version that cannot be read at all raises.
    """
    manifest = index.manifest(version)
    storage = index.storage
    codes = [(file, True) for file in manifest.files]
    others = [(file, False) for file in (*manifest.tombstones, *manifest.rejects)]
    problems = list(_model_problems(storage, manifest))
    with ThreadPoolExecutor(_READERS) as pool:
        for found in pool.map(lambda f: _file_problems(storage, manifest, *f), codes + others):
            problems.extend(found)
    if not problems:
        problems.extend(_tombstone_problems(storage, manifest))
        if ids:
            problems.extend(_duplicate_ids(storage, manifest))
    return VerifyReport(
        version=manifest.version,
        files=len(codes) + len(others),
        bytes=sum(file.size for file, _ in codes + others),
        problems=tuple(problems),
    )


def _model_problems(storage: Storage, manifest: Manifest) -> Iterator[str]:
    try:
        card = read_card(storage, manifest.model)
        read_tensors(storage, card)
    except DqError as error:
        yield str(error)
        return
    if card.geometry != manifest.geometry:
        yield (
            f"model {card.digest[:12]} has geometry {card.geometry}, "
            f"the manifest says {manifest.geometry}"
        )


def _file_problems(
    storage: Storage, manifest: Manifest, file: FileEntry, holds_codes: bool
) -> list[str]:
    where = f"{storage.uri}/{file.path}"
    try:
        size, sha256 = _hash(storage, file.path)
        if size != file.size:
            return [f"{where}: {size} bytes, the manifest says {file.size}"]
        if sha256 != file.sha256:
            return [f"{where}: hashes to {sha256[:12]}, the manifest says {file.sha256[:12]}"]
        if holds_codes:
            open_code_file(storage, file, model=manifest.model, geometry=manifest.geometry)
        elif (rows := pq.read_metadata(storage.open(file.path)).num_rows) != file.rows:
            return [f"{where}: {rows} rows, the manifest says {file.rows}"]
    except NotFoundError:
        return [f"{where}: named by the manifest but missing"]
    except (DqError, pa.ArrowException) as error:
        return [f"{where}: {error}"]
    return []


def _hash(storage: Storage, path: str) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with storage.open(path) as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return size, digest.hexdigest()


def _tombstone_problems(storage: Storage, manifest: Manifest) -> Iterator[str]:
    rows = {file.path: file.rows for file in manifest.files}
    count = 0
    for path, deleted in read_tombstones(storage, manifest).items():
        count += len(deleted)
        if path not in rows or deleted[-1] >= rows[path]:
            yield f"a tombstone names row {deleted[-1]} of {path}, which the version does not have"
    if count != manifest.deleted:
        yield f"the manifest says {manifest.deleted} deleted rows, the tombstones name {count}"


def _duplicate_ids(storage: Storage, manifest: Manifest) -> Iterator[str]:
    """Ids that more than one live row has, found by hash in passes of bounded memory."""
    passes = -(-manifest.rows // _IDS_AT_ONCE)
    suspects = np.concatenate(
        [_repeated_hashes(storage, manifest, number, passes) for number in range(passes)]
        or [np.empty(0, np.uint64)]
    )
    if not len(suspects):
        return
    ids = pd.concat(
        _series(ids)[np.isin(_hashes(ids), suspects)] for _, ids in live_ids(storage, manifest)
    )
    for name, count in ids.value_counts().items():
        if count > 1:
            yield f"id {name!r} has {count} rows"


def _repeated_hashes(storage: Storage, manifest: Manifest, number: int, passes: int) -> np.ndarray:
    parts = [np.empty(0, np.uint64)]
    for _, ids in live_ids(storage, manifest):
        hashes = _hashes(ids)
        parts.append(hashes[hashes % np.uint64(passes) == number])
    values, counts = np.unique(np.concatenate(parts), return_counts=True)
    return values[counts > 1]


def _hashes(ids: pa.Array) -> np.ndarray:
    return pd.util.hash_array(_series(ids).to_numpy(), categorize=False)


def _series(ids: pa.Array) -> pd.Series:
    return pd.Series(ids.to_numpy(zero_copy_only=False))
