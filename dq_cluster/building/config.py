"""Settings of `build` and `add`."""

from pydantic import Field

from dq_cluster.config import Location, Settings
from dq_cluster.encoding.config import RUN_NAME, PoolSettings
from dq_cluster.images.config import BackboneSettings, SourceSettings, ViewSettings
from dq_cluster.model.config import ModelSettings


class BuildSettings(Settings):
    """A pile of images in, an index that can be served out.

    index: a folder or `s3://` prefix. name: of the build; the same command continues it. sample:
    images to train on at most; of a larger pile so many are chosen at random. thumbnails: small
    pictures of so many pixels a side are stored in the index, so that it can be looked at when the
    images are gone; 0: none. nlist: coarse cells; default: none below 1,000,000 images. pool:
    default: chosen by measuring the first images. max_reject_fraction: see the settings of
    encoding.
    """

    source: SourceSettings
    index: Location
    name: str = Field("build", pattern=RUN_NAME)
    backbone: BackboneSettings = BackboneSettings()
    views: ViewSettings = ViewSettings(fraction=0.5)
    model: ModelSettings = ModelSettings(bits=64)
    sample: int = Field(50_000, ge=1)
    thumbnails: int = Field(128, ge=0, le=1024)
    nlist: int | None = Field(None, ge=0)
    pool: PoolSettings | None = None
    max_reject_fraction: float | None = Field(default=None, ge=0, le=1)


class AddSettings(Settings):
    """What is new in a pile of images becomes part of the index's current version.

    An image is new if the version has no image of its id. pool: default: chosen by measuring the
    first images. max_reject_fraction: see the settings of encoding.
    """

    source: SourceSettings
    index: Location
    pool: PoolSettings | None = None
    max_reject_fraction: float | None = Field(default=None, ge=0, le=1)
