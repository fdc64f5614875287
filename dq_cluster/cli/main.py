"""`dq-cluster`: the commands, and how an error becomes an exit status."""

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from dq_cluster.cli import index_commands, search_commands, workloads
from dq_cluster.cli.output import emit_error
from dq_cluster.cli.signals import run_until_signal
from dq_cluster.errors import DqError, UserError
from dq_cluster.observe.log import configure_logging


class _Commands(TyperGroup):
    """The commands; typer would print a line of its own for a signal, and exit with 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(130) from None


app = typer.Typer(
    name="dq-cluster",
    cls=_Commands,
    help="Train product-quantized codes for a pile of images, encode it, serve it, measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
workloads.register(app)
search_commands.register(app)
app.add_typer(index_commands.app, name="index")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 failed, 2 the request was wrong.

    130 or 143: SIGINT or SIGTERM ended it.
    """
    chosen = sys.argv[1:] if arguments is None else list(arguments)
    sys.exit(run_until_signal(lambda: run(chosen)))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    as_json = "--json" in arguments
    try:
        configure_logging()
        app(args=list(arguments))
    except UserError as error:
        emit_error(error, as_json=as_json)
        return 2
    except DqError as error:
        emit_error(error, as_json=as_json)
        return 1
    except SystemExit as exit:  # typer reports wrong usage itself
        return int(exit.code or 0)
    return 0
