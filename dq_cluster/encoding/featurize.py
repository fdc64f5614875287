"""Featurizing: images become backbone features in Parquet, for training."""

from typing import Any

from dq_cluster.cluster import ray_cluster
from dq_cluster.encoding.config import FeaturizeSettings
from dq_cluster.encoding.coverage import look_again, summary
from dq_cluster.encoding.fragment import EncodeJob
from dq_cluster.encoding.gate import check_rejects
from dq_cluster.encoding.outputs import FeatureOutput
from dq_cluster.encoding.plan import find_plan
from dq_cluster.encoding.pool import run_fragments
from dq_cluster.encoding.publish import check_complete
from dq_cluster.encoding.request import FeaturizeRequest
from dq_cluster.encoding.resume import check_request, check_source, resume
from dq_cluster.encoding.sampling import sample_units
from dq_cluster.errors import ConfigError
from dq_cluster.fragments.ledger import Ledger
from dq_cluster.images.names import RUN_FOLDER
from dq_cluster.images.sources import source_schema
from dq_cluster.index.stored import check_stored
from dq_cluster.index.thumbnails import COLUMN as THUMBNAIL
from dq_cluster.run import Run
from dq_cluster.storage import Storage

_REJECTS = f"{RUN_FOLDER}/rejects"


def featurize(settings: FeaturizeSettings) -> dict[str, Any]:
    """Write the features of `settings.source` to `settings.output`; a second call continues.

    Returns a summary: files, rows, rejects, and the stages' throughput.
    """
    if settings.source.kind == "features" or settings.backbone.kind == "none":
        raise ConfigError("featurize makes features from images: it needs images and a backbone")
    if settings.thumbnails and THUMBNAIL in settings.source.columns:
        raise ConfigError(
            f"source.columns has '{THUMBNAIL}', which is what the stored thumbnails are called; "
            "rename that column, or set thumbnails=0"
        )
    storage = Storage(settings.output)
    request = FeaturizeRequest(
        source=settings.source,
        backbone=settings.backbone,
        views=settings.views,
        fragment_rows=settings.fragment_rows,
        sample=settings.sample,
        thumbnails=settings.thumbnails,
    )
    advice = (
        "to featurize everything that is there now, give another output; to add to these features, "
        f"put the new images in a source of their own and give output={storage.uri}/NAME"
    )
    check_request(storage, RUN_FOLDER, request)
    check_source(storage, RUN_FOLDER, settings.source)
    with Run(storage.child(RUN_FOLDER)).at_work(), ray_cluster():
        begun = find_plan(storage, RUN_FOLDER)
        difference = None
        if begun and settings.sample is None:
            difference = look_again(storage, begun, settings.source, advice)
        plan = resume(
            storage,
            RUN_FOLDER,
            request,
            settings.source,
            fragment_rows=settings.fragment_rows,
            written=["", _REJECTS],
            choose=lambda units, _: (
                sample_units(units, settings.sample) if settings.sample else units
            ),
        )
        job = EncodeJob(
            source=settings.source,
            carried=source_schema(settings.source).remove(0),
            output=FeatureOutput(
                storage,
                settings.backbone,
                settings.views,
                settings.source.columns,
                settings.pool.batch_size,
                settings.pool.threads,
            ),
            storage=storage,
            run=RUN_FOLDER,
            rejects=_REJECTS,
            plan=plan,
            decoders=settings.pool.decoders,
            thumbnails=settings.thumbnails,
        )
        figures = run_fragments(job, settings.pool, "featurize", settings.max_reject_fraction)
        receipts = list(Ledger(storage, RUN_FOLDER).receipts())
        check_complete(plan, receipts)
        check_rejects(receipts, settings.max_reject_fraction)
        files = [file for receipt in receipts for file in receipt.files]
        check_stored(storage, "", files, "the same command makes it again")
    return {
        "output": storage.uri,
        "files": len(files),
        "rows": sum(receipt.rows for receipt in receipts),
        "rejected": sum(receipt.rejected for receipt in receipts),
        **summary(plan, receipts, difference),
        **figures,
    }
