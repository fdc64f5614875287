"""The shape of a code: how many sub-quantizers, bits, and dimensions, and which metric."""

from typing import Literal

from pydantic import Field, model_validator

from dq_cluster.config import Settings

Metric = Literal["l2", "ip"]

# What the parameters of a decoder of codes are multiples of: see `search.decoder`.
DECODER_GRID = 2.0**-12


class CodeGeometry(Settings):
    """Geometry of a product-quantized code, in faiss' terms.

    dim: dimensions of the embedding; m: sub-quantizers; nbits: bits per sub-code (4 or 8);
    nlist: coarse cells of an IVF version, 0 for a flat one; refine_m: sub-quantizers, of 8 bits,
    of the second code that re-ranks what the first finds, 0 for none. Codes are packed as faiss
    packs them: one byte per sub-code for nbits=8, two sub-codes per byte, low nibble first, for 4.
    """

    dim: int
    m: int
    nbits: Literal[4, 8] = 8
    metric: Metric = "l2"
    nlist: int = 0
    # Not written where it is 0: what was stored before there were second codes stays the same.
    refine_m: int = Field(0, exclude_if=lambda m: m == 0)

    @model_validator(mode="after")
    def _consistent(self) -> "CodeGeometry":
        if self.dim < 1 or self.m < 1 or self.dim % self.m:
            raise ValueError(f"dim {self.dim} must be a positive multiple of m {self.m}")
        if self.nbits == 4 and self.m % 2:
            raise ValueError(f"4-bit sub-codes come in pairs; m {self.m} is odd")
        if self.nlist < 0:
            raise ValueError(f"nlist {self.nlist} is negative")
        if self.refine_m < 0 or (self.refine_m and self.dim % self.refine_m):
            raise ValueError(f"dim {self.dim} must be a multiple of refine_m {self.refine_m}")
        return self

    @property
    def refine(self) -> "CodeGeometry | None":
        """Geometry of the second code, if there is one."""
        if not self.refine_m:
            return None
        return CodeGeometry(dim=self.dim, m=self.refine_m, metric=self.metric)

    @property
    def ksub(self) -> int:
        """Centroids per sub-codebook."""
        return 1 << self.nbits

    @property
    def dsub(self) -> int:
        """Dimensions per sub-space."""
        return self.dim // self.m

    @property
    def code_size(self) -> int:
        """Bytes per code."""
        return self.m * self.nbits // 8
