"""Where a run's study is stored: one journal file in its folder, or any Optuna storage URL."""

from __future__ import annotations

import time
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from search.errors import UserError

JOURNAL = "study.journal"


def open_storage(run: Path, url: str | None) -> BaseStorage:
    """Opens the storage of a run's study.

    The default is an append-only journal: the dashboard reads and writes it while a search runs,
    which SQLite answers with "database is locked".

    Args:
        run: the run folder.
        url: an Optuna storage URL (postgresql://..., sqlite:///...), or None for the journal.

    Raises:
        UserError: if the journal is damaged, the URL is malformed or nothing answers there; its
            password is not repeated.
    """
    if url is None:
        path = str(run / JOURNAL)
        # The lock by open() needs no symbolic links, which some mounted file systems lack.
        backend = JournalFileBackend(path, lock_obj=JournalFileOpenLock(path))
        try:
            return JournalStorage(backend)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{path} must be the journal of a search, but it is damaged "
                f"({' '.join(str(error).split())[:200]}); put back a copy of it, or begin a search "
                "with another --out"
            ) from error
    try:
        # Without its query, which may hold a password too.
        shown = make_url(url).set(query={}).render_as_string(hide_password=True)
    except ArgumentError:
        raise UserError(
            "--storage must be a database URL such as postgresql://user@host/database, and what "
            "was given cannot be parsed"
        ) from None
    try:
        # No heartbeats: the run's lock says whether somebody works on a trial.
        # An idle connection may be closed between two looks: it is tried before it is used.
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        cause = _first_cause(error)
        driver = cause.name if isinstance(cause, ImportError) and cause.name else "its driver"
        raise UserError(
            f"--storage {shown} needs the Python package {driver}, which is not installed; install "
            "it (for PostgreSQL: pip install -e '.[postgresql]')"
        ) from None
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = _first_cause(error)
        # Drivers name host, user and database, never the password.
        found = " ".join(f"{type(cause).__name__}: {cause}".split())
        raise UserError(f"--storage {shown} must be reachable, found {found}") from None


def drop_torn_line(run: Path) -> bool:
    """Cuts off a last line of the journal that a crash or a full disk left unfinished; whatever was
    appended to it would be lost with it. Returns whether there was one.

    Only for the process that holds the run's lock.
    """
    path = run / JOURNAL
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return False
    with path.open("rb+") as file:
        file.truncate(whole)
    return True


def drop_stale_lock(run: Path) -> None:
    """Deletes the lock on the journal that a killed process left: Optuna would wait half a minute
    for it, and say nothing.

    Only for the process that holds the run's lock. A dashboard locks the journal for moments: what
    has not changed after a second is nobody's.
    """
    path = run / f"{JOURNAL}.lock"
    found = _modified(path)
    if found is None:
        return
    time.sleep(1.0)
    if _modified(path) == found:
        path.unlink(missing_ok=True)


def _modified(path: Path) -> int | None:
    """When a file was last written, in ns; None without a file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _first_cause(error: BaseException) -> BaseException:
    """What the driver raised, where others wrapped it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
