"""The product quantizer: assignment, codebook update, rotation, packing.

Product quantization: Jégou, Douze, Schmid, PAMI 2011. Optimized rotation: Ge, He, Ke, Sun, CVPR
2013. What depends on where the data lies is a sum over vectors (`cell_statistics`,
`cross_statistics`), so N workers that add up their sums get the codebooks one worker gets.
"""

from collections.abc import Callable

import torch
from torch import Tensor

AllReduce = Callable[[Tensor], Tensor]
"""Adds a tensor up over all workers; the identity for one."""


def alone(tensor: Tensor) -> Tensor:
    """The all-reduce of a single process."""
    return tensor


def assign(embedding: Tensor, codebooks: Tensor) -> Tensor:
    """Nearest centroid per sub-space: (n, m * dsub), (m, ksub, dsub) → (n, m) int64."""
    m, _, dsub = codebooks.shape
    parts = embedding.view(-1, m, dsub).transpose(0, 1)
    # ‖z − c‖² without ‖z‖², which is the same for every centroid.
    scores = torch.baddbmm(codebooks.square().sum(2).unsqueeze(1), parts, codebooks.mT, alpha=-2)
    return scores.argmin(2).T


def decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """The centroids that codes (n, m) stand for: (n, m * dsub)."""
    m = codebooks.shape[0]
    return codebooks[torch.arange(m, device=codes.device), codes].flatten(1)


def cell_statistics(embedding: Tensor, codes: Tensor, ksub: int) -> tuple[Tensor, Tensor]:
    """Sums (m, ksub, dsub) and counts (m, ksub) of the sub-vectors in each cell."""
    n, m = codes.shape
    flat = (codes + torch.arange(m, device=codes.device) * ksub).flatten()
    parts = embedding.reshape(n * m, -1)
    sums = parts.new_zeros(m * ksub, parts.shape[1]).index_add_(0, flat, parts)
    counts = torch.bincount(flat, minlength=m * ksub).to(parts.dtype)
    return sums.view(m, ksub, -1), counts.view(m, ksub)


def updated_codebooks(codebooks: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    """Lloyd's step: each centroid becomes the mean of its cell.

    The centroid of an empty cell is re-seeded beside that of a most populous one, which then shares
    its cell. Only sums and counts decide, so every worker re-seeds alike.
    """
    centroids = torch.where(
        counts.unsqueeze(2) > 0, sums / counts.clamp(min=1).unsqueeze(2), codebooks
    )
    for book, count in zip(centroids, counts, strict=True):
        empty = (count == 0).nonzero().flatten()
        if len(empty) == 0 or count.max() < 2:
            continue
        donors = count.argsort(descending=True, stable=True)
        donors = donors[count[donors] > 1][: len(empty)]
        spread = 1e-3 * book.std().clamp(min=1e-6)
        signs = 1 - 2 * (torch.arange(book.shape[1], device=book.device) % 2)
        book[empty[: len(donors)]] = book[donors] + spread * signs
        book[donors] -= spread * signs
    return centroids


def lloyd(
    embedding: Tensor, codebooks: Tensor, iterations: int, all_reduce: AllReduce = alone
) -> Tensor:
    """`iterations` of k-means in every sub-space, over the embeddings of all workers."""
    for _ in range(iterations):
        codes = assign(embedding, codebooks)
        sums, counts = cell_statistics(embedding, codes, codebooks.shape[1])
        both = all_reduce(torch.cat([sums, counts.unsqueeze(2)], dim=2))  # one message, not two
        codebooks = updated_codebooks(codebooks, both[..., :-1], both[..., -1])
    return codebooks


def initial_codebooks(sample: Tensor, m: int, ksub: int, seed: int) -> Tensor:
    """First centroids: `ksub` random vectors of `sample` (s, dim), the same for every sub-space.

    A sample smaller than `ksub` is repeated; the first update re-seeds the empty cells.
    """
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(max(len(sample), ksub), generator=generator)[:ksub] % len(sample)
    return sample[picked.to(sample.device)].view(ksub, m, -1).transpose(0, 1).contiguous()


def cross_statistics(embedding: Tensor, codebooks: Tensor) -> Tensor:
    """Σ z q(z)ᵀ (dim, dim): all that `rotation` needs to know of the data."""
    return embedding.T @ decode(assign(embedding, codebooks), codebooks)


def rotation(cross: Tensor) -> Tensor:
    """The orthogonal R (dim, dim) that brings z R closest to its quantized value (Procrustes)."""
    left, _, right = torch.linalg.svd(cross)
    return left @ right


def perplexity(counts: Tensor) -> Tensor:
    """Effective number of centroids in use, per sub-space: exp of the usage entropy; (m,)."""
    usage = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return torch.special.entr(usage).sum(1).exp()


def pack(codes: Tensor, nbits: int) -> Tensor:
    """Sub-codes (n, m) as bytes (n, m * nbits / 8) uint8, in faiss' order."""
    codes = codes.to(torch.uint8)
    return codes if nbits == 8 else codes[:, ::2] | (codes[:, 1::2] << 4)


def unpack(packed: Tensor, nbits: int) -> Tensor:
    """The inverse of `pack`: (n, m) int64."""
    if nbits == 8:
        return packed.long()
    return torch.stack([packed & 15, packed >> 4], dim=2).flatten(1).long()
