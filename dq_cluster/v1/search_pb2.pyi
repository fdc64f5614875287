from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Vector(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Vectors(_message.Message):
    __slots__ = ("vectors",)
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    vectors: _containers.RepeatedCompositeFieldContainer[Vector]
    def __init__(self, vectors: _Optional[_Iterable[_Union[Vector, _Mapping]]] = ...) -> None: ...

class Id(_message.Message):
    __slots__ = ("number", "text", "large_number")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LARGE_NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    text: str
    large_number: int
    def __init__(self, number: _Optional[int] = ..., text: _Optional[str] = ..., large_number: _Optional[int] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("vectors", "embeddings", "id", "image", "k", "nprobe", "timeout_ms", "min_coverage", "filter", "include", "k_factor", "within", "decode_factor", "text", "not_text", "weights")
    class WeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    NPROBE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    K_FACTOR_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    DECODE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NOT_TEXT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    vectors: Vectors
    embeddings: Vectors
    id: Id
    image: bytes
    k: int
    nprobe: int
    timeout_ms: int
    min_coverage: float
    filter: _struct_pb2.Struct
    include: _containers.RepeatedScalarFieldContainer[str]
    k_factor: int
    within: float
    decode_factor: int
    text: str
    not_text: str
    weights: _containers.ScalarMap[str, float]
    def __init__(self, vectors: _Optional[_Union[Vectors, _Mapping]] = ..., embeddings: _Optional[_Union[Vectors, _Mapping]] = ..., id: _Optional[_Union[Id, _Mapping]] = ..., image: _Optional[bytes] = ..., k: _Optional[int] = ..., nprobe: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., min_coverage: _Optional[float] = ..., filter: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., include: _Optional[_Iterable[str]] = ..., k_factor: _Optional[int] = ..., within: _Optional[float] = ..., decode_factor: _Optional[int] = ..., text: _Optional[str] = ..., not_text: _Optional[str] = ..., weights: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("id", "score", "columns")
    ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    id: Id
    score: float
    columns: _struct_pb2.Struct
    def __init__(self, id: _Optional[_Union[Id, _Mapping]] = ..., score: _Optional[float] = ..., columns: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Hits(_message.Message):
    __slots__ = ("hits",)
    HITS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    def __init__(self, hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ...) -> None: ...

class ShardFailure(_message.Message):
    __slots__ = ("shard", "reason")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    shard: int
    reason: str
    def __init__(self, shard: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("hits", "version", "coverage", "timed_out", "failed_shards", "shards", "ms")
    class MsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    HITS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    TIMED_OUT_FIELD_NUMBER: _ClassVar[int]
    FAILED_SHARDS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    MS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hits]
    version: int
    coverage: float
    timed_out: bool
    failed_shards: _containers.RepeatedCompositeFieldContainer[ShardFailure]
    shards: int
    ms: _containers.ScalarMap[str, float]
    def __init__(self, hits: _Optional[_Iterable[_Union[Hits, _Mapping]]] = ..., version: _Optional[int] = ..., coverage: _Optional[float] = ..., timed_out: _Optional[bool] = ..., failed_shards: _Optional[_Iterable[_Union[ShardFailure, _Mapping]]] = ..., shards: _Optional[int] = ..., ms: _Optional[_Mapping[str, float]] = ...) -> None: ...

class GetIndexRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Index(_message.Message):
    __slots__ = ("version", "model", "rows", "dim", "feature_dim", "bits", "metric", "columns", "shards", "images", "evaluation", "refine_bits", "decoder", "pictures", "text")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    FEATURE_DIM_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    REFINE_BITS_FIELD_NUMBER: _ClassVar[int]
    DECODER_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    version: int
    model: str
    rows: int
    dim: int
    feature_dim: int
    bits: int
    metric: str
    columns: _containers.RepeatedScalarFieldContainer[str]
    shards: int
    images: bool
    evaluation: _struct_pb2.Struct
    refine_bits: int
    decoder: bool
    pictures: bool
    text: bool
    def __init__(self, version: _Optional[int] = ..., model: _Optional[str] = ..., rows: _Optional[int] = ..., dim: _Optional[int] = ..., feature_dim: _Optional[int] = ..., bits: _Optional[int] = ..., metric: _Optional[str] = ..., columns: _Optional[_Iterable[str]] = ..., shards: _Optional[int] = ..., images: _Optional[bool] = ..., evaluation: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., refine_bits: _Optional[int] = ..., decoder: _Optional[bool] = ..., pictures: _Optional[bool] = ..., text: _Optional[bool] = ...) -> None: ...

class ListVersionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Version(_message.Message):
    __slots__ = ("version", "current", "serving")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    version: int
    current: bool
    serving: bool
    def __init__(self, version: _Optional[int] = ..., current: _Optional[bool] = ..., serving: _Optional[bool] = ...) -> None: ...

class ListVersionsResponse(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[Version]
    def __init__(self, versions: _Optional[_Iterable[_Union[Version, _Mapping]]] = ...) -> None: ...

class RefreshRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...
