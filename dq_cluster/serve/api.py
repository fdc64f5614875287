"""What is asked and answered, over every surface: HTTP, gRPC, Python, local or remote."""

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from dq_cluster.errors import DqError, InputError
from dq_cluster.serve.config import MAX_K_FACTOR, Limits

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Vector = list[FiniteFloat]


def _from_base64(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise ValueError(f"not base64: {error}") from None


# Bytes in Python, base64 in JSON.
EncodedImage = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    PlainSerializer(lambda data: base64.b64encode(data).decode(), when_used="json"),
    WithJsonSchema({"type": "string", "format": "base64"}),
]
_SUBJECTS = ("vector", "vectors", "embedding", "embeddings", "id", "image", "text")
# What may be asked for together, and how much each part counts where the request does not say.
Part = Literal["image", "text", "not_text"]
WEIGHTS: dict[Part, float] = {"image": 1.0, "text": 1.0, "not_text": 0.5}


class SearchRequest(BaseModel):
    """What to look for, and how. Exactly one of vector(s), embedding(s), id, image, and text, or
    image and text together.

    vector: a feature of the backbone, which the model embeds; vectors: several. embedding: a
    vector that is already in the space of the codes. image: an encoded image, base64 in JSON.
    text: words. not_text: words for what is not wanted, beside image or text. weights: how much
    `image`, `text`, and `not_text` count (default: 1, 1, 0.5).
    k: neighbours wanted. within: only those that score at least this. nprobe: cells of an IVF
    version to look into, 0 for all. k_factor: candidates for each neighbour that the second code
    re-ranks, decode_factor: that the decoder re-ranks, 1 for no re-ranking. filter: conditions on
    carried columns. include: carried columns to return. Unset: what the settings of the service
    say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    vector: Vector | None = None
    vectors: list[Vector] | None = Field(None, min_length=1)
    embedding: Vector | None = None
    embeddings: list[Vector] | None = Field(None, min_length=1)
    id: int | str | None = None
    image: EncodedImage | None = None
    text: str | None = None
    not_text: str | None = None
    weights: dict[Part, Annotated[FiniteFloat, Field(gt=0)]] | None = None
    k: int = Field(10, ge=1)
    within: FiniteFloat | None = None
    nprobe: int | None = Field(None, ge=0)
    k_factor: int | None = Field(None, ge=1, le=MAX_K_FACTOR)
    decode_factor: int | None = Field(None, ge=1, le=MAX_K_FACTOR)
    timeout_ms: int | None = Field(None, ge=1)
    min_coverage: float | None = Field(None, ge=0, le=1)
    filter: dict[str, Any] | None = None
    include: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_subject(self) -> "SearchRequest":
        subject = set(self.subject)
        if len(subject) != 1 and subject != {"image", "text"}:
            given = ", ".join(self.subject) or "none"
            raise ValueError(
                f"give exactly one of {', '.join(_SUBJECTS)}, or image and text; found {given}"
            )
        if self.not_text is not None and not subject & {"image", "text"}:
            raise ValueError("not_text goes with text or image: say what to look for, too")
        unused = [part for part in self.weights or () if getattr(self, part) is None]
        if unused:
            raise ValueError(f"weights names {', '.join(unused)}, which is not asked for")
        return self

    @property
    def subject(self) -> list[str]:
        return [name for name in _SUBJECTS if getattr(self, name) is not None]

    @property
    def queries(self) -> int:
        return len(self.vectors or self.embeddings or (1,))

    def check(self, limits: Limits, factor: int, name: str = "k_factor") -> None:
        """Raise InputError where the request asks for more than it may.

        factor: candidates for each neighbour that the search will use; `name` says which setting.
        """
        values = {
            "k": (self.k, limits.max_k),
            "queries": (self.queries, limits.max_batch),
            "timeout_ms": (self.timeout_ms or 0, limits.max_timeout_ms),
        }
        for what, (value, limit) in values.items():
            if value > limit:
                raise InputError(
                    f"{what} {value} is more than the {limit} that one request may ask for"
                )
        for part in ("text", "not_text"):
            if (size := len(getattr(self, part) or "")) > limits.max_text:
                raise InputError(
                    f"{part} has {size:,} characters, more than the {limits.max_text:,} that one "
                    "request may have (limits.max_text); say it shorter"
                )
        candidates = self.queries * self.k * factor
        if candidates > limits.max_candidates:
            raise InputError(
                f"{self.queries} queries × k {self.k} × {name} {factor} are {candidates:,} "
                f"candidates, more than the {limits.max_candidates:,} that one request may ask "
                f"for (limits.max_candidates); ask for fewer queries at once, or lower k or {name}"
            )


def parse_request(values: dict[str, Any] | bytes) -> SearchRequest:
    """Validate plain values, or JSON. Raises InputError naming the first thing that is wrong."""
    try:
        if isinstance(values, bytes):
            return SearchRequest.model_validate_json(values)
        return SearchRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{where}: {first['msg']}" if where else first["msg"]) from None


@dataclass(slots=True)
class Hit:
    """One neighbour: higher scores are better; `columns` holds what `include` named."""

    id: int | str
    score: float
    columns: dict[str, Any] = field(default_factory=dict)


class ShardFailure(BaseModel):
    """A shard that did not answer, and why."""

    shard: int
    reason: str


class SearchResponse(BaseModel):
    """The answer, and how it came about.

    hits: for each query its neighbours, best first. version: of the index, the only one that was
    searched. coverage: codes searched / codes in the version. timed_out: some shard gave no
    answer in time; failed_shards: those that answered with an error. ms: milliseconds per step.
    """

    hits: list[list[Hit]]
    version: int
    coverage: float
    timed_out: bool
    failed_shards: list[ShardFailure]
    shards: int
    ms: dict[str, float]

    def to_arrow(self) -> "pa.Table":
        """A row for each neighbour: `query` (its number), `rank` (from 1), `id`, `score`, and what
        `include` named. Needs pyarrow (the extra `index`)."""
        import pyarrow as pa

        hits = [hit for query in self.hits for hit in query]
        ids: list[Any] = [hit.id for hit in hits]
        beyond = any(isinstance(id, int) and id >= 2**63 for id in ids)
        places = [(n, rank) for n, query in enumerate(self.hits) for rank in range(len(query))]
        table = {
            "query": pa.array([n for n, _ in places], pa.int32()),
            "rank": pa.array([rank + 1 for _, rank in places], pa.int32()),
            "id": pa.array(ids, pa.uint64() if beyond else None),
            "score": pa.array([hit.score for hit in hits], pa.float32()),
        }
        for name in dict.fromkeys(name for hit in hits for name in hit.columns):
            table[name] = pa.array([hit.columns.get(name) for hit in hits])
        return pa.table(table)

    def to_pandas(self) -> "pd.DataFrame":
        """As `to_arrow`. Needs pyarrow and pandas (the extra `index`)."""
        return self.to_arrow().to_pandas()


class IndexInfo(BaseModel):
    """The version being served. decoder: whether its model can decode codes to re-rank by.

    images: whether a query may be an image; pictures: whether there are small ones to show.
    """

    version: int
    model: str
    rows: int
    dim: int
    feature_dim: int
    bits: int
    refine_bits: int
    decoder: bool
    metric: str
    columns: list[str]
    shards: int
    images: bool
    pictures: bool
    text: bool = False
    evaluation: dict[str, Any]


class VersionInfo(BaseModel):
    """A version that the index holds."""

    version: int
    current: bool
    serving: bool


class CoverageError(DqError):
    """Too little of the index answered; `response` holds what there is."""

    def __init__(self, message: str, response: SearchResponse) -> None:
        super().__init__(message)
        self.response = response

    def __reduce__(self) -> tuple[type["CoverageError"], tuple[str, SearchResponse]]:
        return type(self), (str(self), self.response)
