"""What an error means for a command: its exit status, and the one line that says why."""

from dataclasses import dataclass

from typer import TyperException

from dq_cluster.errors import DqError, UserError
from dq_cluster.observe.log import keep_stack

INTERRUPTED = 130  # 128 + SIGINT, as shells say it


@dataclass(frozen=True)
class Failure:
    """How a command ends: exit status, the line that says why, and the kind of error."""

    status: int
    message: str
    kind: str


def explain(error: BaseException) -> Failure:
    """How a command ends that raised `error`: 2 the request was wrong, 1 it failed.

    What is nobody's mistake but ours keeps its stack in a file, or on standard error with
    DQ_LOG_LEVEL=DEBUG.
    """
    kind = type(error).__name__
    match error:
        case TyperException():
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "dq-cluster"
            message = error.format_message().rstrip(".")
            return Failure(2, f"{message}; see {command} --help", "UsageError")
        case UserError():
            return Failure(2, str(error), kind)
        case DqError():
            return Failure(1, str(error), kind)
        case KeyboardInterrupt():
            return Failure(INTERRUPTED, "interrupted", kind)
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return Failure(1, f"{where}{error.strerror or error}", kind)
        case ModuleNotFoundError(name=str(name)) if not name.startswith("dq_cluster"):
            package = name.partition(".")[0]
            missing = f"this needs the Python package {package}, which is not installed"
            return Failure(2, f"{missing}: pip install 'dq-cluster[cpu]'", "MissingPackageError")
        case MemoryError():
            return Failure(1, "this machine has not enough memory for it", kind)
    what = f"internal error: {kind}: {error}"
    return Failure(1, f"{what}; the stack is {keep_stack(error)}", "InternalError")
