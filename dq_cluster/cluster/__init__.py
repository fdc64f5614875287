"""Joining a Ray cluster, or starting one on this machine if there is none."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from dq_cluster.cluster.failures import plain_errors, reason_in
from dq_cluster.cluster.noise import quiet_loggers, without_announcements
from dq_cluster.cluster.surroundings import (
    bypass_proxies,
    check_joined,
    check_local,
    joined_address,
)
from dq_cluster.errors import DqError

if TYPE_CHECKING:
    from ray.data import DataContext

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Ray schedules by declared CPUs. Decode, backbone, and writer actors each claim one and must
# all be alive for a pipeline to move, so a two-core laptop declares more than it has; the
# operating system shares the real cores.
LOCAL_CPUS = 8
# Ray gives its own processes 30 seconds to start, which a busy machine may not keep.
_STARTS = 3


@contextlib.contextmanager
def ray_cluster() -> Iterator[None]:
    """Join the cluster named by RAY_ADDRESS (Ray sets it for submitted jobs), else start Ray here.

    A Ray that this process already joined is used as it is and left running. Storage
    credentials must be in the environment before Ray starts: workers inherit it. What fails in
    Ray's processes comes out of the block as a DqError; raises ConfigError or StorageError where
    Ray cannot start here, or cannot be joined.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        with plain_errors():
            yield
        return
    try:
        with _own_signal_handlers(), without_announcements():
            _start_or_join()
        with plain_errors():
            yield
    finally:
        ray.shutdown()


def _start_or_join() -> None:
    import ray

    quiet_loggers()

    address = joined_address(os.environ)
    bypass_proxies()
    if address:
        logger.info("joining the Ray cluster at %s", address)
        check_joined(address)
    else:
        check_local()
    try:
        if not address:
            start_local(max(LOCAL_CPUS, os.cpu_count() or 1))
        else:
            ray.init(log_to_driver=False, logging_level="warning")
            bypass_proxies(node["NodeManagerAddress"] for node in ray.nodes())
    except Exception as error:  # of many kinds, even that one itself
        what = f"RAY_ADDRESS={address}: cannot join" if address else "Ray cannot start"
        account, stack, _ = str(error).partition("Traceback")
        reason = reason_in(str(error)) if stack else ""
        advice = (
            f"; its Ray must be {ray.__version__}, and its token the one of RAY_AUTH_TOKEN or "
            "~/.ray/auth_token"
            if address
            else ""
        )
        raise DqError(" ".join(f"{what}: {account} {reason}".split()) + advice) from error


def start_local(cpus: int, **options: Any) -> None:
    """Start Ray on this machine, with `cpus` logical CPUs and other `options` of ray.init.

    Raises what ray.init raises, but its time limit only when it is passed the third time.
    """
    import ray

    for left in reversed(range(_STARTS)):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="warning",
                **options,
            )
            return
        except Exception as error:  # it has no class of its own
            if "timed out during startup" not in str(error) or not left:
                raise
            logger.warning("Ray did not start within its limit of 30 s; it is started again")
            ray.shutdown()


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Ray replaces the signal handlers of its process; put them back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_thread(work: Callable[[], T]) -> "Future[T]":
    """Call `work` where it cannot replace the main thread's signal handlers.

    A signal ends the waiting for the result, not `work`; a process that ends does not wait for it.
    """
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def quiet_data_context() -> "DataContext":
    """A copy of Ray Data's context without its own account of every execution."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    quiet_loggers()
    return context
