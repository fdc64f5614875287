"""Training speed: Ray Train with 1 and 2 workers against the plain loop in one process.

    python benchmarks/train.py [--rows 20000] [--dim 1280] [--rounds 2]

All run the same epochs on the same random rows, in turns, one thread per worker; the plain loop
runs with 1 and with 2 threads. Printed are the medians over the epochs but the first (which also
makes the first codebooks) and their ratios. Starting Ray and its workers is not counted.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dq_cluster.cluster import ray_cluster
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.fit import fit
from dq_cluster.training.config import TrainSettings
from dq_cluster.training.run import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()

    model = ModelSettings(epochs=arguments.epochs)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, arguments.dim))
    rows = centres[rng.integers(100, size=arguments.rows)]
    rows = (rows + rng.normal(size=rows.shape)).astype(np.float16)
    speeds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, ray_cluster():
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), arguments.dim)
        table = pa.table({"id": range(len(rows)), "feature": vectors})
        pq.write_table(table, f"{folder}/rows.parquet")
        for turn in range(arguments.rounds):
            for threads in (1, 2):
                speeds.setdefault(f"plain_{threads}_threads", []).extend(
                    plain(rows, model, threads)
                )
            for workers in (1, 2):
                speeds.setdefault(f"ray_{workers}_workers", []).extend(
                    on_ray(Path(folder), f"{workers}-{turn}", model, workers)
                )
    medians = {name: round(statistics.median(found)) for name, found in speeds.items()}
    plain_speed = medians["plain_1_threads"]
    ratios = {name: round(found / plain_speed, 2) for name, found in medians.items()}
    print(json.dumps({"samples_per_s": medians, "ratio_to_plain_1_thread": ratios}, indent=1))


def plain(rows: np.ndarray, model: ModelSettings, threads: int) -> list[float]:
    """Samples/s of each epoch but the first of the reference loop."""
    torch.set_num_threads(threads)
    ends: list[float] = []
    fit(rows, model, seed=0, on_epoch=lambda epoch, summary: ends.append(time.perf_counter()))
    return [len(rows) / (end - start) for start, end in itertools.pairwise(ends)]


def on_ray(folder: Path, name: str, model: ModelSettings, workers: int) -> list[float]:
    """Samples/s of each epoch but the first of a training job."""
    settings = TrainSettings(
        index=f"{folder}/index",
        features=f"{folder}/rows.parquet",
        name=name,
        model=model,
        workers=workers,
    )
    history = train(settings).training["history"]
    # From end to end, so that writing the checkpoint counts.
    ends = [epoch["finished"] for epoch in history]
    rows = history[0]["samples_per_s"] * history[0]["seconds"]
    return [rows / (end - start) for start, end in itertools.pairwise(ends)]


if __name__ == "__main__":
    main()
