"""Kill processes of a service at random, and count the queries that failed or mixed versions.

    python -m benchmarks.chaos_serve --kills 200 [--seed 0]

Two shards of two replicas, two routers, and the keeper of versions. Clients ask all the time, and
one refreshes to one version and another. Each kill (SIGKILL) takes a random process, but never the
last replica of a shard nor the last router: the next one waits until the victim's successor is up.
CURRENT is ahead of what is served, so that a keeper that forgot would say something else.
"""

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from functools import partial

import httpx
from ray import serve

from benchmarks.serve import query_api
from dq_cluster.client import Client
from dq_cluster.errors import DqError
from dq_cluster.serve.config import Limits, ServeSettings
from dq_cluster.serve.run import APPLICATION, fast_serve
from tests.chaos.serve_chaos import TIMEOUT_MS, Load, assert_unmixed, replicas_of, until
from tests.support import make_model, make_version

_DEPLOYMENTS = {"Shard0": 2, "Shard1": 2, "Router": 2, "Versions": 1}


class ClientLoad(Load):
    """Load by the Python client, which makes a call again whose connection ended."""

    def ask(self) -> tuple[int, str]:
        with Client(self.url, timeout_s=2 * TIMEOUT_MS / 1e3) as client:
            try:
                return 200, client.search(embedding=[0.25] * 16, k=20).model_dump_json()
            except DqError as error:
                return 500, repr(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    fast_serve()
    with tempfile.TemporaryDirectory(prefix="dq-chaos-") as folder:
        uri = f"{folder}/index"
        card = make_model(uri)
        for seed in range(3):  # versions 1 to 3; the last one is CURRENT and never served
            make_version(uri, card, rows=600, files=4, seed=seed)
        settings = ServeSettings(
            index=uri,
            version=1,
            shards=2,
            replicas=2,
            routers=2,
            cpus=0.2,
            port=0,
            timeout_ms=TIMEOUT_MS,
            limits=Limits(max_timeout_ms=TIMEOUT_MS),
        )
        begin = time.monotonic()
        with query_api(settings) as url, ClientLoad(url) as load:
            load.wait_for(20)
            killed, refreshes = storm(url, load, asked.kills, random.Random(asked.seed))
            load.wait_for(20)
    assert_unmixed(load.answers)
    result = {
        "kills": killed,
        "queries": len(load.answers) + len(load.errors),
        "failed": len(load.errors),
        "errors": Counter(error[:120] for error in load.errors).most_common(5),
        "refreshes": refreshes,
        "mixed versions": 0,
        "versions": sorted({answer["version"] for answer in load.answers}),
        "seconds": round(time.monotonic() - begin),
    }
    print(json.dumps(result, indent=1))


def storm(
    url: str, load: Load, kills: int, rng: random.Random
) -> tuple[dict[str, int], dict[str, int]]:
    """Kill so many processes; returns how many of which, and how refreshes ended."""
    killed: Counter[str] = Counter()
    refreshes: Counter[str] = Counter()
    done = threading.Event()

    def refresh() -> None:
        version = 1
        while not done.is_set():
            version = 3 - version
            try:
                answer = httpx.post(
                    f"{url}/v1/index/refresh", json={"version": version}, timeout=240
                )
                refreshes[str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                refreshes[type(error).__name__] += 1

    refresher = threading.Thread(target=refresh)
    refresher.start()
    try:
        for number in range(kills):
            name = rng.choice(list(_DEPLOYMENTS))
            victim = rng.choice(replicas_of(name))
            os.kill(victim, signal.SIGKILL)
            killed[name] += 1
            until(partial(_is_whole, name, victim))
            load.wait_for(rng.randrange(1, 10))
            if number % 20 == 19:
                print(f"{number + 1} kills, {len(load.answers)} answers, {len(load.errors)} errors")
    finally:
        done.set()
        refresher.join()
    return dict(killed), dict(refreshes)


def _is_whole(name: str, victim: int) -> bool:
    """Whether the victim's successor is up."""
    there = replicas_of(name)
    if victim in there or len(there) != _DEPLOYMENTS[name]:
        return False
    deployments = serve.status().applications[APPLICATION].deployments
    return deployments[name].replica_states == {"RUNNING": _DEPLOYMENTS[name]}


if __name__ == "__main__":
    main()
