"""Encode the fragments of a run on a fixed pool of actors."""

import gc
from typing import Any

from dq_cluster.cluster.room import Need, wait_for_room
from dq_cluster.encoding.config import PoolSettings
from dq_cluster.encoding.fragment import EncodeJob, FragmentEncoder
from dq_cluster.encoding.gate import allowed_rejects
from dq_cluster.errors import QualityGateError
from dq_cluster.fragments.ledger import Ledger
from dq_cluster.fragments.pool import Workers, receipts_of
from dq_cluster.fragments.progress import Measured, RunProgress
from dq_cluster.observe import metrics
from dq_cluster.observe.exporter import expose

# Of each encoder; see FragmentEncoder.
_FRAGMENTS_AT_ONCE = 2
MEASURED = Measured(
    metrics.ENCODE_FRAGMENTS,
    metrics.ENCODE_FRAGMENTS_DONE,
    metrics.ENCODE_IMAGES,
    metrics.ENCODE_REJECTS,
)


def run_fragments(
    job: EncodeJob, pool: PoolSettings, name: str, max_reject_fraction: float | None
) -> dict[str, Any]:
    """Encode every fragment that the ledger does not have. Returns figures of this session.

    Raises QualityGateError as soon as the rejects must pass the limit.
    """
    expose(name.partition(" ")[0])
    fragments = job.plan.fragments
    ledger = Ledger(job.storage, job.run)
    receipts = {receipt.fragment: receipt.rows + receipt.rejected for receipt in ledger.receipts()}
    todo = [number for number in range(fragments) if number not in receipts]
    with RunProgress(
        name,
        fragments,
        fragments - len(todo),
        MEASURED,
        rows=job.plan.rows,
        done_rows=sum(receipts.values()),
        lanes=_lanes(pool),
    ) as progress:
        if todo:
            # Ray keeps the encoders of a run that failed as long as its error is remembered.
            gc.collect()
            (need,) = needs(pool)
            wait_for_room([need], "lower pool.encoders, pool.decoders or pool.gpus")
            rows = job.plan.rows
            limit = allowed_rejects(max_reject_fraction, rows) if rows else None
            workers = Workers(FragmentEncoder, (job,), need, _FRAGMENTS_AT_ONCE)
            for _ in receipts_of(todo, workers, progress):
                if limit is not None and progress.rejected > limit:
                    raise QualityGateError(
                        f"{progress.rejected:,} of {rows:,} inputs are rejects, at most {limit:,} "
                        "may be (max_reject_fraction); nothing is published; see "
                        f"{job.storage.uri}/{job.rejects}"
                    )
        return _summary(progress, pool)


def needs(pool: PoolSettings) -> list[Need]:
    """What the pool asks of the cluster."""
    return [Need("encoders", pool.encoders, {"CPU": pool.cpus, "GPU": pool.gpus})]


def _lanes(pool: PoolSettings) -> dict[str, int]:
    """How many of the pool work at each stage at once."""
    fragments_at_once = pool.encoders * _FRAGMENTS_AT_ONCE
    return {
        "load": fragments_at_once * pool.decoders,
        "encode": pool.encoders,
        "write": fragments_at_once,
    }


def _summary(progress: RunProgress, pool: PoolSettings) -> dict[str, Any]:
    """Rows per second: end to end, and of each stage in the time that it worked itself."""
    total = progress.rows + progress.rejected
    rates = {
        f"{stage}_rows_per_second": total * count / progress.stages[stage]
        for stage, count in _lanes(pool).items()
        if progress.stages[stage]
    }
    return {
        "seconds": progress.seconds,
        "rows_per_second": total / max(progress.seconds, 1e-9),
        **rates,
    }
