"""Queries to the served index over HTTP, and a picture of its answers."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dq_cluster.client import Client
from dq_cluster.evaluate.report import GridRow, Picture
from dq_cluster.images.config import SourceSettings
from dq_cluster.images.features import FeatureSet, open_features
from dq_cluster.images.sources import open_source
from dq_cluster.serve.api import SearchResponse

NEIGHBOURS = 10
_GRID_ROWS = 12
_CLIENTS = 16
_ASKED = 400


def ask(url: str, source: SourceSettings, queries: str) -> dict[str, Any]:
    """Search by image from 16 clients at once: answers per second, and the shards behind them."""
    dataset = open_features(queries)
    pictures = picture_bytes(source, dataset.ids(0, min(_ASKED, dataset.rows))).values()
    with Client(url) as client, ThreadPoolExecutor(_CLIENTS) as pool:
        started = time.monotonic()
        answers = list(pool.map(lambda picture: _search(client, picture), pictures))
        seconds = time.monotonic() - started
    return {
        "rate": len(answers) / seconds,
        "shards": min(answer.shards for answer in answers),
        "coverage": min(answer.coverage for answer in answers),
    }


def picture_grid(url: str, source: SourceSettings, queries: str) -> list[GridRow]:
    """A dozen queries and their ten neighbours, as pictures with scores."""
    samples = _samples(open_features(queries))
    shown = picture_bytes(source, samples)
    with Client(url) as client:
        answers = {id: _search(client, shown[id]).hits[0] for id in samples}
    neighbours = picture_bytes(source, {hit.id for hits in answers.values() for hit in hits})
    return [
        GridRow(
            Picture(shown[id], label or str(id)),
            [
                Picture(
                    neighbours[hit.id],
                    f"{hit.score:.3f}",
                    None if label is None else hit.columns.get("label") == label,
                )
                for hit in answers[id]
            ],
        )
        for id, label in samples.items()
    ]


def picture_bytes(source: SourceSettings, ids: Iterable[Any]) -> dict[Any, bytes]:
    """The encoded images with these ids, by one pass over the source."""
    missing = set(ids)
    pictures: dict[Any, bytes] = {}
    dataset = open_source(source)
    for table in dataset.read(dataset.units(), 1024):
        names = table.column("id").to_pylist()
        for row, name in enumerate(names):
            if name in missing:
                pictures[name] = table.column("image")[row].as_py()
    return pictures


def _search(client: Client, picture: bytes) -> SearchResponse:
    return client.search(image=picture, k=NEIGHBOURS, include=["label"])


def _samples(queries: FeatureSet) -> dict[Any, str | None]:
    """Ids and labels of a dozen queries, one per class before a second of any."""
    ids = queries.ids(0, queries.rows).tolist()
    labels = queries.labels(0, queries.rows).tolist() if queries.labelled else [None] * len(ids)
    seen: dict[Any, int] = {}
    turn = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        turn.append(seen[label])
    order = sorted(range(len(ids)), key=lambda row: (turn[row], row))[:_GRID_ROWS]
    return {ids[row]: labels[row] for row in order}
