"""Framings cut as the libraries cut that they are read from."""

import numpy as np
import pytest
from PIL import Image

from dq_cluster.errors import ConfigError
from dq_cluster.images.framing import Framing, of_open_clip, of_timm, of_transformers

CLIP = {
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.2, 0.1],
    "resample": 3,
}


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("size", [(200, 130), (131, 200), (64, 64), (33, 500)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_is_that_of_the_whole_scaled_picture(
    size: tuple[int, int], interpolation: str
) -> None:
    framing = Framing(size=32, scale=40, interpolation=interpolation)
    image = picture(*size)
    ratio = 40 / min(size)
    width, height = (40 if side == min(size) else int(side * ratio) for side in size)
    whole = image.resize((width, height), Image.Resampling[interpolation.upper()])
    left, top = (width - 32) // 2, (height - 32) // 2
    expected = np.asarray(whole.crop((left, top, left + 32, top + 32)), int)
    found = np.asarray(framing.square(image), int)
    assert np.abs(found - expected).max() <= 2
    assert np.abs(found - expected).mean() < 0.1


def test_a_picture_that_is_a_line_takes_no_memory() -> None:
    """Scaled whole, it would have 32 × 640,000,000 pixels."""
    image = Image.new("RGB", (20_000_000, 1), (10, 20, 30))
    assert np.asarray(Framing(size=32, scale=32).square(image)).shape == (32, 32, 3)


def test_what_is_padded_keeps_its_edges() -> None:
    framing = Framing(size=32, scale=32, fit="pad", fill=(255, 0, 0), corner="round")
    pixels = np.asarray(framing.square(Image.new("RGB", (64, 32))))
    assert (pixels[8:24] == 0).all()
    assert (pixels[:8] == (255, 0, 0)).all()
    assert (pixels[24:] == (255, 0, 0)).all()


def test_what_is_squashed_is_whole() -> None:
    image = picture(90, 33)
    framing = Framing(size=16, scale=16, fit="squash")
    expected = image.resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(framing.square(image), expected)


def test_a_preprocessor_config() -> None:
    own = of_transformers(CLIP, "here")
    assert own.framing == Framing(size=32, scale=40, interpolation="bicubic")
    assert own.mean == (0.5, 0.4, 0.3)
    squash = CLIP | {"size": {"height": 24, "width": 24}, "do_center_crop": False, "resample": 2}
    assert of_transformers(squash, "here").framing == Framing(
        size=24, scale=24, fit="squash", interpolation="bilinear"
    )
    raw = of_transformers(CLIP | {"do_normalize": False}, "here")
    assert (raw.mean, raw.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch_size": 16, "max_num_patches": 256}, "NaFlex.*fixed resolution"),
        ({"size": {"height": 24, "width": 32}, "do_center_crop": False}, "no squares"),
        ({"size": {"shortest_edge": 24}, "do_center_crop": False}, "no squares"),
        ({"do_rescale": False}, "no size"),
        ({"size": {"longest_edge": 24}, "crop_size": None}, "no squares"),
    ],
)
def test_what_is_no_square_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=f"here.*{words}"):
        of_transformers(CLIP | change, "here")


def test_a_config_of_open_clip() -> None:
    config = {"size": (32, 32), "mean": (0.1, 0.2, 0.3), "std": (1, 1, 1), "resize_mode": "longest"}
    assert of_open_clip(config | {"fill_color": 7}, "here").framing == Framing(
        size=32, scale=32, fit="pad", fill=(7, 7, 7), corner="round"
    )
    with pytest.raises(ConfigError, match="only squares"):
        of_open_clip(config | {"size": (32, 24)}, "here")


def test_a_config_of_timm() -> None:
    config = {
        "input_size": (3, 224, 224),
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }
    assert of_timm(config, "here").framing.scale == 248  # 224 / 0.9, rounded down
    with pytest.raises(ConfigError, match="no square of RGB"):
        of_timm(config | {"input_size": (1, 28, 28)}, "here")
