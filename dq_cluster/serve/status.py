"""What each error means to a caller, over every surface: status, words, and when to ask again."""

from dataclasses import dataclass

from dq_cluster import errors
from dq_cluster.errors import DqError
from dq_cluster.images.rejects import RejectError
from dq_cluster.serve.api import CoverageError
from dq_cluster.serve.security import AuthenticationError, LimitError


@dataclass(frozen=True)
class Status:
    """http: the code. grpc: the name of the status. retry_after_s: when asking again may help."""

    http: int
    grpc: str
    retry_after_s: float | None = None


INTERNAL = Status(500, "INTERNAL")
STATUSES: dict[type[DqError], Status] = {
    # The request is wrong.
    errors.UserError: Status(400, "INVALID_ARGUMENT"),
    errors.InputError: Status(400, "INVALID_ARGUMENT"),
    errors.NothingNewError: Status(400, "INVALID_ARGUMENT"),
    RejectError: Status(400, "INVALID_ARGUMENT"),
    errors.NotFoundError: Status(404, "NOT_FOUND"),
    AuthenticationError: Status(401, "UNAUTHENTICATED"),
    LimitError: Status(413, "RESOURCE_EXHAUSTED"),
    # A version was refused; the one being served stays.
    errors.IntegrityError: Status(409, "FAILED_PRECONDITION"),
    errors.DoesNotFitError: Status(409, "FAILED_PRECONDITION"),
    errors.QualityGateError: Status(409, "FAILED_PRECONDITION"),
    errors.ConflictError: Status(409, "ABORTED"),
    # Something is away for a while.
    errors.StorageError: Status(503, "UNAVAILABLE", 5),
    errors.UnavailableError: Status(503, "UNAVAILABLE", 1),
    CoverageError: Status(503, "UNAVAILABLE", 1),
    # The operator of the service has to mend it.
    errors.ConfigError: INTERNAL,
    errors.StorageRefusedError: INTERNAL,
    DqError: INTERNAL,
}
_TOO_SLOW = Status(504, "DEADLINE_EXCEEDED")
_RAISED = {
    each.__name__: each for each in STATUSES if each not in (RejectError, CoverageError, DqError)
}
# For an answer that is not of dq_cluster: a proxy's, or a load balancer's.
_BY_CODE = {
    401: AuthenticationError,
    404: errors.NotFoundError,
    413: LimitError,
    429: LimitError,
    502: errors.UnavailableError,
    503: errors.UnavailableError,
    504: errors.UnavailableError,
}


def status_of(error: Exception) -> Status:
    """The status that says what kind of error it is; INTERNAL for what is none of ours."""
    if isinstance(error, LimitError) and error.retry_after is not None:
        return Status(429, STATUSES[LimitError].grpc, error.retry_after)
    if isinstance(error, CoverageError) and error.response.timed_out:
        return _TOO_SLOW
    return next((STATUSES[k] for k in type(error).__mro__ if k in STATUSES), INTERNAL)


def message_of(error: Exception, hide: str) -> str:
    """What a caller may read of it: never `hide` (the index's URI), nothing of a mistake of ours
    but its kind."""
    if isinstance(error, DqError):
        return str(error).replace(hide, "<index>")
    return f"internal error ({type(error).__name__}); the log of the service says more"


def error_class(kind: str, code: int) -> type[DqError]:
    """What a client raises for an answer of HTTP status `code` that names this kind of error."""
    return _RAISED.get(kind) or _BY_CODE.get(code, DqError)
