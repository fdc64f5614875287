"""Small pictures of indexed images.

Only an image comes out: whatever a `uri` names is decoded and encoded again, so a pile that
lists other files cannot be used to read them. Nothing is fetched over HTTP.
"""

import io

from PIL import Image

from dq_cluster.errors import DqError, NotFoundError
from dq_cluster.images.config import ImageLimits
from dq_cluster.images.decode import decode_image
from dq_cluster.storage import Storage

_SIZE = 160


def thumbnail(uri: str | None, limits: ImageLimits) -> bytes:
    """A JPEG of the middle of the image at `uri`. Raises NotFoundError where there is none."""
    folder, _, name = (uri or "").rpartition("/")
    try:
        storage = Storage(folder)
        if not folder or storage.size(name) > limits.max_bytes:
            raise NotFoundError("no picture")
        pixels = decode_image(storage.read(name), _SIZE, limits)
    except DqError:
        raise NotFoundError("the index names no readable picture for this image") from None
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=85)
    return out.getvalue()
