"""The command line `python -m search`: heavy imports inside the handlers, so --help is instant."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from cyclopts import App, CoercionError, CycloptsError, Token
from cyclopts.argument import ArgumentCollection
from rich.console import Console
from rich.status import Status

from search.errors import UserError
from search.memory import keep_freed_memory
from search.settings import SearchSettings, flag
from search.settings_file import read_settings

DEBUG = "--debug"

WIDE = 200
"""Columns of a table that goes to a file or a pipe."""


def _saved_settings(_app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Lets a run's settings.yaml stand in for the flags that were not given."""
    if commands not in (("run",), ("baseline",)):
        return
    by_flag = {argument.name: argument for argument in arguments}
    out = by_flag["--out"].tokens
    saved = read_settings(Path(out[0].value).expanduser()) if out else None
    for name, value in (saved or {}).items():
        argument = by_flag[flag(name)]
        if name != "out" and not argument.tokens:
            argument.append(Token(keyword=argument.name, value=str(value), source="settings.yaml"))


app = App(
    name="python -m search",
    help="Search timm backbones for real-versus-fake image detection under a parameter budget.",
    config=_saved_settings,
    help_format="plaintext",
    version_flags=[],
    suppress_keyboard_interrupt=False,  # `run_app` tells of it and returns 130
)


@app.command
def run(*, settings: SearchSettings = SearchSettings()) -> None:  # noqa: B008 - it is frozen
    """Search, or resume the search in --out. With no arguments: the embedded demo set."""
    console = Console()
    with loading(console):
        from search.session import run_search

    run_search(settings, console)


@app.command
def baseline(*, settings: SearchSettings = SearchSettings()) -> None:  # noqa: B008 - it is frozen
    """Train the challenge's own starting point as a candidate beside the others."""
    console = Console()
    with loading(console):
        from search.session import run_baseline

    run_baseline(settings, console)


@app.command
def backbones(
    *,
    backbones: Path | None = None,
    pool: str | None = None,
    weights: str = "hub",
) -> None:
    """List which backbones may be used, what each costs, and why some may not.

    Parameters
    ----------
    backbones
        File of the allowed backbones and the budget. Default: the one of onefold.
    pool
        Only this pool.
    weights
        hub or none: what the verdict on the pretraining is about.
    """
    from search.backbones import DEFAULT_PATH, load_backbones
    from search.backbones_table import backbones_table

    catalogue = load_backbones(backbones or DEFAULT_PATH)
    console = Console()
    if not console.is_terminal:
        # A file or a pipe has no width: names stay whole, to be searched for.
        console.width = WIDE
    with console.status("counting parameters"):
        table = backbones_table(catalogue, pool, weights)
    console.print(table)


@app.command
def report(*, out: Path) -> None:
    """Write leaderboard.csv, plots/*.png and report.html of a run.

    Parameters
    ----------
    out
        The run folder.
    """
    console = Console()
    with loading(console):
        from search.session import write_run_report

    for path in write_run_report(out, console):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


@app.command
def dashboard(*, out: Path, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Serve the Optuna dashboard of a run, also while the search is running.

    Parameters
    ----------
    out
        The run folder.
    host
        Address to listen on; everyone who can reach it can change the study.
    port
        Port to listen on.
    """
    from search.dashboard import serve
    from search.settings_file import load_settings

    settings = load_settings(out)
    assert settings.out is not None
    serve(settings.out, settings.storage, host, port)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 2 for bad input, 130 after Ctrl-C.

    Args:
        arguments: as on the command line; default: those of this process.
    """
    return run_app(app, sys.argv[1:] if arguments is None else arguments)


def _accepted(error: Exception) -> str:
    """What would have been accepted, where the parser does not say so."""
    is_duration = isinstance(error, CoercionError) and error.target_type is timedelta
    return " A duration is a number with its unit: 90m, 8h, 1d, 1h30m." if is_duration else ""


def loading(console: Console) -> Status:
    """Tells on a terminal that a command has begun, while it imports its libraries."""
    return console.status("loading torch and timm")


def run_app(app: Any, arguments: Sequence[str]) -> int:
    """Runs a command of an App; what the user can mend is told in one line on standard error.

    `--debug`, anywhere among the arguments, shows tracebacks.
    """
    debug = DEBUG in arguments
    keep_freed_memory()
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        app(
            [argument for argument in arguments if argument != DEBUG],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except (UserError, CycloptsError) as error:
        if debug:
            raise
        errors.print(f"error: {' '.join(str(error).split())}{_accepted(error)}")
        return 2
    except ArithmeticError as error:
        # A loss or a score that is not finite: the settings are at fault.
        if debug:
            raise
        errors.print(f"error: {' '.join(str(error).split())}")
        return 2
    except RuntimeError as error:
        if debug or "out of memory" not in str(error):
            raise
        errors.print(
            f"error: one image must fit into the device's memory, found: "
            f"{' '.join(str(error).split())[:200]}; choose a smaller --image-size or model, or "
            "--device cpu"
        )
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        errors.print("stopped")
        return 130
    return 0
