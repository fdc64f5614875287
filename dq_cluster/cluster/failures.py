"""An error of another process, raised again here: one line, without Ray's stack.

An error of dq_cluster is raised as it was. Anything else is a bug, or a loss that Ray reports: its
type and message become the line, and its stack goes to a file that the line names.
"""

import contextlib
import re
from collections.abc import Iterator

from dq_cluster import errors
from dq_cluster.errors import DqError
from dq_cluster.observe.log import keep_stack

_ERROR_LINE = re.compile(r"\s*[\w.]*(?:Error|Exception)\b.*?: \S")


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise what Ray raises inside the block as a DqError."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise plain(error) from None


def plain(error: BaseException) -> DqError:
    """The dq_cluster error that `error` wraps, in whatever way; or one that says what it is."""
    error_of_ours = ours(error)
    if error_of_ours:
        return error_of_ours
    causes = list(_causes(error))
    innermost = next((cause for cause in reversed(causes) if not _is_rays(cause)), error)
    if innermost is error:
        return DqError(f"Ray reports {type(error).__name__}: {_line(error)}")
    # The text, where it ends with what was raised: Ray Data changes the message of the exception.
    last = str(error).rstrip().rpartition("\n")[2].strip()
    raised = last if _ERROR_LINE.match(last) else f"{type(innermost).__name__}: {_line(innermost)}"
    return DqError(f"a worker failed with {raised}; its stack is {keep_stack(error)}")


def ours(error: BaseException) -> DqError | None:
    """The dq_cluster error inside `error`, itself or as the text of a stack."""
    for cause in _causes(error):
        if isinstance(cause, DqError) and not _is_rays(cause):
            return cause
    return error_in(str(error))


def error_in(text: str) -> DqError | None:
    """The dq_cluster error at the end of a stack that came as text."""
    for line in reversed(text.splitlines()):
        match = re.search(r"\bdq_cluster\.errors\.(\w+)(?:\([^)]*\))?: (.+)", line)
        kind = match and getattr(errors, match[1], None)
        if match and kind:
            return kind(match[2].strip())
        if _ERROR_LINE.match(line):  # raised later, while handling one of ours perhaps
            return None
    return None


def reason_in(text: str) -> str:
    """The last line of a stack that came as text: what was raised. Else its first line."""
    lines = text.strip().splitlines()
    raised = [line.strip() for line in lines if _ERROR_LINE.match(line)]
    return raised[-1] if raised else (lines[0].strip() if lines else "no reason given")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and what is inside it, from the outside to the inside."""
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        yield inner
        cause = getattr(inner, "cause", None)
        inner = cause if isinstance(cause, BaseException) else inner.__cause__


def _is_rays(error: BaseException) -> bool:
    from ray.exceptions import RayError

    return isinstance(error, RayError)


def _line(error: BaseException) -> str:
    text = str(error).strip()
    if "Traceback" in text:
        return reason_in(text)
    return text.partition("\n")[0].strip() or "without a message"
