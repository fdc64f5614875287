"""Settings of an evaluation."""

from pydantic import Field

from dq_cluster.config import Settings


class EvaluateSettings(Settings):
    """index, version: what is measured (default: the current version); database, queries: URIs
    of features, of the images in the version and of others; k: depth of mAP@k."""

    index: str
    version: int | None = None
    database: str
    queries: str
    k: int = Field(1000, gt=0)
    max_queries: int = Field(2000, gt=0)
