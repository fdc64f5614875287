"""The gRPC surface: messages to and from what the service asks and answers."""

import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from dq_cluster.errors import DqError, InputError
from dq_cluster.search.operands import EXACT_IN_DOUBLES
from dq_cluster.serve.api import (
    IndexInfo,
    SearchRequest,
    SearchResponse,
    VersionInfo,
    parse_request,
)
from dq_cluster.serve.http import answer
from dq_cluster.serve.service import ServedApi
from dq_cluster.serve.status import message_of, status_of
from dq_cluster.v1 import search_pb2 as pb

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
SERVICER = "dq_cluster.v1.search_pb2_grpc.add_SearchServiceServicer_to_server"


class GrpcService:
    """The calls of SearchService, answered by a service; an error becomes a status."""

    def __init__(self, service: ServedApi, hide: str) -> None:
        self._service, self._hide = service, hide

    async def search(self, request: pb.SearchRequest, context: Any) -> pb.SearchResponse:
        async def work() -> pb.SearchResponse:
            return response_message(await answer(self._service, request_of(request)))

        return await self._guarded(context, work, pb.SearchResponse())

    async def info(self, context: Any) -> pb.Index:
        async def work() -> pb.Index:
            return index_message(await self._service.info())

        return await self._guarded(context, work, pb.Index())

    async def versions(self, context: Any) -> pb.ListVersionsResponse:
        async def work() -> pb.ListVersionsResponse:
            versions = await self._service.versions()
            return pb.ListVersionsResponse(versions=[version_message(each) for each in versions])

        return await self._guarded(context, work, pb.ListVersionsResponse())

    async def refresh(self, request: pb.RefreshRequest, context: Any) -> pb.Index:
        async def work() -> pb.Index:
            version = request.version if request.HasField("version") else None
            return index_message(await self._service.refresh(version))

        return await self._guarded(context, work, pb.Index())

    async def _guarded(
        self, context: Any, work: Callable[[], Coroutine[Any, Any, M]], empty: M
    ) -> M:
        """What `work` gives; for an error its status, and `empty`, which gRPC does not send."""
        try:
            metadata = {key.lower(): value for key, value in context.invocation_metadata()}
            self._service.guard.admit(metadata.get("authorization"))
            return await work()
        except Exception as error:
            # Serve would send the stack of what is not ours.
            if not isinstance(error, DqError):
                logger.exception("internal error in a gRPC call")
            status = status_of(error)
            context.set_code(grpc.StatusCode[status.grpc])
            context.set_details(message_of(error, self._hide))
            return empty


def request_of(message: pb.SearchRequest) -> SearchRequest:
    """The request a message stands for. Raises InputError."""
    values: dict[str, Any] = {"include": tuple(message.include)}
    subject = message.WhichOneof("subject")
    if subject in ("vectors", "embeddings"):
        vectors = getattr(message, subject).vectors
        values[subject] = [list(vector.values) for vector in vectors]
    elif subject == "id":
        values["id"] = getattr(message.id, message.id.WhichOneof("id") or "text")
    elif subject == "image":
        values["image"] = message.image
    if message.weights:
        values["weights"] = dict(message.weights)
    for name in (
        "text",
        "not_text",
        "k",
        "within",
        "nprobe",
        "k_factor",
        "decode_factor",
        "timeout_ms",
        "min_coverage",
    ):
        if message.HasField(name):
            values[name] = getattr(message, name)
    if message.HasField("filter"):
        try:
            values["filter"] = _whole_numbers(json_format.MessageToDict(message.filter))
        except ValueError as error:  # a number that is not finite
            raise InputError(f"filter: {error}") from None
    return parse_request(values)


def response_message(response: SearchResponse) -> pb.SearchResponse:
    return pb.SearchResponse(
        hits=[
            pb.Hits(
                hits=[
                    pb.Hit(id=_id(hit.id), score=hit.score, columns=_struct(hit.columns))
                    for hit in hits
                ]
            )
            for hits in response.hits
        ],
        version=response.version,
        coverage=response.coverage,
        timed_out=response.timed_out,
        failed_shards=[
            pb.ShardFailure(shard=each.shard, reason=each.reason) for each in response.failed_shards
        ],
        shards=response.shards,
        ms=response.ms,
    )


def index_message(info: IndexInfo) -> pb.Index:
    values = info.model_dump(exclude={"evaluation"})
    return pb.Index(**values, evaluation=_struct(info.model_dump(mode="json")["evaluation"]))


def version_message(info: VersionInfo) -> pb.Version:
    return pb.Version(**info.model_dump())


def _id(id: int | str) -> pb.Id:
    if isinstance(id, str):
        return pb.Id(text=id)
    return pb.Id(number=id) if id < 2**63 else pb.Id(large_number=id)


def _struct(values: Mapping[str, Any]) -> Struct:
    struct = Struct()
    struct.update(_exact(values))
    return struct


def _exact(value: Any) -> Any:
    """A Struct has only doubles: a whole number that would be rounded goes as text."""
    if isinstance(value, Mapping):
        return {name: _exact(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_exact(each) for each in value]
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if whole and abs(value) > EXACT_IN_DOUBLES else value


def _whole_numbers(value: Any) -> Any:
    """A Struct knows only doubles: give whole numbers back their type, where it is certain."""
    if isinstance(value, dict):
        return {name: _whole_numbers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(each) for each in value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_IN_DOUBLES
    return int(value) if whole else value
