"""Positives of all training rows, found by Ray tasks that each hold two pieces of rows at a time.

Three passes over the pieces: moments of the features give the network's linear front; every piece
of standardized rows is compared with every other for its nearest neighbours; the neighbour graph,
which holds only numbers of rows, is refined to positives. The last two leave a Parquet file per
piece, and a run that is started again makes only those that are missing.
"""

import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.fit import set_front
from dq_cluster.model.neighbours import Ranked, manifold_positives, merge_top_k, nearest
from dq_cluster.model.standardize import (
    Moments,
    add_moments,
    moments,
    view_moments,
)
from dq_cluster.storage import Storage
from dq_cluster.training.rows import Piece, TrainingRows
from dq_cluster.training.tasks import finish, results


def fit_front(network: DeepQuan, rows: TrainingRows) -> None:
    """Set the linear front of a new network from the moments of all training rows, and where
    the feature set has views, from those of the pairs.

    Raises InputError for a feature that is missing or not finite: this is the first full read.
    """
    pieces = rows.pieces()
    moments = add_moments(results([_moments.remote(rows, piece) for piece in pieces]))
    pairs = None
    if rows.features.viewed and network.settings.objective == "semantic":
        pairs = add_moments(
            results([_view_moments.remote(rows, piece, moments.mean) for piece in pieces])
        )
    set_front(network, moments, pairs)


def find_positives(
    network: DeepQuan, rows: TrainingRows, storage: Storage, *, use_gpu: bool
) -> None:
    """Write the positives of every training row to `storage`; `read_column` reads them."""
    pieces = rows.pieces()
    missing = [p for p in pieces if not storage.exists(_name("neighbours", p))]
    if missing:
        shared, k = ray.put(network), network.settings.neighbours
        blocks = [_standardized.remote(shared, rows, piece) for piece in pieces]
        device, gpus = ("cuda", 1) if use_gpu else ("cpu", 0)
        search = _search.options(num_gpus=gpus)
        finish([search.remote(blocks, pieces, p, k, storage, device) for p in missing])
    missing = [p for p in pieces if not storage.exists(_name("positives", p))]
    if missing:
        graph = ray.put(np.concatenate(list(read_column(storage, "neighbours", "rows", pieces))))
        finish([_refine.remote(graph, p, storage) for p in missing])


def read_column(
    storage: Storage, kind: str, column: str, pieces: list[Piece]
) -> Iterator[np.ndarray]:
    """A matrix (last - first, k) per piece: `rows` of `neighbours`; `rows`, `weights` of
    `positives`."""
    for piece in pieces:
        data = io.BytesIO(storage.read(_name(kind, piece)))
        lists = pq.read_table(data, columns=[column]).column(column).combine_chunks()
        yield lists.flatten().to_numpy().reshape(len(lists), lists.type.list_size)


@ray.remote
def _moments(rows: TrainingRows, piece: Piece) -> Moments:
    return moments(torch.from_numpy(rows.read(piece)))


@ray.remote
def _view_moments(rows: TrainingRows, piece: Piece, centre: torch.Tensor) -> Moments:
    features, views = rows.read_pairs(piece)
    return view_moments(torch.from_numpy(features), torch.from_numpy(views), centre)


@ray.remote
def _standardized(network: DeepQuan, rows: TrainingRows, piece: Piece) -> np.ndarray:
    return network.standardize(torch.from_numpy(rows.read(piece))).numpy()


@ray.remote
def _search(
    standardized: list[ray.ObjectRef],
    pieces: list[Piece],
    own: Piece,
    k: int,
    storage: Storage,
    device: str,
) -> None:
    """The k nearest neighbours of one piece's rows among the rows of all pieces."""

    def block(piece: Piece) -> torch.Tensor:
        return torch.tensor(ray.get(standardized[piece.number]), device=device)

    queries, best = block(own), None
    for piece in pieces:
        near = nearest(queries, block(piece), k + 1)
        near = Ranked(near.scores, near.rows + piece.first)
        best = near if best is None else merge_top_k(best, near, k + 1)
    assert best is not None
    # A row is its own nearest neighbour unless it has duplicates; then any k others will do.
    own_rows = torch.arange(own.first, own.last, device=device)[:, None]
    others = (best.rows != own_rows).long().argsort(dim=1, descending=True, stable=True)[:, :k]
    _write(storage, _name("neighbours", own), rows=best.rows.gather(1, others).cpu().numpy())


@ray.remote
def _refine(graph: np.ndarray, piece: Piece, storage: Storage) -> None:
    positives = manifold_positives(graph, graph.shape[1], piece.first, piece.last)
    _write(storage, _name("positives", piece), rows=positives.rows, weights=positives.weights)


def _name(kind: str, piece: Piece) -> str:
    return f"{kind}/{piece.number:05d}.parquet"


def _write(storage: Storage, name: str, **matrices: np.ndarray) -> None:
    table = pa.table(
        {
            column: pa.FixedSizeListArray.from_arrays(matrix.ravel(), matrix.shape[1])
            for column, matrix in matrices.items()
        }
    )
    data = io.BytesIO()
    pq.write_table(table, data)
    storage.write(name, data.getvalue())
