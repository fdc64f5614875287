"""Settings of an evaluation, and of a comparison of methods."""

from pydantic import Field

from dq_cluster.config import Location, Settings
from dq_cluster.evaluate.compare import METHODS
from dq_cluster.evaluate.variants import ABLATIONS, OURS
from dq_cluster.model.config import ModelSettings


class EvaluateSettings(Settings):
    """index, version: what is measured (default: the current version); database, queries: URIs
    of features, of the images in the version and of others; feature_column: of both; id_column:
    the ids of database, as they were encoded; k: depth of mAP@k; k_factor:
    candidates for each neighbour that the second code re-ranks, where there is one."""

    index: Location
    version: int | None = None
    database: Location
    queries: Location
    feature_column: str = "feature"
    id_column: str = "id"
    k: int = Field(1000, gt=0)
    k_factor: int = Field(4, gt=0)
    max_queries: int = Field(2000, gt=0)


class CompareSettings(Settings):
    """database, queries: URIs of features with a `label` column; feature_column: of both.
    methods: of `METHODS` and `ABLATIONS`. bits, seeds: every method runs at each length with each
    seed. model: DeepQuan's other settings. report: folder for report.html and report.md, if
    wanted; it also keeps the rows measured so far, with which a repeated command continues."""

    database: Location
    queries: Location
    feature_column: str = "feature"
    methods: tuple[str, ...] = METHODS
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
