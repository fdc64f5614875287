"""Training that begins with pixels: the backbone, features by it, and the model on these."""

from dq_cluster.encoding.config import FeaturizeSettings
from dq_cluster.encoding.featurize import featurize
from dq_cluster.images.config import ViewSettings
from dq_cluster.index.models import ModelCard
from dq_cluster.training.config import TrainSettings
from dq_cluster.training.finetune import finetune
from dq_cluster.training.run import train


def train_from(settings: TrainSettings) -> ModelCard:
    """Train a model; with `settings.finetune`, first the backbone, and on its features then.

    The model's card names the trained backbone by the digest of its weights, so encoding and
    queries use it. Every stage continues where it stopped. Raises what the stages raise.
    """
    asked = settings.finetune
    if asked is None:
        return train(settings)
    featurize(
        FeaturizeSettings(
            source=asked.source,
            output=settings.features,
            backbone=finetune(settings),
            views=ViewSettings(fraction=1, min_area=asked.min_area),
        )
    )
    return train(settings.model_copy(update={"finetune": None}))
