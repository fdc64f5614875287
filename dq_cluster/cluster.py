"""Joining a Ray cluster, or starting one on this machine where there is none."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.data import DataContext

# Ray schedules by declared CPUs. Decode, backbone, and writer actors each claim one and must
# all be alive for a pipeline to move, so a two-core laptop declares more than it has; the
# operating system shares the real cores.
_LOCAL_CPUS = 8


@contextlib.contextmanager
def ray_cluster() -> Iterator[None]:
    """Join the cluster named by RAY_ADDRESS (Ray sets it for submitted jobs), else start Ray here.

    A Ray that this process already joined is used as it is and left running. Storage
    credentials must be in the environment before Ray starts: workers inherit it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level="warning")
    else:
        ray.init(
            address="local",
            num_cpus=max(_LOCAL_CPUS, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
        )
    try:
        yield
    finally:
        ray.shutdown()


def quiet_data_context() -> "DataContext":
    """A copy of Ray Data's context without its own account of every execution."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return context
