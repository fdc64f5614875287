"""Training from pixels: which blocks learn, and that dividing a step leaves its result as it is."""

import copy
from pathlib import Path

import pytest
import torch

from dq_cluster.errors import ConfigError
from dq_cluster.images.backbone import load_backbone, tuned_weights
from dq_cluster.images.config import BackboneSettings
from dq_cluster.images.trainable import Trainable, save_weights
from dq_cluster.images.units import Unit
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.losses import Share, whole
from dq_cluster.storage import Storage
from dq_cluster.training import pixels
from dq_cluster.training.view_stream import chunks, remaining

SIDE, IMAGES = 32, 24
MODEL = ModelSettings(bits=16, nbits=4, dim=16, hidden=(16,), components=16)


@pytest.fixture(scope="module")
def network() -> pixels.Together:
    torch.manual_seed(0)
    made = pixels.Together(Trainable(BackboneSettings(image_size=SIDE), 1), MODEL)
    pixels.start(made, [pair(seed) for seed in range(2)], seed=0)
    return made


def pair(seed: int) -> pixels.Pair:
    generator = torch.Generator().manual_seed(seed)
    one = torch.randint(0, 256, (IMAGES, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    return one, one.flip(2)


def gradients(network: pixels.Together, micro: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    own = copy.deepcopy(network)
    pixels.backward(own, pair(7), whole(IMAGES), 0.3, micro)
    found = [p.grad for p in own.trained() if p.grad is not None]
    assert len(found) == len(own.trained()), "a trained parameter got no gradient"
    return found, own.head.codebooks


def test_micro_batches_change_nothing(network: pixels.Together) -> None:
    at_once, books = gradients(network, IMAGES)
    pieces, same = gradients(network, 7)
    torch.testing.assert_close(pieces, at_once, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(same, books, atol=1e-6, rtol=0)
    assert not torch.equal(books, network.head.codebooks)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_parts_of_the_workers_add_up_to_the_loss(workers: int) -> None:
    torch.manual_seed(0)
    one, other = torch.randn(12, 16), torch.randn(12, 16)
    books = torch.randn(4, 16, 4)
    expected = pixels.contrast(one, other, books, 0.3, whole(12))
    total = torch.zeros(())
    size = 12 // workers
    for rank in range(workers):
        own = slice(rank * size, (rank + 1) * size)

        def gather(rows: torch.Tensor) -> torch.Tensor:
            everyone = pixels.coded(one, books), pixels.coded(other, books)
            return torch.cat([one, other, *everyone], dim=1)

        share = Share(own.start, own.stop, 12, gather)
        total += pixels.contrast(one[own], other[own], books, 0.3, share).loss
    torch.testing.assert_close(total, expected.loss, atol=1e-5, rtol=0)


def test_only_the_last_blocks_learn() -> None:
    last = Trainable(BackboneSettings(image_size=SIDE), 2)
    names = [n for n, p in last.named_parameters() if p.requires_grad]
    blocks = {name.split(".")[3] for name in names if "._blocks." in name}
    assert blocks == {"14", "15"}
    assert any("_conv_head" in name for name in names)
    everything = Trainable(BackboneSettings(image_size=SIDE), 0)
    assert all(p.requires_grad for p in everything.parameters())
    with pytest.raises(ConfigError, match="blocks 40: this backbone has 16"):
        Trainable(BackboneSettings(image_size=SIDE), 40)
    with pytest.raises(ConfigError, match="cannot be trained"):
        Trainable(BackboneSettings(kind="onnx", path="/x.onnx"), 1)


def test_a_trained_backbone_is_found_by_its_digest(
    network: pixels.Together, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DQ_CACHE", str(tmp_path / "cache"))
    trained = copy.deepcopy(network.backbone)
    with torch.no_grad():
        next(p for p in reversed(list(trained.parameters())) if p.requires_grad).add_(0.5)
    index = Storage(str(tmp_path / "index"))
    digest = save_weights(index, trained)
    settings = BackboneSettings(
        image_size=SIDE, weights=f"{index.uri}/{tuned_weights(digest)}", sha256=digest
    )
    backbone = load_backbone(settings)
    image = pair(1)[0]
    with torch.no_grad():
        expected = trained(image).numpy()
    features = backbone.features(image.numpy())
    assert abs(features - expected).max() < 1e-3
    assert (
        abs(
            features - load_backbone(BackboneSettings(image_size=SIDE)).features(image.numpy())
        ).max()
        > 0.01
    )
    # An index that was moved has the weights still.
    (tmp_path / "index").rename(tmp_path / "moved")
    moved = load_backbone(backbone.preprocessing, Storage(str(tmp_path / "moved")))
    assert moved.preprocessing == backbone.preprocessing


def test_a_stream_goes_on_where_the_checkpoint_is() -> None:
    units = [Unit(f"{i}.parquet", rows=100) for i in range(20)]
    whole_order = [u for c in chunks(units, 0, 0) for u in c.units]
    assert sorted(whole_order) == sorted(units)
    assert whole_order != [u for c in chunks(units, 1, 0) for u in c.units]
    left = remaining(units, 2, 0, seen=750, images=2000)
    rows = sum(u.rows for c in left for u in c.units) - sum(c.seen for c in left)
    assert rows == 3 * 2000 - 750  # two epochs, and one for what cannot be decoded
    assert remaining(units, 2, 0, seen=2000, images=2000)[0].epoch == 1
