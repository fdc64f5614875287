"""The shape of a code: how many sub-quantizers, bits, and dimensions, and which metric."""

from typing import Literal

from pydantic import model_validator

from dq_cluster.config import Settings

Metric = Literal["l2", "ip"]


class CodeGeometry(Settings):
    """Geometry of a product-quantized code, in faiss' terms.

    dim: dimensions of the embedding; m: sub-quantizers; nbits: bits per sub-code (4 or 8);
    nlist: coarse cells of an IVF version, 0 for a flat one. Codes are packed as faiss packs
    them: one byte per sub-code for nbits=8, two sub-codes per byte, low nibble first, for 4.
    """

    dim: int
    m: int
    nbits: Literal[4, 8] = 8
    metric: Metric = "l2"
    nlist: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> "CodeGeometry":
        if self.dim < 1 or self.m < 1 or self.dim % self.m:
            raise ValueError(f"dim {self.dim} must be a positive multiple of m {self.m}")
        if self.nbits == 4 and self.m % 2:
            raise ValueError(f"4-bit sub-codes come in pairs; m {self.m} is odd")
        if self.nlist < 0:
            raise ValueError(f"nlist {self.nlist} is negative")
        return self

    @property
    def ksub(self) -> int:
        """Words per sub-codebook."""
        return 1 << self.nbits

    @property
    def dsub(self) -> int:
        """Dimensions per sub-space."""
        return self.dim // self.m

    @property
    def code_size(self) -> int:
        """Bytes per code."""
        return self.m * self.nbits // 8
