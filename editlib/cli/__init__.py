"""The command line: which commands there are, and mistakes told in one line.

The commands import what is heavy when they are called, so that the help is fast.
"""

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from editlib import __version__
from editlib.cli import data as data
from editlib.cli import mend as mend
from editlib.cli import testbed as testbed
from editlib.cli.anatomy import anatomy
from editlib.cli.apply import apply
from editlib.cli.edit import edit, layers, tasks
from editlib.cli.init import init
from editlib.cli.output import Stop, note
from editlib.cli.rerun import rerun
from editlib.cli.runs import cite, compare, publish, run, runs, show, verify
from editlib.cli.screen import screen
from editlib.cli.sweep import bench, hardedit, sweep
from editlib.errors import EditlibError
from editlib.text import is_text

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]  # click's ClickException, wherever typer keeps click
PAIRED = ("-p", "--parameter", "--hparam")
BOOK_EXTRA = ("papermill", "jupytext", "nbclient", "ipykernel")

app = typer.Typer(
    name="editlib",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
ABOUT_RUNS = (run, rerun, runs, show, verify, cite, compare, publish)
ABOUT_ONE = (edit, apply, layers, anatomy, screen)
for command in (*ABOUT_ONE, sweep, hardedit, *ABOUT_RUNS, tasks, bench, init):  # in the order of the help
    app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(mend.app, name="mend")
app.add_typer(testbed.app, name="testbed")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"editlib {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Edit facts in language models, see when one edit breaks them, and run the book's analyses."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 the user's mistake (one line on stderr).

    What a terminal's encoding lacks is replaced: no result is lost for a letter.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run_app(sys.argv[1:]))


def run_app(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    try:
        for argument in arguments:
            if not is_text(argument):  # surrogates stand in for bytes that are none
                raise EditlibError(f"argument {argument!r} is no UTF-8 text; write it in UTF-8")
        status = app(_joined(arguments or ["--help"]), prog_name="editlib", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except Stop as stop:
        return _complain(stop, stop.status)
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except USAGE_ERROR as error:
        command, message = getattr(error, "ctx", None), error.format_message().rstrip(".")  # type: ignore[attr-defined]
        if "unexpected extra argument" in message:
            message += "; quote what has spaces, with plain quotes"
        return _complain(f"{message}; see {command.command_path if command else 'editlib'} --help", 2)
    except EditlibError as error:
        return _complain(error, 2)
    except ModuleNotFoundError as error:
        if error.name not in BOOK_EXTRA:
            raise
        return _complain(f"this needs {error.name}; install it with: pip install 'editlib[book]'", 2)
    except OSError as error:
        return _complain(f"{error.filename or 'a file'}: {error.strerror or error}", 2)
    return _complain("interrupted", 130) if status == 130 else int(status or 0)


def _joined(arguments: Sequence[str]) -> list[str]:
    """`-p name value` as `-p name=value`: typer has no option that takes two values and may be repeated."""
    joined: list[str] = []
    for argument in arguments:
        waiting = len(joined) > 1 and joined[-2] in PAIRED and "=" not in joined[-1] and argument not in PAIRED
        joined[-1:] = [f"{joined[-1]}={argument}"] if waiting else [*joined[-1:], argument]
    return joined


def _complain(message: object, status: int) -> int:
    note(message)
    return status
