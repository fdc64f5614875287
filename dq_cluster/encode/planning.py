"""The plan of a run: the stored one if there is one, else a new one."""

import sys
from typing import Any

from dq_cluster.config import Settings, validate_settings
from dq_cluster.encode.plan import Plan, find_plan, make_plan
from dq_cluster.errors import ConfigError, NotFoundError
from dq_cluster.images.config import BackboneSettings, SourceSettings
from dq_cluster.images.sources import open_source
from dq_cluster.storage import Storage

_SETTINGS: dict[str, type[Settings]] = {"source": SourceSettings, "backbone": BackboneSettings}


def continue_or_plan(
    storage: Storage,
    run: str,
    source: SourceSettings,
    *,
    fragment_rows: int,
    request: dict[str, Any],
    newest: int = 0,
) -> Plan:
    """The plan of the run in folder `run`; the input is listed only once.

    Raises NotFoundError for a source that is not there, and ConfigError when the stored plan was
    made for another request.
    """
    plan = find_plan(storage, run)
    if plan is None:
        if not Storage(source.uri).exists():
            raise NotFoundError(f"source.uri {source.uri} does not exist")
        print(f"planning {source.uri}", file=sys.stderr)
        plan = make_plan(
            storage,
            run,
            open_source(source).units(),
            fragment_rows=fragment_rows,
            request=request,
            newest=newest,
        )
    stored = as_of_now(plan.request, f"{storage.uri}/{run}")
    changed = [key for key in request if request[key] != stored.get(key)]
    if changed:
        raise ConfigError(
            f"{storage.uri}/{run} was begun with another {', '.join(changed)}; continue it with "
            "what it was begun with, or begin another run"
        )
    return plan


def as_of_now(request: dict[str, Any], origin: str) -> dict[str, Any]:
    """A stored request as it would be stored today: with locations made absolute, which older
    versions kept as they were typed, and with the defaults of settings that were added since."""
    return {
        key: validate_settings(_SETTINGS[key], value, origin).model_dump(mode="json")
        if key in _SETTINGS
        else value
        for key, value in request.items()
    }
