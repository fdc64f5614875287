"""Verification: read everything a version names and say, file by file, what is wrong."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dq_cluster.config import Settings
from dq_cluster.errors import DqError, InputError, IntegrityError, NotFoundError
from dq_cluster.index.ahead import read_ahead, readers
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import (
    carried_schema,
    file_schema,
    open_code_file,
    read_codes,
    read_second_codes,
)
from dq_cluster.index.columns import join_schemas
from dq_cluster.index.ids import NUMBERS, as_type
from dq_cluster.index.manifest import FileEntry, Manifest
from dq_cluster.index.models import read_card, read_tensors
from dq_cluster.index.thumbnails import thumbnail_problems
from dq_cluster.index.tombstones import live_ids, read_tombstones
from dq_cluster.progress import Steps
from dq_cluster.storage import Storage

_PIECE = 8 << 20
_READERS = 8
_BATCH_ROWS = 1 << 16
# Ids looked at together when searching for duplicates: bounds memory, costs passes.
_IDS_AT_ONCE = 50_000_000


class VerifyReport(Settings):
    """What was read of a version, and everything found wrong with it."""

    version: int
    files: int
    bytes: int
    problems: tuple[str, ...]


def verify(index: Index, version: int | None = None, *, ids: bool = False) -> VerifyReport:
    """Hash every file of a version, and read it as a search does; `ids` finds duplicates.

    Problems are collected, not raised; only a version that cannot be read at all raises.
    """
    manifest = index.manifest(version)
    storage = index.storage
    others = (*manifest.tombstones, *manifest.rejects, *manifest.thumbnails.values())
    problems = list(_model_problems(storage, manifest))
    files = (*manifest.files, *others)
    total = sum(file.size for file in files)
    with (
        Steps(f"verify {manifest.version}", total, "MB", scale=1e-6) as steps,
        ThreadPoolExecutor(_READERS) as pool,
    ):
        wrong = list(pool.map(lambda file: _file_problems(storage, file, steps), files))
    for of_file in wrong:
        problems.extend(of_file)
    # What was just found damaged says no more when it is read.
    whole = [file for file, of_file in zip(manifest.files, wrong, strict=False) if not of_file]
    read = read_ahead(
        lambda file: [_contents(storage, manifest, file)], whole, min(_READERS, readers(whole))
    )
    schemas = []
    for file, (of_file, schema) in zip(whole, read, strict=True):
        problems.extend(of_file)
        if schema is not None:
            schemas.append((f"{storage.uri}/{file.path}", schema))
    problems.extend(_type_problems(storage, manifest, schemas))
    if not problems:
        problems.extend(_tombstone_problems(storage, manifest))
        problems.extend(thumbnail_problems(storage, manifest))
        if ids:
            problems.extend(_duplicate_ids(storage, manifest))
    return VerifyReport(
        version=manifest.version,
        files=len(manifest.files) + len(others),
        bytes=sum(file.size for file in (*manifest.files, *others)),
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


def _file_problems(storage: Storage, file: FileEntry, steps: Steps) -> list[str]:
    """Whether the file is the one that the manifest names."""
    where = f"{storage.uri}/{file.path}"
    try:
        size, sha256 = _hash(storage, file.path, steps)
        if size != file.size:
            return [f"{where}: {size} bytes, the manifest says {file.size}"]
        if sha256 != file.sha256:
            return [f"{where}: hashes to {sha256[:12]}, the manifest says {file.sha256[:12]}"]
        rows = pq.read_metadata(storage.open(file.path)).num_rows
        if rows != file.rows:
            return [f"{where}: {rows} rows, the manifest says {file.rows}"]
    except NotFoundError:
        return [f"{where}: named by the manifest but missing"]
    except (DqError, pa.ArrowException, OSError) as error:
        return [f"{where}: {error}"]
    return []


def _contents(
    storage: Storage, manifest: Manifest, file: FileEntry
) -> tuple[list[str], pa.Schema | None]:
    """What a search would not get out of a code file, and the types of its carried columns."""
    where = f"{storage.uri}/{file.path}"
    try:
        with open_code_file(
            storage, file, model=manifest.model, geometry=manifest.geometry
        ) as opened:
            schema = file_schema(opened, manifest.columns, where)
            problems = list(_row_problems(opened, manifest, storage.local(file.path)))
            return [f"{where}: {problem}" for problem in problems], schema
    except (DqError, pa.ArrowException, OSError) as error:
        return [f"{where}: {error}"], None


def _row_problems(file: pq.ParquetFile, manifest: Manifest, local: Path | None) -> Iterator[str]:
    """Read the codes, cells, second codes, ids, and carried columns, a batch at a time."""
    geometry, schema = manifest.geometry, file.schema_arrow
    expected = {"id": pa.type_for_alias(manifest.id_type), "code": pa.binary(geometry.code_size)}
    if geometry.refine_m:
        expected["refine_code"] = pa.binary(geometry.refine_m)
    if geometry.nlist:
        expected["cell"] = pa.int32()
    for name, kind in expected.items():
        if schema.names.count(name) != 1:
            yield f"has {schema.names.count(name)} columns '{name}', expected one"
        elif schema.field(name).type != kind and not (
            name == "id" and {str(schema.field(name).type), str(kind)} == {*NUMBERS}
        ):
            yield f"column '{name}' is {schema.field(name).type}, expected {kind}"
        else:
            continue
        return
    outside = 0
    for _, cells in read_codes(file, geometry, local):
        if cells is not None:
            outside += int(((cells < 0) | (cells >= geometry.nlist)).sum())
    if outside:
        yield f"{outside} rows lie in cells that the model does not have"
    if geometry.refine_m:
        for _ in read_second_codes(file, geometry, local):
            pass
    nulls = dict.fromkeys(expected, 0)
    for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
        as_type(batch.column("id"), manifest.id_type)  # raises where one does not fit
        for name in expected:
            nulls[name] += batch.column(name).null_count
    for name, count in nulls.items():
        if count:
            yield f"{count} rows have no {name}"


def _type_problems(
    storage: Storage, manifest: Manifest, schemas: list[tuple[str, pa.Schema]]
) -> Iterator[str]:
    """Files whose carried columns cannot be read as those of the version, or beside the others."""
    joined = None
    if manifest.arrow_schema is not None:
        try:
            joined = carried_schema(storage, manifest)
        except IntegrityError as error:
            yield str(error)
            return
    for file in schemas:
        try:
            both = join_schemas(
                [("", joined), file] if joined is not None else [file], "the version"
            )
        except InputError as error:
            yield str(error)
            continue
        if manifest.arrow_schema is None:
            joined = both
        elif both != joined:
            yield (
                f"{file[0]}: its columns are {_spell(file[1])}, the manifest says {_spell(joined)}"
            )


def _spell(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _hash(storage: Storage, path: str, steps: Steps) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with storage.open(path) as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            size += len(piece)
            steps.advance(len(piece))
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
