"""The HTTP surface over anything that can answer: the router, or an engine in this process."""

import asyncio
import base64
import json
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from importlib.resources import files
from typing import Any, Protocol

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from dq_cluster import __version__
from dq_cluster.errors import DqError, InputError, NotFoundError, UserError
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
from dq_cluster.serve.security import AuthenticationError, Guard, LimitError


class Service(Protocol):
    """What the surfaces need."""

    guard: Guard

    async def search(self, request: SearchRequest) -> SearchResponse: ...
    async def picture(self, id: int | str) -> bytes: ...
    async def info(self) -> IndexInfo: ...
    async def versions(self) -> list[VersionInfo]: ...
    async def refresh(self, version: int | None) -> IndexInfo: ...


class RefreshRequest(BaseModel):
    """version: what to serve; unset, the index's current version."""

    version: int | None = None


class ErrorBody(BaseModel):
    """What went wrong. `response` is what was found, where too little of the index answered."""

    error: str
    kind: str
    response: SearchResponse | None = None


def make_api(service: Service, *, max_body_bytes: int, hide: str) -> FastAPI:
    """The routes over `service`; `hide` (the index's URI) is kept out of every error."""
    api = FastAPI(
        title="dq_cluster",
        version=__version__,
        docs_url="/docs",
        redoc_url=None,
        # `observe` traces and counts already.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )

    async def admit(request: Request) -> None:
        service.guard.admit(request.headers.get("authorization"))

    guarded: dict[str, Any] = {
        "dependencies": [Depends(admit)],
        "responses": {code: {"model": ErrorBody} for code in (400, 401, 404, 409, 413, 429)},
    }

    @api.exception_handler(DqError)
    async def refused(request: Request, error: DqError) -> Response:
        body = ErrorBody(error=str(error).replace(hide, "<index>"), kind=type(error).__name__)
        headers = {}
        if isinstance(error, CoverageError):
            body.response = error.response
        if isinstance(error, AuthenticationError):
            headers["WWW-Authenticate"] = "Bearer"
        if isinstance(error, LimitError) and error.retry_after is not None:
            headers["Retry-After"] = str(math.ceil(error.retry_after))
        return Response(
            body.model_dump_json(exclude_none=True),
            status_code(error),
            media_type="application/json",
            headers=headers,
        )

    async def search(request: Request) -> Response:
        """Find the nearest images. JSON, or multipart with a file `image` and other fields."""
        await admit(request)
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
        responses=guarded["responses"] | _PARTIAL,
        openapi_extra={"requestBody": _SEARCH_BODY},
    )

    @api.get(
        "/v1/items/{id:path}/image",
        response_class=Response,
        **guarded | {"responses": guarded["responses"] | _JPEG},
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
    async def refresh(wanted: RefreshRequest | None = None) -> IndexInfo:
        """Load a version beside the one being served, and switch when every shard has it."""
        return await service.refresh(wanted.version if wanted else None)

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

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        text = files("dq_cluster.serve").joinpath("page.html").read_text()
        return HTMLResponse(text, headers={"Content-Security-Policy": _PAGE_POLICY})

    return api


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


def status_code(error: DqError) -> int:
    """The HTTP status that says what kind of error it is."""
    match error:
        case AuthenticationError():
            return 401
        case LimitError():
            return 413 if error.retry_after is None else 429
        case NotFoundError():
            return 404
        case UserError():
            return 400
        case CoverageError():
            return 504 if error.response.timed_out else 503
        case _:
            return 409  # a version that was refused; the one being served stays


async def _parse(request: Request, max_body_bytes: int) -> SearchRequest:
    """The body as a SearchRequest. Raises InputError and LimitError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await _body(request, max_body_bytes)
    return parse_request(await _form(request, body) if kind == "multipart/form-data" else body)


async def _body(request: Request, most: int) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise LimitError(f"the body is larger than this server allows: {most} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


async def _form(request: Request, body: bytes) -> dict[str, Any]:
    """Fields of a multipart form; those that are not files or ids are read as JSON."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, stream()).parse()
    except MultiPartException as error:
        raise InputError(f"not a multipart form: {error.message}") from None
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            values[name] = base64.b64encode(await value.read())
        elif name == "id":
            values[name] = value
        else:
            try:
                values[name] = json.loads(value)
            except ValueError:
                raise InputError(f"form field '{name}' is not JSON") from None
    return values


# The page brings its own script and style, and talks to this server only.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src blob: data:; frame-ancestors 'none'"
)
_SEARCH_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": SearchRequest.model_json_schema()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "image": {"type": "string", "format": "binary"},
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
_PARTIAL: dict[int | str, dict[str, Any]] = {503: {"model": ErrorBody}, 504: {"model": ErrorBody}}
