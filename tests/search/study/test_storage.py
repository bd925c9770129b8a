from __future__ import annotations

import os
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileOpenLock

from search.errors import UserError
from search.study.storage import JOURNAL, drop_stale_lock, drop_torn_line, open_storage


def test_the_default_is_one_file_that_two_processes_share(tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_storage(tmp_path, None), study_name="s")
    study.tell(study.ask(), 0.5)
    again = optuna.load_study(storage=open_storage(tmp_path, None), study_name="s")
    assert again.best_value == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"]


def test_any_database_url_is_taken(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=open_storage(tmp_path, url), study_name="s")
    study.tell(study.ask(), 0.5)
    assert (tmp_path / "study.db").exists()


@pytest.mark.parametrize(
    "url",
    [
        "no url",
        "nosuchdriver://user:secret@host/db?password=secret",
        "sqlite:////nowhere/at/all/study.db",
        "postgresql+nosuchdriver://user:secret@host/db",
    ],
)
def test_a_storage_that_does_not_answer_is_one_line(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--storage") as error:
        open_storage(tmp_path, url)
    assert "secret" not in str(error.value)


def test_a_missing_driver_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"needs the Python package psycopg, .* pip install"):
        open_storage(tmp_path, "postgresql+psycopg://user@127.0.0.1:9/db")


def test_what_the_driver_found_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found OperationalError: unable to open database file"):
        open_storage(tmp_path, f"sqlite:///{tmp_path}/absent/study.db")


@pytest.mark.parametrize("lost", [1, 20])
def test_a_torn_last_line_costs_nothing_else(lost: int, tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_storage(tmp_path, None), study_name="s")
    for value in (0.5, 0.75):
        study.tell(study.ask(), value)
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes()[:-lost])
    assert drop_torn_line(tmp_path)
    assert not drop_torn_line(tmp_path)
    again = optuna.load_study(storage=open_storage(tmp_path, None), study_name="s")
    again.tell(again.ask(), 0.25)
    read = optuna.load_study(storage=open_storage(tmp_path, None), study_name="s")
    assert [trial.value for trial in read.trials if trial.value is not None] == [0.5, 0.25]


@pytest.mark.parametrize("damage", [b"\0" * 40, b"\xff\xfe\xff", b'{"op_code": 4, "stu'])
def test_a_journal_that_is_damaged_in_its_middle_is_told(damage: bytes, tmp_path: Path) -> None:
    """A power cut may leave a block of nothing."""
    study = optuna.create_study(storage=open_storage(tmp_path, None), study_name="s")
    study.tell(study.ask(), 0.5)
    path = tmp_path / JOURNAL
    first, *others = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, damage, *others, b""]))
    with pytest.raises(UserError, match=r"but it is damaged .* put back a copy of it") as error:
        open_storage(tmp_path, None)
    assert "\n" not in str(error.value)


def test_a_run_without_a_journal_has_no_torn_line(tmp_path: Path) -> None:
    assert not drop_torn_line(tmp_path)


@pytest.mark.parametrize("is_alive", [False, True])
def test_only_a_killed_processs_lock_is_dropped(
    is_alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_locks(_: float) -> None:
        if is_alive:
            (lock,) = tmp_path.iterdir()
            os.utime(lock, ns=(1, 1))

    monkeypatch.setattr("search.study.storage.time.sleep", another_locks)
    JournalFileOpenLock(str(tmp_path / JOURNAL)).acquire()
    drop_stale_lock(tmp_path)
    assert len(list(tmp_path.iterdir())) == is_alive


def test_a_journal_that_nobody_locks_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.study.storage.time.sleep", pytest.fail)
    drop_stale_lock(tmp_path)
