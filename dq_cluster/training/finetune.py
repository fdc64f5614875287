"""Training a backbone from pixels: its weights, named by their digest, end below the index.

<run>/pixels/run.json, checkpoints/   as of the training of features, one for so many steps
"""

import logging

from dq_cluster.config import Settings
from dq_cluster.images.backbone import tuned_weights
from dq_cluster.images.config import BackboneSettings
from dq_cluster.images.trainable import save_weights
from dq_cluster.model.config import ModelSettings
from dq_cluster.run import Run
from dq_cluster.storage import Storage
from dq_cluster.training.checkpoint import checkpoint_epochs, latest_checkpoint
from dq_cluster.training.config import FinetuneSettings, TrainSettings
from dq_cluster.training.pixel_worker import VIEWS, PixelJob, begin, train_pixels
from dq_cluster.training.tasks import finish
from dq_cluster.training.trainer import run_workers, wait_for_workers
from dq_cluster.training.view_stream import list_images, stream

logger = logging.getLogger(__name__)


class FinetuneRequest(Settings):
    """What decides the weights."""

    finetune: FinetuneSettings
    model: ModelSettings
    seed: int
    images: int


def finetune(settings: TrainSettings) -> BackboneSettings:
    """Train the backbone of `settings.finetune`; the settings of the trained one.

    Started again with the same name, it continues after the newest checkpoint. Raises InputError
    for images that are too few or of unknown number, ConfigError for a backbone that cannot be
    trained, and DqError when workers failed too often.
    """
    asked = settings.finetune
    assert asked is not None
    units, images = list_images(asked)
    wait_for_workers(settings)
    run = Run(Storage(f"{settings.run_uri}/pixels"))
    run.check(request := _request(settings, asked, images))
    index = Storage(settings.index)
    with run.at_work():
        run.claim(request)
        digest = run.result()
        if not isinstance(digest, str):
            storage = run.storage.child("checkpoints")
            job = PixelJob(asked, settings.model, tuple(units), images, settings.seed, storage)
            digest = _train(settings, job, index)
            run.finish(digest)
    return asked.backbone.model_copy(
        update={
            "weights": f"{settings.index.rstrip('/')}/{tuned_weights(digest)}",
            "sha256": digest,
        }
    )


def _request(settings: TrainSettings, asked: FinetuneSettings, images: int) -> FinetuneRequest:
    # How the work is divided may change from one submission to the next.
    same = asked.model_copy(update={"decoders": 1, "micro_batch": 1, "checkpoint_every": 1})
    return FinetuneRequest(finetune=same, model=settings.model, seed=settings.seed, images=images)


def _train(settings: TrainSettings, job: PixelJob, index: Storage) -> str:
    done = checkpoint_epochs(job.storage)
    if not done:
        finish([begin.remote(job)])
    elif done[-1]:
        logger.info("'%s' continues after step %d of %d", settings.name, done[-1], job.steps)
    _, most = settings.worker_range
    side = job.settings.backbone.image_size
    if checkpoint_epochs(job.storage)[-1] < job.steps:
        run_workers(
            settings,
            train_pixels,
            job,
            job.storage,
            # Made anew whenever workers start: from where the newest checkpoint is.
            {VIEWS: lambda: stream(job.settings, side, job.left(), job.seed, most)},
            lambda: f"{checkpoint_epochs(job.storage)[-1]} of {job.steps} steps are kept",
        )
    checkpoint = latest_checkpoint(job.storage)
    assert checkpoint is not None
    network = job.network()
    network.load_state_dict(checkpoint.network)
    return save_weights(index, network.backbone)
