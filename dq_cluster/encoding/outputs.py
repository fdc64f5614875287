"""What an encoder actor computes from a chunk, and the file of a fragment: codes or features.

Plain picklable descriptions; `open` loads the networks where the work is done.
"""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch

from dq_cluster.encoding.load import Expectation
from dq_cluster.images.backbone import PREPROCESSING, Backbone, load_backbone
from dq_cluster.images.config import BackboneSettings, ViewSettings
from dq_cluster.images.views import another_view, choose_for_views
from dq_cluster.index.codefile import code_table, write_code_file, write_parquet
from dq_cluster.index.manifest import FileEntry
from dq_cluster.index.models import ModelCard, read_tensors
from dq_cluster.index.thumbnails import COLUMN as THUMBNAIL
from dq_cluster.model.bundle import load_model
from dq_cluster.model.cells import CellFinder
from dq_cluster.storage import Storage


class Encoder(Protocol):
    """Networks in memory: payloads in, arrays with a row each out; and their file."""

    expects: Expectation

    def __call__(self, payload: np.ndarray) -> dict[str, np.ndarray]: ...

    def write(self, fragment: int, rows: pa.Table, arrays: dict[str, np.ndarray]) -> FileEntry:
        """Write the fragment's file, with the rows' `id` and carried columns."""


class Output(Protocol):
    """Describes an Encoder; travels to the actors."""

    def open(self) -> Encoder: ...


@dataclass(frozen=True)
class CodeOutput:
    """Codes of the model `digest`, as code files in `folder` of the index at `storage`."""

    storage: Storage
    digest: str
    folder: str
    from_images: bool
    columns: tuple[str, ...]
    batch_size: int | None
    threads: int

    def open(self) -> "CodeEncoder":
        return CodeEncoder(self)


class CodeEncoder:
    """Backbone, where the input is images, then DeepQuan, its second code, and the cell."""

    def __init__(self, output: CodeOutput) -> None:
        torch.set_num_threads(output.threads)
        self._output = output
        self._network, self.card = load_model(output.storage, output.digest)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network.to(self._device)
        self._backbone = None
        if output.from_images:
            self._backbone = _backbone_of(self.card, output.threads, output.storage)
        frame = self._backbone.frame if self._backbone else 0
        self.expects = Expectation(frame, self.card.feature_dim)
        self._cells: CellFinder | None = None
        if self.card.geometry.nlist:
            centroids = read_tensors(output.storage, self.card)["coarse_centroids"]
            metric = self.card.geometry.metric
            self._cells = CellFinder(torch.from_numpy(centroids).to(self._device), metric)

    def __call__(self, payload: np.ndarray) -> dict[str, np.ndarray]:
        if self._backbone is not None:
            payload = _in_batches(self._backbone, payload, self._output.batch_size)
        # Payloads come read-only out of shared memory; torch wants to be sure nobody writes.
        features = torch.from_numpy(payload.copy()).to(self._device)
        with torch.inference_mode():
            embedding = self._network.embed(features)
            arrays = {"code": self._network.code(embedding)}
            geometry = self.card.geometry
            if geometry.refine_m:
                arrays["refine_code"] = self._network.refine(embedding)
            if self._cells is not None:
                arrays["cell"] = self._cells(embedding)
        return {name: array.cpu().numpy() for name, array in arrays.items()}

    def write(self, fragment: int, rows: pa.Table, arrays: dict[str, np.ndarray]) -> FileEntry:
        geometry = self.card.geometry
        table = code_table(
            rows.column("id").combine_chunks(),
            arrays["code"],
            geometry,
            rows.select(self._output.columns),
            arrays.get("cell"),
            arrays.get("refine_code"),
        )
        # A name of its own: a second writer of the same fragment must not overwrite it.
        path = f"{self._output.folder}/part-{fragment:06d}-{uuid.uuid4().hex[:12]}.parquet"
        return write_code_file(
            self._output.storage, path, table, model=self.card.digest, geometry=geometry
        )


@dataclass(frozen=True)
class FeatureOutput:
    """Features of a backbone, as Parquet files in `storage`."""

    storage: Storage
    backbone: BackboneSettings
    views: ViewSettings
    columns: tuple[str, ...]
    batch_size: int | None
    threads: int

    def open(self) -> "FeatureEncoder":
        return FeatureEncoder(self)


class FeatureEncoder:
    """The backbone alone, on images and on a second view of some."""

    def __init__(self, output: FeatureOutput) -> None:
        self._output = output
        self._backbone = load_backbone(
            output.backbone.model_copy(update={"threads": output.threads})
        )
        self.expects = Expectation(self._backbone.frame, self._backbone.feature_dim)

    def __call__(self, payload: np.ndarray) -> dict[str, np.ndarray]:
        arrays = {"feature": self._features(payload)}
        if self._output.views.fraction:
            chosen = choose_for_views(payload, self._output.views.fraction)
            views = np.full_like(arrays["feature"], np.nan)
            if chosen.any():
                area = self._output.views.min_area
                others = [another_view(pixels, area) for pixels in payload[chosen]]
                views[chosen] = self._features(np.stack(others))
            arrays["view"] = views
        return arrays

    def _kept(self, rows: pa.Table) -> list[str]:
        """Columns that go along; where the image is, or a small one, so that what is encoded from
        features can show it."""
        small = [THUMBNAIL] if THUMBNAIL in rows.column_names else []
        return list(dict.fromkeys(["id", *self._output.columns, "uri", *small]))

    def _features(self, pixels: np.ndarray) -> np.ndarray:
        return _in_batches(self._backbone, pixels, self._output.batch_size).astype(np.float16)

    def write(self, fragment: int, rows: pa.Table, arrays: dict[str, np.ndarray]) -> FileEntry:
        table = rows.select(self._kept(rows))
        for name, matrix in arrays.items():
            lists = pa.FixedSizeListArray.from_arrays(
                pa.array(matrix.ravel()),
                matrix.shape[1],
                mask=pa.array(np.isnan(matrix[:, 0])),
            )
            table = table.append_column(name, lists)
        about = json.dumps(self._backbone.preprocessing).encode()
        # The same images give the same file, so a second writer changes nothing; and readers
        # of the folder see each fragment once.
        return write_parquet(
            self._output.storage,
            f"part-{fragment:06d}.parquet",
            table.replace_schema_metadata({PREPROCESSING: about}),
            plain=tuple(arrays),
        )


def _backbone_of(card: ModelCard, threads: int, index: Storage) -> Backbone:
    return load_backbone({**card.preprocessing, "threads": threads}, index)


def _in_batches(backbone: Backbone, pixels: np.ndarray, size: int | None) -> np.ndarray:
    size = size or backbone.batch_size

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(pixels), size):
            yield backbone.features(pixels[start : start + size])

    return np.concatenate([np.empty((0, backbone.feature_dim), np.float32), *batches()])
