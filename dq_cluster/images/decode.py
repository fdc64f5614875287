"""Encoded bytes become the square of pixels for a backbone, or are rejected with a reason."""

import importlib
import io
import re
import struct
import warnings

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from dq_cluster.images.colour import to_srgb
from dq_cluster.images.config import ImageLimits
from dq_cluster.images.containers import essence
from dq_cluster.images.formats import HEAD, PLUGINS, advice, identify, is_readable
from dq_cluster.images.framing import Framing
from dq_cluster.images.metadata import Essence
from dq_cluster.images.rejects import Reason, RejectError
from dq_cluster.images.samples import eight_bits

__all__ = ["Reason", "RejectError", "decode_image"]

_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}
# How to turn pixels that were stored with each orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# libtiff gives samples in the order of this machine; Pillow's names for them forget that for some.
_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
_CUT = re.compile("truncated|EOF|requires a buffer", re.I)
_UNSUPPORTED = re.compile("unsupported|not yet supported|cannot handle|unknown pixel mode", re.I)

# Pillow warns of bombs and of odd files; here limits decide, and reasons tell.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode_image(
    data: bytes, frame: int | Framing, limits: ImageLimits | None = None
) -> np.ndarray:
    """Decode to (size, size, 3) uint8 sRGB, as `frame` says.

    A number is the size: the shorter side is scaled to it, and the square is cut from the middle;
    of large JPEGs only as much is decoded as that needs. A Framing does what a library does.
    Transparency is laid over white, other depths are scaled to 8 bits (see `samples`), animations
    give their first frame, orientation is applied, and colours are converted from the embedded
    profile. Raises RejectError.
    """
    limits = limits or ImageLimits()
    if not data:
        raise RejectError(Reason.EMPTY)
    if len(data) > limits.max_bytes:
        raise RejectError(Reason.TOO_LARGE)
    name = identify(data[:HEAD])
    if name is None:
        raise RejectError(Reason.NOT_AN_IMAGE)
    if not is_readable(name):
        raise RejectError(Reason.UNSUPPORTED_FORMAT, advice(name))
    try:
        about = essence(data, name)
        with _open(about.data, name) as image:
            if image.width * image.height > limits.max_pixels:
                raise RejectError(Reason.TOO_MANY_PIXELS)
            return _square(image, about, frame)
    except RejectError:
        raise
    except Image.DecompressionBombError:
        raise RejectError(Reason.TOO_MANY_PIXELS) from None
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's plugins raise any exception on hostile data.
        if isinstance(error, EOFError | struct.error) or _CUT.search(str(error)):
            raise RejectError(Reason.TRUNCATED) from None
        if _UNSUPPORTED.search(str(error)):
            detail = f"this kind of {name} is not read: {error}"
            raise RejectError(Reason.UNSUPPORTED_FORMAT, detail) from None
        raise RejectError(Reason.CORRUPT) from None


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    if name in _READERS:
        return _READERS[name](io.BytesIO(data))
    plugin = importlib.import_module(PLUGINS[name])
    if name == "HEIC":
        plugin.register_heif_opener()
    return Image.open(io.BytesIO(data), formats=["HEIF" if name == "HEIC" else "JXL"])


def _square(image: ImageFile.ImageFile, about: Essence, frame: int | Framing) -> np.ndarray:
    if isinstance(frame, int):
        # Draft mode lets libjpeg decode at 1/2, 1/4 or 1/8 scale: most of the work saved.
        shorter = min(image.size)
        image.draft(
            "RGB", (frame * image.width // shorter + 1, frame * image.height // shorter + 1)
        )
    # The readers of AVIF, HEIC, and JPEG XL tell what others were not shown.
    profile = about.profile or image.info.get("icc_profile")
    orientation = about.orientation
    if image.format == "AVIF":
        orientation = image.getexif().get(0x0112, 1)
    upright = _loaded(image, about)
    if orientation in _TURNS:
        upright = upright.transpose(_TURNS[orientation])
    if profile is None:
        upright = upright.convert("RGB")
    square = frame.square(upright) if isinstance(frame, Framing) else _middle(upright, frame)
    return np.asarray(square if profile is None else to_srgb(square, profile), np.uint8)


def _middle(upright: Image.Image, size: int) -> Image.Image:
    shorter = min(upright.size)
    left, top = (upright.width - shorter) / 2, (upright.height - shorter) / 2
    return upright.resize(
        (size, size),
        Image.Resampling.BILINEAR,
        box=(left, top, left + shorter, top + shorter),
        reducing_gap=2.0,
    )


def _loaded(image: ImageFile.ImageFile, about: Essence) -> Image.Image:
    """The pixels of an open file in the mode L, RGB, or CMYK."""
    tile = image.tile[0] if image.tile else None
    if tile and tile.codec_name == "libtiff" and isinstance(tile.args, tuple):
        raw, *rest = tile.args
        image.tile = [tile._replace(args=(_NATIVE.get(raw, raw), *rest))]
    image.load()
    picture = eight_bits(image, about)
    frame = tile.extents if tile and image.format == "GIF" else None
    if frame and frame != (0, 0, *image.size):
        # Around a frame that is smaller than the picture there is nothing to see.
        whole = Image.new("RGB", image.size, "white")
        whole.paste(picture.convert("RGB").crop(frame), frame)
        return whole
    return picture
