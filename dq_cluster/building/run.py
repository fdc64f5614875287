"""A pile of images becomes an index: features of a sample, a model, codes, and how good they are.

    <index>/builds/<name>/run.json   what was asked, and what was chosen for it
    <index>/features/<name>/         features of the images that the model is trained on

Each stage is the workload of its own name, and continues where it stopped.
"""

import itertools
import os
import sys
from collections.abc import Iterable
from typing import Any

from dq_cluster.building.choose import Stages, choose_cells, choose_pool, forecast, on_all
from dq_cluster.building.config import AddSettings, BuildSettings
from dq_cluster.building.probe import IMAGES, measure_stages
from dq_cluster.cluster import LOCAL_CPUS, ray_cluster
from dq_cluster.cluster.room import cluster_nodes
from dq_cluster.cluster.surroundings import joined_address
from dq_cluster.config import Settings
from dq_cluster.encoding.config import EncodeSettings, FeaturizeSettings, PoolSettings
from dq_cluster.encoding.featurize import featurize
from dq_cluster.encoding.planned import planning
from dq_cluster.encoding.run import encode
from dq_cluster.errors import InputError, NothingNewError
from dq_cluster.images.backbone import Backbone, load_backbone
from dq_cluster.images.config import BackboneSettings, SourceSettings
from dq_cluster.images.sources import open_source
from dq_cluster.images.units import Unit
from dq_cluster.index.catalog import Index
from dq_cluster.index.models import read_card
from dq_cluster.index.sizing import FRAGMENT_ROWS
from dq_cluster.index.thumbnails import thumbnail_side
from dq_cluster.progress import duration
from dq_cluster.run import Run
from dq_cluster.training.config import TrainSettings
from dq_cluster.training.run import train

_FEWEST_IMAGES = 100
_FILES = 8
_FEATURE_ROWS = 8192  # of a feature file
_MOST_THREADS = 8  # of training: more gain little on so small a network
_THUMBNAIL_BYTES = 5_000  # of a JPEG of 128 pixels a side
_ID_BYTES = 40  # of an id and a uri, compressed, beside a code


class BuildRequest(Settings):
    """What decides a build. images: how many there were when it began, None if not known."""

    source: SourceSettings
    backbone: BackboneSettings
    sample: int
    images: int | None
    nlist: int
    thumbnails: int = 0


def build(settings: BuildSettings) -> dict[str, Any]:
    """Make an index of `settings.source`; the same settings continue a build.

    Returns a summary: version, images, rejects, the model's quality on images that were held out of
    training, and what to do next. Raises InputError for fewer than 100 images, and what featurize,
    train, and encode raise.
    """
    index = Index.at(settings.index)
    index.storage.check_replace()
    run = Run(index.storage.child(f"builds/{settings.name}"))
    with ray_cluster():
        request, pool = _chosen(settings, run)
        run.claim(request)
        # A pile that is not larger than the sample is decoded once: its features become codes.
        whole = request.images is not None and request.images <= request.sample
        features = f"{settings.index.rstrip('/')}/features/{settings.name}"
        made = featurize(
            FeaturizeSettings(
                source=settings.source,
                output=features,
                backbone=settings.backbone,
                views=settings.views,
                pool=pool,
                sample=None if whole else request.sample,
                thumbnails=settings.thumbnails if whole else 0,
                fragment_rows=_fragment_rows(request.images, _FEATURE_ROWS),
                max_reject_fraction=settings.max_reject_fraction,
            )
        )
        card = train(
            TrainSettings(
                index=settings.index,
                features=features,
                name=settings.name,
                model=settings.model,
                nlist=request.nlist,
                cpus_per_worker=min(max(_cores()), _MOST_THREADS),
            )
        )
        columns = tuple(dict.fromkeys(("uri", *settings.source.columns)))
        source = settings.source.model_copy(update={"columns": columns})
        if whole:
            source = SourceSettings(kind="features", uri=features, columns=columns)
        encoded = encode(
            EncodeSettings(
                index=settings.index,
                model=card.digest,
                source=source,
                thumbnails=settings.thumbnails,
                pool=PoolSettings() if whole else pool,
                fragment_rows=_fragment_rows(request.images, FRAGMENT_ROWS),
                max_reject_fraction=settings.max_reject_fraction,
            )
        )
    seen = made if whole else encoded
    return {
        "index": settings.index,
        "version": encoded["version"],
        "images": encoded["rows"],
        "rejected": seen["rejected"],
        "skipped": seen["skipped"],
        "bytes_per_image": encoded["bytes_per_image"],
        "quality": card.evaluation,
        "next": f"dq-cluster serve {settings.index}",
    }


def add(settings: AddSettings) -> dict[str, Any]:
    """Append to the current version the images whose ids it does not have.

    Returns a summary: the version, how many images it has, and how many of them are new. Raises
    NotFoundError where there is no version yet, and what encode raises.
    """
    index = Index.at(settings.index)
    current = index.manifest()
    source = settings.source.model_copy(update={"columns": current.columns})
    card = read_card(index.storage, current.model)
    with ray_cluster():
        pool = settings.pool
        if pool is None:
            backbone = load_backbone({**card.preprocessing, "threads": 1}, index.storage)
            pool, _ = _measured_pool(source, open_source(source).units(), backbone)
        try:
            encoded = encode(
                EncodeSettings(
                    index=settings.index,
                    model=current.model,
                    source=source,
                    append=True,
                    only_new=True,
                    thumbnails=thumbnail_side(index.storage, current),
                    pool=pool,
                    max_reject_fraction=settings.max_reject_fraction,
                )
            )
        except NothingNewError as nothing:
            print(nothing, file=sys.stderr)
            return {"index": settings.index, "version": current.version, "new": 0, "rejected": 0}
    return {
        "index": settings.index,
        "version": encoded["version"],
        "images": encoded["rows"],
        "new": encoded["rows"] - current.rows,
        "rejected": encoded["rejected"] - current.rejected,
    }


def _chosen(settings: BuildSettings, run: Run) -> tuple[BuildRequest, PoolSettings]:
    """What was chosen when the build began, or is chosen now and said on standard error."""
    backbone = load_backbone(settings.backbone.model_copy(update={"threads": 1}))
    units = open_source(settings.source).units()
    first = list(itertools.islice(units, IMAGES))
    pool, stages = settings.pool, None
    if pool is None:
        pool, stages = _measured_pool(settings.source, first, backbone)
    if (begun := run.request()) is not None:
        images, nlist = begun["images"], begun["nlist"]
    else:
        images = _count(settings.source, itertools.chain(first, units))
        nlist = settings.nlist
        if nlist is None:
            nlist = choose_cells(images, settings.sample) if images is not None else 0
        if stages is not None and images is not None:
            _say_forecast(settings, stages, images, nlist, backbone)
    request = BuildRequest(
        source=settings.source,
        backbone=settings.backbone,
        sample=settings.sample,
        images=images,
        nlist=nlist,
        thumbnails=settings.thumbnails,
    )
    return request, pool


def _count(source: SourceSettings, units: Iterable[Unit]) -> int | None:
    """How many images there are; None where that is not known before they are read."""
    rows = [unit.rows for unit in planning(source.uri, units)]
    if not all(rows):
        return None
    if sum(rows) < _FEWEST_IMAGES:
        raise InputError(
            f"{source.uri} holds {sum(rows)} images; training needs {_FEWEST_IMAGES} at least"
        )
    return sum(rows)


def _fragment_rows(images: int | None, most: int) -> int:
    """Images of a file: several files even of a small pile, so that workers and shards share it."""
    return most if images is None else min(most, -(-images // _FILES))


def _cores() -> list[int]:
    """Cores of each node that works: of this machine, or of the cluster that was joined."""
    if not joined_address(os.environ):
        return [os.cpu_count() or 1]
    nodes = [int(node.total.get("CPU", 0)) for node in cluster_nodes()]
    return [cpus for cpus in nodes if cpus] or [1]


def _measured_pool(
    source: SourceSettings, units: Iterable[Unit], backbone: Backbone
) -> tuple[PoolSettings, Stages]:
    nodes = _cores()
    stages = measure_stages(source, units, backbone)
    if joined_address(os.environ):
        pool = on_all(choose_pool(stages, max(nodes), max(nodes)), nodes)
    else:
        pool = choose_pool(stages, nodes[0], max(LOCAL_CPUS, nodes[0]))
    where = f"on {sum(nodes)} cores" + (f" of {len(nodes)} nodes" if len(nodes) > 1 else "")
    print(
        f"measured: decoding {1e3 * stages.decode_s:.1f} ms an image, the backbone "
        f"{1e3 * stages.embed_s:.1f} ms; {where}: {pool.encoders} encoders of "
        f"{pool.threads} threads, {pool.decoders} decoders each",
        file=sys.stderr,
    )
    return pool, stages


def _say_forecast(
    settings: BuildSettings, stages: Stages, images: int, nlist: int, backbone: Backbone
) -> None:
    expected = forecast(
        stages,
        images,
        settings.sample,
        second_views=settings.views.fraction,
        cpus=sum(_cores()),
        feature_bytes=2 * backbone.feature_dim,
        code_bytes=settings.model.bits // 8
        + settings.model.refine_bits // 8
        + _ID_BYTES
        + _THUMBNAIL_BYTES * (settings.thumbnails > 0),
    )
    trained = min(images, settings.sample)
    cells = f", {nlist:,} cells" if nlist else ""
    print(
        f"{images:,} images, {trained:,} of them to train on{cells}: about "
        f"{duration(expected.seconds)} to decode and look at them, and the "
        f"training; {expected.disk / 1e6:,.0f} MB on {settings.index}"
        + (", thumbnails among them (thumbnails=0: none)" if settings.thumbnails else ""),
        file=sys.stderr,
    )
