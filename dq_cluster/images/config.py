"""Where images come from, how they are read, and which backbone looks at them."""

from typing import Literal

from pydantic import Field, model_validator

from dq_cluster.config import Location, LocationPrefix, Settings
from dq_cluster.images.framing import Framing
from dq_cluster.index.columns import name_problem

SourceKind = Literal["folder", "parquet", "webdataset", "inventory", "features"]
BackboneKind = Literal[
    "efficientnet-lite0", "onnx", "torchvision", "timm", "open_clip", "transformers", "none"
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageLimits(Settings):
    """An image over one of these limits is rejected.

    max_bytes: of its encoded file. max_pixels: of the decoded image. max_seconds: to fetch it, and
    again to decode it.
    """

    max_bytes: int = Field(default=64 << 20, ge=1)
    max_pixels: int = Field(default=100_000_000, ge=1)
    max_seconds: float = Field(default=20.0, gt=0)


class SourceSettings(Settings):
    """A collection of images, or of features, at `uri` (a local path or `s3://`).

    Kind `folder`: image files; the id is the path below `uri`, `label` the folder of the image.
    `parquet`: files, Parquet or Arrow, with an `image_column` of encoded bytes. `webdataset`: tars;
    the id is the key. `inventory`: such files whose `uri_column` names each image; only URIs that
    begin with a prefix in `allow` (`https://img.example.com/`, `s3://photos/`, `/data/`) are read.
    `features`: such files with a `feature_column`, or `.npy` files.

    uri: a file, a folder, or a prefix. id_column: the ids; also `row` or `path`. image_column:
    encoded images. uri_column: addresses of images. feature_column: features. columns: carried into
    the code files; `uri` is always available. allow: URI prefixes that an inventory may name.
    """

    kind: SourceKind
    uri: Location
    id_column: str = "id"
    image_column: str = "image"
    uri_column: str = "uri"
    feature_column: str = "feature"
    columns: tuple[str, ...] = ()
    limits: ImageLimits = ImageLimits()
    allow: tuple[LocationPrefix, ...] = ()

    @model_validator(mode="after")
    def _sound(self) -> "SourceSettings":
        if problem := name_problem(self.columns):
            raise ValueError(problem)
        if self.kind == "inventory" and not self.allow:
            raise ValueError("an inventory needs allow: the URI prefixes it may name")
        return self


class ViewSettings(Settings):
    """Second views of images: cropped, mirrored, and recoloured at random.

    fraction: share of the images that get one. min_area: smallest share of the image that a crop
    keeps; choose it close to 1 if the outline says what an image shows.
    """

    fraction: float = Field(default=0.2, ge=0, le=1)
    min_area: float = Field(default=0.4, gt=0, le=1)


def _absent(value: object) -> bool:
    return value is None or value is False or value == "float32"


class TextSettings(Settings):
    """The text network that belongs to an `onnx` backbone, and its tokenizer.

    path: its ONNX file. tokenizer: its `tokenizer.json`. max_tokens: how much of a text it reads;
    default: what these files say. sha256: the digest that both together must have.
    """

    path: Location | None = None
    tokenizer: Location | None = None
    max_tokens: int | None = Field(default=None, ge=2)
    sha256: str | None = None


class BackboneSettings(Settings):
    """The frozen network that turns pixels into features, and words where it has a text network.

    kind: where the network comes from. path: the file of an `onnx` backbone; for `transformers`,
    `open_clip`, and `timm` the folder that the library saved the model in. name: the model's name
    in the library, which then downloads its weights; of open_clip `MODEL/PRETRAINED`. image_size:
    the side of the square that the network sees, in pixels. framing: how pictures are scaled and
    cut. mean, std: per channel, of values in [0, 1]. What is not given of these four is the
    model's own, where it comes from a library or an ONNX file has `preprocessor_config.json`
    beside it. sha256: the digest that the
    weights must have. weights: a safetensors file that `train` with `finetune` made, instead of the
    pretrained ones. threads: of the runtime on CPU; 0 lets
    it choose. dtype: numbers that the network computes with. compile: by torch.compile. text: of an
    `onnx` backbone; default: `text_model.onnx` and `tokenizer.json` beside it, where they exist.
    """

    kind: BackboneKind = "efficientnet-lite0"
    path: Location | None = None
    name: str | None = None
    image_size: int = Field(default=128, ge=8, le=2048)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    sha256: str | None = None
    threads: int = Field(default=0, ge=0)
    # Not written where they are unset: what was stored before they existed stays the same.
    weights: Location | None = Field(default=None, exclude_if=_absent)
    framing: Framing | None = Field(default=None, exclude_if=_absent)
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", exclude_if=_absent)
    compile: bool = Field(default=False, exclude_if=_absent)
    text: TextSettings | None = Field(default=None, exclude_if=_absent)

    @model_validator(mode="after")
    def _complete(self) -> "BackboneSettings":
        if self.kind == "onnx" and not self.path:
            raise ValueError("backbone 'onnx' needs path: the ONNX file")
        if self.kind == "torchvision" and not self.name:
            raise ValueError("backbone 'torchvision' needs name: the model's name there")
        if self.kind in ("timm", "open_clip", "transformers") and not (self.path or self.name):
            raise ValueError(
                f"backbone '{self.kind}' needs path: the folder of a saved model; or name: the "
                "model's name there, whose weights are then downloaded"
            )
        if self.path and self.name:
            raise ValueError(f"backbone '{self.kind}' has path and name: give one of them")
        return self
