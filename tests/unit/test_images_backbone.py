"""A backbone describes itself, and can be loaded again from what it said."""

import importlib.util
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dq_cluster.errors import (
    ConfigError,
    InputError,
    IntegrityError,
    NotFoundError,
    StorageRefusedError,
)
from dq_cluster.images.backbone import cached, load_backbone
from dq_cluster.images.config import BackboneSettings
from dq_cluster.images.decode import decode_image
from dq_cluster.images.framing import Framing
from dq_cluster.images.weights import once
from tests.pictures import crops
from tests.texts import save_tokenizer, text_graph


def pixels(count: int, size: int) -> np.ndarray:
    return np.stack([decode_image(data, size) for data in crops(count)])


def pooling_graph(path: Path, kind: int, shape: list[object], axes: list[int]) -> Path:
    """An ONNX file that takes the mean of each channel."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["y"], axes=axes, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


def made(target: Path) -> None:
    target.write_bytes(b"graph")


def refuse(target: Path) -> None:
    pytest.fail("made twice")


def test_what_is_made_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQ_CACHE", str(tmp_path / "cache"))
    assert cached("graph.onnx", made) == b"graph"
    assert cached("graph.onnx", refuse) == b"graph"
    monkeypatch.setenv("DQ_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cached("graph.onnx", made) == b"graph"
    assert cached("graph.onnx", refuse) == b"graph"
    assert (tmp_path / "home/.cache/dq-cluster/graph.onnx").read_bytes() == b"graph"


@pytest.mark.parametrize("home", ["/proc/x", "{file}"])
def test_without_a_home_it_is_made_again_with_a_word(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    home = home.format(file=tmp_path / "file")
    logger = logging.getLogger("dq_cluster")
    monkeypatch.setattr(logger, "propagate", True)  # as it is before a command sets logging up
    monkeypatch.setenv("DQ_CACHE", "")
    monkeypatch.setenv("HOME", home)
    assert cached("graph.onnx", made) == b"graph"
    said = caplog.messages[0]
    assert home in said
    assert "set DQ_CACHE to a folder that can be written" in said
    monkeypatch.setenv("DQ_CACHE", f"{home}/cache")
    with pytest.raises(StorageRefusedError, match=f"DQ_CACHE={home}/cache: .*set DQ_CACHE"):
        cached("graph.onnx", made)


def test_what_cannot_be_made_says_so_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DQ_CACHE", str(tmp_path))

    def fail(target: Path) -> None:
        raise RuntimeError("export")

    with pytest.raises(RuntimeError, match="export"):
        cached("graph.onnx", fail)


def test_efficientnet_lite0_tells_pictures_apart() -> None:
    backbone = load_backbone(BackboneSettings(image_size=64, threads=1))
    features = backbone.features(pixels(6, 64))
    assert features.shape == (6, backbone.feature_dim) == (6, 1280)
    assert features.dtype == np.float32
    again = load_backbone(backbone.preprocessing)
    assert again.preprocessing == backbone.preprocessing
    np.testing.assert_array_equal(again.features(pixels(6, 64)), features)
    assert len(np.unique(features, axis=0)) == 6


def test_an_onnx_file_that_takes_floats(tmp_path: Path) -> None:
    path = pooling_graph(tmp_path / "m.onnx", TensorProto.FLOAT, ["n", 3, 24, 24], [2, 3])
    backbone = load_backbone(BackboneSettings(kind="onnx", path=str(path), image_size=99))
    assert backbone.image_size == backbone.preprocessing["image_size"] == 24
    images = pixels(4, 24)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((images / 255 - mean) / std).mean((1, 2))
    np.testing.assert_allclose(backbone.features(images), expected, rtol=1e-3, atol=1e-4)


def test_an_onnx_file_that_takes_pixels(tmp_path: Path) -> None:
    shape = ["n", "h", "w", 3]
    path = pooling_graph(tmp_path / "m.onnx", TensorProto.UINT8, shape, [1, 2])
    backbone = load_backbone(BackboneSettings(kind="onnx", path=str(path), image_size=16))
    images = pixels(4, 16)
    np.testing.assert_allclose(backbone.features(images), images.mean((1, 2)), rtol=1e-5)


def test_other_weights_than_recorded_are_refused(tmp_path: Path) -> None:
    path = pooling_graph(tmp_path / "m.onnx", TensorProto.UINT8, ["n", 8, 8, 3], [1, 2])
    recorded = load_backbone(BackboneSettings(kind="onnx", path=str(path))).preprocessing
    pooling_graph(path, TensorProto.UINT8, ["n", 16, 16, 3], [1, 2])
    with pytest.raises(IntegrityError, match="expected"):
        load_backbone(recorded)


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="makes no features"):
        load_backbone(BackboneSettings(kind="none"))
    with pytest.raises(NotFoundError, match="does not exist"):
        load_backbone(BackboneSettings(kind="onnx", path=str(tmp_path / "none.onnx")))


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install timm, or .*dq-cluster\[backbones\]"):
        load_backbone(BackboneSettings(kind="timm", name="resnet50"))


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DQ_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageRefusedError, match=r"DQ_CACHE=.*file/cache.*Not a directory; check"):
        load_backbone(BackboneSettings())


def test_an_onnx_file_with_its_preprocessing_beside_it(tmp_path: Path) -> None:
    path = pooling_graph(tmp_path / "m.onnx", TensorProto.FLOAT, ["n", 3, 24, 24], [2, 3])
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]
    config = {
        "size": {"shortest_edge": 30},
        "crop_size": {"height": 24, "width": 24},
        "image_mean": mean,
        "image_std": std,
        "resample": 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    backbone = load_backbone(BackboneSettings(kind="onnx", path=str(path)))
    assert backbone.frame == Framing(size=24, scale=30)
    images = np.stack([decode_image(data, backbone.frame) for data in crops(4)])
    expected = (images / 255 - mean).mean((1, 2)) / std
    np.testing.assert_allclose(backbone.features(images), expected, rtol=1e-3, atol=1e-4)
    (tmp_path / "preprocessor_config.json").unlink()  # the card knows
    assert load_backbone(backbone.preprocessing).frame == backbone.frame
    wrong = BackboneSettings(kind="onnx", path=str(path), framing=Framing(size=32, scale=32))
    with pytest.raises(InputError, match=r"takes squares of 24 pixels, and framing makes.*32"):
        load_backbone(wrong)


def test_an_onnx_file_with_a_text_network_beside_it(tmp_path: Path) -> None:
    path = pooling_graph(tmp_path / "m.onnx", TensorProto.FLOAT, ["n", 3, 24, 24], [2, 3])
    text_graph(tmp_path / "text_model.onnx", 4)
    save_tokenizer(tmp_path / "tokenizer.json", ("?", "cat", "dog", "boat"))
    backbone = load_backbone(BackboneSettings(kind="onnx", path=str(path)))
    assert backbone.text is not None
    together = backbone.text.features(["cat", "dog boat cat"])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    for row, alone in enumerate(["cat", "dog boat cat"]):  # padding changes nothing
        np.testing.assert_allclose(backbone.text.features([alone])[0], together[row], rtol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(backbone.features(pixels(3, 24)), axis=1), 1, rtol=1e-5
    )
    assert load_backbone(backbone.preprocessing).preprocessing == backbone.preprocessing
    text_graph(tmp_path / "text_model.onnx", 5)
    with pytest.raises(IntegrityError, match=r"text_model.onnx and .*tokenizer.json hash to"):
        load_backbone(backbone.preprocessing)


def test_weights_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQ_CACHE", str(tmp_path / "cache"))
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "weights").write_bytes(b"1")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: once(tmp_path / "kept", make), range(8)))
    assert len(made) == 1
    (tmp_path / "kept" / ".complete").unlink()  # as if the process had ended in between
    once(tmp_path / "kept", make)
    assert len(made) == 2
