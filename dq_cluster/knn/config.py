"""Settings of the neighbours and duplicates workloads."""

from pydantic import Field

from dq_cluster.config import Location, Settings
from dq_cluster.index.sizing import FRAGMENT_ROWS

MAX_K = 1000


class FinderSettings(Settings):
    """The fixed pool that does the work.

    workers: actors, each with all codes of the version in memory. cpus: threads of each.
    """

    workers: int = Field(default=1, ge=1)
    cpus: int = Field(default=1, ge=1)


class NeighboursSettings(Settings):
    """The nearest codes of every image of a version, or of every feature of a set.

    index: a folder or `s3://` prefix. version: the one to search (default: CURRENT). features:
    what to find neighbours of, a folder of feature files; default: the version itself, where an
    image is no neighbour of itself. output: the folder or `s3://` prefix for the result; the same
    command continues it. k: neighbours of each. within: only those that score at least this (higher
    is better for every metric; for l2 it is minus the squared distance). nprobe: cells looked into
    in an IVF version (0: all). k_factor: candidates for each neighbour that the second code
    re-ranks, where the version has one; decode_factor: that the decoder re-ranks, where its model
    has one. fragment_rows: queries of one fragment.
    """

    index: Location
    output: Location
    version: int | None = None
    features: Location | None = None
    k: int = Field(default=10, ge=1, le=MAX_K)
    within: float | None = Field(default=None, allow_inf_nan=False)
    nprobe: int = Field(default=0, ge=0)
    k_factor: int = Field(default=4, ge=1, le=100)
    decode_factor: int = Field(default=4, ge=1, le=100)
    fragment_rows: int = Field(default=4 * FRAGMENT_ROWS, ge=1)
    pool: FinderSettings = FinderSettings()


class DuplicatesSettings(NeighboursSettings):
    """Groups of near-duplicates: images that score at least `within` with the group's leader.

    keep: which image of a group stays: `first` of the version, or the one with the largest value
    of a carried column (`max:COLUMN`) or the smallest (`min:COLUMN`). delete: publish a version
    without the others.
    """

    within: float = Field(allow_inf_nan=False)
    k: int = Field(default=100, ge=1, le=MAX_K)
    keep: str = Field(default="first", pattern=r"^(first|(max|min):.+)$")
    delete: bool = False


class GroupsSettings(Settings):
    """Coarse groups of a version, with sizes and samples: a first look at what is in it.

    version: default: CURRENT. groups: how many, by k-means; default: the cells of the version, or
    100 where it has none. samples: images of each that are named, the nearest to its centroid.
    output: the folder or `s3://` prefix for `groups.parquet` and the report.
    """

    index: Location
    output: Location
    version: int | None = None
    groups: int | None = Field(default=None, ge=1, le=65536)
    samples: int = Field(default=9, ge=1, le=100)
