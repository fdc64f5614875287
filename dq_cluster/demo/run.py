"""The demo, stage by stage. Each stage is the package's own workload with small settings."""

import math
import os
from pathlib import Path
from typing import Any

import ray

from dq_cluster.config import Settings
from dq_cluster.demo.journal import Journal
from dq_cluster.demo.pictures import Pictures, find_pictures
from dq_cluster.demo.queries import ask, picture_grid
from dq_cluster.demo.split import split_features
from dq_cluster.encoding.config import EncodeSettings, FeaturizeSettings, PoolSettings
from dq_cluster.encoding.featurize import featurize
from dq_cluster.encoding.run import encode
from dq_cluster.evaluate.config import EvaluateSettings
from dq_cluster.evaluate.report import Report
from dq_cluster.evaluate.version import evaluate_version
from dq_cluster.images.config import SourceSettings, ViewSettings
from dq_cluster.location import absolute
from dq_cluster.model.config import ModelSettings
from dq_cluster.run import Run
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.run import serving
from dq_cluster.storage import Storage
from dq_cluster.training.config import TrainSettings
from dq_cluster.training.run import train

SHARDS = 4
BITS = 64
_FRAGMENTS = 8  # code files, so that every shard has some of its own


class DemoRequest(Settings):
    """What decides a demo. data: what DQ_DATA names, or `public`."""

    images: int
    data: str


def run_demo(folder: Path, images: int) -> dict[str, Any]:
    """Pictures in, answers and `report.html` out, all below `folder`; resumable at every stage.

    Ray must be running. Returns the measured quality, the throughput of each stage, and where
    the report is.
    """
    folder = Path(absolute(str(folder)))
    run = Run(Storage(str(folder)))
    journal = Journal(run.storage)
    run.claim(
        DemoRequest(images=images, data=os.environ.get("DQ_DATA", "public")), journal.recorded
    )
    with run.at_work():
        return _run_demo(folder, images, journal)


def _run_demo(folder: Path, images: int, journal: Journal) -> dict[str, Any]:
    pictures = find_pictures(folder, images)
    at = {name: str(folder / "features" / name) for name in ("all", "database", "queries")}
    index = str(folder / "index")

    made = journal.stage("featurize", lambda: _featurize(pictures.source, at["all"]))
    sizes = journal.stage("split", lambda: split_features(at["all"], at["database"], at["queries"]))
    trained = journal.stage("train", lambda: _train(index, at["database"]))
    encoded = journal.stage(
        "encode",
        lambda: _encode(index, at["database"], trained["model"], sizes["database"], pictures),
    )
    with serving(ServeSettings(index=index, shards=SHARDS, port=0)) as url:
        served = journal.stage("serve", lambda: ask(url, pictures.source, at["queries"]))
        grid = picture_grid(url, pictures.source, at["queries"])
    measured = journal.stage(
        "evaluate",
        lambda: evaluate_version(
            EvaluateSettings(index=index, database=at["database"], queries=at["queries"])
        ),
    )
    quality = {name: value for name, value in measured.items() if name != "seconds"}
    throughput = [
        {"stage": name, "rate": result["rate"], "unit": unit, "seconds": result["seconds"]}
        for name, result, unit in (
            ("featurize", made, "images/s"),
            ("train", trained, "samples/s"),
            ("encode", encoded, "codes/s"),
            ("serve", served, "queries/s by image over HTTP, 16 clients"),
        )
    ]
    report = Report(
        title=f"dq_cluster on {pictures.title}",
        summary=(
            f"{sizes['database']:,} images as codes of {BITS} bits, served from {SHARDS} shards; "
            f"queries are {sizes['queries']:,} other images."
            + (" Green: of the query's class; red: of another." if pictures.labelled else "")
        ),
        tables={"Quality": [quality], "Throughput": throughput},
        grids={"Queries and their ten neighbours, with scores": grid},
    )
    Storage(str(folder)).write("report.html", report.to_html().encode())
    return {
        "quality": [quality],
        "throughput": throughput,
        "shards": served["shards"],
        "report": str(folder / "report.html"),
        "next": f"dq-cluster serve {index}",
    }


def _featurize(source: SourceSettings, output: str) -> dict[str, Any]:
    # Each encoder claims two CPUs, one of them for decoding; small machines declare more than
    # they have.
    encoders = max(1, min(os.cpu_count() or 1, int(ray.cluster_resources().get("CPU", 0)) // 2))
    summary = featurize(
        FeaturizeSettings(
            source=source,
            output=output,
            # Training wants some 10,000 pairs of views, and a sleeve more or less is another class.
            views=ViewSettings(fraction=0.5, min_area=0.85),
            pool=PoolSettings(encoders=encoders),
        )
    )
    return {
        "rate": summary["rows_per_second"],
        "rows": summary["rows"],
        "rejected": summary["rejected"],
    }


def _train(index: str, features: str) -> dict[str, Any]:
    card = train(
        TrainSettings(
            index=index,
            features=features,
            name="demo",
            model=ModelSettings(bits=BITS),
            workers=2,
        )
    )
    return {"rate": card.training["samples_per_s"], "model": card.digest}


def _encode(index: str, features: str, model: str, rows: int, pictures: Pictures) -> dict[str, Any]:
    columns = ("uri", *(["label"] if pictures.labelled else []))
    summary = encode(
        EncodeSettings(
            index=index,
            model=model,
            source=SourceSettings(kind="features", uri=features, columns=columns),
            fragment_rows=math.ceil(rows / _FRAGMENTS),
        )
    )
    return {"rate": summary["rows_per_second"], "version": summary["version"]}
