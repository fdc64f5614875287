"""What encoding tests share: a tiny backbone and model, and the answer computed in one process."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from onnx import TensorProto, helper

from dq_cluster.encoding.config import EncodeSettings, PoolSettings
from dq_cluster.images.backbone import load_backbone
from dq_cluster.images.config import BackboneSettings, SourceSettings
from dq_cluster.images.decode import decode_image
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import open_code_file
from dq_cluster.index.ids import concat_rows
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.models import ModelCard
from dq_cluster.model.bundle import load_model, save_model
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.storage import Storage

SIDE = 16
FEATURES = 3 * 4 * 4


def tiny_backbone(folder: Path) -> BackboneSettings:
    """Means over 4 x 4 fields of a 16 x 16 picture, as an ONNX file."""
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "fields",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", FEATURES])],
    )
    path = folder / "fields.onnx"
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return BackboneSettings(kind="onnx", path=str(path), image_size=SIDE)


def tiny_model(index: Storage, backbone: BackboneSettings) -> ModelCard:
    """A DeepQuan that was not trained, but whose codes differ from picture to picture."""
    torch.manual_seed(0)
    network = DeepQuan(ModelSettings(dim=8, bits=32, hidden=(16,)), FEATURES)
    torch.nn.init.normal_(network.codebooks, std=0.3)
    preprocessing = load_backbone(backbone).preprocessing
    return save_model(index, network, preprocessing=preprocessing, training={}, evaluation={})


def features_of(images: list[bytes], backbone: BackboneSettings) -> np.ndarray:
    pixels = np.stack([decode_image(data, SIDE) for data in images])
    return load_backbone(backbone).features(pixels)


def codes_of(index: Storage, card: ModelCard, features: np.ndarray) -> list[bytes]:
    network, _ = load_model(index, card.digest)
    return [code.tobytes() for code in network.encode(torch.from_numpy(features)).numpy()]


def settings_for(
    index: str, card: ModelCard, source: SourceSettings, **others: object
) -> EncodeSettings:
    values = {
        "index": index,
        "model": card.digest,
        "source": source,
        "fragment_rows": 20,
        "pool": PoolSettings(encoders=1, decoders=2),
    }
    return EncodeSettings.model_validate(values | others)


def encode_command(settings: EncodeSettings, config: Path) -> list[str]:
    """How to run `jobs/encode.py` from the root of the repository; `config` is written for it."""
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    return [sys.executable, "jobs/encode.py", "--config", str(config)]


def read_version(index: Storage, manifest: Manifest) -> pa.Table:
    """All rows of a version, each file checked against the manifest."""
    return concat_rows(
        [
            open_code_file(index, file, model=manifest.model, geometry=manifest.geometry).read()
            for file in manifest.files
        ]
    )


def read_rejects(index: Storage, manifest: Manifest) -> pa.Table:
    return pa.concat_tables(pq.read_table(index.open(file.path)) for file in manifest.rejects)


def current(index: str) -> tuple[Index, Manifest]:
    catalog = Index.at(index)
    return catalog, catalog.manifest()
