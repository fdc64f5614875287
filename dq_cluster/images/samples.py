"""Samples of any depth and kind become 8 bits of grey, RGB, or CMYK, without transparency.

Unsigned samples of up to 16 bits use the whole range of their depth, however little of it a picture
uses. For floats, signed numbers, and 32 bits there is no such rule; `open_ended` is ours.
"""

import numpy as np
from PIL import Image

from dq_cluster.images.metadata import Essence

_RANGES = (1, 255, 65535)  # in which floats and wide integers usually lie
_ROOM = 0.01  # what resampling may add to a range at both ends, as a share of it
_FILLED = 1 / 16  # of a range, at least, for the values to be taken for values in it
_MISSING = 1e30  # and beyond: marks of missing values, such as the lowest float


def eight_bits(image: Image.Image, about: Essence) -> Image.Image:
    """A loaded picture in the mode L, RGB, or CMYK. Transparency is laid over white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(_sixteen(image, about))
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        if about.bits == 32 and about.kind == 1:
            values = values.view(np.uint32)
        if image.format == "PPM" and image.mode == "I":  # Pillow scales it to 16 bits
            return Image.fromarray((values >> 8).astype(np.uint8))
        grey = open_ended(values)
        return Image.fromarray(255 - grey if about.inverted else grey)
    if about.kind == 2 and image.mode == "L":
        return Image.fromarray(open_ended(np.asarray(image).view(np.int8)))
    if image.has_transparency_data:
        if image.format == "BMP" and image.getchannel("A").getextrema() == (0, 0):
            return image.convert("RGB")  # written by what knows of no alpha
        clear = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _sixteen(image: Image.Image, about: Essence) -> np.ndarray:
    values = np.asarray(image).astype(np.uint16)
    if about.bits == 12:
        values <<= 4
    if about.inverted:
        values = 65535 - values
    if "transparency" in image.info:
        values = np.where(values == image.info["transparency"], 65535, values)
    return (values >> 8).astype(np.uint8)


def open_ended(values: np.ndarray) -> np.ndarray:
    """Grey in 8 bits of numbers without a range of their own.

    Numbers from 0 to 1, 255, or 65535 that reach a sixteenth of the range keep its scale. All
    others are stretched from their smallest to their largest. What is not a number is black.
    """
    with np.errstate(invalid="ignore"):  # of NaN
        values = values.astype(np.float64)
    valid = np.abs(values) < _MISSING
    if not valid.any():
        return np.zeros(values.shape, np.uint8)
    low, high = values[valid].min(), values[valid].max()
    for limit in _RANGES:
        room = limit * _ROOM
        if low >= -room and limit * _FILLED <= high <= limit + room:
            low, high = 0, limit
            break
    scaled = (np.where(valid, values, low) - low) * (255 / max(high - low, 1e-30))
    return scaled.clip(0, 255).round().astype(np.uint8)
