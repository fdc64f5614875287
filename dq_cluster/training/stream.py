"""Features streamed to a node: Ray Data reads and decodes them on any node."""

from collections.abc import Iterator

import numpy as np
import ray
from ray.data import DataContext, DataIterator, Dataset, TaskPoolStrategy

from dq_cluster.cluster import quiet_data_context
from dq_cluster.training.node import Part
from dq_cluster.training.rows import TrainingRows

_BLOCK_BYTES = 16 << 20  # several blocks are under way for every node
_READERS = 4  # pieces read at once for a node


def stream(rows: TrainingRows) -> Dataset:
    """All training rows in any order: `row` (their number) and `feature` (dim,)."""
    context = quiet_data_context()
    context.target_max_block_size = _BLOCK_BYTES
    pieces = rows.pieces()

    def read(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        piece = pieces[int(batch["piece"][0])]
        return {"row": np.arange(piece.first, piece.last), "feature": rows.read(piece)}

    with DataContext.current(context):
        numbers = ray.data.from_items(
            [{"piece": piece.number} for piece in pieces], override_num_blocks=len(pieces)
        )
        # Without a CPU of their own: the workers that wait for them may hold all there are.
        return numbers.map_batches(
            read,
            batch_size=1,
            batch_format="numpy",
            num_cpus=0,
            compute=TaskPoolStrategy(size=min(_READERS, len(pieces))),
        )


def parts(shard: DataIterator) -> Iterator[Part]:
    """What a worker gets of a `stream`."""
    for batch in shard.iter_batches(batch_size=None, batch_format="numpy"):
        yield batch["row"], batch["feature"]
