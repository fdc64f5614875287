"""Who may ask, how often, and how much at once."""

import hashlib
import hmac
import os
import time
from collections.abc import Callable
from pathlib import Path

from dq_cluster.errors import ConfigError, UserError
from dq_cluster.serve.config import Limits

_HEX = set("0123456789abcdef")


class AuthenticationError(UserError):
    """No API key, or not a known one."""


class LimitError(UserError):
    """Too much was asked: in one request, or by one key in a second."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def read_keys() -> frozenset[str]:
    """SHA-256 (hex) of the API keys: DQ_API_KEYS, or the file that DQ_API_KEYS_FILE names.

    Comma- or line-separated. None at all leaves the API open. Raises ConfigError.
    """
    text = os.environ.get("DQ_API_KEYS", "")
    path = os.environ.get("DQ_API_KEYS_FILE")
    if path:
        try:
            text += "," + Path(path).read_text()
        except OSError as error:
            raise ConfigError(f"DQ_API_KEYS_FILE {path}: {error.strerror}") from None
    keys = frozenset(filter(None, text.replace(",", " ").lower().split()))
    for key in keys:
        if len(key) != 64 or not set(key) <= _HEX:
            raise ConfigError("API keys are given as SHA-256, 64 hexadecimal digits: sha256sum")
    if path and not keys:
        raise ConfigError(f"DQ_API_KEYS_FILE {path} holds no key; unset it for an open API")
    return keys


class Guard:
    """Checks keys in constant time and counts requests per key (token bucket)."""

    def __init__(
        self,
        keys: frozenset[str],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = sorted(keys)
        self._rate = limits.requests_per_second
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def admit(self, authorization: str | None) -> None:
        """`Bearer <key>` of one request. Raises AuthenticationError or LimitError."""
        name = self._name(authorization)
        if not self._rate:
            return
        now = self._clock()
        tokens, seen = self._buckets.get(name, (max(self._rate, 1.0), now))
        tokens = min(max(self._rate, 1.0), tokens + (now - seen) * self._rate)
        if tokens < 1:
            wait = (1 - tokens) / self._rate
            raise LimitError(
                f"more than {self._rate:g} requests a second; try again in {wait:.2f} s",
                retry_after=wait,
            )
        self._buckets[name] = (tokens - 1, now)

    def _name(self, authorization: str | None) -> str:
        if not self._keys:
            return "anyone"
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        # Every key is compared, so that time tells nothing about which one came near.
        matches = sum(hmac.compare_digest(digest, each) for each in self._keys)
        if scheme.lower() != "bearer" or not matches:
            raise AuthenticationError("an API key is needed: Authorization: Bearer <key>")
        return digest
