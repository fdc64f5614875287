"""Training pays: on real photographs DeepQuan's codes beat PQ's and exact search on the features.

A small version of what docs/experiments.md measures: CIFAR-10, where it lies beside the repository.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dq_cluster.evaluate.compare import EXACT, compare
from dq_cluster.images.backbone import load_backbone
from dq_cluster.images.config import BackboneSettings
from dq_cluster.images.views import another_view

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10.parquet"
DATABASE, QUERIES, K = 5000, 800, 100


@pytest.mark.skipif(not CIFAR.exists(), reason="CIFAR-10 is not beside the repository")
def test_deepquan_beats_pq_and_exact_search_on_photographs() -> None:
    table = pq.read_table(CIFAR, columns=["image", "label"])
    chosen = np.random.default_rng(0).permutation(table.num_rows)[: DATABASE + QUERIES]
    table = table.take(chosen)
    pixels = np.stack([picture(image.as_py()) for image in table["image"]])
    labels = table["label"].to_numpy()
    backbone = load_backbone(BackboneSettings(image_size=64))

    def features(images: np.ndarray) -> np.ndarray:
        return np.concatenate([backbone.features(part) for part in np.array_split(images, 60)])

    found = features(pixels)
    views = features(np.stack([another_view(image, 0.4) for image in pixels[:DATABASE]]))
    rows = compare(
        found[:DATABASE],
        labels[:DATABASE],
        found[DATABASE:],
        labels[DATABASE:],
        methods=[EXACT, "PQ", "DeepQuan"],
        bits=[64],
        seeds=[0],
        views=(found[:DATABASE], views),
        k=K,
    )
    quality = {row.method: row.map[0] for row in rows}
    # The margins at full size are above five points; at this size some of that is left.
    assert quality["DeepQuan"] > quality["PQ"] + 0.02
    assert quality["DeepQuan"] > quality[EXACT] + 0.01


def picture(data: bytes) -> np.ndarray:
    with Image.open(BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))
