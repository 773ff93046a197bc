"""The command `rba`. Commands import what they need when they run, so that `rba --help` stays under half a second."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from rbalign import __version__
from rbalign.cli import assets, evaluating, listing, pipeline, scoring, sharing, tools
from rbalign.errors import RbaError

# The stages show what takes long; a model's 0.2 s of loading needs no bar of its own. Workers inherit this.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Ctrl-C, as every shell counts it: 128 + SIGINT.
STOPPED = 130

app = typer.Typer(
    name="rba",
    help="Close the gap between what a speech LLM answers and what its text teacher would answer.",
    no_args_is_help=True,
    add_completion=False,
    # Our own one-line errors; rich tracebacks would show local variables, which may hold keys and user data.
    pretty_exceptions_enable=False,
)
pipeline.register(app)
sharing.register(app)
evaluating.register(app)
scoring.register(app)
tools.register(app)
app.add_typer(assets.app, name="assets", rich_help_panel="Look around")
app.add_typer(listing.app, name="list", rich_help_panel="Look around")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rba {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and stop.")
    ] = False,
) -> None:
    """Nothing but the options of `rba` itself."""


def main() -> None:
    """The entry point: runs the command and leaves with its exit code.

    `kill` stops like Ctrl-C: worker processes are ended by the same `finally` blocks, none is left behind.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run_command(sys.argv[1:]))


def run_command(words: Sequence[str]) -> int:
    """Run `rba WORDS`; the exit code.

    An error with a cure is one line on stderr (RBA_DEBUG=1 adds its traceback). Any other exception is a fault of
    rba: it keeps its traceback, since nobody should have to repeat an hour of training to see it.
    """
    try:
        code = app(args=list(words), prog_name="rba", standalone_mode=False)
    except RbaError as error:
        if os.environ.get("RBA_DEBUG") == "1":
            raise
        typer.echo(f"rba: {error}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except BrokenPipeError:  # `rba list voices | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # typer's usage errors; by their shape, for their module moved between typer releases.
        if not hasattr(error, "format_message"):
            raise
        message = " ".join(error.format_message().split())
        typer.echo(f"rba: {message or 'say what to do'} → see `rba --help` or `rba COMMAND --help`", err=True)
        return 2
    if code == STOPPED:
        typer.echo(f"\nrba: stopped; finished work is kept → go on with: rba {shlex.join(words)}", err=True)
    return code if isinstance(code, int) else 0
