"""From a run's ledger to a version: check everything, then one manifest."""

import contextlib

import pyarrow as pa

from dq_cluster import __version__
from dq_cluster.encoding.gate import check_rejects
from dq_cluster.encoding.known import IN_THE_INDEX
from dq_cluster.encoding.plan import Plan
from dq_cluster.errors import (
    ConflictError,
    InputError,
    IntegrityError,
    NotFoundError,
    NothingNewError,
)
from dq_cluster.fragments.ledger import Ledger, Receipt
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import carried_schema, file_schema, open_code_file
from dq_cluster.index.columns import join_schemas, pack_schema
from dq_cluster.index.ids import common_type
from dq_cluster.index.manifest import Manifest, Producer
from dq_cluster.index.models import ModelCard
from dq_cluster.index.stored import check_stored
from dq_cluster.run import Run
from dq_cluster.storage import Storage


def run_folder(run: str) -> str:
    """Where a run of an index keeps its plan and ledger."""
    return f"runs/{run}"


def data_folder(run: str) -> str:
    """Where a run of an index writes its files."""
    return f"data/{run}"


def publish_run(
    index: Index,
    run: str,
    plan: Plan,
    card: ModelCard,
    *,
    append: bool,
    columns: tuple[str, ...],
    max_reject_fraction: float | None,
    onto: int | None = None,
) -> Manifest:
    """Make the completed run the next version. Doing it twice gives one version.

    onto: the only version that the run may be appended to. Raises IntegrityError when the ledger or
    a file is not whole, QualityGateError for too many rejects, ConflictError when another version
    than `onto` is current by now, and NothingNewError; then nothing is published.
    """
    receipts = list(Ledger(index.storage, run_folder(run)).receipts())
    check_complete(plan, receipts)
    old = sum(receipt.skipped.get(IN_THE_INDEX, 0) for receipt in receipts)
    if old and not any(receipt.rows + receipt.rejected for receipt in receipts):
        raise NothingNewError(f"nothing is new: all {old:,} images are {IN_THE_INDEX}")
    check_rejects(receipts, max_reject_fraction)
    files = [file for receipt in receipts for file in receipt.files]
    rejects = [file for receipt in receipts for file in receipt.rejects]
    thumbnails = {r.files[0].path: r.thumbnails for r in receipts if r.thumbnails is not None}
    written = [file for receipt in receipts for file in receipt.written]
    check_stored(index.storage, data_folder(run), written, "the same command encodes it again")
    id_types = {receipt.columns["id"] for receipt in receipts if receipt.files}
    new = Manifest(
        version=0,
        model=card.digest,
        geometry=card.geometry,
        id_type=common_type(id_types, files),
        columns=columns,
        arrow_schema=pack_schema(_carried(index.storage, card, columns, receipts)),
        files=tuple(files),
        rows=sum(file.rows for file in files),
        thumbnails=thumbnails,
        rejects=tuple(rejects),
        rejected=sum(file.rows for file in rejects),
        evaluation=card.evaluation,
        producer=Producer(dq_cluster=__version__, run=run),
    )

    def make(version: int, parent: int | None) -> Manifest:
        # Another driver of this run, or this one before it was killed, may have come this far.
        earlier = _versions_of(index, run, plan.newest)
        lineage = _lineage(index, parent, plan.newest)
        for manifest in earlier:
            if manifest.version in lineage:
                if _holds(manifest, new):
                    raise _IsPublishedError(manifest)
                raise IntegrityError(
                    f"run {run} was published as version {manifest.version}, whose files are not "
                    "those in its ledger: some were lost and encoded again; roll back to a version "
                    "before it and encode under another name"
                )
        for manifest in earlier:
            if manifest.parent == parent and _holds(manifest, new):
                return manifest
        if onto is not None and parent != onto:
            raise ConflictError(
                f"version {parent} became current while what is new to version {onto} was encoded; "
                "the same command encodes what is new to it"
            )
        placed = {"version": version, "parent": parent}
        if append and parent is not None:
            return appended(index.storage, index.manifest(parent), new).model_copy(update=placed)
        return new.model_copy(update=placed)

    try:
        manifest = index.publish(make)
    except _IsPublishedError as published:
        manifest = published.manifest
    Run(index.storage.child(run_folder(run))).finish(manifest.version)
    return manifest


class _IsPublishedError(Exception):
    """The run is part of the current version already."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest.version)
        self.manifest = manifest


def _holds(manifest: Manifest, new: Manifest) -> bool:
    """Whether the manifest names every file of the run that is to be published."""
    return {file.path for file in new.files} <= {file.path for file in manifest.files}


def appended(storage: Storage, old: Manifest, new: Manifest) -> Manifest:
    """`new` with the files of `old` before its own. Raises InputError where they cannot mix."""
    for what in ("model", "geometry", "columns"):
        theirs, ours = getattr(old, what), getattr(new, what)
        if theirs != ours:
            raise InputError(
                f"cannot append to version {old.version}: its {what} is {theirs}, not {ours}; "
                "encode without append, or with what that version has"
            )
    files = (*old.files, *new.files)
    schema = append_schema(storage, old, f"run {new.producer.run}", carried_schema(storage, new))
    return new.model_copy(
        update={
            "arrow_schema": pack_schema(schema),
            "files": files,
            "id_type": common_type((old.id_type, new.id_type), files),
            "rows": old.rows + new.rows,
            "thumbnails": old.thumbnails | new.thumbnails,
            "tombstones": old.tombstones,
            "deleted": old.deleted,
            "rejects": (*old.rejects, *new.rejects),
            "rejected": old.rejected + new.rejected,
        }
    )


def append_schema(storage: Storage, parent: Manifest, where: str, columns: pa.Schema) -> pa.Schema:
    """The types of carried columns after an append. Raises InputError where there are none."""
    version = f"version {parent.version}"
    parts = [(version, carried_schema(storage, parent)), (where, columns)]
    try:
        return join_schemas(parts, version)
    except InputError as error:
        raise InputError(
            f"cannot append to {version}: {error}; cast the column in the source, or encode "
            "without append"
        ) from None


def _carried(
    storage: Storage, card: ModelCard, columns: tuple[str, ...], receipts: list[Receipt]
) -> pa.Schema:
    """The types of the carried columns of a run's files: of one file for each kind of receipt."""
    kinds = {tuple(receipt.columns.items()): file for receipt in receipts for file in receipt.files}
    parts = []
    for file in kinds.values() if columns else ():
        with open_code_file(storage, file, model=card.digest, geometry=card.geometry) as opened:
            where = f"{storage.uri}/{file.path}"
            parts.append((where, file_schema(opened, columns, where)))
    return join_schemas(parts, "the files before it")


def check_complete(plan: Plan, receipts: list[Receipt]) -> None:
    """Raise IntegrityError unless there is one receipt per fragment and every row is in it."""
    numbers = [receipt.fragment for receipt in receipts]
    if numbers != list(range(plan.fragments)):
        raise IntegrityError(
            f"{len(set(numbers))} of {plan.fragments} fragments are committed; run the same "
            "command again"
        )
    accounted = sum(
        receipt.rows + receipt.rejected + receipt.skipped.get(IN_THE_INDEX, 0)
        for receipt in receipts
    )
    if plan.rows is not None and accounted != plan.rows:
        raise IntegrityError(
            f"the plan has {plan.rows} rows but the receipts account for {accounted}; the input "
            "changed while it was read: start a new run"
        )


def _versions_of(index: Index, run: str, newest: int) -> list[Manifest]:
    """The versions after `newest` that `run` made: more than one if it lost a race."""
    manifests = []
    for number in index.versions():
        if number > newest:
            with contextlib.suppress(NotFoundError):  # dropped since it was listed
                manifests.append(index.manifest(number))
    return [manifest for manifest in manifests if manifest.producer.run == run]


def _lineage(index: Index, version: int | None, newest: int) -> set[int]:
    """The version and its ancestors after `newest`, as far as they were kept."""
    versions: set[int] = set()
    with contextlib.suppress(NotFoundError):
        while version is not None and version > newest:
            versions.add(version)
            version = index.manifest(version).parent
    return versions
