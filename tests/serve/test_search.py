"""Over HTTP, four shards answer exactly what one faiss index over the same codes does."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from dq_cluster.index.catalog import Index
from dq_cluster.model.bundle import load_model
from dq_cluster.search.merge import rerank
from dq_cluster.search.shard import load_whole
from tests.serve.conftest import SHARDS, Service

pytestmark = pytest.mark.ray


class Whole:
    """The whole version in one piece, re-ranked as the service does by default."""

    def __init__(self, service: Service) -> None:
        index = Index.at(service.uri)
        shard = load_whole(index, service.manifest)
        self.searcher, self.rows = shard.searcher, shard.rows
        assert shard.refiner is not None
        self.refiner = shard.refiner

    def search(
        self, embeddings: np.ndarray, k: int, k_factor: int = 4
    ) -> tuple[np.ndarray, np.ndarray]:
        if k_factor == 1:
            return self.searcher.search(embeddings, k)
        scores, ordinals = self.searcher.search(embeddings, k * k_factor)
        second = self.refiner.scores(embeddings, ordinals)
        scores, ordinals, _ = rerank([(scores, ordinals, second)], k)
        return scores, ordinals


@pytest.fixture(scope="module")
def whole(service: Service) -> Whole:
    return Whole(service)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    k=st.integers(1, 1000),
    k_factor=st.sampled_from([1, 2, 10]),
    seed=st.integers(0, 10_000),
    queries=st.integers(1, 5),
)
def test_shards_over_http_equal_one_index(
    service: Service, whole: Whole, k: int, k_factor: int, seed: int, queries: int
) -> None:
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(queries, 16)).astype(np.float32)
    with service.http as http:
        asked = {"embeddings": embeddings.tolist(), "k": k, "k_factor": k_factor}
        answer = http.post("/v1/search", json=asked)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    scores, ordinals = whole.search(embeddings, k, k_factor=k_factor)
    assert [[hit["id"] for hit in hits] for hits in body["hits"]] == ordinals.tolist()
    np.testing.assert_array_equal(
        np.array([[hit["score"] for hit in hits] for hits in body["hits"]], np.float32), scores
    )
    assert body["version"] == 1
    assert body["coverage"] == 1
    assert body["shards"] == SHARDS
    assert not body["timed_out"]
    assert not body["failed_shards"]


def test_a_feature_is_embedded_by_the_model(service: Service, whole: Whole) -> None:
    import torch

    network, _ = load_model(Index.at(service.uri).storage, service.card.digest)
    with torch.no_grad():
        embedding = network.embed(torch.from_numpy(service.features[:3])).numpy()
    wanted_scores, wanted = whole.search(embedding, 5)
    with service.http as http:
        body = http.post(
            "/v1/search",
            json={"vectors": service.features[:3].tolist(), "k": 5, "include": ["label", "uri"]},
        ).json()
    for row, hits in enumerate(body["hits"]):
        assert [hit["id"] for hit in hits] == wanted[row].tolist()
        for hit in hits:
            assert hit["columns"] == {"label": hit["id"] % 10, "uri": f"images/{hit['id']}.png"}
    assert set(body["ms"]) == {"prepare", "queue", "embed", "search", "merge", "total"}
    assert wanted_scores.shape == (3, 5)


def test_search_by_id_is_search_by_what_its_code_stands_for(service: Service, whole: Whole) -> None:
    with service.http as http:
        for id in (0, 777, 1499):
            hits = http.post("/v1/search", json={"id": id, "k": 20}).json()["hits"][0]
            _, wanted = whole.search(whole.refiner.embeddings(np.array([id])), 20)
            assert [hit["id"] for hit in hits] == wanted[0].tolist()


def test_a_filter_is_searched_as_if_the_rest_did_not_exist(service: Service, whole: Whole) -> None:
    embedding = np.random.default_rng(5).normal(size=(1, 16)).astype(np.float32)
    keep = np.arange(1500) % 10 >= 8
    keep &= np.arange(1500) < 700
    scores, ordinals = whole.searcher.search(embedding, 1500)
    few = np.flatnonzero(keep[ordinals[0]])[:120]
    candidates = scores[:, few], ordinals[:, few]
    second = whole.refiner.scores(embedding, candidates[1])
    _, wanted, _ = rerank([(*candidates, second)], 30)
    with service.http as http:
        body = http.post(
            "/v1/search",
            json={
                "embedding": embedding[0].tolist(),
                "k": 30,
                "filter": {"label": {"ge": 8}, "id": {"lt": 700}},
            },
        ).json()
    assert [hit["id"] for hit in body["hits"][0]] == wanted[0].tolist()
    assert body["coverage"] == 1


def test_within_leaves_out_what_is_farther(service: Service) -> None:
    with service.http as http:
        asked = {"id": 777, "k": 200}
        everything = http.post("/v1/search", json=asked).json()["hits"][0]
        limit = everything[60]["score"]
        near = http.post("/v1/search", json={**asked, "within": limit}).json()["hits"][0]
        assert near == [hit for hit in everything if hit["score"] >= limit]
        assert 60 < len(near) < 200
        refused = http.post("/v1/search", content='{"id": 1, "within": NaN}')
        assert refused.status_code == 400


def test_metrics_count_the_queries(service: Service) -> None:
    with service.http as http:

        def read() -> dict[tuple[str, str], float]:
            """Sums by sample name and kind of process."""
            sums: defaultdict[tuple[str, str], float] = defaultdict(float)
            for family in text_string_to_metric_families(http.get("/metrics").text):
                for sample in family.samples:
                    sums[sample.name, sample.labels["process"]] += sample.value
            return sums

        http.post("/v1/search", json={"id": 1})
        before = read()
        for _ in range(3):
            http.post("/v1/search", json={"id": 1})
        after = read()
        openmetrics = {"Accept": "application/openmetrics-text; version=1.0.0"}
        assert http.get("/metrics", headers=openmetrics).text.endswith("# EOF\n")
    assert after["dq_queries_total", "router"] == before["dq_queries_total", "router"] + 3
    seconds = ("dq_query_duration_seconds_sum", "router")
    assert after[seconds] > before[seconds]
    assert {("dq_index_version", "router"), ("dq_shard_codes", "shard")} <= after.keys()
    assert all(name.startswith("dq_") for name, _ in after)
