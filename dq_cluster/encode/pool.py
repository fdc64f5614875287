"""The Ray Data pipeline: fragment numbers in, receipts of committed fragments out."""

from collections.abc import Iterator
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayTaskError

from dq_cluster.cluster import quiet_data_context
from dq_cluster.encode.config import PoolSettings
from dq_cluster.encode.fragment import FragmentEncoder, Job
from dq_cluster.encode.ledger import Ledger, Receipt
from dq_cluster.encode.progress import RunProgress
from dq_cluster.errors import DqError, InputError, QualityGateError

# Of each encoder; see FragmentEncoder.
_FRAGMENTS_AT_ONCE = 2
# Ray Data keeps books per block; many fragments therefore share one. Each is still committed
# on its own.
_MAX_BLOCKS = 4096


def run_fragments(
    job: Job, pool: PoolSettings, name: str, max_reject_fraction: float
) -> dict[str, Any]:
    """Encode every fragment that the ledger does not have. Returns figures of this session.

    Raises QualityGateError as soon as the rejects must pass the limit.
    """
    fragments = job.plan.fragments
    done = set(Ledger(job.storage, job.run).done())
    todo = [number for number in range(fragments) if number not in done]
    with RunProgress(name, fragments, fragments - len(todo)) as progress:
        if todo:
            _check_room(pool)
            limit = max_reject_fraction * job.plan.rows if job.plan.rows else None
            for receipt in _receipts(job, pool, todo):
                progress.add(receipt)
                if limit is not None and progress.rejected > limit:
                    raise QualityGateError(
                        f"{progress.rejected:,} of {job.plan.rows:,} inputs are rejects, more "
                        f"than max_reject_fraction {max_reject_fraction:g}; nothing is "
                        f"published; see {job.storage.uri}/{job.rejects}"
                    )
        return _summary(progress, pool)


def _receipts(job: Job, pool: PoolSettings, todo: list[int]) -> Iterator[Receipt]:
    with DataContext.current(quiet_data_context()):  # what a reader wants is in RunProgress
        numbers = ray.data.from_items(
            [{"fragment": number} for number in todo],
            override_num_blocks=min(len(todo), _MAX_BLOCKS),
        )
        receipts = numbers.map_batches(
            FragmentEncoder,
            fn_constructor_args=(job,),
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
        try:
            for row in receipts.iter_rows():
                yield Receipt.model_validate_json(row["receipt"])
        except RayTaskError as error:
            raise _cause(error) from None


def _cause(error: BaseException) -> BaseException:
    """The dq_cluster error inside what Ray wraps around it, or the wrapping."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, DqError) and not isinstance(inner, RayTaskError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error


def _check_room(pool: PoolSettings) -> None:
    """An actor that finds no CPU waits for ever; say so instead."""
    found = ray.cluster_resources()
    for kind, each in (("CPU", pool.cpus), ("GPU", pool.gpus)):
        if found.get(kind, 0) < pool.encoders * each:
            raise InputError(
                f"{pool.encoders} encoders need {pool.encoders * each:g} {kind}s; the cluster "
                f"has {found.get(kind, 0):g}: lower pool.encoders, pool.decoders or pool.gpus"
            )


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
