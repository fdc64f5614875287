"""Neighbours: the nearest codes of every query of a set, in Parquet."""

from typing import Any

from dq_cluster.cluster import ray_cluster
from dq_cluster.cluster.room import Need, wait_for_room
from dq_cluster.config import Settings
from dq_cluster.errors import ConfigError, InputError, NotFoundError
from dq_cluster.fragments.ledger import Ledger
from dq_cluster.fragments.pool import Workers, receipts_of
from dq_cluster.fragments.progress import Measured, RunProgress
from dq_cluster.images.features import FeatureSet, open_features
from dq_cluster.index.catalog import Index
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.models import ModelCard, read_card
from dq_cluster.knn.config import NeighboursSettings
from dq_cluster.knn.finder import FindJob, NeighbourFinder
from dq_cluster.knn.result import NAME, NeighboursManifest, read_result
from dq_cluster.observe import metrics
from dq_cluster.observe.exporter import expose
from dq_cluster.run import Run
from dq_cluster.storage import Storage

MEASURED = Measured(
    metrics.NEIGHBOURS_FRAGMENTS,
    metrics.NEIGHBOURS_FRAGMENTS_DONE,
    metrics.NEIGHBOURS_QUERIES,
)


class NeighboursRequest(Settings):
    """What a run answers, and may not change: the settings but the pool and the place."""

    index: str
    version: int
    model: str
    features: str | None
    queries: int
    k: int
    within: float | None
    nprobe: int
    k_factor: int  # or decode_factor: the one that counts
    fragment_rows: int


def neighbours(settings: NeighboursSettings) -> dict[str, Any]:
    """Find the neighbours that `settings` ask for; the same settings continue a run.

    Returns a summary: the result's place, queries, and how many have k neighbours. Raises
    NotFoundError for an index without that version, InputError for features that the model of the
    version does not take, and ConfigError for a run that was begun with other settings.
    """
    manifest = find_neighbours(settings)
    return {
        "output": settings.output,
        "version": manifest.version,
        "queries": manifest.queries,
        "full": manifest.full,
        "files": len(manifest.files),
        "bytes": sum(file.size for file in manifest.files),
    }


def find_neighbours(settings: NeighboursSettings) -> NeighboursManifest:
    """As `neighbours`; returns what was written."""
    index, storage = Index.at(settings.index), Storage(settings.output)
    version = index.manifest(_version(storage, settings))
    request = _request(settings, index, version)
    run = Run(storage)
    run.check(request)
    if run.result() is not None:
        return read_result(storage)
    storage.check_replace()
    with run.at_work(), ray_cluster():
        run.claim(request)
        job = FindJob(settings, version.version, request.queries, request.k_factor, storage)
        _find_all(job, -(-request.queries // settings.fragment_rows))
        run.confirm()
        receipts = list(Ledger(storage, "").receipts())
        manifest = NeighboursManifest(
            model=version.model,
            version=version.version,
            settings=request.model_dump(mode="json"),
            files=tuple(file for receipt in receipts for file in receipt.files),
            queries=sum(receipt.rows for receipt in receipts),
            full=sum(int(receipt.columns["full"]) for receipt in receipts),
        )
        storage.write(NAME, manifest.model_dump_json(indent=1).encode())
        run.finish(NAME)
    return manifest


def _find_all(job: FindJob, fragments: int) -> None:
    expose("neighbours")
    done = set(Ledger(job.storage, "").done())
    todo = [number for number in range(fragments) if number not in done]
    rows = job.settings.fragment_rows
    with RunProgress(
        "neighbours",
        fragments,
        len(done),
        MEASURED,
        rows=job.queries,
        done_rows=min(len(done) * rows, job.queries),
    ) as progress:
        if not todo:
            return
        pool = job.settings.pool
        need = Need("finders of neighbours", pool.workers, {"CPU": pool.cpus})
        wait_for_room([need], "lower pool.workers or pool.cpus")
        for _ in receipts_of(todo, Workers(NeighbourFinder, (job,), need), progress):
            pass


def _version(storage: Storage, settings: NeighboursSettings) -> int | None:
    """The version of a run that was begun, if the settings name none: CURRENT may have moved."""
    if settings.version is not None:
        return settings.version
    begun = Run(storage).request()
    return None if begun is None else int(begun["version"])


def _request(settings: NeighboursSettings, index: Index, version: Manifest) -> NeighboursRequest:
    if settings.nprobe and not version.geometry.nlist:
        raise ConfigError(f"version {version.version} has no cells; leave out nprobe")
    queries = version.rows
    if settings.features is not None:
        card = read_card(index.storage, version.model)
        features = open_features(settings.features)
        features.check_dim(card.feature_dim, f"model {card.digest[:12]}")
        _check_origin(features, card)
        queries = features.rows
    if not queries:
        raise InputError(f"{settings.features or 'the version'} has no rows to find neighbours of")
    if not version.rows - version.deleted:
        raise NotFoundError(f"version {version.version} has no images to be neighbours")
    return NeighboursRequest(
        index=index.storage.uri,
        version=version.version,
        model=version.model,
        queries=queries,
        **settings.model_dump(include={"features", "k", "within", "nprobe", "fragment_rows"}),
        k_factor=_factor(settings, index, version),
    )


def _factor(settings: NeighboursSettings, index: Index, version: Manifest) -> int:
    """How many candidates for each neighbour are re-ranked; 1 where nothing can."""
    if version.geometry.refine_m:
        return settings.k_factor
    return settings.decode_factor if read_card(index.storage, version.model).decodes else 1


def _check_origin(features: FeatureSet, card: ModelCard) -> None:
    """Features of another backbone may have the right form, and mean nothing to the model."""
    made, trained = features.preprocessing, card.preprocessing
    # Where the weights lay does not matter: their digest is compared.
    differ = [key for key in made if key != "path" and made[key] != trained.get(key)]
    if differ and trained:
        raise InputError(
            f"the features at {features.storage.uri} were made with another backbone than model "
            f"{card.digest[:12]} was trained on (they differ in {', '.join(differ)}); make the "
            "features again, or ask a version of the model they belong to"
        )
