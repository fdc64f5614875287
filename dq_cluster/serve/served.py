"""One version, as those who ask its shards know it."""

from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from dq_cluster.errors import DqError, InputError
from dq_cluster.images.config import ImageLimits
from dq_cluster.images.decode import decode_image
from dq_cluster.images.guard import ChildDecoderPool
from dq_cluster.images.thumbnail import thumbnail
from dq_cluster.index.catalog import Index
from dq_cluster.index.codefile import row_schema
from dq_cluster.index.ids import to_id
from dq_cluster.index.manifest import Manifest
from dq_cluster.index.thumbnails import stored_thumbnail
from dq_cluster.search.placement import Layout, Shard, plan_shards
from dq_cluster.search.shard import Item
from dq_cluster.serve.api import IndexInfo, SearchRequest
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.embed import Embedder
from dq_cluster.storage import Storage

_DECODERS = 2  # images of queries that are decoded at once


@dataclass(frozen=True, eq=False)
class Served:
    """Everything the router knows about the one version that it serves.

    schema: of the id and the carried columns, which a filter can ask for.
    """

    storage: Storage
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
        return cls(index.storage, manifest, schema, shards, embedder, limits)

    def reranking(self, request: SearchRequest, settings: ServeSettings) -> tuple[str, int]:
        """What re-ranks, as its setting is named, and how many candidates for each neighbour.

        Raises InputError where the request asks for what the version does not have.
        """
        ways = {
            "k_factor": (self.manifest.geometry.refine_m > 0, "second code", "refine_bits"),
            "decode_factor": (self.embedder.card.decodes, "decoder", "decode_hidden"),
        }
        chosen = "k_factor", 1
        for name, (there, what, trained_by) in ways.items():
            asked = getattr(request, name)
            if there:
                chosen = name, asked or getattr(settings, name)
            elif asked is not None and asked > 1:
                raise InputError(
                    f"version {self.manifest.version} has no {what} to re-rank with; leave out "
                    f"{name}, or train a model with {trained_by}"
                )
        return chosen

    def picture(self, id: int | str, item: Item) -> bytes:
        """A small JPEG of `item`: the stored one, else of the image at its `uri`.

        Raises NotFoundError where there is neither.
        """
        id = to_id(id, self.manifest.id_type)
        try:
            stored = stored_thumbnail(self.storage, self.manifest, item.ordinal, id)
        except (DqError, pa.ArrowException, OSError):
            stored = None  # verify says what is wrong with its file
        return stored or thumbnail(item.uri, self.limits)

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
            decoder=self.embedder.card.decodes,
            metric=geometry.metric,
            columns=list(self.manifest.columns),
            shards=len(self.shards),
            images=self.embedder.takes_images,
            pictures="uri" in self.manifest.columns or bool(self.manifest.thumbnails),
            text=self.embedder.takes_text,
            evaluation=self.manifest.evaluation,
        )
