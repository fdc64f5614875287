"""Another view of an image: cropped, mirrored, and recoloured at random.

What such a change alters in a feature says nothing about what the image shows; training uses the
difference to find the directions of a feature that do (`model.standardize`).
"""

import zlib

import numpy as np
from PIL import Image, ImageEnhance

_ASPECT = (3 / 4, 4 / 3)
_JITTER = 0.4  # brightness, contrast, and saturation change by at most this factor
_GREY = 0.1  # of the views lose their colour


def choose_for_views(pixels: np.ndarray, fraction: float) -> np.ndarray:
    """Which images (n, s, s, 3) get a second view: (n,) bool, about `fraction` of them.

    A function of the pixels alone, so that a repeated job chooses the same.
    """
    return np.array([_seed(image) < fraction * 2**32 for image in pixels], bool)


def another_view(pixels: np.ndarray, min_area: float) -> np.ndarray:
    """A view (s, s, 3) uint8 of at least `min_area` of an image (s, s, 3) uint8; the same for the
    same pixels."""
    return random_view(pixels, len(pixels), min_area, np.random.default_rng(_seed(pixels)))


def random_view(
    pixels: np.ndarray, side: int, min_area: float, random: np.random.Generator
) -> np.ndarray:
    """A view (side, side, 3) uint8 of at least `min_area` of an image (s, s, 3) uint8."""
    size = len(pixels)
    area = random.uniform(min_area, 1) * size * size
    aspect = np.exp(random.uniform(*np.log(_ASPECT)))
    width, height = min(np.sqrt(area * aspect), size), min(np.sqrt(area / aspect), size)
    left, top = random.uniform(0, size - width), random.uniform(0, size - height)
    view = Image.fromarray(pixels).resize(
        (side, side), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )
    if random.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        view = change(view).enhance(random.uniform(1 - _JITTER, 1 + _JITTER))
    if random.random() < _GREY:
        view = view.convert("L").convert("RGB")
    return np.asarray(view)


def _seed(pixels: np.ndarray) -> int:
    return zlib.crc32(pixels.tobytes())
