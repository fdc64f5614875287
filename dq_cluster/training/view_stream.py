"""Two random views of every image, streamed: decoded where there is a CPU, never stored.

The order of an epoch depends on the seed and the epoch alone. A stream may start in the middle of
it; an image at that place may then be seen twice or not at all, since workers take what comes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Dataset, TaskPoolStrategy

from dq_cluster.cluster import quiet_data_context
from dq_cluster.errors import InputError
from dq_cluster.images.guard import ChildDecoder
from dq_cluster.images.rejects import RejectError
from dq_cluster.images.sources import open_source
from dq_cluster.images.units import Unit
from dq_cluster.images.views import random_view
from dq_cluster.storage import Storage, translated
from dq_cluster.training.config import FinetuneSettings

_CHUNK_ROWS = 512
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Chunk:
    """Units that one task reads, in which epoch, and how many of their rows were seen before."""

    epoch: int
    units: tuple[Unit, ...]
    seen: int = 0


def list_images(settings: FinetuneSettings) -> tuple[list[Unit], int]:
    """The units of the source, and how many images they hold.

    Raises InputError where that is not known before they are read, or they are fewer than a batch.
    """
    units = list(open_source(settings.source).units())
    if not all(unit.rows for unit in units):
        raise InputError(
            f"{settings.source.uri}: how many images a tar holds is not known before it is read; "
            "give finetune.source a folder, Parquet files, or an inventory"
        )
    images = sum(unit.rows for unit in units)
    if images < settings.batch_size:
        raise InputError(
            f"{settings.source.uri} holds {images:,} images, fewer than a batch of "
            f"{settings.batch_size}; lower finetune.batch_size or give more images"
        )
    return units, images


def chunks(units: Sequence[Unit], epoch: int, seed: int) -> list[Chunk]:
    """All units in the order of an epoch, in chunks of some hundred rows."""
    order = np.random.default_rng((seed, epoch)).permutation(len(units))
    made: list[Chunk] = []
    part: list[Unit] = []
    for place in order:
        part.append(units[place])
        if sum(unit.rows for unit in part) >= _CHUNK_ROWS:
            made.append(Chunk(epoch, tuple(part)))
            part = []
    return [*made, Chunk(epoch, tuple(part))] if part else made


def remaining(units: Sequence[Unit], epochs: int, seed: int, seen: int, images: int) -> list[Chunk]:
    """What is left of all epochs when `seen` images were seen, and one epoch more: it makes up
    for images that cannot be decoded."""
    first, left = divmod(seen, images)
    found = []
    for epoch in range(first, epochs + 1):
        for chunk in chunks(units, epoch, seed):
            rows = sum(unit.rows for unit in chunk.units)
            if left < rows:
                found.append(Chunk(epoch, chunk.units, left))
            left = max(0, left - rows)
    return found


def views(
    settings: FinetuneSettings, side: int, chunk: Chunk, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Two views (n, side, side, 3) uint8 of each of the chunk's images, some images at a time.

    What cannot be decoded is left out.
    """
    first = chunk.units[0]
    random = np.random.default_rng((seed, chunk.epoch, first.start, len(first.path)))
    # As large as the smallest crop needs, to be scaled down and not up.
    whole = ceil(side / settings.min_area**0.5)
    limit = max(1, _BLOCK_BYTES // (6 * side * side))
    with (
        translated(Storage(settings.source.uri), ""),
        ChildDecoder(settings.source.limits) as decode,
    ):
        rows = _images(settings, chunk, limit)
        while batch := list(islice(rows, limit)):
            pixels = []
            for image in batch:
                try:
                    pixels.append(decode(image, whole))
                except RejectError:
                    continue
            if pixels:
                yield (
                    np.stack([random_view(p, side, settings.min_area, random) for p in pixels]),
                    np.stack([random_view(p, side, settings.min_area, random) for p in pixels]),
                )


def _images(settings: FinetuneSettings, chunk: Chunk, limit: int) -> Iterator[bytes]:
    seen = chunk.seen
    for table in open_source(settings.source).read(chunk.units, limit):
        fresh: pa.Table = table.slice(min(seen, table.num_rows))
        seen -= table.num_rows - fresh.num_rows
        for image, reason in zip(fresh.column("image"), fresh.column("reason"), strict=True):
            if image.is_valid and not reason.is_valid:
                yield image.as_buffer().to_pybytes()


def stream(
    settings: FinetuneSettings, side: int, left: Sequence[Chunk], seed: int, workers: int
) -> Dataset:
    """`one` and `other`, the views of the images of `left`, in their order."""
    context = quiet_data_context()
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_options.preserve_order = True

    def make(batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for one, other in views(settings, side, left[int(batch["chunk"][0])], seed):
            yield {"one": one, "other": other}

    with DataContext.current(context):
        numbers = ray.data.range(len(left), override_num_blocks=len(left))
        return numbers.rename_columns({"id": "chunk"}).map_batches(
            make,
            batch_size=1,
            batch_format="numpy",
            num_cpus=0,  # the workers that wait for them may hold all there are
            compute=TaskPoolStrategy(size=min(settings.decoders * workers, len(left))),
        )
