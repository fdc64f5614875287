"""The learned decoder: what a code stands for, better than its centroids say.

The second stage of UNQ (Morozov, Babenko, "Unsupervised Neural Quantization for
Compressed-Domain Similarity Search", ICCV 2019): codes are scanned as they are, and the candidates
are ordered by their distance to what a small network makes of their codes. It costs no byte more
per image.

A network sums by matrix products, whose order of addition is not defined. Its parameters are
therefore multiples of
`DECODER_GRID`, so every term of every sum is a multiple of its square, and float64
holds these sums without rounding: any order gives the same bits, on every machine.
"""

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from dq_cluster.errors import IntegrityError
from dq_cluster.geometry import DECODER_GRID, CodeGeometry
from dq_cluster.search.cells import CellCodes
from dq_cluster.search.exact import unpacked
from dq_cluster.search.merge import MISSING
from dq_cluster.search.placement import Places
from dq_cluster.search.stacked import Stacked

_LARGEST = DECODER_GRID**2 * 2**53  # up to here float64 has every multiple of the square
_BLOCK = 1 << 21  # values of the hidden layer held at once
NAMES = ("words", "hidden_words", "hidden_bias", "output")


class Decoder:
    """Packed codes (…, code_size) → vectors (…, dim): learned words, summed, plus a hidden layer.

    Of a code with sub-codes c: Σ words[j, c_j] + max(0, Σ hidden_words[j, c_j] + hidden_bias) @
    output, with words (m, ksub, dim), hidden_words (m, ksub, hidden), hidden_bias (hidden,), and
    output (hidden, dim).
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], geometry: CodeGeometry) -> None:
        """tensors: a model's, those of `NAMES` behind "decode.". Raises IntegrityError where they
        do not fit the geometry or could not be summed exactly."""
        try:
            parts = [np.asarray(tensors[f"decode.{name}"], np.float64) for name in NAMES]
        except KeyError as error:
            raise IntegrityError(f"the model's decoder lacks the tensor {error}") from None
        words, hidden_words, bias, output = parts
        m, ksub, dim, hidden = geometry.m, geometry.ksub, geometry.dim, len(bias)
        shapes = [(m, ksub, dim), (m, ksub, hidden), (hidden,), (hidden, dim)]
        for name, part, shape in zip(NAMES, parts, shapes, strict=True):
            if part.shape != shape:
                raise IntegrityError(f"model tensor 'decode.{name}' must have shape {shape}")
            if not (np.isfinite(part).all() and (part % DECODER_GRID == 0).all()):
                raise IntegrityError(f"model tensor 'decode.{name}' has values off the grid")
        active = np.abs(hidden_words).max(1).sum(0) + np.abs(bias)
        if (np.abs(words).max(1).sum(0) + active @ np.abs(output)).max() >= _LARGEST:
            raise IntegrityError("the model's decoder has weights too large to be summed exactly")
        self.geometry = geometry
        # A row per word, of all sub-quantizers one after the other.
        self._words = words.reshape(m * ksub, dim)
        self._hidden_words = hidden_words.reshape(m * ksub, hidden)
        self._bias, self._output = bias, output

    def of(self, codes: np.ndarray) -> np.ndarray:
        """The vectors (…, dim) float64 that packed codes (…, code_size) uint8 stand for."""
        parts = unpacked(codes.reshape(-1, codes.shape[-1]), self.geometry)
        parts += np.arange(self.geometry.m) * self.geometry.ksub
        vectors = np.empty((len(parts), self.geometry.dim))
        step = max(1, _BLOCK // max(len(self._bias), self.geometry.dim))
        for start in range(0, len(parts), step):
            here = slice(start, start + step)
            vectors[here] = self._decoded(parts[here])
        return vectors.reshape(*codes.shape[:-1], self.geometry.dim)

    def _decoded(self, words: np.ndarray) -> np.ndarray:
        """Vectors (n, dim) of the words (n, m), numbers of rows."""
        hidden = self._hidden_words[words[:, 0]]
        total = self._words[words[:, 0]]
        for each in words.T[1:]:
            hidden += self._hidden_words[each]
            total += self._words[each]
        hidden += self._bias
        total += np.maximum(hidden, 0, out=hidden) @ self._output
        return total


class Redecoder:
    """Scores the candidates of a shard by what the decoder makes of the codes that were scanned."""

    def __init__(
        self, segments: Sequence[np.ndarray | CellCodes], decoder: Decoder, places: Places
    ) -> None:
        """segments: the codes (rows, code_size) uint8 of each, deleted rows too."""
        self._codes = Stacked(segments, decoder.geometry.code_size)
        self._decoder, self._places = decoder, places

    def embeddings(self, ordinals: np.ndarray) -> np.ndarray:
        """What the codes of rows (n,) stand for: (n, dim) float32."""
        return self._decoder.of(self._codes[self._places.rows_of(ordinals)]).astype(np.float32)

    def scores(self, embeddings: np.ndarray, ordinals: np.ndarray) -> np.ndarray:
        """Exact scores (n, c) float32 of the rows `ordinals` (n, c); -inf for missing ones.

        embeddings (n, dim) are what was searched for.
        """
        missing = ordinals == MISSING
        scores = np.full(ordinals.shape, -np.inf, np.float32)
        if missing.all():
            return scores
        codes = self._codes[self._places.rows_of(ordinals[~missing])]
        asked = np.ascontiguousarray(embeddings, np.float32).astype(np.float64)
        asked = asked[np.nonzero(~missing)[0]]
        step = max(1, _BLOCK // self._decoder.geometry.dim)
        product = self._decoder.geometry.metric == "ip"
        found = [
            _scores(asked[here], self._decoder.of(codes[here]), product)
            for here in (slice(start, start + step) for start in range(0, len(codes), step))
        ]
        scores[~missing] = np.concatenate(found)
        return scores


def _scores(queries: np.ndarray, vectors: np.ndarray, inner_product: bool) -> np.ndarray:
    """Scores (n,) float32 of pairs (n, dim): the dimensions are added up in order."""
    pairs = zip(queries.T, vectors.T, strict=True)
    if inner_product:
        return reduce(np.add, (one * other for one, other in pairs)).astype(np.float32)
    return (0 - reduce(np.add, (np.square(one - other) for one, other in pairs))).astype(np.float32)
