"""Encoding: a collection of images or features becomes the next version of an index."""

import hashlib
import sys
from typing import Any

import pyarrow as pa

from dq_cluster.cluster import ray_cluster
from dq_cluster.document import parse_record
from dq_cluster.encoding.config import EncodeSettings
from dq_cluster.encoding.coverage import Difference, look_again, summary
from dq_cluster.encoding.fragment import EncodeJob
from dq_cluster.encoding.known import known_ids
from dq_cluster.encoding.outputs import CodeOutput
from dq_cluster.encoding.plan import Plan, find_plan
from dq_cluster.encoding.pool import run_fragments
from dq_cluster.encoding.publish import append_schema, data_folder, publish_run, run_folder
from dq_cluster.encoding.request import EncodeRequest
from dq_cluster.encoding.resume import check_request, check_source, resume
from dq_cluster.errors import ConfigError, InputError, IntegrityError, NotFoundError
from dq_cluster.fragments.ledger import Ledger
from dq_cluster.images.backbone import PREPROCESSING
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.parquet import ParquetRows
from dq_cluster.images.sources import numbers_rows, open_source, source_schema
from dq_cluster.index.catalog import Index
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.models import ModelCard, find_model
from dq_cluster.index.thumbnails import COLUMN as THUMBNAIL
from dq_cluster.run import Run


def encode(settings: EncodeSettings) -> dict[str, Any]:
    """Encode `settings.source` and publish the result; the same settings continue a run.

    Returns a summary: the version, its totals, bytes per image, and the stages' throughput.
    """
    index = Index.at(settings.index)
    card = find_model(index.storage, settings.model)
    request = EncodeRequest(
        source=settings.source,
        append=settings.append,
        fragment_rows=settings.fragment_rows,
        model=card.digest,
        only_new=settings.only_new,
        thumbnails=settings.thumbnails,
    )
    parent = index.manifest() if settings.only_new else None
    name = settings.run or _name(index, request, parent)
    folder, written = run_folder(name), data_folder(name)
    check_request(index.storage, folder, request)
    run = Run(index.storage.child(folder))
    version, begun = run.result(), find_plan(index.storage, folder)
    if version is not None:
        manifest = _published(index, name, version)
        return _summary(index, manifest, name, begun, _look_again(index, begun, settings.source))
    schema = _check(settings, card, index)
    check_source(index.storage, folder, settings.source)
    with run.at_work(), ray_cluster():
        difference = None
        if parent is None:
            difference = _look_again(index, begun, settings.source)
        known = known_ids(index.storage, parent) if parent is not None else None
        plan = resume(
            index.storage,
            folder,
            request,
            settings.source,
            fragment_rows=settings.fragment_rows,
            written=[written],
            newest=max(index.versions(), default=0),
            choose=lambda units, skipped: (
                known.new_files(units, skipped)
                if known is not None and settings.source.kind == "folder"
                else units
            ),
        )
        job = EncodeJob(
            source=_with_thumbnails(settings),
            carried=schema.remove(0),
            output=CodeOutput(
                index.storage,
                card.digest,
                written,
                from_images=settings.source.kind != "features",
                columns=settings.source.columns,
                batch_size=settings.pool.batch_size,
                threads=settings.pool.threads,
            ),
            storage=index.storage,
            run=folder,
            rejects=written,
            plan=plan,
            decoders=settings.pool.decoders,
            known=known,
            thumbnails=settings.thumbnails,
            apart=written,
        )
        figures = run_fragments(job, settings.pool, f"encode {name}", settings.max_reject_fraction)
        run.confirm()
        manifest = publish_run(
            index,
            name,
            plan,
            card,
            append=settings.append,
            columns=settings.source.columns,
            max_reject_fraction=settings.max_reject_fraction,
            onto=parent.version if parent is not None else None,
        )
    return _summary(index, manifest, name, plan, difference) | figures


def _name(index: Index, request: EncodeRequest, parent: Manifest | None = None) -> str:
    """The name of a run that was not given one: equal requests have equal names.

    parent: the version that it adds what is new to; to another one, it is another run.
    """
    names = request.names()
    if parent is not None:
        name = f"{names[0]}-after-{parent.version}"
        if request.source.kind == "folder":  # a file is an image; a new one waits for the next run
            return name
        return f"{name}-{_listing_digest(request.source)}"
    begun = (name for name in names if any(index.storage.list(run_folder(name))))
    return next(begun, names[0])


def _listing_digest(source: SourceSettings) -> str:
    """Of the paths, sizes, and stamps of a source's files, whose rows may change."""
    digest = hashlib.sha256()
    for info in open_source(source).listing():
        digest.update(f"{info.path}\0{info.size}\0{info.stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:12]


def _look_again(index: Index, begun: Plan | None, source: SourceSettings) -> Difference | None:
    advice = (
        "to encode everything that is there now, give the run another name with run=NAME; to add "
        "to this version, give a source that holds only what is new, and append=true"
    )
    return look_again(index.storage, begun, source, advice) if begun else None


def _published(index: Index, run: str, version: Any) -> Manifest:
    """What a published run has become. Raises NotFoundError where that is gone."""
    if not isinstance(version, int):
        raise IntegrityError(
            f"{index.storage.uri}/{run_folder(run)}/published is not a version number: {version!r}"
        )
    again = "to encode again give it another name with run=NAME"
    try:
        manifest = index.manifest(version)
        word = f"run {run} is published already, as version {version}"
    except NotFoundError:
        gone = f"run {run} was published as version {version}, which was removed since"
        carrier = _carrier(index, run)
        if carrier is None:
            raise NotFoundError(f"{gone}; {again}") from None
        manifest = carrier
        word = f"{gone}; its files are in version {manifest.version}, the current one"
    print(f"{word}; {again}", file=sys.stderr)
    return manifest


def _carrier(index: Index, run: str) -> Manifest | None:
    """The current version, if it still has files of the run."""
    try:
        current = index.manifest()
    except NotFoundError:
        return None
    folder = f"{data_folder(run)}/"
    return current if any(file.path.startswith(folder) for file in current.files) else None


def _check(settings: EncodeSettings, card: ModelCard, index: Index) -> pa.Schema:
    """Find what would fail at the end of the run before it starts.

    Returns the types of `id` and of the carried columns.
    """
    index.storage.check_replace()
    backbone = card.preprocessing.get("kind", "none")
    if settings.source.kind != "features" and backbone == "none":
        raise ConfigError(
            f"model {card.digest[:12]} was trained on features whose origin it does not know: "
            "give a source of kind features, or train with a backbone"
        )
    if settings.source.kind == "features":
        _check_origin(settings, card)
    schema = source_schema(settings.source)
    if not settings.append:
        return schema
    try:
        parent = index.manifest()
    except NotFoundError:
        return schema
    for what, theirs, ours in (
        ("model", parent.model, card.digest),
        ("columns", parent.columns, settings.source.columns),
    ):
        if theirs != ours:
            raise InputError(
                f"cannot append to version {parent.version}: its {what} is {theirs}, not {ours}"
            )
    if numbers_rows(settings.source):
        raise InputError(
            f"cannot append to version {parent.version}: the ids of {settings.source.uri} are the "
            "numbers of its rows, which start at 0 again; set source.id_column to a column, or to "
            "'path', or encode without append"
        )
    ids = schema.field("id").type
    if not pa.types.is_null(ids) and pa.types.is_string(ids) != (parent.id_type == "string"):
        raise InputError(
            f"cannot append to version {parent.version}: its ids are {parent.id_type}, those of "
            f"{settings.source.uri} are {ids}"
        )
    append_schema(index.storage, parent, settings.source.uri, schema.remove(0))
    return schema


def _with_thumbnails(settings: EncodeSettings) -> SourceSettings:
    """The source, whose rows bring their thumbnails where they are features."""
    source = settings.source
    if not settings.thumbnails or source.kind != "features":
        return source
    return source.model_copy(update={"columns": (*source.columns, THUMBNAIL)})


def _check_origin(settings: EncodeSettings, card: ModelCard) -> None:
    """Features of another backbone may have the right form, and mean nothing to the model."""
    source = ParquetRows(settings.source)
    where = f"{settings.source.uri}: metadata {PREPROCESSING.decode()}"
    origin = parse_record(source.about(PREPROCESSING) or b"{}", where)
    # Where the weights lay does not matter: their digest is compared.
    differ = [key for key in origin if key != "path" and origin[key] != card.preprocessing.get(key)]
    if differ and card.preprocessing:
        raise InputError(
            f"the features at {settings.source.uri} were made with another backbone than model "
            f"{card.digest[:12]} was trained on (they differ in {', '.join(differ)}); make the "
            "features again, or encode with the model they belong to"
        )
    if settings.thumbnails and THUMBNAIL not in source.column_names():
        raise InputError(
            f"the features at {settings.source.uri} have no thumbnails to keep; make them with "
            "featurize and thumbnails=128, or set thumbnails=0"
        )
    dim = source.dimension()
    if dim not in (None, card.feature_dim):
        raise InputError(
            f"the features at {settings.source.uri} have {dim} numbers, those that model "
            f"{card.digest[:12]} was trained on {card.feature_dim}; encode with the model they "
            "belong to"
        )


def _summary(
    index: Index, manifest: Manifest, run: str, plan: Plan | None, difference: Difference | None
) -> dict[str, Any]:
    receipts = Ledger(index.storage, run_folder(run)).receipts()
    size = sum(file.size for file in manifest.files)
    return {
        "version": manifest.version,
        "run": run,
        "model": manifest.model,
        "rows": manifest.rows,
        "rejected": manifest.rejected,
        **(summary(plan, receipts, difference) if plan else {}),
        "files": len(manifest.files),
        "bytes": size,
        "bytes_per_image": size / manifest.rows,
    }
