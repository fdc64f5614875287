"""An image that a user asks with is decoded as those of a pile are, and refused with advice."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dq_cluster.errors import InputError
from dq_cluster.images.backbone import load_backbone
from dq_cluster.images.decode import decode_image
from dq_cluster.images.framing import Framing
from dq_cluster.serve.embed import Embedder
from dq_cluster.storage import Storage
from tests import rasters
from tests.encoding import tiny_backbone, tiny_model


@pytest.fixture
def embedder(tmp_path: Path) -> Embedder:
    storage = Storage(str(tmp_path / "index"))
    card = tiny_model(storage, tiny_backbone(tmp_path))
    return Embedder(storage, card.digest, partial(decode_image, limits=None))


def test_a_turned_picture_has_the_feature_of_the_upright_one(embedder: Embedder) -> None:
    upright = rasters.scene()
    turned = rasters.tiff(rasters.stored(upright, 6), tags=[(274, 3, [6])])
    expected = embedder.feature(rasters.png(upright))
    np.testing.assert_array_equal(embedder.feature(turned), expected)


def test_a_query_is_cut_as_the_pile_was(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "index"))
    framing = Framing(size=16, scale=24, interpolation="bicubic")
    settings = tiny_backbone(tmp_path).model_copy(update={"framing": framing})
    card = tiny_model(storage, settings)
    embedder = Embedder(storage, card.digest, partial(decode_image, limits=None))
    backbone, picture = load_backbone(settings), rasters.png(rasters.scene())
    encoded, plain = (
        backbone.features(decode_image(picture, frame)[None]) for frame in (framing, framing.size)
    )
    np.testing.assert_array_equal(embedder.feature(picture), encoded)
    assert not np.allclose(encoded, plain)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"8BPS\0\1" + bytes(60), "cannot be read: unsupported_format .*PSD.*JPEG or PNG"),
        (rasters.png(rasters.scene())[:99], "cannot be read: truncated$"),
        (b"a cat", "cannot be read: not_an_image$"),
        (
            rasters.tiff(rasters.scene().astype(np.float32), 32, kind=3),
            "unsupported_format .*kind of TIFF",
        ),
    ],
    ids=["psd", "cut", "text", "float rgb"],
)
def test_an_image_that_cannot_be_read_is_refused_with_advice(
    embedder: Embedder, data: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        embedder.feature(data)
