from itertools import pairwise

import faiss
import numpy as np
import pytest
import torch

from dq_cluster.model import quantizer


def embeddings(n: int = 2000, dim: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator)


@pytest.mark.parametrize("nbits", [8, 4])
def test_codes_are_those_of_faiss(nbits: int) -> None:
    z = embeddings()
    pq = faiss.ProductQuantizer(16, 4, nbits)
    pq.train(z.numpy())
    codebooks = torch.from_numpy(faiss.vector_to_array(pq.centroids).reshape(4, 1 << nbits, 4))
    packed = quantizer.pack(quantizer.assign(z, codebooks), nbits)
    np.testing.assert_array_equal(packed.numpy(), pq.compute_codes(z.numpy()))
    decoded = quantizer.decode(quantizer.unpack(packed, nbits), codebooks)
    np.testing.assert_allclose(decoded.numpy(), pq.decode(packed.numpy()), rtol=1e-6)


def test_codebooks_of_four_workers_are_those_of_one() -> None:
    z = embeddings(4000)
    shards = z.split(1000)
    one = four = quantizer.initial_codebooks(z, m=4, ksub=16, seed=3)
    for _ in range(5):
        one = quantizer.lloyd(z, one, 1)
        parts = [quantizer.cell_statistics(s, quantizer.assign(s, four), 16) for s in shards]
        sums, counts = (torch.stack(each).sum(0) for each in zip(*parts, strict=True))
        four = quantizer.updated_codebooks(four, sums, counts)
    torch.testing.assert_close(four, one, atol=1e-5, rtol=0)


def test_lloyd_never_raises_the_quantization_error() -> None:
    z = embeddings()
    codebooks = quantizer.initial_codebooks(z, m=4, ksub=16, seed=0)
    errors = []
    for _ in range(10):
        q = quantizer.decode(quantizer.assign(z, codebooks), codebooks)
        errors.append(float((z - q).square().sum(1).mean()))
        codebooks = quantizer.lloyd(z, codebooks, 1)
    assert all(after <= before + 1e-6 for before, after in pairwise(errors))
    assert errors[-1] < 0.8 * errors[0]


def test_empty_cells_are_seeded_again() -> None:
    z = embeddings(dim=4)
    far = torch.full((2, 8, 2), 100.0)
    far[:, 0] = 0
    codebooks = quantizer.lloyd(z, far, 10)
    counts = quantizer.cell_statistics(z, quantizer.assign(z, codebooks), 8)[1]
    assert (counts > 0).all()
    assert quantizer.perplexity(counts).min() > 4


def test_a_sample_smaller_than_the_codebook() -> None:
    z = embeddings(5, dim=4)
    codebooks = quantizer.lloyd(z, quantizer.initial_codebooks(z, m=2, ksub=16, seed=0), 20)
    q = quantizer.decode(quantizer.assign(z, codebooks), codebooks)
    assert torch.isfinite(codebooks).all()
    torch.testing.assert_close(q, z, atol=0.05, rtol=0)


def test_rotation_is_orthogonal_and_lowers_the_error() -> None:
    # Variance packed into the first half: what OPQ is for.
    z = embeddings() * torch.linspace(3, 0.1, 16)
    codebooks = quantizer.lloyd(z, quantizer.initial_codebooks(z, 4, 16, 0), 10)

    def error(x: torch.Tensor, words: torch.Tensor) -> float:
        return float((x - quantizer.decode(quantizer.assign(x, words), words)).square().sum())

    before, turned, words = error(z, codebooks), z, codebooks
    for _ in range(10):
        r = quantizer.rotation(quantizer.cross_statistics(turned, words))
        torch.testing.assert_close(r @ r.T, torch.eye(16), atol=1e-4, rtol=0)
        turned = turned @ r
        words = quantizer.lloyd(turned, words, 2)
    assert error(turned, words) < 0.95 * before


def test_perplexity_counts_the_words_in_use() -> None:
    counts = torch.tensor([[5.0, 5.0, 5.0, 5.0], [20.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(quantizer.perplexity(counts), torch.tensor([4.0, 1.0, 1.0]))
