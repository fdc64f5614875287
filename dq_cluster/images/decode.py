"""Encoded bytes become the square of pixels a backbone sees, or are rejected with a reason."""

import io
import struct
import warnings
from enum import StrEnum

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dq_cluster.errors import DqError
from dq_cluster.images.config import ImageLimits
from dq_cluster.images.formats import READABLE


class Reason(StrEnum):
    """Why an input did not become a code. The vocabulary is closed: reports group by it."""

    MISSING = "missing"  # named, but not there; or a null value
    EMPTY = "empty"  # zero bytes
    TOO_LARGE = "too_large"  # more bytes than allowed
    TOO_MANY_PIXELS = "too_many_pixels"  # a decompression bomb, or simply too big
    NOT_AN_IMAGE = "not_an_image"  # no known image format
    TRUNCATED = "truncated"  # the data end early
    CORRUPT = "corrupt"  # the data contradict the format
    CRASHED_DECODER = "crashed_decoder"  # it kills the process that decodes it, or takes too long
    FORBIDDEN = "forbidden"  # the address is not one that may be fetched
    UNREACHABLE = "unreachable"  # the address did not answer, in time or with an image
    UNREADABLE_FILE = "unreadable_file"  # the tar or Parquet file around it is damaged
    BAD_FEATURE = "bad_feature"  # null, of another dimension, or not finite
    NO_ID = "no_id"  # a null id
    DUPLICATE_ID = "duplicate_id"  # the id came before in the same fragment


class RejectError(DqError):
    """One input cannot be encoded, and why. `reason` is what the rejects file holds."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason

    def __reduce__(self) -> tuple[type["RejectError"], tuple[Reason]]:
        return type(self), (self.reason,)  # exceptions are pickled by their message otherwise


def decode_image(data: bytes, size: int, limits: ImageLimits | None = None) -> np.ndarray:
    """Decode to (size, size, 3) uint8 RGB: shorter side scaled to `size`, centre cropped.

    Transparency is laid over white, 16-bit depth is scaled to 8, animations give their first
    frame, and EXIF orientation is applied. Raises RejectError.
    """
    limits = limits or ImageLimits()
    if not data:
        raise RejectError(Reason.EMPTY)
    if len(data) > limits.max_bytes:
        raise RejectError(Reason.TOO_LARGE)
    try:
        with warnings.catch_warnings():
            # Pillow warns of bombs and of odd metadata; the caps above and below decide.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=READABLE) as image:
                if image.width * image.height > limits.max_pixels:
                    raise RejectError(Reason.TOO_MANY_PIXELS)
                return _square(image, size)
    except RejectError:
        raise
    except UnidentifiedImageError:
        raise RejectError(Reason.NOT_AN_IMAGE) from None
    except Image.DecompressionBombError:
        raise RejectError(Reason.TOO_MANY_PIXELS) from None
    except (OSError, EOFError, struct.error) as error:
        early = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise RejectError(Reason.TRUNCATED if early else Reason.CORRUPT) from None
    except MemoryError:
        raise
    except Exception:
        # Pillow's plugins raise whatever their parsers do on hostile data.
        raise RejectError(Reason.CORRUPT) from None


def _square(image: Image.Image, size: int) -> np.ndarray:
    # Draft mode lets libjpeg decode at 1/2, 1/4 or 1/8 scale: most of the work saved.
    shorter = min(image.size)
    image.draft("RGB", (size * image.width // shorter + 1, size * image.height // shorter + 1))
    orientation = image.getexif().get(0x0112, 1)
    shorter = min(image.size)
    left, top = (image.width - shorter) / 2, (image.height - shorter) / 2
    square = _rgb(image).resize(
        (size, size),
        Image.Resampling.BILINEAR,
        box=(left, top, left + shorter, top + shorter),
        reducing_gap=2.0,
    )
    if orientation != 1:
        # A centred square keeps its content under every EXIF orientation: turn the small one.
        square.getexif()[0x0112] = orientation
        square = ImageOps.exif_transpose(square)
    return np.asarray(square, np.uint8)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        return (np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    return (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
