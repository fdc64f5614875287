"""What the codes of a version stand for, as searching needs it."""

from collections.abc import Mapping
from dataclasses import dataclass

import faiss
import numpy as np

from dq_cluster.errors import InputError, IntegrityError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.models import read_card, read_tensors
from dq_cluster.search import faiss_index
from dq_cluster.search.decoder import Decoder
from dq_cluster.search.exact import Centroids
from dq_cluster.storage import Storage


@dataclass(frozen=True, eq=False)
class Codebooks:
    """vectors: centroids (m, ksub, dsub) float32. centroids: the same, laid out for exact scores.

    coarse: finds the cells of a query, in an IVF geometry. second: centroids of the second code,
    where there is one. decoder: of the code, where the model has one.
    """

    geometry: CodeGeometry
    vectors: np.ndarray
    centroids: Centroids
    coarse: faiss.IndexFlat | None = None
    second: Centroids | None = None
    decoder: Decoder | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray], geometry: CodeGeometry) -> "Codebooks":
        """tensors: `codebooks`, and where the geometry has them `coarse_centroids` (nlist, dim)
        and `refine_codebooks`, and the decoder, as a model has them."""
        vectors, coarse, second = tensors["codebooks"], None, None
        if geometry.nlist:
            coarse = faiss_index.coarse_index(tensors["coarse_centroids"], geometry)
        if geometry.refine is not None:
            second = Centroids(tensors["refine_codebooks"], geometry.refine)
        decoder = None
        if any(name.startswith("decode.") for name in tensors):
            decoder = Decoder(tensors, geometry)
        return cls(geometry, vectors, Centroids(vectors, geometry), coarse, second, decoder)

    def nearest_cells(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The cells nearest to each query: faiss' distances and numbers, both (n, count)."""
        if self.coarse is None:
            raise InputError("this geometry has no cells")
        return self.coarse.search(queries, count)

    @classmethod
    def load(cls, storage: Storage, manifest: Manifest) -> "Codebooks":
        """Those of the model of a version. Raises IntegrityError where the two disagree."""
        card = read_card(storage, manifest.model)
        if card.geometry != manifest.geometry:
            raise IntegrityError(
                f"version {manifest.version} has geometry {manifest.geometry}, "
                f"its model {card.digest[:12]} has {card.geometry}"
            )
        return cls.of(read_tensors(storage, card), manifest.geometry)
