"""The Ray Data pipeline: fragment numbers in, receipts of committed fragments out."""

import gc
import os
from collections.abc import Iterator
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext

from dq_cluster.cluster import quiet_data_context
from dq_cluster.cluster.failures import plain_errors
from dq_cluster.cluster.room import Need, patience_of, wait_for_room
from dq_cluster.encode.config import PoolSettings
from dq_cluster.encode.fragment import EncodeJob, FragmentEncoder
from dq_cluster.encode.gate import allowed_rejects
from dq_cluster.encode.ledger import Ledger, Receipt
from dq_cluster.encode.progress import RunProgress
from dq_cluster.encode.reports import spoken
from dq_cluster.errors import QualityGateError
from dq_cluster.observe.exporter import expose

# Of each encoder; see FragmentEncoder.
_FRAGMENTS_AT_ONCE = 2
# Time that actors need to start on a slow machine.
_START_S = 60
# Ray Data has overhead per block, so many fragments share one. Each is still committed on its
# own.
_MAX_BLOCKS = 4096


def run_fragments(
    job: EncodeJob, pool: PoolSettings, name: str, max_reject_fraction: float | None
) -> dict[str, Any]:
    """Encode every fragment that the ledger does not have. Returns figures of this session.

    Raises QualityGateError as soon as the rejects must pass the limit.
    """
    expose(name.partition(" ")[0])
    fragments = job.plan.fragments
    done = set(Ledger(job.storage, job.run).done())
    todo = [number for number in range(fragments) if number not in done]
    with RunProgress(name, fragments, fragments - len(todo)) as progress:
        if todo:
            # Ray keeps the encoders of a run that failed as long as its error is remembered.
            gc.collect()
            wait_for_room(needs(pool), "lower pool.encoders, pool.decoders or pool.gpus")
            rows = job.plan.rows
            limit = allowed_rejects(max_reject_fraction, rows) if rows else None
            for receipt in _receipts(job, pool, todo):
                progress.add(receipt)
                if limit is not None and progress.rejected > limit:
                    raise QualityGateError(
                        f"{progress.rejected:,} of {rows:,} inputs are rejects, at most {limit:,} "
                        "may be (max_reject_fraction); nothing is published; see "
                        f"{job.storage.uri}/{job.rejects}"
                    )
        return _summary(progress, pool)


def _receipts(job: EncodeJob, pool: PoolSettings, todo: list[int]) -> Iterator[Receipt]:
    context = quiet_data_context()  # RunProgress shows what a user needs
    # Another driver may take the room that was there a moment ago.
    context.wait_for_min_actors_s = round(patience_of(os.environ).taken + _START_S)
    with DataContext.current(context), spoken(needs(pool)) as reports:
        numbers = ray.data.from_items(
            [{"fragment": number} for number in todo],
            override_num_blocks=min(len(todo), _MAX_BLOCKS),
        )
        receipts = numbers.map_batches(
            FragmentEncoder,
            fn_constructor_args=(job, reports),
            batch_size=1,
            batch_format="numpy",
            compute=ActorPoolStrategy(
                size=pool.encoders,
                max_tasks_in_flight_per_actor=2 * _FRAGMENTS_AT_ONCE,
                max_concurrent_calls_per_actor=_FRAGMENTS_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
        with plain_errors():
            for row in receipts.iter_rows():
                yield Receipt.model_validate_json(row["receipt"])


def needs(pool: PoolSettings) -> list[Need]:
    """What the pool asks of the cluster."""
    return [Need("encoders", pool.encoders, {"CPU": pool.cpus, "GPU": pool.gpus})]


def _summary(progress: RunProgress, pool: PoolSettings) -> dict[str, Any]:
    """Rows per second: end to end, and of each stage in the time that it worked itself."""
    total = progress.rows + progress.rejected
    fragments_at_once = pool.encoders * _FRAGMENTS_AT_ONCE
    workers = {
        "load": fragments_at_once * pool.decoders,
        "encode": pool.encoders,
        "write": fragments_at_once,
    }
    rates = {
        f"{stage}_rows_per_second": total * count / progress.stages[stage]
        for stage, count in workers.items()
        if progress.stages[stage]
    }
    return {
        "seconds": progress.seconds,
        "rows_per_second": total / max(progress.seconds, 1e-9),
        **rates,
    }
