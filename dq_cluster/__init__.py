"""dq_cluster: train a product quantizer for a collection of images, encode it, serve it.

The names below are imported when they are first used, so that a small installation (the client)
needs nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dq_cluster.building.python import build_index
    from dq_cluster.client import AsyncClient, Client
    from dq_cluster.encoding.featurize import featurize
    from dq_cluster.encoding.run import encode
    from dq_cluster.evaluate.version import evaluate_version
    from dq_cluster.index.catalog import Index
    from dq_cluster.knn.duplicates import duplicates
    from dq_cluster.knn.run import neighbours
    from dq_cluster.training.run import train

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Client",
    "Index",
    "build_index",
    "duplicates",
    "encode",
    "evaluate_version",
    "featurize",
    "neighbours",
    "train",
]

_HOMES = {
    "AsyncClient": "dq_cluster.client",
    "Client": "dq_cluster.client",
    "Index": "dq_cluster.index.catalog",
    "build_index": "dq_cluster.building.python",
    "duplicates": "dq_cluster.knn.duplicates",
    "encode": "dq_cluster.encoding.run",
    "evaluate_version": "dq_cluster.evaluate.version",
    "featurize": "dq_cluster.encoding.featurize",
    "neighbours": "dq_cluster.knn.run",
    "train": "dq_cluster.training.run",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dq_cluster' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
