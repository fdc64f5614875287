"""DeepQuan: a deep autoencoder whose embedding is product-quantized.

A reconstruction of Chen, Cheung, Wang, "Learning Deep Unsupervised Binary Codes for Image
Retrieval" (IJCAI 2018, 10.24963/ijcai.2018/85): fully connected encoder, symmetric decoder that
preserves the manifold of the features, weighted triplet loss, codes by product quantization,
alternating optimisation. The paper's formulas were not available; docs/experiments.md says how
the choices made here were found.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dq_cluster.errors import InputError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.model import quantizer, scores
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.decoder import CodeDecoder


class Output(NamedTuple):
    """What one forward pass computes.

    target: the standardized input (n, components); embedding (n, dim); quantized: the centroids the
    embedding is coded as (n, dim), without gradient; reconstruction (n, components).
    """

    target: Tensor
    embedding: Tensor
    quantized: Tensor
    reconstruction: Tensor


class DeepQuan(nn.Module):
    """Features (n, feature_dim) float → embeddings (n, dim) → codes (n, code_size) uint8.

    Everything learned is inside: `mean` and `components` standardize the feature, `rotation`
    turns the embedding, which has unit length, towards the centroids of `codebooks`
    (m, ksub, dsub). `anchors` and `offset` exist where `assign` is score-aware, `refine_codebooks`
    where the geometry has a second code, `decode` (of codes, not `decoder` of embeddings) where the
    settings have a `decode_hidden`.
    """

    mean: Tensor
    components: Tensor
    rotation: Tensor
    codebooks: Tensor
    anchors: Tensor
    offset: Tensor
    refine_codebooks: Tensor

    def __init__(self, settings: ModelSettings, feature_dim: int) -> None:
        super().__init__()
        self.settings = settings
        self.feature_dim = feature_dim
        geometry = settings.geometry
        kept = min(settings.components, feature_dim)
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("components", torch.eye(feature_dim, kept))
        self.register_buffer("rotation", torch.eye(settings.dim))
        self.register_buffer("codebooks", torch.zeros(geometry.m, geometry.ksub, geometry.dsub))
        if settings.score_aware:
            self.register_buffer("anchors", torch.zeros(scores.ANCHORS, settings.dim))
            self.register_buffer("offset", torch.zeros(()))
        if (second := geometry.refine) is not None:
            shape = (second.m, second.ksub, second.dsub)
            self.register_buffer("refine_codebooks", torch.zeros(shape))
        if settings.decode_hidden:
            self.decode = CodeDecoder(
                geometry.m, geometry.ksub, geometry.dim, settings.decode_hidden
            )
        widths = (kept, *settings.hidden, settings.dim)
        self.encoder = Residual(widths)
        self.decoder = Residual(widths[::-1])

    @property
    def geometry(self) -> CodeGeometry:
        """Shape of the codes."""
        return self.settings.geometry

    def standardize(self, features: Tensor) -> Tensor:
        """Centred, projected on the principal components, scaled to unit length."""
        if features.ndim != 2 or features.shape[1] != self.feature_dim:
            raise InputError(
                f"this model takes features of shape (n, {self.feature_dim}), "
                f"found {tuple(features.shape)}"
            )
        return F.normalize((features.to(self.mean.dtype) - self.mean) @ self.components, dim=1)

    def embed(self, features: Tensor) -> Tensor:
        """Embeddings (n, dim), each of unit length."""
        return F.normalize(self.encoder(self.standardize(features)), dim=1) @ self.rotation

    def reconstruct(self, embedding: Tensor) -> Tensor:
        """The features (n, feature_dim) that the decoder sees behind embeddings.

        Their length is lost in standardizing; what returns is the direction from the mean.
        """
        feature = self.decoder(embedding @ self.rotation.T)
        return feature @ torch.linalg.pinv(self.components) + self.mean

    @torch.no_grad()
    def assign(self, embedding: Tensor) -> Tensor:
        """The centroids that embeddings (n, dim) are coded as, (n, m) int64.

        Score-aware where the settings say so, else the nearest ones.
        """
        if not self.settings.score_aware:
            return quantizer.assign(embedding, self.codebooks)
        metric = self.geometry.metric
        return scores.assign(embedding, self.codebooks, self.anchors, self.offset, metric)

    def quantize(self, embedding: Tensor) -> Tensor:
        """The centroids that stand for embeddings (n, dim) in the index."""
        return quantizer.decode(self.assign(embedding), self.codebooks)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """Codes (n, code_size) uint8 of features (n, feature_dim): see `code`."""
        return self.code(self.embed(features))

    @torch.no_grad()
    def code(self, embedding: Tensor) -> Tensor:
        """The codes (n, code_size) uint8 of embeddings (n, dim), packed as faiss packs them."""
        return quantizer.pack(self.assign(embedding), self.geometry.nbits)

    @torch.no_grad()
    def refine(self, embedding: Tensor) -> Tensor:
        """The second codes (n, refine_m) uint8 of embeddings (n, dim)."""
        return quantizer.pack(quantizer.assign(embedding, self.refine_codebooks), 8)

    def forward(self, features: Tensor) -> Output:
        """Everything the training losses need; see Output."""
        target = self.standardize(features)
        hidden = F.normalize(self.encoder(target), dim=1)
        embedding = hidden @ self.rotation
        with torch.no_grad():
            nearest = quantizer.assign(embedding, self.codebooks)
            quantized = quantizer.decode(nearest, self.codebooks)
        return Output(target, embedding, quantized, self.decoder(hidden))


class Residual(nn.Module):
    """A linear layer plus a multi-layer perceptron through `widths`, which starts at zero.

    Training starts from the projection on the leading inputs, which the linear front has made a
    good embedding already, and learns what to correct. With no hidden width it stays linear.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.projection = nn.Linear(widths[0], widths[-1])
        nn.init.eye_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.correction = nn.Sequential()
        if len(widths) > 2:
            for inputs, outputs in pairwise(widths[:-1]):
                self.correction.extend([nn.Linear(inputs, outputs), nn.GELU()])
            last = nn.Linear(widths[-2], widths[-1])
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.correction.append(last)

    def forward(self, inputs: Tensor) -> Tensor:
        projected: Tensor = self.projection(inputs)
        return projected + self.correction(inputs) if self.correction else projected
