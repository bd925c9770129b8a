"""The command line `python -m search`: heavy imports inside the handlers, so --help is instant."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App, Token
from cyclopts.argument import ArgumentCollection
from rich.console import Console

from search.errors import loading, run_app
from search.machine.progress import tell_line
from search.settings.data import flag
from search.settings.saved import read_settings
from search.settings.search import SearchSettings
from search.settings.subcommands import (
    AuditSettings,
    ExpandSettings,
    ProfileSettings,
    RefitSettings,
    StressSettings,
)

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
    started = time.monotonic()
    console = Console()
    with loading(console):
        from search.run.search import run_search

    run_search(settings, console, started)


@app.command
def baseline(*, settings: SearchSettings = SearchSettings()) -> None:  # noqa: B008 - it is frozen
    """Train the challenge's own starting point as a candidate beside the others."""
    started = time.monotonic()
    console = Console()
    with loading(console):
        from search.run.search import run_baseline

    run_baseline(settings, console, started)


@app.command
def refit(*, settings: RefitSettings) -> None:
    """Train a chosen recipe for longer, on more than it was searched on."""
    started = time.monotonic()
    console = Console()
    with loading(console):
        from search.run.refit import run_refit

    run_refit(settings, console, started)


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
    console = Console()
    with loading(console):
        from search.catalogue.backbones import DEFAULT_PATH, load_backbones
        from search.catalogue.rules import backbones_table

    catalogue = load_backbones(backbones or DEFAULT_PATH)
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
        from search.run.report import write_run_report

    for path in write_run_report(out, console):
        tell_line(console, f"wrote {path}")


@app.command
def profile(*, settings: ProfileSettings = ProfileSettings()) -> None:  # noqa: B008 - it is frozen
    """Measure each stage of a training alone and the whole, and name the bottleneck."""
    console = Console()
    with loading(console):
        from search.run.profile import run_profile

    run_profile(settings, console)


@app.command
def stress(*, settings: StressSettings) -> None:
    """Score a model on images that were altered on their way: compressed, resized, noisy, dark."""
    console = Console()
    with loading(console):
        from search.validation.stress.stress import run_stress

    run_stress(settings, console)


@app.command
def audit(*, settings: AuditSettings = AuditSettings()) -> None:  # noqa: B008 - it is frozen
    """Look for leaks, copies and broken files, before a search is worth its time."""
    console = Console()
    with loading(console):
        from search.validation.audit.audit import run_audit

    run_audit(settings, console)


@app.command
def expand(*, settings: ExpandSettings) -> None:
    """Generate samples from the training images; or, --from their manifest, the same bytes again.

    Train on them with `search run --generated DIR`, beside the given images.
    """
    console = Console()
    with loading(console):
        from search.expand.expand import run_expand

    run_expand(settings, console)


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
    with loading(Console()):
        from search.report.dashboard import serve
        from search.settings.saved import load_settings

    settings = load_settings(out)
    assert settings.out is not None
    serve(settings.out, settings.storage, host, port)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 2 for bad input, 130 after Ctrl-C.

    Args:
        arguments: as on the command line; default: those of this process.
    """
    return run_app(app, sys.argv[1:] if arguments is None else arguments)
