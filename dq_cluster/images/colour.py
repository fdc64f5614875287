"""Colour management: from an embedded profile to sRGB."""

import contextlib
import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from dq_cluster.images.metadata import MOST_PROFILE

_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}
_NEGLIGIBLE = 3  # of 255; many pictures carry a profile of sRGB, in many versions
_WHITE = 235  # what white becomes at least, in a profile that is not damaged


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An image in the mode L, RGB, or CMYK as RGB. A profile that is damaged, or one of another
    kind of colours, counts as missing."""
    transform = _transform(profile, image.mode) if len(profile) <= MOST_PROFILE else None
    if transform is None:
        return image.convert("RGB")
    return transform.apply(image)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile's colours to sRGB; None where plain conversion does as well."""
    with contextlib.suppress(Exception):  # parsers raise anything on hostile data
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        white = Image.new(mode, (1, 1), (0, 0, 0, 0) if mode == "CMYK" else "white")
        if np.asarray(transform.apply(white)).min() < _WHITE:
            return None
        probe = _probe(mode)
        change = np.asarray(transform.apply(probe), int) - np.asarray(probe.convert("RGB"), int)
        if abs(change).max() > _NEGLIGIBLE:
            return transform
    return None


def _probe(mode: str) -> Image.Image:
    """Colours from everywhere in a mode."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    steps = np.linspace(0, 255, 256 if channels == 1 else 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[steps] * channels), axis=-1).reshape(1, -1, channels)
    return Image.fromarray(grid if channels > 1 else grid[..., 0], mode)
