"""Web addresses as a browser reads them, and which of them `allow` covers."""

import functools
import re
from typing import NamedTuple
from urllib.parse import unquote

import httpx

from dq_cluster.images.decode import Reason, RejectError

_PORTS = {"http": 80, "https": 443}
_WEB = re.compile(r"[\s\0-\x1f]*https?://", re.IGNORECASE)
_AROUND = "".join(map(chr, range(0x21)))  # what a browser strips: control characters and spaces


class WebAddress(NamedTuple):
    """scheme: `http` or `https`; host: lower case, IDNA; target: path and query, escaped."""

    scheme: str
    host: str
    port: int
    target: str


def is_web(uri: str) -> bool:
    return _WEB.match(uri) is not None


@functools.lru_cache(maxsize=1024)
def web_address(uri: str) -> WebAddress:
    """What a browser would ask for when given `uri`.

    Spaces, accents, and quotes are escaped, what is escaped already stays, the fragment goes, a
    backslash in the path is a slash. Raises RejectError (forbidden) for what is no address, and
    for what could lead around `allow`: a user or password, and `..` in the path, however escaped.
    """
    text = uri.strip(_AROUND)
    path, rest = re.match(r"([^?#]*)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    path = path.replace("\\", "/")
    try:
        url = httpx.URL(path + rest)
        target = url.raw_path.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        raise RejectError(Reason.FORBIDDEN) from None
    if url.scheme not in _PORTS or not url.host or url.userinfo or climbs(path):
        raise RejectError(Reason.FORBIDDEN)
    port = _PORTS[url.scheme] if url.port is None else url.port
    return WebAddress(url.scheme, url.raw_host.decode("ascii"), port, target)


def climbs(path: str) -> bool:
    """Whether a part of `path` is `..`, also escaped, also more than once."""
    while (plain := unquote(path)) != path:
        path = plain
    return ".." in re.split(r"[/\\]", path)


def is_allowed(address: WebAddress, allow: tuple[str, ...]) -> bool:
    """Whether `address` lies below one of the prefixes in `allow`."""
    return any(
        address[:3] == prefix[:3] and address.target.startswith(prefix.target)
        for prefix in map(web_address, filter(is_web, allow))
    )


def joined(base: WebAddress, location: str) -> WebAddress:
    """Where an answer of `base` leads that says `Location: location`. Raises as `web_address`."""
    host = f"[{base.host}]" if ":" in base.host else base.host
    try:
        url = httpx.URL(f"{base.scheme}://{host}:{base.port}{base.target}").join(location)
    except (httpx.InvalidURL, ValueError):
        raise RejectError(Reason.FORBIDDEN) from None
    if climbs(location.partition("?")[0]):
        raise RejectError(Reason.FORBIDDEN)
    return web_address(str(url))
