"""Backbones of libraries: each test makes a small network of random weights, saves it to a folder,
loads it from there as a user would, and compares features with the library's own."""

import importlib.util
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dq_cluster.errors import ConfigError, InputError, IntegrityError, NotFoundError
from dq_cluster.images.backbone import Backbone, load_backbone
from dq_cluster.images.config import BackboneSettings
from dq_cluster.images.decode import decode_image
from dq_cluster.images.torch_backbone import make_torchvision_importable

os.environ.setdefault("HF_HUB_OFFLINE", "1")
make_torchvision_importable()
LETTERS = [*"abcdefghijklmnopqrstuvwxyz 0123456789"]


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed (extra backbones)")


def pictures() -> list[Image.Image]:
    """Smooth pictures of odd shapes, so that a wrong scale or corner is seen."""
    rng = np.random.default_rng(5)
    made = []
    for width, height in [(97, 64), (64, 101), (150, 150), (41, 39)]:
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        made.append(small.resize((width, height), Image.Resampling.BICUBIC))
    return made


def features(backbone: Backbone) -> np.ndarray:
    squares = []
    for picture in pictures():
        sink = io.BytesIO()
        picture.save(sink, "PNG")
        squares.append(decode_image(sink.getvalue(), backbone.frame))
    return backbone.features(np.stack(squares))


def check(backbone: Backbone, theirs: np.ndarray, within: float = 1e-3) -> None:
    """As near as `within` of the feature; and the card's own words give the same, to the bit."""
    ours = features(backbone)
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert error.max() < within, error
    assert np.abs(theirs - theirs.mean(0)).max() > 0.01  # features that tell pictures apart
    said = json.loads(json.dumps(backbone.preprocessing))
    again = load_backbone(said)
    assert again.preprocessing == backbone.preprocessing
    np.testing.assert_array_equal(features(again), ours)


def towers() -> dict[str, Any]:
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision = small | {"image_size": 32, "patch_size": 8}
    marks = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = small | {"vocab_size": 64, "max_position_embeddings": 24} | marks
    return {"text_config": text, "vision_config": vision}


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate(["<s>", "</s>", "?", *LETTERS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="?"
    ).save_pretrained(folder)


def stretched(network: Any) -> Any:
    """With larger weights: those of a new network tell pictures apart by too little."""
    with torch.no_grad():
        for weights in network.parameters():
            if weights.ndim > 1:
                weights.mul_(2)
    return network.eval()


def save_clip(folder: Path) -> Any:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(1)
    network = stretched(CLIPModel(CLIPConfig(**towers(), projection_dim=16)))
    network.save_pretrained(folder)
    size = {"shortest_edge": 40}, {"height": 32, "width": 32}
    CLIPImageProcessor(size=size[0], crop_size=size[1]).save_pretrained(folder)
    save_tokenizer(folder)
    return network


def save_siglip(folder: Path) -> Any:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(2)
    network = stretched(SiglipModel(SiglipConfig(**towers())))
    network.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    save_tokenizer(folder)
    return network


def save_dinov2(folder: Path) -> Any:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(3)
    vision = towers()["vision_config"]
    network = stretched(Dinov2Model(Dinov2Config(**vision)))
    network.save_pretrained(folder)
    size = {"shortest_edge": 37}, {"height": 32, "width": 32}
    BitImageProcessor(size=size[0], crop_size=size[1]).save_pretrained(folder)
    return network


def save_dinov3(folder: Path) -> Any:
    from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel

    torch.manual_seed(4)
    vision = towers()["vision_config"]
    network = stretched(DINOv3ViTModel(DINOv3ViTConfig(**vision)))
    network.save_pretrained(folder)
    DINOv3ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return network


def of_transformers(network: Any, folder: Path) -> np.ndarray:
    """The features of the library's own path, from a picture on."""
    from transformers import AutoImageProcessor

    # Pillow scales, as it did when these models were trained; torchvision's own scaling of bytes
    # differs from it by one in some pixels.
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    given = processor(pictures(), return_tensors="pt")
    with torch.inference_mode():
        if hasattr(network, "get_image_features"):
            found = network.get_image_features(**given)
            found = F.normalize(getattr(found, "pooler_output", found), dim=1)
        else:
            found = network(**given).pooler_output
    return np.asarray(found)


@needs("transformers")
@pytest.mark.parametrize("save", [save_clip, save_siglip, save_dinov2, save_dinov3])
def test_transformers(save: Callable[[Path], Any], tmp_path: Path) -> None:
    network = save(tmp_path)
    backbone = load_backbone(BackboneSettings(kind="transformers", path=str(tmp_path)))
    assert (backbone.text is not None) == hasattr(network, "get_text_features")
    # DINOv3 scales numbers before they are rounded to bytes, which is less than one in a pixel.
    within = 5e-3 if save is save_dinov3 else 1e-3
    check(backbone, of_transformers(network, tmp_path), within)


@needs("transformers")
@pytest.mark.parametrize("save", [save_clip, save_siglip])
def test_words_of_transformers(save: Callable[[Path], Any], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    network = save(tmp_path)
    tower = load_backbone(BackboneSettings(kind="transformers", path=str(tmp_path))).text
    assert tower is not None
    texts = ["a cat", "two dogs on 3 boats"]
    siglip = save is save_siglip
    given = AutoTokenizer.from_pretrained(tmp_path)(
        texts, padding="max_length" if siglip else True, max_length=24, return_tensors="pt"
    )
    given = {"input_ids": given["input_ids"]} if siglip else dict(given)
    given.pop("token_type_ids", None)
    with torch.inference_mode():
        found = network.get_text_features(**given)
    theirs = F.normalize(getattr(found, "pooler_output", found), dim=1).numpy()
    np.testing.assert_allclose(tower.features(texts), theirs, atol=1e-5)
    assert tower.max_tokens == 24
    assert tower.tokens("cat") == 5
    with pytest.raises(InputError, match=r"text of 30 characters is 32 tokens.*reads 24; shorten"):
        tower.features(["a" * 30])
    tower.features(["a" * 30], cut=True)


@needs("transformers")
def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is no folder"):
        load_backbone(BackboneSettings(kind="transformers", path=str(tmp_path / "none")))
    with pytest.raises(InputError, match=r"backbone 'transformers' cannot be loaded: .*config"):
        load_backbone(BackboneSettings(kind="transformers", path=str(tmp_path)))


@needs("transformers")
def test_other_weights_are_refused(tmp_path: Path) -> None:
    save_dinov2(tmp_path)
    card = load_backbone(BackboneSettings(kind="transformers", path=str(tmp_path))).preprocessing
    with pytest.raises(IntegrityError, match="features of other weights"):
        load_backbone(card | {"sha256": "0" * 64})


@needs("transformers")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shorter_numbers_give_nearly_the_same(dtype: Any, tmp_path: Path) -> None:
    save_dinov2(tmp_path)
    settings = BackboneSettings(kind="transformers", path=str(tmp_path))
    exact = load_backbone(settings)
    short = load_backbone(settings.model_copy(update={"dtype": dtype}))
    assert short.preprocessing == exact.preprocessing | {"dtype": dtype}
    a, b = features(exact), features(short)
    error = np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1)
    assert 0 < error.max() < 0.2


@needs("open_clip")
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_open_clip(mode: str, tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    about = {
        "mean": [0.48, 0.45, 0.4],
        "std": [0.26, 0.26, 0.27],
        "interpolation": "bicubic",
        "resize_mode": mode,
    }
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": about})
    )
    torch.manual_seed(1)
    network = stretched(open_clip.CLIP(16, vision, text))
    save_file(network.state_dict(), tmp_path / "open_clip_model.safetensors")

    name = f"local-dir:{tmp_path}"
    theirs, prepare = open_clip.create_model_from_pretrained(name, return_transform=True)
    theirs.eval()
    words = open_clip.get_tokenizer(name)
    texts = ["a cat", "two dogs on a boat"]
    with torch.inference_mode():
        given = torch.stack([prepare(picture) for picture in pictures()])
        images = theirs.encode_image(given, normalize=True).numpy()
        said = theirs.encode_text(words(texts), normalize=True).numpy()

    backbone = load_backbone(BackboneSettings(kind="open_clip", path=str(tmp_path)))
    check(backbone, images)
    assert backbone.text is not None
    np.testing.assert_allclose(backbone.text.features(texts), said, atol=1e-5)
    with pytest.raises(InputError, match="reads 16; shorten"):
        backbone.text.features(["cat " * 30])


@needs("timm")
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_timm(mode: str, tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(1)
    network = timm.create_model("test_resnet", pretrained=False, num_classes=5)
    config = {
        "input_size": (3, 48, 48),
        "crop_pct": 0.9,
        "crop_mode": mode,
        "interpolation": "bicubic",
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.3, 0.25),
        "num_classes": 5,
    }
    network.pretrained_cfg |= config
    save_for_hf(network, tmp_path, safe_serialization=True)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0).eval()
    own = timm.data.resolve_model_data_config(theirs)
    prepare = timm.data.create_transform(**own)
    with torch.inference_mode():
        expected = theirs(torch.stack([prepare(picture) for picture in pictures()])).numpy()
    backbone = load_backbone(BackboneSettings(kind="timm", path=str(tmp_path)))
    assert backbone.image_size == 48
    check(backbone, expected)
    other = load_backbone(
        BackboneSettings(kind="timm", path=str(tmp_path), image_size=32, mean=(0, 0, 0))
    )
    assert other.image_size == 32
    assert other.preprocessing["framing"]["scale"] == 35  # 53 of 48 pixels, of 32
    assert other.preprocessing["mean"] == [0, 0, 0]
    assert other.preprocessing["std"] == [0.2, 0.3, 0.25]


def test_settings_that_contradict() -> None:
    with pytest.raises(ValueError, match="needs path: the folder of a saved model; or name"):
        BackboneSettings(kind="transformers")
    with pytest.raises(ValueError, match="path and name: give one"):
        BackboneSettings(kind="timm", path="/a", name="b")


def test_onnx_computes_with_its_own_numbers() -> None:
    with pytest.raises(ConfigError, match="dtype float16 and compile are of backbones that torch"):
        load_backbone(BackboneSettings(dtype="float16"))
