"""How good a model is on rows it was not trained on, and whether that is good enough.

The rows held out are the queries, the training rows the database. Every Ray task searches one
piece of the database, exactly and by codes; the answers are merged.
"""

from typing import NamedTuple

import numpy as np
import ray
import torch
from torch import Tensor
from torch.nn import functional as F

from dq_cluster.errors import QualityGateError
from dq_cluster.evaluate.metrics import labelled, mean_average_precision, recall_at_k
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.neighbours import Ranked, merge_top_k, nearest
from dq_cluster.training.config import QualityGate
from dq_cluster.training.rows import Piece, TrainingRows
from dq_cluster.training.tasks import results

DEPTH = 1000


class Answers(NamedTuple):
    """The `DEPTH` best training rows per query: by the features themselves, and by codes."""

    exact: Ranked
    coded: Ranked


def measure(network: DeepQuan, rows: TrainingRows) -> dict[str, float]:
    """Quality on the rows held out.

    recall_at_10: share of the ten exact neighbours (by inner product of centred features of unit
    length) among the first ten by codes. Where held-out rows have labels also map_at_1000 of
    the codes and, for comparison, exact_map_at_1000 of exact search.
    """
    pieces = rows.pieces()
    queries = np.concatenate(list(results([_held_out.remote(rows, piece) for piece in pieces])))
    shared = ray.put((network, queries))
    parts = results([_answer.remote(shared, rows, piece) for piece in pieces])
    best: Answers = next(parts)
    for part in parts:
        best = Answers(*(merge_top_k(a, b, DEPTH) for a, b in zip(best, part, strict=True)))
    exact, coded = best.exact.rows.numpy(), best.coded.rows.numpy()
    measured = {"queries": len(queries), "recall_at_10": recall_at_k(coded, exact, 10)}
    if rows.features.labelled:
        labels = rows.features.labels(0, rows.features.rows)
        held_out, kept = labels[rows.split.validation()], labels[rows.split.training()]
        if labelled(held_out).any():
            for name, neighbours in (("map_at_1000", coded), ("exact_map_at_1000", exact)):
                measured[name] = mean_average_precision(
                    neighbours, held_out, kept, neighbours.shape[1]
                )
    return measured


def check_gate(gate: QualityGate, measured: dict[str, float]) -> None:
    """Raise QualityGateError, with the numbers, when `measured` misses what `gate` demands."""
    demands = {"recall_at_10": gate.min_recall_at_10, "map_at_1000": gate.min_map}
    missed = [
        f"{name} {measured.get(name, 0):.4f} is below {least:.4f}"
        for name, least in demands.items()
        if least and measured.get(name, 0) < least  # no labels, no mAP
    ]
    if missed:
        raise QualityGateError(
            f"the model is not published: {', '.join(missed)} on {measured['queries']} rows held "
            "out; train longer or with more bits, or lower the gate and submit the run again"
        )


@ray.remote
def _held_out(rows: TrainingRows, piece: Piece) -> np.ndarray:
    return rows.read_held_out(piece)


@ray.remote
@torch.no_grad()
def _answer(shared: tuple[DeepQuan, np.ndarray], rows: TrainingRows, piece: Piece) -> Answers:
    network, queries = shared
    return answer(network, torch.tensor(queries), torch.from_numpy(rows.read(piece)), piece.first)


def answer(network: DeepQuan, queries: Tensor, database: Tensor, first_row: int) -> Answers:
    """Search features (n, D), whose numbers start at `first_row`, for queries (q, D)."""
    exact = nearest(_direction(network, queries), _direction(network, database), DEPTH)
    embedded = network.embed(queries)
    quantized = network.quantize(network.embed(database))
    if network.geometry.metric == "l2":
        # -‖q - w‖² ranks as q·w - ‖w‖²/2, an inner product with one more dimension.
        embedded = F.pad(embedded, (0, 1), value=1.0)
        quantized = torch.cat([quantized, -quantized.square().sum(1, keepdim=True) / 2], dim=1)
    coded = nearest(embedded, quantized, DEPTH)
    return Answers(*(Ranked(r.scores, r.rows + first_row) for r in (exact, coded)))


def _direction(network: DeepQuan, features: Tensor) -> Tensor:
    return F.normalize(features.float() - network.mean, dim=1)
