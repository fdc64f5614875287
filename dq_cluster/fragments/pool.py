"""The Ray Data pipeline of a run: fragment numbers in, receipts of committed fragments out.

A fragment is committed by the actor that works on it (see `fragments.ledger`), so what Ray Data
does again, or two drivers do at once, counts once.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import ray
from ray.data import ActorPoolStrategy, DataContext

from dq_cluster.cluster import quiet_data_context
from dq_cluster.cluster.failures import plain_errors
from dq_cluster.cluster.room import Need, patience_of
from dq_cluster.fragments.ledger import Receipt
from dq_cluster.fragments.progress import RunProgress
from dq_cluster.fragments.reports import spoken

# Time that actors need to start on a slow machine.
_START_S = 60
# Ray Data has overhead per block, so many fragments share one. Each is still committed on its
# own.
_MAX_BLOCKS = 4096


class Workers(NamedTuple):
    """Actors of the class `kind`, each made with `arguments` and the handle for its reports.

    Called with a batch {"fragment": numbers}, one yields {"receipt": [JSON]} for each.
    at_once: fragments that one works on.
    """

    kind: type
    arguments: tuple[Any, ...]
    need: Need
    at_once: int = 1


def receipts_of(todo: Sequence[int], workers: Workers, progress: RunProgress) -> Iterator[Receipt]:
    """Have the fragments `todo` worked on; yields each receipt when it is committed.

    progress: where receipts, and the work in between, are counted.
    """
    context = quiet_data_context()  # RunProgress shows what a user needs
    # Another driver may take the room that was there a moment ago.
    context.wait_for_min_actors_s = round(patience_of(os.environ).taken + _START_S)
    with DataContext.current(context), spoken([workers.need], progress.working) as reports:
        numbers = ray.data.from_items(
            [{"fragment": number} for number in todo],
            override_num_blocks=min(len(todo), _MAX_BLOCKS),
        )
        receipts = numbers.map_batches(
            workers.kind,
            fn_constructor_args=(*workers.arguments, reports),
            batch_size=1,
            batch_format="numpy",
            compute=ActorPoolStrategy(
                size=workers.need.count,
                max_tasks_in_flight_per_actor=2 * workers.at_once,
                max_concurrent_calls_per_actor=workers.at_once,
                enable_true_multi_threading=True,
            ),
            num_cpus=workers.need.each.get("CPU", 0),
            num_gpus=workers.need.each.get("GPU", 0),
        )
        with plain_errors():
            for row in receipts.iter_rows():
                receipt = Receipt.model_validate_json(row["receipt"])
                progress.add(receipt)
                yield receipt
