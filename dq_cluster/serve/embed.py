"""From what a user has (a feature, an image) to an embedding, with the model of a version."""

import numpy as np
import torch

from dq_cluster.errors import InputError
from dq_cluster.images.backbone import Backbone, load_backbone
from dq_cluster.images.guard import Decode
from dq_cluster.images.rejects import RejectError
from dq_cluster.images.text import clean
from dq_cluster.model.bundle import load_model
from dq_cluster.serve.api import WEIGHTS, Part, SearchRequest
from dq_cluster.serve.words import load_reader
from dq_cluster.storage import Storage


class Embedder:
    """The network of one model and, where it was trained on images, its backbone."""

    def __init__(self, storage: Storage, model: str, decode: Decode) -> None:
        self._network, self.card = load_model(storage, model)
        self._decode = decode
        self._backbone: Backbone | None = None
        if self.card.preprocessing.get("kind", "none") != "none":
            self._backbone = load_backbone(self.card.preprocessing, storage)
        self._reader = load_reader(storage, self.card, self._network, self._backbone)

    @property
    def takes_images(self) -> bool:
        return self._backbone is not None

    @property
    def takes_text(self) -> bool:
        return self._reader is not None

    def embed(self, features: np.ndarray) -> np.ndarray:
        """(n, feature_dim) → (n, dim) float32. Raises InputError for another shape."""
        with torch.inference_mode():
            return self._network.embed(torch.from_numpy(features)).numpy()

    def feature(self, image: bytes) -> np.ndarray:
        """The feature (1, feature_dim) of an encoded image. Raises InputError."""
        if self._backbone is None:
            raise InputError("this index was made from features; ask with a vector, not an image")
        try:
            pixels = self._decode(image, self._backbone.frame)
        except RejectError as error:
            raise InputError(f"the image cannot be read: {error}") from None
        return self._backbone.features(pixels[None])

    def text(self, text: str) -> np.ndarray:
        """The embedding (1, dim) of words. Raises InputError."""
        if self._reader is None:
            raise InputError(
                "this index cannot be asked in words: its backbone has no text network, and its "
                "model learned none from captions; train with captions=COLUMN, or on a backbone "
                "such as CLIP or SigLIP (see docs/howto/words.md)"
            )
        return self._reader([clean(text)])

    def composed(self, request: SearchRequest) -> np.ndarray:
        """The embedding (1, dim) of a request with words: the direction that its parts give
        together, those not wanted subtracted. Raises InputError."""
        parts: dict[Part, np.ndarray] = {}
        if request.text is not None:
            parts["text"] = self.text(request.text)
        if request.not_text is not None:
            parts["not_text"] = -self.text(request.not_text)
        if request.image is not None:
            parts["image"] = self.embed(self.feature(request.image))
        weights: dict[Part, float] = {**WEIGHTS, **(request.weights or {})}
        total = sum(weights[name] * part for name, part in parts.items())
        length = float(np.linalg.norm(total))
        if length < 1e-6:
            raise InputError(
                "text, image, and not_text cancel each other out; change their weights"
            )
        return np.asarray(total / length, np.float32)
