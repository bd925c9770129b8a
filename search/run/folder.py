"""A run folder: its lock, what killed processes left half-written, and its study."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from rich.console import Console

from search.data.inputs import check_data, study_name
from search.errors import UserError
from search.machine.files import BACKBONES, CANDIDATES, REFITS, drop_unfinished_writes
from search.machine.progress import tell_line
from search.settings.search import SearchSettings
from search.study.opening import open_study
from search.study.storage import JOURNAL, drop_stale_lock, drop_torn_line

LOCK = ".lock"


BEFORE_A_SEARCH = frozenset({"audit.json", "audit.html", "lost+found"})
"""What a search may find in its folder, beside hidden files and logs: `search audit` writes where
the search will, and a disk may be mounted there."""

OF_A_SEARCH = frozenset({LOCK, JOURNAL, BACKBONES})
"""What one leaves that ended before it was a run, or brings."""


def check_new(run: Path) -> None:
    """Refuses to begin a search among a user's own files.

    Raises:
        UserError: if the folder is there and holds files, but no search was ever begun in it.
    """
    try:
        found = {path.name for path in run.iterdir()}
    except OSError:
        return  # it is not there yet; what cannot be read cannot be written to, and that is told
    foreign = {
        name
        for name in found - BEFORE_A_SEARCH
        if not name.startswith(".") and not name.endswith(".log")
    }
    if not found & OF_A_SEARCH and foreign:
        raise UserError(
            f"--out must be a new folder or that of a search, found {min(foreign)} in "
            f"{run.absolute()}; choose another"
        )


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Lets one process at a time search, or refit, in a run folder.

    Raises:
        UserError: if another one is at it, or the folder cannot be written to.
    """
    lock = FileLock(run / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{run} must be searched by one process at a time, and another one is at it; wait for "
            "it, or choose another --out"
        ) from None
    except OSError as error:
        raise UserError(
            f"{run} must be a folder that a search can write to, found: {error}; mend that, or "
            "copy it to one"
        ) from error
    try:
        yield
    finally:
        lock.release()


def clean(settings: SearchSettings, run: Path, console: Console) -> None:
    """Deletes what killed processes left half-written; only under the run's lock."""
    for folder in (run, run / "plots", *run.glob(f"{CANDIDATES}/*"), *run.glob(f"{REFITS}/*")):
        drop_unfinished_writes(folder)
    if settings.storage is not None:
        return
    drop_stale_lock(run)
    if drop_torn_line(run):
        tell_line(
            console,
            f"{JOURNAL} ended in the middle of a line, which is dropped: a trial that was running "
            "then goes on",
        )


def study_of(settings: SearchSettings, run: Path, console: Console) -> optuna.Study | None:
    """The study of an existing run; None, and told, where its storage cannot be reached."""
    try:
        fingerprint = str(check_data(run)["fingerprint"])
        return open_study(settings, fingerprint, study_name(run))
    except (UserError, OSError, StorageInternalError) as error:
        tell_line(console, f"the study cannot be opened: {' '.join(str(error).split())}")
        return None
