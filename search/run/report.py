"""`search report`: leaderboard, plots and pages of a run, from its folder alone."""

from __future__ import annotations

from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from rich.console import Console

from search.errors import UserError
from search.machine.files import check_writable
from search.machine.interruption import Interruption
from search.machine.progress import tell_line
from search.report.projections import write_projections
from search.run.folder import LOCK, clean, study_of
from search.settings.saved import load_settings
from search.study.opening import recover
from search.study.report_split import score_what_is_missing


def write_run_report(out: Path, console: Console) -> list[Path]:
    """Writes leaderboard.csv, plots and report.html of a run from its folder alone; returns their
    paths.

    Kept candidates that have no scores on report get them if the images are at hand and no search
    is running; else they are left blank, and told.

    Raises:
        UserError: if the folder holds no search, or cannot be written to.
        KeyboardInterrupt: after Ctrl-C.
    """
    settings = load_settings(out)
    assert settings.out is not None
    run = settings.out
    check_writable(run)
    interruption = Interruption()
    study: optuna.Study | None = None
    try:
        with FileLock(run / LOCK, timeout=0), interruption.handling_signals():
            clean(settings, run, console)
            study = study_of(settings, run, console)
            if study is not None:
                recover(study, run)
                score_what_is_missing(settings, study, run, console, interruption)
    except Timeout:
        tell_line(console, "the search is running: the report split is left to its end")
        study = study_of(settings, run, console)
    except (UserError, StorageInternalError) as error:
        told = " ".join(str(error).split())
        tell_line(console, f"the report split is left as it is: {told}")
    except OSError as error:
        # The lock cannot be had, as on some network drives.
        tell_line(console, f"the report split is left as it is: {error}")
        study = study_of(settings, run, console)
    interruption.check()
    return write_projections(run, study, console)
