"""Settings of a training run."""

from typing import Annotated

from pydantic import Field, model_validator

from dq_cluster.config import Location, Settings
from dq_cluster.images.config import BackboneSettings, SourceSettings
from dq_cluster.images.sentences import SentenceSettings
from dq_cluster.model.config import ModelSettings

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class ElasticWorkers(Settings):
    """Train with as many workers as the cluster has resources for, between `min` and `max`."""

    min: int = Field(gt=0)
    max: int = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "ElasticWorkers":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is greater than max {self.max}")
        return self


class QualityGate(Settings):
    """What a model must reach on the validation rows to be published, each between 0 and 1.

    min_recall_at_10: share of the ten exact feature neighbours among the first ten results.
    min_map: mAP@1000 by the column `label`, which the features must then have.
    """

    min_recall_at_10: float = Field(0.0, ge=0, le=1)
    min_map: float = Field(0.0, ge=0, le=1)


class FinetuneSettings(Settings):
    """A backbone trained further, together with DeepQuan, on two random views of each image.

    source: the images; backbone: where training starts. blocks: how many of its last blocks are
    trained; 0: all of it. min_area: smallest share of an image that a view keeps. epochs: passes
    over the images. batch_size: images of a step, of all workers together. micro_batch: images of
    a worker at once; more are computed one after the other, with the same result.
    learning_rate, temperature: of the contrastive loss. checkpoint_every: steps between
    checkpoints. shuffle: images that are mixed in a worker's memory, for rows that lie sorted in
    their files. decoders: tasks that make views, for each worker.
    """

    source: SourceSettings
    backbone: BackboneSettings = BackboneSettings()
    blocks: int = Field(4, ge=0)
    min_area: float = Field(0.4, gt=0, le=1)
    epochs: int = Field(2, gt=0)
    batch_size: int = Field(256, gt=1)
    micro_batch: int = Field(64, gt=0)
    learning_rate: float = Field(3e-4, gt=0)
    temperature: float = Field(0.3, gt=0)
    checkpoint_every: int = Field(50, gt=0)
    shuffle: int = Field(1024, ge=0)
    decoders: int = Field(1, gt=0)


class TrainSettings(Settings):
    """One training run: features in, a model in the index out.

    index: a folder or `s3://` prefix. features: a file of features, Parquet or `.npy`, or a folder
    of them. feature_column: their column. name: the name of the run; submitting it again resumes
    the run. storage: where the run keeps neighbours and checkpoints, by default
    `<index>/runs/<name>/train`. seed: of everything random. validation_fraction: share of the rows
    that is held out to measure the model, 2,000 rows at most. nlist: coarse cells (IVF) of the
    model, 0 for none, at most one per 39 training rows; a finished run that is submitted again with
    another nlist gives its model those cells. captions: a column of text, of the features, from
    which the model learns to be asked in words. sentences: the network that reads them. texts: a
    file of texts, one a line, as people will ask; a backbone with a text network then loses less
    between words and images. workers: a number, or min and max. use_gpu: one GPU for each worker.
    cpus_per_worker: logical CPUs. max_failures: how often lost workers are replaced before the run
    fails. finetune: first train the backbone itself; `features` is then the folder that the
    features of the trained one are written to.
    """

    index: Location
    features: Location
    feature_column: str = "feature"
    name: str = Field("train", pattern=RUN_NAME)
    storage: Location | None = None
    model: ModelSettings = ModelSettings()
    seed: int = Field(0, ge=0)
    validation_fraction: float = Field(0.05, gt=0, lt=1)
    gate: QualityGate = QualityGate()
    nlist: int = Field(0, ge=0)
    captions: str | None = Field(None, min_length=1)
    sentences: SentenceSettings = SentenceSettings()
    texts: Location | None = None
    workers: Annotated[int, Field(gt=0)] | ElasticWorkers = 1
    use_gpu: bool = False
    cpus_per_worker: int = Field(1, gt=0)
    max_failures: int = Field(3, ge=0)
    finetune: FinetuneSettings | None = None

    @model_validator(mode="after")
    def _one_way_to_words(self) -> "TrainSettings":
        if self.captions and self.texts:
            raise ValueError(
                "captions and texts: a model learns words from captions, or has the text network "
                "of its backbone, which texts are for; give one of them"
            )
        return self

    @property
    def run_uri(self) -> str:
        """Where this run keeps its neighbours and checkpoints."""
        return self.storage or f"{self.index.rstrip('/')}/runs/{self.name}/train"

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        if isinstance(self.workers, ElasticWorkers):
            return self.workers.min, self.workers.max
        return self.workers, self.workers
