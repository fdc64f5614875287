"""Replicas die, hang, and versions change, while clients ask."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from ray import serve

from dq_cluster.index.models import ModelCard
from dq_cluster.serve.app import build
from dq_cluster.serve.config import Limits, ServeSettings
from dq_cluster.serve.run import APPLICATION, serving
from tests.chaos.serve_chaos import TIMEOUT_MS, Load, assert_unmixed, replicas_of, until
from tests.support import make_model, make_version

pytestmark = pytest.mark.ray
ROWS, SHARDS, REPLICAS = 600, 2, 2


@dataclass(frozen=True)
class Service:
    url: str
    uri: str
    card: ModelCard
    settings: ServeSettings


@pytest.fixture(scope="module")
def service(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    uri = str(tmp_path_factory.mktemp("chaos") / "index")
    card = make_model(uri)
    for seed in (0, 1):  # version 1 has ids from 0, version 2 from a million
        make_version(uri, card, rows=ROWS, files=4, seed=seed)
    settings = ServeSettings(
        index=uri,
        version=1,
        shards=SHARDS,
        replicas=REPLICAS,
        cpus=0.2,
        port=0,
        timeout_ms=TIMEOUT_MS,
        limits=Limits(max_timeout_ms=TIMEOUT_MS),
    )
    with serving(settings) as url:
        yield Service(url, uri, card, settings)


def test_versions_switch_and_roll_back_under_load(service: Service) -> None:
    with httpx.Client(base_url=service.url, timeout=240) as http, Load(service.url) as load:
        load.wait_for(20)
        for version in (2, 1, 2, 1):
            assert http.post("/v1/index/refresh", json={"version": version}).status_code == 200
            one = http.post("/v1/search", json={"id": (version - 1) * 1_000_000})
            assert one.json()["version"] == version
            load.wait_for(20)
    assert not load.errors
    assert_unmixed(load.answers)
    assert {answer["version"] for answer in load.answers} == {1, 2}


def test_refreshes_during_refreshes_under_load(service: Service) -> None:
    def refresh(version: int) -> int:
        answer = httpx.post(
            f"{service.url}/v1/index/refresh", json={"version": version}, timeout=240
        )
        return answer.status_code

    with ThreadPoolExecutor(4) as pool, Load(service.url) as load:
        assert set(pool.map(refresh, [2, 1] * 6)) == {200}
        load.wait_for(20)
        assert refresh(1) == 200
        load.wait_for(20)
    assert not load.errors
    assert_unmixed(load.answers)
    assert {answer["version"] for answer in load.answers[-3:]} == {1}


def test_a_corrupt_next_version_changes_nothing(service: Service) -> None:
    manifest, _ = make_version(service.uri, service.card, rows=ROWS, files=4, seed=2)
    path = Path(service.uri) / manifest.files[2].path
    path.write_bytes(b"PAR1" + path.read_bytes()[4:-300])
    with httpx.Client(base_url=service.url, timeout=240) as http, Load(service.url) as load:
        refused = http.post("/v1/index/refresh", json={"version": manifest.version})
        assert refused.status_code == 409
        assert manifest.files[2].path in refused.json()["error"]
        assert service.uri not in refused.text
        load.wait_for(20)
    assert not load.errors
    assert {answer["version"] for answer in load.answers} == {1}


def test_a_killed_replica_fails_no_query_and_comes_back(service: Service) -> None:
    before = replicas_of("Shard0")
    assert len(before) == REPLICAS
    with Load(service.url) as load:
        load.wait_for(20)
        os.kill(before[0], signal.SIGKILL)
        load.wait_for(60)
        until(lambda: len(set(replicas_of("Shard0")) - {before[0]}) == REPLICAS)
        load.wait_for(20)
    assert not load.errors
    assert_unmixed(load.answers)


def test_the_keeper_of_versions_dies_and_forgets_nothing(service: Service) -> None:
    with httpx.Client(base_url=service.url, timeout=240) as http, Load(service.url) as load:
        # Neither CURRENT nor the version of the settings: what a keeper without memory would say.
        assert http.post("/v1/index/refresh", json={"version": 2}).status_code == 200
        (before,) = replicas_of("Versions")
        os.kill(before, signal.SIGKILL)
        until(lambda: replicas_of("Versions") not in ([], [before]))
        load.wait_for(60)
        assert http.get("/v1/index").json()["version"] == 2
        until(lambda: http.post("/v1/index/refresh", json={"version": 1}).status_code == 200)
        load.wait_for(10)
    assert not load.errors
    assert_unmixed(load.answers)


def test_what_is_served_outlives_every_process_of_the_application(service: Service) -> None:
    with httpx.Client(base_url=service.url, timeout=240) as http:
        assert http.post("/v1/index/refresh", json={"version": 2}).status_code == 200
        dead = [pid for name in ("Versions", "Router", "Shard") for pid in replicas_of(name)]
        assert len(dead) == 2 + SHARDS * REPLICAS
        for pid in dead:
            os.kill(pid, signal.SIGKILL)
        answers = []

        def all_are_new() -> bool:
            answers.append(http.post("/v1/search", json={"embedding": [0.25] * 16, "k": 20}))
            now = [pid for name in ("Versions", "Router", "Shard") for pid in replicas_of(name)]
            return len(now) == len(dead) and not set(now) & set(dead) and answers[-1].is_success

        until(all_are_new, 120)
        found = [answer.json() for answer in answers if answer.is_success]
        assert {answer["version"] for answer in found} == {2}
        assert_unmixed(found)
        assert http.post("/v1/index/refresh", json={"version": 1}).status_code == 200


def test_a_hanging_replica_fails_no_query(service: Service) -> None:
    hung = replicas_of("Shard1")[0]
    with Load(service.url) as load:
        load.wait_for(40)
        calm = len(load.answers)
        os.kill(hung, signal.SIGSTOP)
        try:
            load.wait_for(200)
        finally:
            os.kill(hung, signal.SIGCONT)
    assert not load.errors
    assert_unmixed(load.answers)
    slowest = sorted(answer["ms"]["total"] for answer in load.answers[calm:])
    assert slowest[int(0.9 * len(slowest))] < TIMEOUT_MS / 10, (
        "queries kept going to the replica that hangs"
    )


def test_a_shard_without_replicas_is_missing_from_the_answer(service: Service) -> None:
    question = {"embedding": [0.25] * 16, "k": 20, "timeout_ms": 500}
    with httpx.Client(base_url=service.url, timeout=240) as http, ThreadPoolExecutor(2) as pool:
        for pid in replicas_of("Shard0"):
            os.kill(pid, signal.SIGKILL)
        # Both at once: Serve starts new replicas within seconds.
        tolerant = {**question, "min_coverage": 0}
        partial, whole = pool.map(lambda q: http.post("/v1/search", json=q), (tolerant, question))
        partial = partial.json()
        assert partial["coverage"] == 0.5
        assert partial["timed_out"] or partial["failed_shards"]
        assert len(partial["hits"][0]) == 20
        assert whole.status_code in (503, 504)
        assert "0.5" in whole.json()["error"]
        assert whole.json()["response"]["coverage"] == 0.5
        until(lambda: http.post("/v1/search", json=question).status_code == 200)


def test_shards_are_added_under_load(service: Service) -> None:
    """The last of this module: afterwards there is one shard more."""
    more = service.settings.model_copy(update={"shards": SHARDS + 1})
    before = replicas_of("Shard0")
    with Load(service.url) as load:
        load.wait_for(20)
        serve.run(build(more.model_dump()), name=APPLICATION, route_prefix="/")
        until(lambda: not set(before) & set(replicas_of("Shard0")))
        load.wait_for(40)
    assert not load.errors
    assert_unmixed(load.answers)
    assert load.answers[0]["shards"] == SHARDS
    assert load.answers[-1]["shards"] == SHARDS + 1
