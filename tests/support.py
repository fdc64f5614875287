"""Small real indexes for tests: faiss trains the codebooks, the index modules write the rest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import pyarrow as pa
import torch
from onnx import TensorProto, helper
from PIL import Image, ImageDraw

from dq_cluster import __version__
from dq_cluster.geometry import CodeGeometry, Metric
from dq_cluster.images.backbone import Backbone, load_backbone
from dq_cluster.images.config import BackboneSettings
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import code_table, write_code_file
from dq_cluster.index.ids import common_type, narrowed
from dq_cluster.index.manifest import Manifest, Producer
from dq_cluster.index.models import ModelCard, read_tensors, write_model
from dq_cluster.model.bundle import load_model, save_model
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.fit import fit_anchors, learn_to_decode
from dq_cluster.search.placement import plan_shards
from dq_cluster.search.segment_store import SegmentStore
from dq_cluster.search.shard import LoadedShard
from dq_cluster.storage import Storage


def make_vectors(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Clustered vectors (rows, dim) float32; a third of them are exact copies of others."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(16, dim))
    vectors = centres[rng.integers(16, size=rows)] + 0.3 * rng.normal(size=(rows, dim))
    copies = rng.integers(rows, size=rows // 3)
    vectors[rng.integers(rows, size=rows // 3)] = vectors[copies]
    return vectors.astype(np.float32)


def train_model(index: Index, vectors: np.ndarray, geometry: CodeGeometry) -> ModelCard:
    """A model whose network is the identity: features are embeddings."""
    tensors = {"codebooks": train_words(vectors, geometry)}
    if geometry.refine is not None:
        tensors["refine_codebooks"] = train_words(vectors, geometry.refine)
    if geometry.nlist:
        coarse = faiss.Kmeans(geometry.dim, geometry.nlist, niter=2, min_points_per_centroid=1)
        coarse.train(vectors)
        tensors["coarse_centroids"] = coarse.centroids
    return write_model(
        index.storage,
        tensors,
        geometry=geometry,
        feature_dim=geometry.dim,
        network={"kind": "identity"},
        preprocessing={},
        training={},
        evaluation={},
    )


def train_words(vectors: np.ndarray, geometry: CodeGeometry) -> np.ndarray:
    """Codebooks (m, ksub, dsub) by a few rounds of k-means."""
    pq = _quantizer(geometry)
    pq.cp.niter, pq.cp.verbose, pq.cp.min_points_per_centroid = 2, False, 1
    pq.train(vectors)
    centroids = faiss.vector_to_array(pq.centroids)
    return centroids.reshape(geometry.m, geometry.ksub, geometry.dsub)


def encode(
    vectors: np.ndarray, tensors: dict[str, np.ndarray], geometry: CodeGeometry
) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes (n, code_size) and, for an IVF geometry, cells (n,)."""
    pq = _quantizer(geometry)
    faiss.copy_array_to_vector(tensors["codebooks"].ravel(), pq.centroids)
    codes = pq.compute_codes(vectors)
    if not geometry.nlist:
        return codes, None
    coarse = faiss.IndexFlat(geometry.dim, faiss.METRIC_L2)
    coarse.add(tensors["coarse_centroids"])
    return codes, coarse.search(vectors, 1)[1][:, 0]


def make_index(
    uri: str,
    *,
    rows: int = 2000,
    dim: int = 16,
    m: int = 4,
    nbits: Literal[4, 8] = 8,
    metric: Metric = "l2",
    nlist: int = 0,
    refine_m: int = 0,
    files: int = 8,
    seed: int = 0,
    string_ids: bool = False,
    carried: bool = True,
    card: ModelCard | None = None,
    embeddings: np.ndarray | None = None,
    uris: Sequence[str] | None = None,
    ids: Sequence[int] | None = None,
    first_id: int | None = None,
) -> tuple[Index, Manifest, np.ndarray]:
    """Publish a version of `rows` codes in `files` files; returns the vectors that were encoded.

    Carried columns: `label` (row number modulo 10) and `uri`. `card` names a stored model;
    `embeddings` (rows, dim) are encoded instead of made-up vectors, `ids` are given instead of the
    rows' numbers.
    """
    index = Index.at(uri)
    geometry = CodeGeometry(
        dim=dim, m=m, nbits=nbits, metric=metric, nlist=nlist, refine_m=refine_m
    )
    vectors = make_vectors(rows, dim, seed) if embeddings is None else embeddings
    if card is None:
        card = train_model(index, vectors[: max(300, 1 << nbits)], geometry)
    tensors = read_tensors(index.storage, card)
    codes, cells = encode(vectors, tensors, geometry)
    second = None
    if geometry.refine is not None:
        second, _ = encode(vectors, {"codebooks": tensors["refine_codebooks"]}, geometry.refine)
    entries, id_types = [], set()
    for number, part in enumerate(np.array_split(np.arange(rows), files)):
        first = seed * 1_000_000 if first_id is None else first_id
        numbers = pa.array(part.astype(np.int64) + first)
        if ids is not None:
            numbers = narrowed(pa.array([ids[row] for row in part], pa.uint64()))
        id_types.add("string" if string_ids else str(numbers.type))
        columns = pa.table(
            {
                "label": pa.array(part % 10, pa.int64()),
                "uri": pa.array([uris[row] if uris else f"images/{row}.png" for row in part]),
            }
        )
        table = code_table(
            numbers.cast(pa.string()) if string_ids else numbers,
            codes[part],
            geometry,
            columns if carried else None,
            None if cells is None else cells[part],
            None if second is None else second[part],
        )
        path = f"data/seed{seed}/part-{number:05d}.parquet"
        entries.append(
            write_code_file(index.storage, path, table, model=card.digest, geometry=geometry)
        )
    manifest = index.publish(
        lambda version, parent: Manifest(
            version=version,
            parent=parent,
            model=card.digest,
            geometry=geometry,
            id_type=common_type(id_types, entries),
            columns=("label", "uri") if carried else (),
            files=tuple(entries),
            rows=rows,
            producer=Producer(dq_cluster=__version__, run=f"seed{seed}"),
        )
    )
    return index, manifest, vectors


def shards_of(index: Index, manifest: Manifest, count: int) -> list[LoadedShard]:
    """A version, loaded in `count` shards."""
    store = SegmentStore(index)
    return [LoadedShard(store, index, manifest, each) for each in plan_shards(manifest, count)]


def _quantizer(geometry: CodeGeometry) -> faiss.ProductQuantizer:
    return faiss.ProductQuantizer(geometry.dim, geometry.m, geometry.nbits)


FEATURE_DIM = 12


def make_model(
    uri: str,
    *,
    dim: int = 16,
    m: int = 4,
    nbits: Literal[4, 8] = 8,
    metric: Metric = "l2",
    refine_bits: int = 0,
    decode_hidden: int = 0,
    seed: int = 0,
    preprocessing: dict[str, Any] | None = None,
    feature_dim: int = FEATURE_DIM,
    words: tuple[dict[str, Any], Mapping[str, np.ndarray]] | None = None,
) -> ModelCard:
    """A DeepQuan with random weights and codebooks trained by faiss, stored below the index."""
    settings = ModelSettings(
        bits=m * nbits,
        nbits=nbits,
        refine_bits=refine_bits,
        decode_hidden=decode_hidden,
        dim=dim,
        metric=metric,
        hidden=(24,),
        components=feature_dim,
    )
    torch.manual_seed(seed)
    network = DeepQuan(settings, feature_dim)
    with torch.no_grad():
        embedding = network.embed(torch.from_numpy(make_vectors(600, feature_dim, seed)))
    sample = embedding.numpy()
    network.codebooks.copy_(torch.from_numpy(train_words(sample, settings.geometry)))
    if settings.score_aware:
        fit_anchors(network, embedding, seed=seed)
    if (second := settings.geometry.refine) is not None:
        network.refine_codebooks.copy_(torch.from_numpy(train_words(sample, second)))
    if decode_hidden:
        learn_to_decode(network, embedding, seed=seed)
    return save_model(
        Storage(uri),
        network,
        preprocessing=preprocessing or {},
        training={},
        evaluation={},
        words=words,
    )


def make_version(
    uri: str,
    card: ModelCard,
    *,
    rows: int = 2000,
    files: int = 8,
    seed: int = 0,
    features: np.ndarray | None = None,
    uris: Sequence[str] | None = None,
    ids: Sequence[int] | None = None,
) -> tuple[Manifest, np.ndarray]:
    """Publish a version of features encoded by a model of `make_model`; returns the features."""
    if features is None:
        features = make_vectors(rows, card.feature_dim, seed)
    rows = len(features)
    network, _ = load_model(Storage(uri), card.digest)
    with torch.no_grad():
        embeddings = network.embed(torch.from_numpy(features)).numpy()
    geometry = card.geometry
    _, manifest, _ = make_index(
        uri,
        rows=rows,
        dim=geometry.dim,
        m=geometry.m,
        nbits=geometry.nbits,
        metric=geometry.metric,
        refine_m=geometry.refine_m,
        files=files,
        seed=seed,
        card=card,
        embeddings=embeddings,
        uris=uris,
        ids=ids,
    )
    return manifest, features


def make_pictures(folder: Path, count: int) -> list[Path]:
    """Small PNG files: discs of different colours and sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(4)
    paths = []
    for number in range(count):
        image = Image.new("RGB", (48, 40), tuple(rng.integers(0, 256, 3).tolist()))
        radius = int(rng.integers(5, 18))
        box = (24 - radius, 20 - radius, 24 + radius, 20 + radius)
        ImageDraw.Draw(image).ellipse(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
        paths.append(folder / f"{number}.png")
        image.save(paths[-1])
    return paths


def make_backbone(path: Path, size: int = 8) -> Backbone:
    """A backbone whose features are the pixels of a `size` × `size` picture, as an ONNX file."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, size, size])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3 * size * size])
    node = helper.make_node("Flatten", ["images"], ["features"])
    graph = helper.make_graph([node], "pixels", [images], [features])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return load_backbone(BackboneSettings(kind="onnx", path=str(path), image_size=size))
