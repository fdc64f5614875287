"""The application on Ray Serve: one deployment per shard, a router, and who says what is served.

`build` is the import path that `serve deploy` and the Helm chart name.
"""

import uuid
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from dq_cluster.config import validate_settings
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.keeper import VersionKeeper
from dq_cluster.serve.memory import ClusterMemory
from dq_cluster.serve.replica import KEEPER, ShardReplica
from dq_cluster.serve.router import Router

# Serve's own line for each request costs more than searching, even one that is filtered out below
# INFO; metrics and traces count requests.
#
# When the application is deployed anew, a replica goes when its successor is up: one for each
# deployment at a time.
_COMMON: dict[str, Any] = {
    "max_surge_percent": 1,
    "health_check_period_s": 2,
    "health_check_timeout_s": 10,
    "logging_config": LoggingConfig(enable_access_log=False, log_level="WARNING"),
}


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application for ServeSettings given as plain values. Raises ConfigError."""
    settings = validate_settings(ServeSettings, dict(args), "serve")
    shards = [
        serve.deployment(
            ShardReplica,
            name=f"Shard{number}",
            num_replicas=settings.replicas,
            max_ongoing_requests=64,
            ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
            graceful_shutdown_timeout_s=5,
            **_COMMON,
        ).bind(settings, number)
        for number in range(settings.shards)
    ]
    versions = serve.deployment(
        VersionKeeper, name=KEEPER, ray_actor_options={"num_cpus": 0}, **_COMMON
    ).bind(settings, shards, ClusterMemory(uuid.uuid4().hex))
    return serve.deployment(
        Router,
        name="Router",
        num_replicas=settings.routers,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": settings.cpus},
        **_COMMON,
    ).bind(settings, versions, shards)
