"""Settings of the query API."""

from pydantic import Field

from dq_cluster.config import Location, Settings

MAX_K_FACTOR = 100  # and of decode_factor


class Limits(Settings):
    """What one request may ask for. Bytes are of the request body, pixels of a decoded image.

    max_candidates: queries × k × k_factor (or decode_factor), the rows that each shard may have to
    send. max_text: characters of a text.
    """

    max_k: int = Field(default=1000, ge=1)
    max_batch: int = Field(default=256, ge=1)
    max_candidates: int = Field(default=1 << 20, ge=1)
    max_body_bytes: int = Field(default=32 << 20, ge=1024)
    max_pixels: int = Field(default=50_000_000, ge=1)
    max_text: int = Field(default=2000, ge=1)
    max_timeout_ms: int = Field(default=10_000, ge=1)
    requests_per_second: float = Field(default=0, ge=0, description="per API key; 0: no limit")


class ServeSettings(Settings):
    """How an index is served.

    index: where it lies. version: the one to serve first (default: CURRENT). shards, replicas:
    deployments, and copies of each. cpus: of one replica; faiss uses as many threads. gpus: of one
    replica, 0 or at most 1, which scans the codes. routers: copies of the router. nprobe: cells
    looked into in an IVF version (0: all). k_factor: candidates for each neighbour that the second
    code re-ranks, where the version has one; decode_factor: that the decoder re-ranks, where its
    model has one. timeout_ms and min_coverage likewise: used by queries
    that name none. batch: most queries that are searched together. load_timeout_s: how long
    loading a version may take, and at the start until all that serves is up.
    host, port: where HTTP is served when this process starts Serve (port 0: any free one);
    grpc_port likewise, 0 for no gRPC.
    """

    index: Location
    version: int | None = None
    shards: int = Field(default=4, ge=1, le=512)
    replicas: int = Field(default=1, ge=1, le=64)
    routers: int = Field(default=1, ge=1, le=64)
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0, ge=0, le=1)
    nprobe: int = Field(default=0, ge=0)
    k_factor: int = Field(default=4, ge=1, le=MAX_K_FACTOR)
    decode_factor: int = Field(default=4, ge=1, le=MAX_K_FACTOR)
    timeout_ms: int = Field(default=2000, ge=1)
    min_coverage: float = Field(default=1.0, ge=0, le=1)
    batch: int = Field(default=256, ge=1)
    memory_gb: float = Field(default=0, ge=0, description="of one replica; 0: what is free")
    load_timeout_s: float = Field(default=600, gt=0)
    limits: Limits = Limits()
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65535)
    grpc_port: int = Field(default=0, ge=0, le=65535)
