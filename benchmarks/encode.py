"""How near encoding comes to its stages' own speed, and what stock Ray Data does with the same.

    python benchmarks/encode.py [--images 6000] [--side 480] [--features 400000] [--output FILE]

All in one run on one machine, one core for decoding and one for the encoder:
decode alone, the encoder alone, encoding end to end, and the pipeline the Ray Data manual shows
(read_images, map_batches, write_parquet) with the same networks; then the same with features that
were computed before; then a finished run of 100,000 fragments, started again.

End to end is measured between the first and the last entry of the ledger: starting Ray and
loading the networks happens once, whether a run takes a minute or three days.
"""

import argparse
import io
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image

from dq_cluster.encoding.config import EncodeSettings, PoolSettings
from dq_cluster.encoding.load import Expectation, load
from dq_cluster.encoding.outputs import CodeEncoder, CodeOutput
from dq_cluster.encoding.publish import run_folder
from dq_cluster.encoding.run import encode
from dq_cluster.fragments.ledger import Ledger, Receipt
from dq_cluster.images.backbone import load_backbone
from dq_cluster.images.config import BackboneSettings, SourceSettings
from dq_cluster.images.sources import open_source
from dq_cluster.index.catalog import Index
from dq_cluster.index.models import ModelCard
from dq_cluster.model.bundle import load_model, save_model
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.storage import Storage

POOL = PoolSettings(encoders=1, decoders=1, threads=1, batch_size=16)
FRAGMENTS = 6
WARM_UP, SECONDS = 40.0, 20.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--side", type=int, default=480, help="of each JPEG, pixels")
    parser.add_argument("--image-size", type=int, default=128, help="that the backbone sees")
    parser.add_argument("--features", type=int, default=400_000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    folder = Path(tempfile.mkdtemp(prefix="dq-encode-"))
    result: dict[str, Any] = {
        "machine": {"cpu": _cpu(), "cores": os.cpu_count()},
        "settings": vars(arguments) | {"output": None},
    }
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        index = Storage(str(folder / "index"))
        card = _model(index, arguments.image_size)
        for name, part in (
            ("images", lambda: _images(folder, index, card, arguments)),
            ("features", lambda: _features(folder, index, card, arguments.features)),
            ("resume", lambda: _resume(folder, index, card)),
        ):
            result[name] = part()
            print(json.dumps({name: result[name]}, indent=1), flush=True)
    finally:
        ray.shutdown()
        shutil.rmtree(folder)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def _images(
    folder: Path, index: Storage, card: ModelCard, arguments: argparse.Namespace
) -> dict[str, Any]:
    pictures = folder / "pictures"
    _write_pictures(pictures, arguments.images, arguments.side)
    source = SourceSettings(kind="folder", uri=str(pictures))
    units = list(open_source(source).units())[:256]
    rows = arguments.images // FRAGMENTS
    output = CodeOutput(index, card.digest, "data/x", True, (), POOL.batch_size, 1)
    expected = Expectation(arguments.image_size, card.feature_dim)

    def decode() -> Callable[[], int]:
        return lambda: sum(len(chunk.payload) for chunk in load(source, units, expected))

    def encoder() -> Callable[[], int]:
        opened, pixels = output.open(), next(load(source, units, expected)).payload
        return lambda: len(opened(pixels)["code"])

    alone = _side_by_side(decode_only=decode, encoder_only=encoder)
    stock = _stock(folder, pictures, index, card)
    ours = _end_to_end(index, card, source, rows)
    return {
        **alone,
        "end_to_end": ours,
        "end_to_end_of_slower_stage": ours / min(alone.values()),
        "stock_ray_data": stock,
        "over_stock": ours / stock,
    }


def _features(folder: Path, index: Storage, card: ModelCard, count: int) -> dict[str, Any]:
    rows = count // FRAGMENTS
    values = np.random.default_rng(0).normal(size=(rows, card.feature_dim)).astype(np.float16)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), card.feature_dim)
    (folder / "features").mkdir()
    for number in range(FRAGMENTS):
        ids = pa.array(range(number * rows, (number + 1) * rows))
        # As featurize writes them: a few thousand rows a group.
        pq.write_table(
            pa.table({"id": ids, "feature": lists}),
            folder / "features" / f"part-{number:03d}.parquet",
            row_group_size=8192,
            use_dictionary=False,
            compression="zstd",
        )
    source = SourceSettings(kind="features", uri=str(folder / "features"))
    units = list(open_source(source).units())[:2]
    expected = Expectation(0, card.feature_dim)

    def read() -> Callable[[], int]:
        return lambda: sum(len(chunk.payload) for chunk in load(source, units, expected))

    def bare() -> Callable[[], int]:
        torch.set_num_threads(1)
        network, _ = load_model(index, card.digest)
        features = torch.from_numpy(values[:6553].astype(np.float32))
        return lambda: len(network.encode(features))

    alone = _side_by_side(read_only=read, torch_only=bare)
    ours = _end_to_end(index, card, source, rows)
    manifest = Index(index).manifest()
    size = sum(file.size for file in manifest.files)
    return {
        **alone,
        "end_to_end": ours,
        "end_to_end_of_torch": ours / alone["torch_only"],
        "code_bytes": card.geometry.code_size,
        "bytes_per_row": size / manifest.rows,
        "of_code_and_id": size / manifest.rows / (card.geometry.code_size + 8),
    }


def _resume(
    folder: Path, index: Storage, card: ModelCard, fragments: int = 100_000
) -> dict[str, Any]:
    """Start a run again whose ledger is full: what is paid before the version is there."""
    path = folder / "many.parquet"
    row = pa.table({"id": [0], "feature": [[0.0] * card.feature_dim]})
    schema = pa.schema([("id", pa.int64()), ("feature", pa.list_(pa.float16(), card.feature_dim))])
    pq.write_table(row.cast(schema), path)
    source = SourceSettings(kind="features", uri=str(path))
    settings = _settings(index, card, source, 1, run="many")
    encode(settings)
    template = Ledger(index, run_folder("many")).read(0)
    index.delete(f"{run_folder('many')}/published")
    # A plan of the same request with many fragments, each committed with a file of its own.
    plan = json.loads(index.read(f"{run_folder('many')}/plan.json"))
    plan |= {"fragments": fragments, "units": fragments, "rows": fragments}
    index.write(f"{run_folder('many')}/plan.json", json.dumps(plan).encode())
    data = index.read(template.files[0].path)
    ledger = Path(index.path(f"{run_folder('many')}/ledger"))
    for number in range(1, fragments):
        name = f"data/many/part-{number:06d}.parquet"
        file = template.files[0].model_copy(update={"path": name})
        receipt = template.model_copy(update={"fragment": number, "files": (file,)})
        Path(index.path(name)).write_bytes(data)
        (ledger / f"{number:08d}.json").write_text(receipt.model_dump_json())
    for version in Index(index).versions():
        index.delete(f"versions/{version}.json")
    index.delete("CURRENT")
    started = time.perf_counter()
    summary = encode(settings)
    seconds = time.perf_counter() - started
    assert summary["rows"] == fragments
    return {"fragments": fragments, "seconds": seconds}


def _end_to_end(index: Storage, card: ModelCard, source: SourceSettings, rows: int) -> float:
    """Rows per second between the first and the last commit."""
    summary = encode(_settings(index, card, source, rows))
    folder = run_folder(summary["run"])
    receipts: list[Receipt] = list(Ledger(index, folder).receipts())
    times = sorted(info.modified.timestamp() for info in index.list(f"{folder}/ledger"))
    return sum(receipt.rows for receipt in receipts[1:]) / (times[-1] - times[0])


def _settings(
    index: Storage, card: ModelCard, source: SourceSettings, rows: int, run: str | None = None
) -> EncodeSettings:
    return EncodeSettings(
        index=index.uri, model=card.digest, source=source, pool=POOL, fragment_rows=rows, run=run
    )


def _stock(folder: Path, pictures: Path, index: Storage, card: ModelCard) -> float:
    """Images per second of the pipeline in Ray Data's manual, after its first tenth."""
    size = int(card.preprocessing["image_size"])

    class Encode:
        def __init__(self) -> None:
            self.encoder: CodeEncoder = CodeOutput(index, card.digest, "x", True, (), 16, 1).open()

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
            codes = self.encoder(batch["image"])["code"]
            return {"path": batch["path"], "code": codes, "at": np.full(len(codes), time.time())}

    images = ray.data.read_images(str(pictures), size=(size, size), mode="RGB", include_paths=True)
    codes = images.map_batches(
        Encode, batch_size=16, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=1)
    )
    codes.write_parquet(str(folder / "stock"))
    at = np.sort(pq.read_table(folder / "stock", columns=["at"]).column("at").to_numpy())
    first = len(at) // 10
    return (len(at) - first) / (at[-1] - at[first])


def _side_by_side(**stages: Callable[[], Callable[[], int]]) -> dict[str, float]:
    """Rows per second of stages that do not wait for each other, each a process of its own.

    At the same time, because that is how they share the machine in the pipeline: on two
    hyper-threads of one core a stage is slower beside another than by itself.
    """
    start = time.time() + WARM_UP

    @ray.remote(num_cpus=1)
    def measure(prepare: Callable[[], Callable[[], int]]) -> float:
        work = prepare()
        work()
        assert time.time() < start, "the warm-up took too long"
        time.sleep(start - time.time())
        rows, started = 0, time.perf_counter()
        while (taken := time.perf_counter() - started) < SECONDS:
            rows += work()
        return rows / taken

    rates = ray.get([measure.remote(prepare) for prepare in stages.values()])
    return dict(zip(stages, rates, strict=True))


def _model(index: Storage, image_size: int) -> ModelCard:
    """The networks of the demo; how well they are trained makes no difference to their speed."""
    backbone = load_backbone(BackboneSettings(image_size=image_size))
    torch.manual_seed(0)
    network = DeepQuan(ModelSettings(dim=64, bits=128), backbone.feature_dim)
    torch.nn.init.normal_(network.codebooks, std=0.1)
    return save_model(
        index, network, preprocessing=backbone.preprocessing, training={}, evaluation={}
    )


def _write_pictures(folder: Path, count: int, side: int) -> None:
    """JPEGs of `side` pixels, each another part of the photograph that matplotlib ships."""
    folder.mkdir()
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    photograph = Image.open(path).convert("RGB")
    rng = np.random.default_rng(0)
    for number in range(count):
        extent = int(rng.integers(200, 480))
        x = int(rng.integers(photograph.width - extent))
        y = int(rng.integers(photograph.height - extent))
        sink = io.BytesIO()
        box = (x, y, x + extent, y + extent)
        photograph.resize((side, side), Image.Resampling.BICUBIC, box=box).save(sink, "JPEG")
        (folder / f"{number:06d}.jpg").write_bytes(sink.getvalue())


def _cpu() -> str:
    text = Path("/proc/cpuinfo")
    if not text.exists():
        return platform.processor()
    names = [line for line in text.read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


if __name__ == "__main__":
    main()
