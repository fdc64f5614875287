"""An image from the web: guarded, within its limits, asked for again where that helps.

Connections are kept and shared by the threads of a process. Proxies in the environment are not
used: behind one, nobody could check which address a name leads to.
"""

import contextlib
import email.utils
import functools
import ipaddress
import itertools
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import httpcore

from dq_cluster import __version__
from dq_cluster.images.address import WebAddress, is_allowed, joined
from dq_cluster.images.config import ImageLimits
from dq_cluster.images.decode import Reason, RejectError

_PIECE = 1 << 16
_REDIRECTS = 5
_ATTEMPTS = 4  # in all, where the server does not say when to come back
_PAUSE = 0.5  # seconds before the second attempt; doubled before each further one
_CONNECTIONS = 64
_BUSY = (429, 502, 503, 504)
_GONE = (404, 410)
_MOVED = (301, 302, 303, 307, 308)


class _Clock(threading.local):
    """Until when (monotonic seconds) the image that this thread fetches may take."""

    until = 0.0

    def left(self) -> float:
        left = self.until - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the image took longer than limits.max_seconds")
        return left


_clock = _Clock()


class _FaultError(Exception):
    """An attempt failed in a way that another one may not. pause: seconds the server asks for."""

    def __init__(self, reason: Reason, attempts: int = _ATTEMPTS, pause: float | None = None):
        super().__init__(reason.value)
        self.reason, self.attempts, self.pause = reason, attempts, pause


def fetch_web(address: WebAddress, allow: tuple[str, ...], limits: ImageLimits) -> bytes:
    """The bytes at `address`, within `limits.max_seconds` for all attempts and redirects together.

    A busy server (429, 502, 503, 504) is asked again when it says so (`Retry-After`) or after a
    pause, a broken connection likewise. Redirects are followed where `allow` covers them. Only
    looking up a name has the resolver's own limit. Raises RejectError with the reason.
    """
    _clock.until = time.monotonic() + limits.max_seconds
    for attempt in itertools.count(1):
        try:
            return _attempt(address, allow, limits.max_bytes)
        except _FaultError as fault:
            paused = fault.pause is not None
            pause = max(fault.pause or 0, _PAUSE) if paused else _PAUSE * 2 ** (attempt - 1)
            enough = not paused and attempt >= fault.attempts
            if enough or time.monotonic() + pause >= _clock.until:
                raise RejectError(fault.reason) from None
        except (httpcore.TimeoutException, httpcore.ProtocolError):
            raise RejectError(Reason.UNREACHABLE) from None
        time.sleep(pause)
    raise AssertionError


def _attempt(address: WebAddress, allow: tuple[str, ...], max_bytes: int) -> bytes:
    for _ in range(_REDIRECTS + 1):
        if not is_allowed(address, allow):
            raise RejectError(Reason.FORBIDDEN)
        if not 0 < address.port < 1 << 16:
            raise RejectError(Reason.UNREACHABLE)
        answer = _ask(address, max_bytes)
        if isinstance(answer, bytes):
            return answer
        address = answer
    raise RejectError(Reason.UNREACHABLE)


def _ask(address: WebAddress, max_bytes: int) -> bytes | WebAddress:
    """The bytes at `address`, or where its answer leads."""
    url = httpcore.URL(
        scheme=address.scheme.encode(),
        host=address.host.encode(),
        port=address.port,
        target=address.target.encode(),
    )
    headers = [
        ("Host", _host(address)),
        ("User-Agent", f"dq-cluster/{__version__}"),
        ("Accept", "image/*,*/*;q=0.8"),
        ("Accept-Encoding", "identity"),
    ]
    timeout = dict.fromkeys(("connect", "read", "write", "pool"), _clock.left())
    try:
        with _pool().stream("GET", url, headers=headers, extensions={"timeout": timeout}) as answer:
            return _understood(answer, address, max_bytes)
    except httpcore.ConnectError:
        raise _FaultError(Reason.UNREACHABLE, attempts=2) from None
    except (httpcore.NetworkError, httpcore.RemoteProtocolError):
        raise _FaultError(Reason.UNREACHABLE) from None


def _host(address: WebAddress) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    usual = address.port == {"http": 80, "https": 443}[address.scheme]
    return host if usual else f"{host}:{address.port}"


def _understood(
    answer: httpcore.Response, address: WebAddress, max_bytes: int
) -> bytes | WebAddress:
    headers = {name.lower().decode("latin-1"): value for name, value in answer.headers}
    if answer.status == 200:
        if int(headers.get("content-length", 0)) > max_bytes:  # h11 lets only numbers pass
            raise RejectError(Reason.TOO_LARGE)
        encoding = headers.get("content-encoding", b"").strip().lower().decode("latin-1")
        return _joined(_decoded(_pieces(answer), encoding), max_bytes)
    with contextlib.suppress(_FaultError):
        for _ in itertools.islice(_pieces(answer), 2):
            pass  # a short body is read to its end, so that the connection is kept
    if answer.status in _MOVED and "location" in headers:
        return joined(address, headers["location"].decode("utf-8", "replace"))
    if answer.status in _BUSY:
        pause = retry_after(headers.get("retry-after", b"").decode("latin-1"), datetime.now(UTC))
        raise _FaultError(Reason.UNREACHABLE, pause=pause)
    raise RejectError(Reason.MISSING if answer.status in _GONE else Reason.UNREACHABLE)


def retry_after(value: str, now: datetime) -> float | None:
    """Seconds from `now` that a Retry-After header asks for: a number or a date. None: neither."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        then = email.utils.parsedate_to_datetime(value)
        return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - now).total_seconds())
    except (ValueError, OverflowError):
        return None


def _pieces(answer: httpcore.Response) -> Iterator[bytes]:
    try:
        yield from answer.iter_stream()
    except (httpcore.NetworkError, httpcore.RemoteProtocolError):
        raise _FaultError(Reason.TRUNCATED) from None


def _joined(pieces: Iterable[bytes], max_bytes: int) -> bytes:
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) > max_bytes:
            raise RejectError(Reason.TOO_LARGE)
    return bytes(data)


def _decoded(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """`pieces` without their Content-Encoding, never much at once: what is sent may be a bomb."""
    if encoding in ("", "identity"):
        yield from pieces
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise RejectError(Reason.UNREACHABLE)  # not what was asked for
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        for piece in pieces:
            data = inflate.decompress(piece, _PIECE)
            while data:
                yield data
                data = inflate.decompress(inflate.unconsumed_tail, _PIECE)
    except zlib.error:
        raise RejectError(Reason.CORRUPT) from None
    if not inflate.eof:
        raise RejectError(Reason.TRUNCATED)


@functools.cache
def _pool() -> httpcore.ConnectionPool:
    return httpcore.ConnectionPool(
        ssl_context=ssl.create_default_context(),
        max_connections=_CONNECTIONS,
        keepalive_expiry=30,
        network_backend=_GuardedNetwork(),
    )


class _GuardedNetwork(httpcore.NetworkBackend):
    """Connects to public addresses, and to a private one that the URI itself spells out."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host}: {error}") from None
        numbers = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
        if any(number != host and not is_public(number) for number in numbers):
            raise RejectError(Reason.FORBIDDEN)
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for place, number in enumerate(numbers):
            # Connect to the very address that was checked: another answer of the name server
            # could differ. One that swallows what is sent leaves time for the others.
            share = _clock.left() / (len(numbers) - place)
            try:
                return _TimedStream(httpcore.SyncBackend().connect_tcp(number, port, share))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def is_public(number: str) -> bool:
    """Whether an IP address is one of the public internet, also written as IPv6."""
    address = ipaddress.ip_address(number)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in ipaddress.ip_network("64:ff9b::/96"):  # translated to IPv4 (RFC 6052)
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            address = inner
    return address.is_global and not address.is_multicast


class _TimedStream(httpcore.NetworkStream):
    """A connection on which every wait ends with the time of the image that is fetched."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _clock.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _clock.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, _clock.left()))

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
