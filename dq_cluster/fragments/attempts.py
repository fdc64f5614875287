"""A fragment is tried again when storage fails or a task is lost, and the driver hears of it."""

import logging
import time
from collections.abc import Callable

from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from dq_cluster.errors import DqError, StorageError
from dq_cluster.fragments.ledger import Receipt
from dq_cluster.fragments.retry import Failures

log = logging.getLogger(__name__)


def persistently(
    fragment: int, attempt: Callable[[Failures], Receipt], reports: ActorHandle | None
) -> Receipt:
    """`attempt`, called with the failures so far until it succeeds.

    Raises DqError when it failed too often, and at once what no other try would change.
    """
    failures = Failures()
    while True:
        try:
            return attempt(failures)
        except RayTaskError:
            raise  # a bug, and it will still be there
        except (StorageError, RayError, MemoryError) as error:
            failures = failures.and_another(loss=not isinstance(error, StorageError))
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if failures.pause_s is None:
            raise DqError(
                f"fragment {fragment} failed {failures.count} times, the last time with "
                f"{reason}; when the cause is gone, the same command continues"
            )
        log.warning("fragment %d failed, trying again: %s", fragment, reason)
        if reports is not None:
            reports.failed.remote(fragment, reason)
        time.sleep(failures.pause_s)
