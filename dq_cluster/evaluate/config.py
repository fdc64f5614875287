"""Settings of an evaluation, and of a comparison of methods."""

from pydantic import Field

from dq_cluster.config import Location, Settings
from dq_cluster.evaluate.compare import USUAL
from dq_cluster.evaluate.variants import ABLATIONS, OURS
from dq_cluster.model.config import ModelSettings


class EvaluateSettings(Settings):
    """Measure a version of an index.

    index: a folder or `s3://` prefix. version: default: the current version. database: features of
    the images in the version. queries: features of other images. feature_column: of both.
    id_column: the ids of database, as they were encoded. k: depth of mAP@k. k_factor: candidates
    for each neighbour that the second code re-ranks, if there is one. decode_factor: that the
    decoder re-ranks, if there is one. max_queries: largest number
    of queries.
    """

    index: Location
    version: int | None = None
    database: Location
    queries: Location
    feature_column: str = "feature"
    id_column: str = "id"
    k: int = Field(1000, gt=0)
    k_factor: int = Field(4, gt=0)
    decode_factor: int = Field(10, gt=0)
    max_queries: int = Field(2000, gt=0)


class CompareSettings(Settings):
    """Compare DeepQuan with other methods on features.

    database, queries: features, with a `label` column for mAP. feature_column: of both. methods:
    from `compare.METHODS` and `ABLATIONS`; default: the ten of `USUAL`. bits: code lengths; every
    method runs at each. seeds: every method runs with each. k: depth of mAP@k. max_queries: largest
    number of queries. report: folder for report.html and report.md; it also keeps the finished
    rows, so a repeated command continues.
    """

    database: Location
    queries: Location
    feature_column: str = "feature"
    methods: tuple[str, ...] = USUAL
    bits: tuple[int, ...] = (16, 32, 64)
    seeds: tuple[int, ...] = (0, 1, 2)
    model: ModelSettings = ModelSettings()
    k: int = Field(1000, gt=0)
    max_queries: int = Field(2000, gt=0)
    report: Location | None = None


class AblationSettings(CompareSettings):
    """The comparison of DeepQuan with itself, one part left out at a time."""

    methods: tuple[str, ...] = (OURS, *ABLATIONS)
    bits: tuple[int, ...] = (16, 64)
