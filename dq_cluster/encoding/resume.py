"""How a driver starts: a plan for its request, and a ledger whose files all exist."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dq_cluster.config import Settings
from dq_cluster.encoding.plan import PLAN, Plan, find_plan, make_plan
from dq_cluster.encoding.planned import planning, say_planned
from dq_cluster.errors import IntegrityError, NotFoundError
from dq_cluster.fragments.ledger import Ledger
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.skipped import Skipped
from dq_cluster.images.sources import open_source
from dq_cluster.images.units import Unit
from dq_cluster.index.stored import stored_sizes
from dq_cluster.run import Run
from dq_cluster.storage import Storage


def check_request(storage: Storage, folder: str, request: Settings) -> None:
    """Raise ConfigError if the run in `folder` was begun with another request."""
    plan = find_plan(storage, folder)
    Run(storage.child(folder)).check(request, _recorded(plan))


def check_source(storage: Storage, folder: str, source: SourceSettings) -> None:
    """Raise NotFoundError if the run in `folder` has no plan and there is nothing to plan."""
    if not storage.exists(f"{folder}/{PLAN}") and not Storage(source.uri).exists():
        raise NotFoundError(f"source.uri {source.uri} does not exist")


def resume(
    storage: Storage,
    folder: str,
    request: Settings,
    source: SourceSettings,
    *,
    fragment_rows: int,
    written: Sequence[str],
    newest: int = 0,
    choose: Callable[[Iterable[Unit], Skipped], Iterable[Unit]] = lambda units, skipped: units,
) -> Plan:
    """The plan of the run in `folder`, which lists the source once; its ledger is put right.

    written: the folders that the run writes its files to. choose: which units of the source to
    plan, given the account of what is skipped. A fragment whose files are not all
    there is taken out of the ledger, to be encoded again. Raises ConfigError when the run is of
    another request, IntegrityError for a ledger without a plan.
    """
    run, ledger = Run(storage.child(folder)), Ledger(storage, folder)
    done = ledger.done()
    plan = find_plan(storage, folder)
    if plan is not None:
        run.claim(request, _recorded(plan))
    elif done:
        raise IntegrityError(
            f"{storage.uri}/{folder} has {len(done)} fragments in its ledger and no plan.json: "
            "restore it, or delete the folder to begin anew"
        )
    else:
        opened = open_source(source)
        plan = make_plan(
            storage,
            folder,
            choose(planning(source.uri, opened.units()), opened.skipped),
            opened.skipped,
            fragment_rows=fragment_rows,
            newest=newest,
            claim=lambda: run.claim(request),
        )
        say_planned(plan)
    if done:
        _forget_lost(storage, ledger, written)
    return plan


def _recorded(plan: Plan | None) -> dict[str, Any] | None:
    """The request where older releases kept it."""
    return plan.request or None if plan else None


def _forget_lost(storage: Storage, ledger: Ledger, written: Sequence[str]) -> None:
    sizes = stored_sizes(storage, *written)
    receipts = list(ledger.receipts())
    lost = [
        receipt.fragment
        for receipt in receipts
        if any(sizes.get(file.path) != file.size for file in receipt.written)
    ]
    for fragment in lost:
        ledger.forget(fragment)
    if lost:
        print(
            f"{len(lost):,} of {len(receipts):,} committed fragments lost files; they are encoded "
            "again",
            file=sys.stderr,
        )
