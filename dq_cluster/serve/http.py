"""The HTTP surface over anything that can answer: the router, or an engine in this process."""

import asyncio
import json
import logging
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from dq_cluster import __version__
from dq_cluster.errors import DqError, InputError, UserError
from dq_cluster.observe.exporter import exposition
from dq_cluster.observe.log import request_context
from dq_cluster.observe.metrics import COVERAGE, QUERIES, QUERY_SECONDS, timed
from dq_cluster.observe.tracing import exemplar, span
from dq_cluster.serve.api import (
    CoverageError,
    IndexInfo,
    SearchRequest,
    SearchResponse,
    VersionInfo,
    parse_request,
)
from dq_cluster.serve.page import add_page
from dq_cluster.serve.security import AuthenticationError, LimitError
from dq_cluster.serve.service import ServedApi, Service
from dq_cluster.serve.status import INTERNAL, STATUSES, message_of, status_of

logger = logging.getLogger(__name__)


class RefreshRequest(BaseModel):
    """version: what to serve; unset, the index's current version."""

    model_config = ConfigDict(extra="forbid")

    version: int | None = None


class ErrorBody(BaseModel):
    """What went wrong. `response` is what was found, where too little of the index answered."""

    error: str
    kind: str
    response: SearchResponse | None = None


def make_api(service: ServedApi, *, max_body_bytes: int, hide: str) -> FastAPI:
    """The routes over `service`; `hide` (the index's URI) is kept out of every error."""
    api = FastAPI(
        title="dq_cluster",
        version=__version__,
        docs_url="/docs",
        redoc_url=None,
        # `observe` traces and counts already.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )

    _answer_errors(api, hide)
    _add_search(api, service, max_body_bytes)
    _add_index(api, service)
    _add_process(api)
    add_page(api)
    return api


def _answer_errors(api: FastAPI, hide: str) -> None:
    """Every error gets a status, one line, and the name of its class."""

    @api.exception_handler(DqError)
    async def failed(request: Request, error: Exception) -> Response:
        status = status_of(error)
        body = ErrorBody(error=message_of(error, hide), kind=type(error).__name__)
        headers = {}
        if isinstance(error, CoverageError):
            body.response = error.response
        if isinstance(error, AuthenticationError):
            headers["WWW-Authenticate"] = "Bearer"
        if status.retry_after_s is not None:
            headers["Retry-After"] = str(math.ceil(status.retry_after_s))
        return _refusal(body, status.http, headers)

    @api.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        # Starlette raises it again when this has answered, so that the stack gets into the log.
        return _refusal(ErrorBody(error=message_of(error, hide), kind="InternalError"), 500)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return await failed(request, InputError(f"{where}: {first['msg']}"))

    @api.exception_handler(HTTPException)
    async def elsewhere(request: Request, error: HTTPException) -> Response:
        told = f"{request.method} {request.url.path}: {error.detail}; /docs lists what there is"
        headers = dict(error.headers or {})
        return _refusal(ErrorBody(error=told, kind="HTTPException"), error.status_code, headers)


def _add_search(api: FastAPI, service: ServedApi, max_body_bytes: int) -> None:
    async def search(request: Request) -> Response:
        """Find the nearest images. JSON, or multipart with a file `image` and other fields."""
        service.guard.admit(request.headers.get("authorization"))
        with request_context(request.headers.get("x-request-id")) as request_id:
            response = await answer(service, await _parse(request, max_body_bytes))
        return Response(
            response.model_dump_json(),
            media_type="application/json",
            headers={"X-Request-ID": request_id},
        )

    api.router.add_api_route(
        "/v1/search",
        search,
        methods=["POST"],
        route_class_override=_Direct,
        response_model=SearchResponse,
        responses=_ERRORS | _PARTIAL,
        openapi_extra={"requestBody": _SEARCH_BODY},
    )


def _add_index(api: FastAPI, service: ServedApi) -> None:
    """What is served, its versions, its pictures."""

    async def admit(request: Request) -> None:
        service.guard.admit(request.headers.get("authorization"))

    guarded: dict[str, Any] = {"dependencies": [Depends(admit)], "responses": _ERRORS}

    @api.get(
        "/v1/items/{id:path}/image",
        response_class=Response,
        **guarded | {"responses": _ERRORS | _JPEG},
    )
    async def picture(id: str) -> Response:
        """A small picture of an image of the index, where it carries a `uri` that can be read."""
        return Response(await service.picture(id), media_type="image/jpeg")

    @api.get("/v1/index", **guarded)
    async def index() -> IndexInfo:
        """The version being served."""
        return await service.info()

    @api.get("/v1/index/versions", **guarded)
    async def versions() -> list[VersionInfo]:
        """Every version of the index."""
        return await service.versions()

    @api.post("/v1/index/refresh", **guarded)
    async def refresh(body: RefreshRequest | None = None) -> IndexInfo:
        """Load a version beside the one being served, and switch when every shard has it."""
        return await service.refresh(body.version if body else None)


def _add_process(api: FastAPI) -> None:
    """What is asked of the process, not of the index; open to everybody."""

    @api.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """The process lives."""
        return "ok"

    @api.get("/readyz", response_class=PlainTextResponse)
    async def readyz() -> str:
        """A version is served: this process answers only once it has one."""
        return "ok"

    @api.get("/metrics", response_class=PlainTextResponse, responses=_OPENMETRICS)
    async def metrics(request: Request) -> Response:
        """The metrics of dq_cluster on this node, as Prometheus' text or as OpenMetrics."""
        accept = request.headers.get("accept")
        text, media_type = await asyncio.to_thread(exposition, accept)
        return Response(text, media_type=media_type)


class _Direct(APIRoute):
    """A route whose endpoint takes the request as it is: what FastAPI does around an endpoint
    would take a third of the time that this process spends on a search."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


async def answer(service: Service, request: SearchRequest) -> SearchResponse:
    """Search, and record how it went."""
    outcome = "failed"
    with span("query"), timed(QUERY_SECONDS):
        try:
            response = await service.search(request)
            outcome = "ok" if response.coverage == 1 else "partial"
            COVERAGE.observe(response.coverage)
            return response
        except CoverageError as error:
            outcome = "timed_out" if error.response.timed_out else "failed"
            COVERAGE.observe(error.response.coverage)
            raise
        except UserError:
            outcome = "rejected"
            raise
        finally:
            QUERIES.labels(outcome=outcome).inc(exemplar=exemplar())


def _refusal(body: ErrorBody, code: int, headers: dict[str, str] | None = None) -> Response:
    text = body.model_dump_json(exclude_none=True)
    return Response(text, code, media_type="application/json", headers=headers)


async def _parse(request: Request, max_body_bytes: int) -> SearchRequest:
    """The body as a SearchRequest. Raises InputError and LimitError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await _body(request, max_body_bytes)
    return parse_request(await _form(request, body) if kind == "multipart/form-data" else body)


async def _body(request: Request, limit: int) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise LimitError(
                f"the body is larger than the {limit:,} bytes that one request may have "
                "(limits.max_body_bytes)"
            )
        chunks.append(chunk)
    return b"".join(chunks)


async def _form(request: Request, body: bytes) -> dict[str, Any]:
    """Fields of a multipart form; those that are not files, ids, or words are read as JSON."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, stream()).parse()
    except MultiPartException as error:
        raise InputError(f"not a multipart form: {error.message}") from None
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            values[name] = await value.read()
        elif name in ("id", "text", "not_text"):
            values[name] = value
        else:
            try:
                values[name] = json.loads(value)
            except (ValueError, RecursionError):
                raise InputError(f"form field '{name}' is not JSON") from None
    return values


_SEARCH_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": SearchRequest.model_json_schema()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "image": {"type": "string", "format": "binary"},
                    "text": {"type": "string"},
                    "not_text": {"type": "string"},
                    "k": {"type": "integer", "minimum": 1},
                },
                "required": ["image"],
            }
        },
    },
}
_OPENMETRICS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/openmetrics-text": {"schema": {"type": "string"}}}}
}
_JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}}
# What any call may be refused with; searches may be too slow besides.
_CODES = sorted({status.http for status in (*STATUSES.values(), INTERNAL)} | {429})
_ERRORS: dict[int | str, dict[str, Any]] = {code: {"model": ErrorBody} for code in _CODES}
_PARTIAL: dict[int | str, dict[str, Any]] = {504: {"model": ErrorBody}}
