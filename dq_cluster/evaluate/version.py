"""Measuring a version of an index: search by its codes, compared with exact search."""

from typing import Any

import faiss
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch

from dq_cluster.errors import InputError
from dq_cluster.evaluate.config import EvaluateSettings
from dq_cluster.evaluate.exact import directions
from dq_cluster.evaluate.metrics import labelled, mean_average_precision, recall_at_k
from dq_cluster.images.features import FeatureSet, open_features
from dq_cluster.index.catalog import Index
from dq_cluster.index.ids import joined
from dq_cluster.index.manifest import Manifest
from dq_cluster.model.bundle import load_model
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.search.merge import merge, rerank
from dq_cluster.search.shard import load_whole

_BLOCK = 1 << 16  # database rows compared at once
_RECALL_AT = 10


def evaluate_version(settings: EvaluateSettings) -> dict[str, Any]:
    """Quality of a version on query features, against exact search over database features.

    Reports recall@10 (share of the ten exact neighbours among the ten found), with second codes or
    a decoder also after re-ranking, and where both feature sets have labels mAP@k of the codes and
    of exact search; queries without a label are left out of it, and counted. Exact search is by
    cosine of the centred features, over the whole database, a block at a time.

    Raises InputError where the database's ids are not the version's.
    """
    index = Index.at(settings.index)
    manifest = index.manifest(settings.version)
    network, card = load_model(index.storage, manifest.model)
    queries, database = (
        open_features(uri, settings.feature_column, ids=settings.id_column)
        for uri in (settings.queries, settings.database)
    )
    for dataset in (queries, database):
        dataset.check_dim(card.feature_dim, f"model {card.digest[:12]}")
    count = min(queries.rows, settings.max_queries)
    features = queries.read(0, count).astype(np.float32)
    k = min(settings.k, database.rows)

    exact = _exact_search(network, features, database, k)
    factor = settings.decode_factor if card.decodes else settings.k_factor
    ordinals, refined = _search(index, manifest, network, features, k, factor)
    rows = _database_rows(index, manifest, database)
    neighbours = rows[ordinals]
    result: dict[str, Any] = {
        "version": manifest.version,
        "model": card.digest[:12],
        "bits": manifest.geometry.code_size * 8,
        "queries": len(features),
        "codes": manifest.rows,
        f"recall@{_RECALL_AT}": recall_at_k(neighbours, exact, min(_RECALL_AT, k)),
    }
    if refined is not None:
        if manifest.geometry.refine_m:
            result["refine bits"] = manifest.geometry.refine_m * 8
        result[f"recall@{_RECALL_AT} re-ranked"] = recall_at_k(
            rows[refined], exact, min(_RECALL_AT, k)
        )
    if queries.labelled and database.labelled:
        classes = queries.labels(0, count)
        labels = database.labels(0, database.rows)
        if missing := int((~labelled(classes)).sum()):
            result["queries without label"] = missing
        if missing < count:
            result[f"mAP@{k}"] = mean_average_precision(neighbours, classes, labels, k)
            result[f"mAP@{k} exact"] = mean_average_precision(exact, classes, labels, k)
    return result


def _exact_search(
    network: DeepQuan, queries: np.ndarray, database: FeatureSet, k: int
) -> np.ndarray:
    """Rows (n, k) of the database nearest to the queries by cosine of the centred features."""
    mean = network.mean.numpy()
    normalized = directions(queries, mean)
    best: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, database.rows, _BLOCK):
        block = database.read(start, min(start + _BLOCK, database.rows))
        scores, rows = faiss.knn(
            normalized,
            directions(block, mean),
            min(k, len(block)),
            metric=faiss.METRIC_INNER_PRODUCT,
        )
        scores, rows, _ = merge([*best, (scores, rows + start)], k)
        best = [(scores, rows)]
    return best[0][1]


def _search(
    index: Index, manifest: Manifest, network: DeepQuan, queries: np.ndarray, k: int, factor: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Ordinals (n, k) that searching the codes returns, and the ten (n, 10) of re-ranking."""
    with torch.no_grad():
        embedding = network.embed(torch.from_numpy(queries)).numpy()
    candidates = _RECALL_AT * factor
    shard = load_whole(index, manifest)
    scores, ordinals = shard.searcher.search(embedding, max(k, candidates))
    if shard.refiner is None:
        return ordinals[:, :k], None
    first = scores[:, :candidates], ordinals[:, :candidates]
    second = shard.refiner.scores(embedding, first[1])
    return ordinals[:, :k], rerank([(*first, second)], _RECALL_AT)[1]


def _database_rows(index: Index, manifest: Manifest, database: FeatureSet) -> np.ndarray:
    """The row of the database that each ordinal of the version is; -1 behind the last."""
    ids = pd.Index(database.ids(0, database.rows))
    if repeated := int(ids.duplicated().sum()):
        raise InputError(
            f"{repeated} ids of {database.storage.uri} came before in it; evaluate against "
            "features whose ids are all different"
        )
    in_version = joined(
        [
            pq.read_table(
                index.storage.path(entry.path), columns=["id"], filesystem=index.storage.arrow
            )
            .column("id")
            .combine_chunks()
            for entry in manifest.files
        ]
    )
    place = ids.get_indexer(in_version.to_numpy(zero_copy_only=False))
    lacking = int((place < 0).sum())
    if lacking:
        raise InputError(
            f"{lacking} of the {len(in_version)} ids of version {manifest.version} are not in "
            f"{database.storage.uri}; evaluate against the features that were encoded"
        )
    return np.append(place, -1)
