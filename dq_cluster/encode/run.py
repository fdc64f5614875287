"""Encoding: a pile of images or features becomes the next version of an index."""

import hashlib
import json
import os
import sys
from typing import Any

from dq_cluster.cluster import ray_cluster
from dq_cluster.encode.config import EncodeSettings
from dq_cluster.encode.fragment import Job
from dq_cluster.encode.outputs import CodeOutput
from dq_cluster.encode.planning import continue_or_plan
from dq_cluster.encode.pool import run_fragments
from dq_cluster.encode.publish import data_folder, publish_run, published, run_folder
from dq_cluster.errors import ConfigError, InputError, NotFoundError
from dq_cluster.images.backbone import PREPROCESSING
from dq_cluster.images.parquet import ParquetRows
from dq_cluster.index.catalog import Index
from dq_cluster.index.document import parse_record
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.models import ModelCard, read_card


def encode(settings: EncodeSettings) -> dict[str, Any]:
    """Encode `settings.source` and publish the result; the same settings continue a run.

    Returns a summary: the version, its totals, bytes per image, and the stages' throughput.
    """
    index = Index.at(settings.index)
    card = read_card(index.storage, settings.model)
    request = _request(settings, card)
    run = settings.run or _default_name(index, request)
    version = published(index, run)
    if version is not None:
        print(
            f"run {run} is published already, as version {version}; "
            "to encode again give it another name with run=NAME",
            file=sys.stderr,
        )
        return _summary(index.manifest(version), run)
    _check(settings, card, index)
    plan = continue_or_plan(
        index.storage,
        run_folder(run),
        settings.source,
        fragment_rows=settings.fragment_rows,
        request=request,
        newest=max(index.versions(), default=0),
    )
    job = Job(
        source=settings.source,
        output=CodeOutput(
            index.storage,
            card.digest,
            data_folder(run),
            from_images=settings.source.kind != "features",
            columns=settings.source.columns,
            batch_size=settings.pool.batch_size,
            threads=settings.pool.threads,
        ),
        storage=index.storage,
        run=run_folder(run),
        rejects=data_folder(run),
        plan=plan,
        decoders=settings.pool.decoders,
    )
    with ray_cluster():
        figures = run_fragments(job, settings.pool, f"encode {run}", settings.max_reject_fraction)
    manifest = publish_run(
        index,
        run,
        plan,
        card,
        append=settings.append,
        columns=settings.source.columns,
        max_reject_fraction=settings.max_reject_fraction,
    )
    return _summary(manifest, run) | figures


def _request(settings: EncodeSettings, card: ModelCard) -> dict[str, Any]:
    """What decides the codes a run makes; how many workers make them does not."""
    kept = {"source", "append", "fragment_rows"}
    return settings.model_dump(mode="json", include=kept) | {"model": card.digest}


def _default_name(index: Index, request: dict[str, Any]) -> str:
    """The digest of the request, or the one of an older version where its run is there.

    Older versions took the location as it was typed: relative, or with a slash at its end.
    """
    uri = request["source"]["uri"]
    spellings = [uri, f"{uri}/"]
    if not uri.startswith("s3://"):
        spellings += [os.path.relpath(uri), f"{os.path.relpath(uri)}/"]
    names = [_digest(request | {"source": request["source"] | {"uri": u}}) for u in spellings]
    begun = (
        name
        for name in names
        if index.storage.exists(f"{run_folder(name)}/plan.json")
        or index.storage.exists(f"{run_folder(name)}/published")
    )
    return next(begun, names[0])


def _digest(request: dict[str, Any]) -> str:
    text = json.dumps(request, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check(settings: EncodeSettings, card: ModelCard, index: Index) -> None:
    """Find what would fail at the end of the run before it starts."""
    backbone = card.preprocessing.get("kind", "none")
    if settings.source.kind != "features" and backbone == "none":
        raise ConfigError(
            f"model {card.digest[:12]} was trained on features whose origin it does not know: "
            "give a source of kind features, or train with a backbone"
        )
    if settings.source.kind == "features":
        _check_origin(settings, card)
    if not settings.append:
        return
    try:
        parent = index.manifest()
    except NotFoundError:
        return
    for what, theirs, ours in (
        ("model", parent.model, card.digest),
        ("columns", parent.columns, settings.source.columns),
    ):
        if theirs != ours:
            raise InputError(
                f"cannot append to version {parent.version}: its {what} is {theirs}, not {ours}"
            )


def _check_origin(settings: EncodeSettings, card: ModelCard) -> None:
    """Features of another backbone have the right form and mean nothing to the model."""
    source = ParquetRows(settings.source, settings.source.feature_column, "feature")
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


def _summary(manifest: Manifest, run: str) -> dict[str, Any]:
    size = sum(file.size for file in manifest.files)
    return {
        "version": manifest.version,
        "run": run,
        "model": manifest.model,
        "rows": manifest.rows,
        "rejected": manifest.rejected,
        "files": len(manifest.files),
        "bytes": size,
        "bytes_per_image": size / manifest.rows,
    }
