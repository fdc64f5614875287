"""Positives of all training rows, found by Ray tasks that each hold two pieces of rows at a time.

Three passes over the pieces: moments of the features give the network's linear front; every piece
of standardized rows is compared with every other for its nearest neighbours, in large sets only
with the rows of the nearest cells; the neighbour graph,
which holds only numbers of rows, is refined to positives. The last two leave a Parquet file per
piece, and a run that is started again makes only those that are missing.
"""

import io
import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from dq_cluster.model.candidates import PROBED, cells_of, nearest_cells, nearest_in_cells
from dq_cluster.model.cells import learn_cells
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.fit import set_front
from dq_cluster.model.neighbours import (
    Inverse,
    Ranked,
    inverse,
    manifold_positives,
    merge_top_k,
    nearest,
)
from dq_cluster.model.standardize import (
    Moments,
    add_moments,
    moments,
    view_moments,
)
from dq_cluster.storage import Storage
from dq_cluster.training.rows import Piece, TrainingRows
from dq_cluster.training.tasks import finish, results

log = logging.getLogger(__name__)

# Of the sample that the cells of the search are learned on.
_POINTS_PER_CELL = 64
# Rows whose neighbours are also looked for exactly, to say how many the cells lose.
_CHECKED = 256


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
    network: DeepQuan, rows: TrainingRows, storage: Storage, *, seed: int, use_gpu: bool
) -> None:
    """Write the positives of every training row to `storage`; `read_column` reads them.

    Beyond `EXACT_ROWS` rows neighbours are looked for in the nearest cells, and the log says how
    many of the exact ones were found.
    """
    pieces = rows.pieces()
    missing = [p for p in pieces if not storage.exists(_name("neighbours", p))]
    if missing:
        shared, k = ray.put(network), network.settings.neighbours
        blocks = [_standardized.remote(shared, rows, piece) for piece in pieces]
        if nlist := cells_of(rows.count):
            _search_cells(blocks, pieces, missing, rows.count, nlist, k, storage, seed)
        else:
            device, gpus = ("cuda", 1) if use_gpu else ("cpu", 0)
            search = _search.options(num_gpus=gpus)
            finish([search.remote(blocks, pieces, p, k, storage, device) for p in missing])
    missing = [p for p in pieces if not storage.exists(_name("positives", p))]
    if missing:
        inverted = _inverse.remote(storage, pieces)
        finish([_refine.remote(inverted, p, storage) for p in missing])


def _search_cells(
    blocks: list[ray.ObjectRef],
    pieces: list[Piece],
    missing: list[Piece],
    rows: int,
    nlist: int,
    k: int,
    storage: Storage,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(rows, min(rows, nlist * _POINTS_PER_CELL), replace=False))
    centroids = _centroids.remote(blocks, pieces, sample, nlist, seed)
    cells = [_cells.remote(block, centroids) for block in blocks]
    finish([_search_in.remote(blocks, cells, centroids, pieces, p, k, storage) for p in missing])
    own = missing[0]
    count = own.last - own.first
    asked = np.sort(rng.choice(count, min(_CHECKED, count), replace=False))
    parts = results([_exact.remote(blocks[own.number], asked, b, k + 1) for b in blocks])
    best: Ranked | None = None
    for piece, part in zip(pieces, parts, strict=True):
        part = Ranked(part.scores, part.rows + piece.first)
        best = part if best is None else merge_top_k(best, part, k + 1)
    assert best is not None
    exact = _others(best, torch.from_numpy(asked + own.first)[:, None], k).numpy()
    found = next(read_column(storage, "neighbours", "rows", [own]))[asked]
    hits = [len(np.intersect1d(one, other)) for one, other in zip(exact, found, strict=True)]
    log.info(
        "neighbours: of %d rows, %.3f of the %d exact ones were found, in %d of %d cells",
        len(asked),
        np.mean(hits) / k,
        k,
        min(PROBED, nlist),
        nlist,
    )


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
    own_rows = torch.arange(own.first, own.last, device=device)[:, None]
    _write(storage, _name("neighbours", own), rows=_others(best, own_rows, k).cpu().numpy())


def _others(best: Ranked, own_rows: torch.Tensor, k: int) -> torch.Tensor:
    """The `k` best rows that are not one's own, (n, k)."""
    # A row is its own nearest neighbour unless it has duplicates; then any k others will do.
    others = (best.rows != own_rows).long().argsort(dim=1, descending=True, stable=True)[:, :k]
    return best.rows.gather(1, others)


@ray.remote
def _centroids(
    blocks: list[ray.ObjectRef], pieces: list[Piece], sample: np.ndarray, nlist: int, seed: int
) -> np.ndarray:
    """Cells of the rows `sample`, (nlist, D)."""
    parts = []
    for block, piece in zip(blocks, pieces, strict=True):
        first, last = np.searchsorted(sample, (piece.first, piece.last))
        parts.append(ray.get(block)[sample[first:last] - piece.first])
    return learn_cells(np.concatenate(parts), nlist, "ip", seed=seed)


@ray.remote
def _cells(block: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return nearest_cells(block, centroids)


@ray.remote
def _search_in(
    blocks: list[ray.ObjectRef],
    cells: list[ray.ObjectRef],
    centroids: np.ndarray,
    pieces: list[Piece],
    own: Piece,
    k: int,
    storage: Storage,
) -> None:
    """As `_search`, among the rows of the nearest cells."""
    queries, probed = ray.get([blocks[own.number], cells[own.number]])
    best: Ranked | None = None
    for piece in pieces:
        block, theirs = ray.get([blocks[piece.number], cells[piece.number]])
        near = nearest_in_cells(queries, probed, block, theirs[:, 0], centroids, k + 1)
        near = Ranked(near.scores, torch.where(near.rows < 0, -1, near.rows + piece.first))
        best = near if best is None else merge_top_k(best, near, k + 1)
    assert best is not None
    rows = _others(best, torch.arange(own.first, own.last)[:, None], k).numpy()
    # In cells that hold too few, a row is its own neighbour: it counts for nothing there.
    rows = np.where(rows < 0, np.arange(own.first, own.last)[:, None], rows)
    _write(storage, _name("neighbours", own), rows=rows)


@ray.remote
def _exact(own: np.ndarray, asked: np.ndarray, block: np.ndarray, k: int) -> Ranked:
    return nearest(torch.tensor(own[asked]), torch.tensor(block), k)


@ray.remote
def _inverse(storage: Storage, pieces: list[Piece]) -> Inverse:
    return inverse(np.concatenate(list(read_column(storage, "neighbours", "rows", pieces))))


@ray.remote
def _refine(inverted: Inverse, piece: Piece, storage: Storage) -> None:
    graph = next(read_column(storage, "neighbours", "rows", [piece]))
    positives = manifold_positives(graph, graph.shape[1], inverted, piece.first)
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
