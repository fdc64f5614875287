"""Settings of DeepQuan: the network, its code, and what it is trained for."""

from typing import Any, Literal

from pydantic import Field, model_validator

from dq_cluster.config import Settings
from dq_cluster.geometry import CodeGeometry, Metric

# What an objective sets unless the configuration says otherwise.
PRESETS: dict[str, dict[str, Any]] = {
    "semantic": {},
    "neighbours": {
        "hidden": (),
        "dim": 32,
        "components": 256,
        "triplet_weight": 0.0,
        "manifold_weight": 0.0,
        "quantization_weight": 0.0,
        "distillation_weight": 1.0,
        "temperature": 0.05,
        "learning_rate": 1e-3,
    },
}


class ModelSettings(Settings):
    """The network, its codes, and how it is trained.

    bits: length of a code. nbits: bits per sub-code, 8, or 4 for faiss' fast-scan. refine_bits:
    length of a second code of the same embedding, which re-ranks the results of the first (0:
    none). dim: dimensions of the embedding. metric: of the embedding. hidden: widths of the
    encoder's hidden layers (the decoder mirrors them). components: how many directions of the
    feature enter the network. whitening: how strongly directions that differ between views of one
    image are scaled down (see `discriminative_components`).

    decode_hidden: width of the hidden layer of a decoder of the codes, which re-ranks the results
    without a second code (0: none). decode_epochs: passes over the rows to train it.

    triplet_weight, manifold_weight, quantization_weight, distillation_weight: weight of this loss
    term. temperature: of the softmax in the triplet and distillation terms. neighbours: nearest
    neighbours of each image from which positives are drawn. epochs: passes over the rows.
    batch_size: rows of a step, of all workers together. learning_rate, weight_decay: of the
    optimizer.

    objective: `semantic` brings images of a kind together (search by class), `neighbours` keeps the
    distances between features (search for near-duplicates). It sets defaults of the network and the
    loss weights; explicit settings override them. Only `semantic` uses views of images and
    score-aware codes (`model.scores`): both change the distances that `neighbours` keeps.
    """

    bits: int = Field(64, gt=0)
    nbits: Literal[4, 8] = 8
    refine_bits: int = Field(0, ge=0, multiple_of=8, exclude_if=lambda bits: bits == 0)
    # Not written where there is none: what was stored before there were decoders stays the same.
    decode_hidden: int = Field(0, ge=0, le=4096, exclude_if=lambda width: width == 0)
    decode_epochs: int = Field(10, gt=0, exclude_if=lambda epochs: epochs == 10)
    dim: int = Field(64, gt=0)
    metric: Metric = "l2"
    hidden: tuple[int, ...] = (512,)
    components: int = Field(128, gt=0)
    whitening: float = Field(0.5, ge=0, le=1)

    objective: Literal["semantic", "neighbours"] = "semantic"
    triplet_weight: float = Field(1.0, ge=0)
    manifold_weight: float = Field(0.1, ge=0)
    quantization_weight: float = Field(0.1, ge=0)
    distillation_weight: float = Field(0.0, ge=0)
    temperature: float = Field(0.4, gt=0)
    neighbours: int = Field(50, gt=0)

    epochs: int = Field(10, gt=0)
    batch_size: int = Field(512, gt=1)
    learning_rate: float = Field(2e-4, gt=0)
    weight_decay: float = Field(1e-4, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        preset = PRESETS.get(values.get("objective", "semantic"), {})
        if values.get("refine_bits"):
            # Fewer dimensions help a short code and cap what a second one can restore.
            preset = {name: value for name, value in preset.items() if name != "dim"}
        return {**preset, **values}

    @model_validator(mode="after")
    def _consistent(self) -> "ModelSettings":
        if self.bits % self.nbits:
            raise ValueError(f"bits {self.bits} must be a multiple of nbits {self.nbits}")
        if self.refine_bits and self.decode_hidden:
            raise ValueError(
                f"refine_bits {self.refine_bits} and decode_hidden {self.decode_hidden}: a second "
                "code re-ranks better than a decoder of the first; leave one of them out"
            )
        _ = self.geometry
        return self

    @property
    def geometry(self) -> CodeGeometry:
        """Shape of the codes; m = bits / nbits."""
        return CodeGeometry(
            dim=self.dim,
            m=self.bits // self.nbits,
            nbits=self.nbits,
            metric=self.metric,
            refine_m=self.refine_bits // 8,
        )

    @property
    def score_aware(self) -> bool:
        """Whether codes are chosen for the scores of nearby queries, not as nearest centroids."""
        return self.objective == "semantic"
