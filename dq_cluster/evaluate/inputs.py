"""What a comparison reads: features, labels, views, and the queries drawn from them."""

from typing import NamedTuple

import numpy as np

from dq_cluster.errors import InputError
from dq_cluster.evaluate.config import CompareSettings
from dq_cluster.images.features import FeatureSet, open_features


class Inputs(NamedTuple):
    """features (n, D) and labels (n,) of the database; queries (q, D) and their labels (q,), the
    rows `sample` (q,) of the query set; views: rows of the database that have another view, and
    that view's features."""

    database: FeatureSet
    query_set: FeatureSet
    sample: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray
    views: tuple[np.ndarray, np.ndarray] | None


def read_inputs(settings: CompareSettings) -> Inputs:
    """Read both feature sets. Raises InputError for features without labels."""
    database, query_set = (
        open_features(uri, settings.feature_column) for uri in (settings.database, settings.queries)
    )
    query_set.check_dim(database.dim, settings.database)
    if not (database.labelled and query_set.labelled):
        raise InputError("a comparison needs a column 'label' in both feature sets")
    features = database.read(0, database.rows).astype(np.float32)
    views = None
    if database.viewed:
        chosen, others = database.views(0, database.rows)
        views = features[chosen], others.astype(np.float32)
    sample = np.random.default_rng(0).permutation(query_set.rows)[: settings.max_queries]
    return Inputs(
        database=database,
        query_set=query_set,
        sample=sample,
        features=features,
        labels=database.labels(0, database.rows),
        queries=query_set.read(0, query_set.rows)[sample].astype(np.float32),
        query_labels=query_set.labels(0, query_set.rows)[sample],
        views=views,
    )
