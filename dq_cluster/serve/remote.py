"""The service behind a URL, asked over HTTP: what a client needs, and nothing that serves."""

import ipaddress
from typing import TypeVar
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

import httpx
from pydantic import TypeAdapter, ValidationError

from dq_cluster.errors import ConfigError, DqError, InputError, UnavailableError
from dq_cluster.serve.api import (
    CoverageError,
    IndexInfo,
    SearchRequest,
    SearchResponse,
    VersionInfo,
)
from dq_cluster.serve.status import error_class

T = TypeVar("T")

LOAD_S = 900.0  # the service's own limit, load_timeout_s, is 600 unless set
_ATTEMPTS = 3  # where a connection ends without an answer
_WAY_S = 5.0  # what a search may take beside waiting for shards


class RemoteService:
    """Answers by asking `url`; see AsyncClient for the parameters.

    Its methods raise what the service raised, and UnavailableError where it does not answer.
    """

    def __init__(self, url: str, api_key: str | None, timeout_s: float, trust_env: bool) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = _parsed_url(url)
        around = trust_env and not _is_this_machine(self._url.host)
        self._proxy = _proxy_of(self._url) if around else ""
        try:
            self._http = httpx.AsyncClient(
                base_url=self._url, headers=headers, timeout=timeout_s, trust_env=around
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:  # socks, or no proxy at all
            raise ConfigError(
                f"the proxy of the environment cannot be used: {error}; unset it, or name the "
                "host in no_proxy, or use trust_env=False"
            ) from None
        self._timeout_s = timeout_s

    async def search(self, request: SearchRequest) -> SearchResponse:
        body = request.model_dump_json(exclude_unset=True)
        asked_s = (request.timeout_ms or 0) / 1e3 + _WAY_S
        answer = await self._send("POST", "/v1/search", body, max(self._timeout_s, asked_s))
        return self._parsed(SearchResponse, answer)

    async def info(self) -> IndexInfo:
        return self._parsed(IndexInfo, await self._send("GET", "/v1/index"))

    async def versions(self) -> list[VersionInfo]:
        return self._parsed(list[VersionInfo], await self._send("GET", "/v1/index/versions"))

    async def refresh(self, version: int | None, timeout_s: float = LOAD_S) -> IndexInfo:
        body = "{}" if version is None else f'{{"version": {version}}}'
        answer = await self._send("POST", "/v1/index/refresh", body, timeout_s)
        return self._parsed(IndexInfo, answer)

    async def picture(self, id: int | str) -> bytes:
        path = f"/v1/items/{quote(str(id), safe='')}/image"
        return (await self._send("GET", path)).content

    async def close(self) -> None:
        await self._http.aclose()

    async def _send(
        self, method: str, path: str, body: str | None = None, timeout_s: float | None = None
    ) -> httpx.Response:
        limit = self._timeout_s if timeout_s is None else timeout_s
        try:
            answer = await self._persistently(method, path, body, limit)
        except httpx.TimeoutException as error:
            raise UnavailableError(f"{self._where} does not answer within {limit:g} s") from error
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise UnavailableError(f"{self._where} does not answer: {why}") from error
        if answer.is_success:
            return answer
        raise self._error(answer)

    async def _persistently(
        self, method: str, path: str, body: str | None, limit: float
    ) -> httpx.Response:
        """Ask again where a connection ended without an answer: every call may be made twice.

        A proxy closes a connection that was idle just as it is used, or a router ends, and Serve,
        which stands before it, answers 500 in words of its own.
        """
        for left in reversed(range(_ATTEMPTS)):
            try:
                answer = await self._http.request(
                    method,
                    path,
                    content=body,
                    headers={"Content-Type": "application/json"},
                    timeout=httpx.Timeout(limit, connect=min(limit, self._timeout_s)),
                )
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                if not left:
                    raise
                continue
            ours = answer.headers.get("content-type", "").startswith("application/json")
            if answer.status_code != 500 or ours or not left:
                return answer
        raise AssertionError

    def _parsed(self, kind: type[T], answer: httpx.Response) -> T:
        try:
            return TypeAdapter(kind).validate_json(answer.content)
        except ValidationError:
            raise UnavailableError(
                f"{self._where} answers, but not as dq_cluster does: {answer.text[:200]}"
            ) from None

    def _error(self, answer: httpx.Response) -> DqError:
        """The exception that the service raised."""
        if answer.is_redirect:
            to = answer.headers.get("location", "nowhere")
            return InputError(f"{self._where} sends on to {to}: give that address")
        try:
            body = answer.json()
            message, kind = str(body["error"]), str(body["kind"])
            if kind == CoverageError.__name__:
                return CoverageError(message, SearchResponse.model_validate(body["response"]))
        except (ValueError, KeyError, TypeError):  # not of dq_cluster
            code = answer.status_code
            return error_class("", code)(f"{self._where} answers {code}: {answer.text[:200]}")
        return error_class(kind, answer.status_code)(message)

    @property
    def _where(self) -> str:
        return f"{self._url}{self._proxy}"


def _parsed_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        if parsed.host and (parsed.port or 0) < 2**16:
            return parsed
        why = "it has no host" if not parsed.host else f"a port is below 65536, not {parsed.port}"
    except httpx.InvalidURL as error:
        why = str(error)
    raise InputError(f"{url} is not a URL of an API: {why}")


def _is_this_machine(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


def _proxy_of(url: httpx.URL) -> str:
    """` through the proxy …`, for errors, without its password; empty where none is used."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.host):
        return ""
    return f" through the proxy {proxy.rpartition('@')[2]}"
