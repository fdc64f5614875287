"""How a picture becomes the square of pixels that a network sees, and how libraries say it."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from dq_cluster.config import Settings
from dq_cluster.errors import ConfigError

# Squares of pixels that a scaled picture may have and be scaled whole, which is exactly what
# libraries do; a part of it differs by the rounding of a few pixels.
_WHOLE = 16
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


class Framing(Settings):
    """How the library of a network scales and cuts pictures.

    size: side of the square, in pixels. fit: `crop` scales the shorter side to `scale` pixels and
    cuts the square from the middle; `squash` scales both sides to `scale` and cuts likewise; `pad`
    scales the longer side and fills the rest with `fill`. interpolation: as Pillow names it.
    corner: where a cut begins that cannot be in the middle: `floor`, or `round` half to even.
    """

    size: int = Field(ge=8, le=2048)
    fit: Literal["crop", "squash", "pad"] = "crop"
    scale: int = Field(ge=8, le=4096)
    interpolation: Interpolation = "bicubic"
    corner: Literal["floor", "round"] = "floor"
    fill: tuple[int, int, int] = (0, 0, 0)

    def resized(self, size: int) -> "Framing":
        """The same for a square of another size."""
        return self.model_copy(
            update={"size": size, "scale": max(size, round(self.scale * size / self.size))}
        )

    def square(self, image: Image.Image) -> Image.Image:
        """The square (size, size) of an upright picture."""
        width, height = self._scaled(image.width, image.height)
        left, wide, to_left = self._span(width)
        top, high, to_top = self._span(height)
        how = Image.Resampling[self.interpolation.upper()]
        if width * height <= _WHOLE * self.size**2:
            whole = image.resize((width, height), how)
            part = whole.crop((left, top, left + wide, top + high))
        else:
            # Only what is cut out is computed, so a long and thin picture takes no more memory.
            across, down = image.width / width, image.height / height
            box = (left * across, top * down, (left + wide) * across, (top + high) * down)
            part = image.resize((wide, high), how, box=box)
        if (wide, high) == (self.size, self.size):
            return part
        square = Image.new(part.mode, (self.size, self.size), _in_mode(self.fill, part.mode))
        square.paste(part, (to_left, to_top))
        return square

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the whole picture once it is scaled."""
        if self.fit == "squash":
            return self.scale, self.scale
        if self.fit == "pad":
            ratio = max(width, height) / self.scale
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        shorter, longer = sorted((width, height))
        long = int(self.scale * longer / shorter)
        return (self.scale, long) if width <= height else (long, self.scale)

    def _span(self, length: int) -> tuple[int, int, int]:
        """Of a side of `length` pixels: where the cut begins, how long it is, and where in the
        square it goes."""
        if length < self.size:
            return 0, length, (self.size - length) // 2  # libraries pad the end more
        return self._half(length - self.size), self.size, 0

    def _half(self, rest: int) -> int:
        return round(rest / 2) if self.corner == "round" else rest // 2


def _in_mode(fill: tuple[int, int, int], mode: str) -> Any:
    """`fill` for a picture of this mode: grey has one number, CMYK the inverse."""
    if mode == "L":
        return round(sum(fill) / 3)
    return (*(255 - value for value in fill), 0) if mode == "CMYK" else fill


class Preparation(Settings):
    """A framing, and the mean and deviation of each channel, of values in [0, 1]."""

    framing: Framing
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def of_transformers(config: Mapping[str, Any], where: str) -> Preparation:
    """What a `preprocessor_config.json` of the library transformers says.

    Raises ConfigError, naming `where`, for what is not one square of every picture.
    """
    crop = _sides(config.get("crop_size"), "height", "width")
    cuts = bool(config.get("do_center_crop", crop))
    size = _sides(config.get("size"), *(["shortest_edge"] if cuts else ["height", "width"]))
    if "patch_size" in config and "max_num_patches" in config:
        raise ConfigError(
            f"{where} cuts every picture into another shape (NaFlex), and features here are of "
            "squares; use a checkpoint of a fixed resolution, such as siglip2-base-patch16-224"
        )
    if not config.get("do_rescale", True) or not size:
        raise ConfigError(f"{where} has no size, or takes pixels as they are; that is not known")
    squash = "height" in size
    scale = size["height"] if squash else size.get("shortest_edge", 0)
    side = crop.get("height", scale) if cuts else scale
    whole = squash and size.get("width") == scale
    if not scale or not (cuts or whole) or (cuts and crop.get("width", side) != side):
        raise ConfigError(
            f"{where}: the network takes no squares (size {size}, crop {crop}), and features here "
            "are of squares; use another checkpoint"
        )
    factor = 255 * float(config.get("rescale_factor", 1 / 255))
    normal = config.get("do_normalize", True)
    return Preparation(
        framing=Framing(
            size=side,
            scale=scale,
            fit="squash" if squash else "crop",
            interpolation=_resample(config.get("resample", Image.Resampling.BICUBIC)),
        ),
        mean=_three([m / factor for m in config["image_mean"]] if normal else [0.0] * 3),
        std=_three([s / factor for s in config["image_std"]] if normal else [1 / factor] * 3),
    )


def of_open_clip(config: Mapping[str, Any], where: str) -> Preparation:
    """What the `preprocess_cfg` of open_clip says."""
    size = config.get("size", 224)
    side = size if isinstance(size, int) else size[0]
    if not isinstance(size, int) and len(set(size)) != 1:
        raise ConfigError(f"{where}: the network takes {size}, and only squares are known")
    mode = config.get("resize_mode") or "shortest"
    fill = config.get("fill_color") or 0
    return Preparation(
        framing=Framing(
            size=side,
            scale=side,
            fit={"shortest": "crop", "squash": "squash", "longest": "pad"}[mode],
            interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
            corner="round",
            fill=(fill, fill, fill) if isinstance(fill, int) else _three(fill),
        ),
        mean=_three(config["mean"]),
        std=_three(config["std"]),
    )


def of_timm(config: Mapping[str, Any], where: str) -> Preparation:
    """What timm's `resolve_model_data_config` says."""
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise ConfigError(f"{where}: the network takes {config['input_size']}, no square of RGB")
    mode = config.get("crop_mode") or "center"
    mean = _three(config["mean"])
    return Preparation(
        framing=Framing(
            size=height,
            scale=math.floor(height / (config.get("crop_pct") or 0.875)),
            fit={"center": "crop", "squash": "squash", "border": "pad"}[mode],
            interpolation=config["interpolation"],
            corner="round",
            fill=_three([round(255 * value) for value in mean]),
        ),
        mean=mean,
        std=_three(config["std"]),
    )


def _sides(size: Any, *names: str) -> dict[str, int]:
    """A size of transformers; a number, as old files have it, is that of the sides `names`."""
    if isinstance(size, int):
        return dict.fromkeys(names, size)
    return {name: value for name, value in dict(size or {}).items() if value is not None}


def _resample(number: Any) -> Interpolation:
    name: Interpolation = Image.Resampling(int(number)).name.lower()  # type: ignore[assignment]
    return name


def _three(values: Any) -> tuple[Any, Any, Any]:
    red, green, blue = values
    return red, green, blue
