"""Featurizing: images become backbone features in Parquet, for training."""

from typing import Any

from dq_cluster.cluster import ray_cluster
from dq_cluster.encode.config import FeaturizeSettings
from dq_cluster.encode.coverage import summary
from dq_cluster.encode.fragment import Job
from dq_cluster.encode.ledger import Ledger
from dq_cluster.encode.outputs import FeatureOutput
from dq_cluster.encode.planning import continue_or_plan
from dq_cluster.encode.pool import run_fragments
from dq_cluster.encode.publish import check_complete, check_rejects
from dq_cluster.errors import ConfigError
from dq_cluster.images.sources import source_schema
from dq_cluster.storage import Storage

# Beside the feature files; readers of Parquet folders pass over names with a dot.
_RUN = ".run"
# The settings that decide what the files hold.
_MEANING = {"source", "backbone", "views", "fragment_rows"}


def featurize(settings: FeaturizeSettings) -> dict[str, Any]:
    """Write the features of `settings.source` to `settings.output`; a second call continues.

    Returns a summary: files, rows, rejects, and the stages' throughput.
    """
    if settings.source.kind == "features" or settings.backbone.kind == "none":
        raise ConfigError("featurize makes features from images: it needs images and a backbone")
    storage = Storage(settings.output)
    request = settings.model_dump(mode="json", include=_MEANING)
    plan, difference = continue_or_plan(
        storage,
        _RUN,
        settings.source,
        fragment_rows=settings.fragment_rows,
        request=request,
        advice="to featurize everything that is there now, give another output; to add to these "
        f"features, put the new images in a source of their own and give output={storage.uri}/NAME",
    )
    job = Job(
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
        run=_RUN,
        rejects=f"{_RUN}/rejects",
        plan=plan,
        decoders=settings.pool.decoders,
    )
    with ray_cluster():
        figures = run_fragments(job, settings.pool, "featurize", settings.max_reject_fraction)
    receipts = list(Ledger(storage, _RUN).receipts())
    check_complete(plan, receipts)
    check_rejects(receipts, settings.max_reject_fraction)
    return {
        "output": storage.uri,
        "files": sum(len(receipt.files) for receipt in receipts),
        "rows": sum(receipt.rows for receipt in receipts),
        "rejected": sum(receipt.rejected for receipt in receipts),
        **summary(plan, receipts, difference),
        **figures,
    }
