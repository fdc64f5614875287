"""Settings of the encoding workloads."""

from pydantic import Field, model_validator

from dq_cluster.config import Location, Settings
from dq_cluster.images.config import BackboneSettings, SourceSettings, ViewSettings
from dq_cluster.index.sizing import FRAGMENT_ROWS

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class PoolSettings(Settings):
    """The fixed pool that does the work.

    encoders: actors with the network, each working on two fragments. decoders: tasks that read and
    decode, per fragment, on the encoder's node. gpus: of each encoder. threads: of each encoder's
    backbone on CPU. batch_size: images that the network processes at once; default: 16 on CPU, on a
    GPU the number from which on more gain little.
    """

    encoders: int = Field(default=1, ge=1)
    decoders: int = Field(default=1, ge=1)
    gpus: float = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1)
    batch_size: int | None = Field(default=None, ge=1)

    @property
    def cpus(self) -> int:
        """Logical CPUs that one encoder claims of its node, for itself and its decoders."""
        return 1 + self.decoders


class FeaturizeSettings(Settings):
    """Images in, backbone features out.

    output: the folder or `s3://` prefix for the feature files. fragment_rows: images per feature
    file. max_reject_fraction: if the share of rejects exceeds it, the run fails. Default: 0.01; of
    fewer than 1,000 images ten may be rejects, but no more than one in four.

    sample: features of about so many images, chosen at random by file or row group, instead of all.
    thumbnails: small pictures of so many pixels a side go along with the features, for `encode` to
    keep; 0: none, and at most the side of the square that the backbone sees.

    Some images also get the features of a second view (`views`); training makes better codes with
    some thousands of such pairs.
    """

    source: SourceSettings
    output: Location
    backbone: BackboneSettings = BackboneSettings()
    views: ViewSettings = ViewSettings()
    pool: PoolSettings = PoolSettings()
    fragment_rows: int = Field(default=8192, ge=1)
    sample: int | None = Field(default=None, ge=1)
    thumbnails: int = Field(default=0, ge=0, le=1024)
    max_reject_fraction: float | None = Field(default=None, ge=0, le=1)


class EncodeSettings(Settings):
    """Images or features in, a new version of the index out.

    index: a folder or `s3://` prefix. model: of the index: `latest`, the name of its training, its
    digest, or a unique prefix of that. run: the name of the run; the same name continues it.
    Default: a digest of the settings, so the same command continues. append: add to the current
    version instead of replacing it. only_new: append what has an id that the current version does
    not have. thumbnails: small pictures of so many pixels a side are stored beside the codes, to be
    shown when the images are gone; 0: none, and at most the side of the square that the backbone
    sees; of features, those that `featurize` kept. fragment_rows: images per code file.
    max_reject_fraction: if the share of rejects exceeds it, the run publishes nothing. Default:
    0.01; of fewer than 1,000 images ten may be rejects, but no more than one in four.
    """

    index: Location
    model: str = Field(min_length=1)
    source: SourceSettings
    run: str | None = Field(default=None, pattern=RUN_NAME)
    append: bool = False
    only_new: bool = False
    thumbnails: int = Field(default=0, ge=0, le=1024)
    pool: PoolSettings = PoolSettings()
    fragment_rows: int = Field(default=FRAGMENT_ROWS, ge=1)
    max_reject_fraction: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _only_appends(self) -> "EncodeSettings":
        if self.only_new and not self.append:
            raise ValueError("only_new adds to the current version: it needs append=true")
        return self
