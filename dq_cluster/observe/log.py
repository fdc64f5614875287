"""Structured logs on standard error, with the id of the request that they belong to.

`DQ_LOG_FORMAT=json` writes one JSON object a line; `DQ_LOG_LEVEL` (default INFO) how much.
Modules log through `logging.getLogger(__name__)` with `extra={...}` for fields.
"""

import contextlib
import logging
import os
import re
import sys
import tempfile
import traceback
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime

from dq_cluster.errors import ConfigError
from dq_cluster.jsontext import to_json

logger = logging.getLogger(__name__)

_request_id: ContextVar[str] = ContextVar("dq_request_id", default="")
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def configure_logging() -> None:
    """Send dq_cluster's logs to standard error. Calling it again changes nothing more.

    Raises ConfigError for a format or level that does not exist.
    """
    kinds: dict[str, type[logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}
    kind = os.environ.get("DQ_LOG_FORMAT") or "text"
    level = (os.environ.get("DQ_LOG_LEVEL") or "INFO").upper()
    if kind not in kinds:
        raise ConfigError(f"DQ_LOG_FORMAT={kind}: expected one of {', '.join(kinds)}")
    if level not in logging.getLevelNamesMapping():
        raise ConfigError(f"DQ_LOG_LEVEL={level}: expected DEBUG, INFO, WARNING or ERROR")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(kinds[kind]())
    ours = logging.getLogger("dq_cluster")
    ours.handlers = [handler]
    ours.setLevel(level)
    ours.propagate = False


@contextlib.contextmanager
def request_context(request_id: str | None = None) -> Iterator[str]:
    """Log lines inside the block carry this id; one that is missing or unsafe is replaced."""
    if request_id is None or not _SAFE_ID.fullmatch(request_id):
        request_id = uuid.uuid4().hex
    token = _request_id.set(request_id)
    try:
        yield request_id
    finally:
        _request_id.reset(token)


def current_request_id() -> str:
    """The id of the request being served, or an empty string."""
    return _request_id.get()


def keep_stack(error: BaseException) -> str:
    """Write the stack of `error` to a file of its own; returns where it is: `in <path>`.

    Where no file can be written, and with DQ_LOG_LEVEL=DEBUG, it is logged: `above`.
    """
    stack = "".join(traceback.format_exception(error))
    if not logger.isEnabledFor(logging.DEBUG):
        with contextlib.suppress(OSError):
            descriptor, path = tempfile.mkstemp(prefix="dq-cluster-", suffix=".log")
            with os.fdopen(descriptor, "w", errors="backslashreplace") as file:
                file.write(stack)
            return f"in {path}"
    logger.error("%s", stack)
    return "above"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What the caller gave as `extra`, and the request id when there is one.

    Ray stamps every record with attributes of its own; they are not the caller's.
    """
    extra = {
        key: value
        for key, value in vars(record).items()
        if key not in _STANDARD and not key.startswith("_ray")
    }
    return ({"request_id": _request_id.get()} if _request_id.get() else {}) | extra


class TextFormatter(logging.Formatter):
    """`09:12:44 INFO dq_cluster.serve.router: shard is slow  shard=3 request_id=…`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value}" for key, value in _fields(record).items())
        return super().formatMessage(record) + (f"  {fields}" if fields else "")


class JsonFormatter(logging.Formatter):
    """One JSON object a line; a value that JSON does not know is written as its string."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return to_json(entry)
