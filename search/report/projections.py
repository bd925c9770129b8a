"""All that is made of a run for people: leaderboard.csv, notes, artifacts, plots, report.html.

Each is computed from the disk and the study, after the fact. One that fails is told in one line,
costs no other, and can be made again.
"""

from __future__ import annotations

from pathlib import Path

import optuna
import pandas as pd
from rich.console import Console

from search.machine.files import LEADERBOARD
from search.report.dashboard import publish
from search.report.leaderboard import (
    read_leaderboard,
    rows_from_study,
    write_leaderboard,
)
from search.report.page import HIGHLIGHTED, write_report
from search.report.recorded import describe_run
from search.report.terminal import Problems

NOTES = HIGHLIGHTED[0]


def write_projections(run: Path, study: optuna.Study | None, console: Console) -> list[Path]:
    """Writes everything of a run that is for people; never fails but for Ctrl-C.

    Nothing but the folder and the study is needed: no image, no weights, no device.

    Args:
        run: the run folder.
        study: None where its storage cannot be opened; the last leaderboard.csv is shown then.
        console: where problems are told, a line each.

    Returns:
        What was written: leaderboard.csv, report.html and the folder plots/.
    """
    problems = Problems(run, console)
    written: list[Path] = []
    leaderboard: pd.DataFrame | None = None
    if study is not None:
        with problems.forgiven("the leaderboard"):
            leaderboard = rows_from_study(study, run, problems.tell)
    if study is not None and leaderboard is not None:
        with problems.forgiven(LEADERBOARD):
            write_leaderboard(leaderboard, run / LEADERBOARD)
            written.append(run / LEADERBOARD)
        with problems.forgiven("notes and artifacts of the dashboard"):
            publish(study, run, problems)
    else:
        study = None
        with problems.forgiven("report.html"):
            leaderboard = read_leaderboard(run / LEADERBOARD)
            problems.tell(
                f"the study is not at hand: {LEADERBOARD} is shown as it was last written, and the "
                "importance of parameters is left blank"
            )
    if leaderboard is None:
        return written
    with problems.forgiven("report.html"), console.status("drawing plots"):
        facts = describe_run(run, problems.tell)
        if study is None:
            stale = (
                f"The study was not at hand when this page was made: it shows {LEADERBOARD} as it "
                "was last written."
            )
            facts[NOTES] = f"{facts[NOTES]} {stale}" if NOTES in facts else stale
        page, *plots = write_report(run, study, leaderboard, facts, problems)
        written += [page, *([run / "plots"] if plots else [])]
    return written


def write_after_trial(run: Path, study: optuna.Study, number: int, console: Console) -> None:
    """The quick ones after each trial: leaderboard.csv, and the trial's note and artifacts.

    Never fails but for Ctrl-C: a spreadsheet that holds the file open must not cost the night.

    Args:
        run: the run folder.
        study: of the run.
        number: of the trial that has ended or was paused.
        console: where problems are told, a line each.
    """
    problems = Problems(run, console)
    with problems.forgiven(LEADERBOARD):
        # What is damaged is told once, at the end of the search.
        write_leaderboard(rows_from_study(study, run), run / LEADERBOARD)
    with problems.forgiven(f"note and artifacts of trial {number:04d}"):
        publish(study, run, problems, {number})
