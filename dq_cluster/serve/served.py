"""One version, as those who ask its shards know it."""

from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from dq_cluster.errors import InputError
from dq_cluster.images.config import ImageLimits
from dq_cluster.images.decode import decode_image
from dq_cluster.images.guard import ChildDecoderPool
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import row_schema
from dq_cluster.index.manifest import Manifest
from dq_cluster.search.placement import Layout, Shard, plan_shards
from dq_cluster.serve.api import IndexInfo
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.embed import Embedder

_DECODERS = 2  # images of queries that are decoded at once


@dataclass(frozen=True, eq=False)
class Served:
    """Everything the router knows about the one version that it serves.

    schema: of the id and the carried columns, which a filter can ask for.
    """

    manifest: Manifest
    schema: pa.Schema
    shards: tuple[Shard, ...]
    embedder: Embedder
    limits: ImageLimits

    @property
    def layout(self) -> Layout:
        return Layout(self.manifest.version, len(self.shards))

    @classmethod
    def load(
        cls,
        index: Index,
        version: int,
        settings: ServeSettings,
        before: "Served | None" = None,
        *,
        apart: bool = False,
    ) -> "Served":
        """Read what a router needs of `version`; keep the model of `before` if it is the same.

        apart: decode the images of queries in child processes, where they can do no harm.
        """
        manifest = index.manifest(version)
        limits = ImageLimits(
            max_bytes=settings.limits.max_body_bytes, max_pixels=settings.limits.max_pixels
        )
        if before is not None and before.manifest.model == manifest.model:
            embedder = before.embedder
        else:
            decode = (
                ChildDecoderPool(limits, _DECODERS)
                if apart
                else partial(decode_image, limits=limits)
            )
            embedder = Embedder(index.storage, manifest.model, decode)
        schema = row_schema(index.storage, manifest)
        shards = plan_shards(manifest, settings.shards)
        return cls(manifest, schema, shards, embedder, limits)

    def k_factor(self, factor: int | None, usual: int) -> int:
        """How many candidates for each neighbour are re-ranked. Raises InputError."""
        if self.manifest.geometry.refine_m:
            return factor or usual
        if factor is not None and factor > 1:
            raise InputError(
                f"version {self.manifest.version} has no second code to re-rank with; leave out "
                "k_factor, or train a model with refine_bits"
            )
        return 1

    def info(self) -> IndexInfo:
        geometry = self.manifest.geometry
        return IndexInfo(
            version=self.manifest.version,
            model=self.manifest.model,
            rows=self.manifest.rows - self.manifest.deleted,
            dim=geometry.dim,
            feature_dim=self.embedder.card.feature_dim,
            bits=geometry.code_size * 8,
            refine_bits=geometry.refine_m * 8,
            metric=geometry.metric,
            columns=list(self.manifest.columns),
            shards=len(self.shards),
            images=self.embedder.takes_images,
            evaluation=self.manifest.evaluation,
        )
