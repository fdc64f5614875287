"""`dq-cluster`: the commands, and how an error becomes an exit status."""

import contextlib
import io
import os
import sys
from collections.abc import Sequence

import typer

from dq_cluster.cli import config_commands, index_commands, search_commands, workloads
from dq_cluster.cli.failures import INTERRUPTED, explain
from dq_cluster.cli.output import emit_error
from dq_cluster.cli.signals import run_until_signal
from dq_cluster.cluster.noise import quiet_environment
from dq_cluster.errors import ConfigError, InputError
from dq_cluster.location import absolute
from dq_cluster.observe.log import configure_logging

# Paths from the environment; made absolute, because workers run in other folders.
_PATHS = ("DQ_CACHE", "DQ_API_KEYS_FILE")

app = typer.Typer(
    name="dq-cluster",
    help="Train a product quantizer for your images, encode them, serve and measure the index.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
workloads.register(app)
search_commands.register(app)
app.command()(index_commands.export)
app.add_typer(index_commands.app, name="index")
app.add_typer(config_commands.app, name="config")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 failed, 2 the request was wrong.

    130 or 143: SIGINT or SIGTERM ended it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):  # names may have any bytes
            stream.reconfigure(errors="backslashreplace")
    chosen = sys.argv[1:] if arguments is None else list(arguments)
    status = run_until_signal(lambda: run(chosen))
    try:
        sys.stdout.flush()
    except OSError:
        # The reader has gone; the interpreter must not try to flush the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _resolve_paths() -> None:
    for name in _PATHS:
        if value := os.environ.get(name):
            try:
                os.environ[name] = absolute(value)
            except InputError as error:
                raise ConfigError(f"{name}: {error}") from None


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    as_json = "--json" in arguments
    try:
        _resolve_paths()
        configure_logging()
        quiet_environment(os.environ)
        status = app(
            args=list(arguments) or ["--help"], prog_name="dq-cluster", standalone_mode=False
        )
        if status == INTERRUPTED:
            raise KeyboardInterrupt  # how typer reports an interrupt
        return int(status or 0)
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException as error:
        failure = explain(error)
    with contextlib.suppress(OSError):  # the reader has gone
        # `cli.signals` reports interrupts.
        said = failure.status == INTERRUPTED
        emit_error(failure.message, failure.kind, as_json=as_json, said=said)
    return failure.status
