"""The plan of a run: the stored one if there is one, else a new one."""

from typing import Any

from dq_cluster.encode.coverage import Difference, look_again
from dq_cluster.encode.plan import Plan, find_plan, make_plan
from dq_cluster.encode.progress import planning, say_planned
from dq_cluster.errors import ConfigError, NotFoundError
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.sources import open_source
from dq_cluster.storage import Storage


def continue_or_plan(
    storage: Storage,
    run: str,
    source: SourceSettings,
    *,
    fragment_rows: int,
    request: dict[str, Any],
    newest: int = 0,
    advice: str,
) -> tuple[Plan, Difference | None]:
    """The plan of the run in folder `run`; the input is planned only once.

    Of a plan that was there already, also how the input differs from it by now, which is said
    on standard error, with `advice` on what was added. Raises NotFoundError for a source that is
    not there, and ConfigError when the stored plan was made for another request.
    """
    plan = find_plan(storage, run)
    if plan is None:
        if not Storage(source.uri).exists():
            raise NotFoundError(f"source.uri {source.uri} does not exist")
        opened = open_source(source)
        units = planning(source.uri, opened.units())
        made = make_plan(
            storage,
            run,
            units,
            opened.skipped,
            fragment_rows=fragment_rows,
            request=request,
            newest=newest,
        )
        say_planned(made)
    changed = [key for key in request if request[key] != (plan or made).request.get(key)]
    if changed:
        raise ConfigError(
            f"{storage.uri}/{run} was begun with another {', '.join(changed)}; continue it with "
            "what it was begun with, or begin another run"
        )
    return (plan, look_again(storage, plan, source, advice)) if plan else (made, None)
