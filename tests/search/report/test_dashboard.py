"""Notes and artifacts of trials that have been told: made of the folder, made again, left alone."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note
from optuna_dashboard.artifact._backend import list_trial_artifacts
from rich.console import Console

import search.report.dashboard
from search.report.dashboard import _NotePlace, publish, trial_note
from search.report.terminal import Problems
from search.study.storage import open_storage
from tests.search.report.conftest import HandMadeRun

pytestmark = pytest.mark.usefixtures("blank_figures")

ALL = ["history.csv", "history.png", "roc.png"]


def publish_and_tell(run: HandMadeRun, numbers: set[int] | None = None) -> list[str]:
    stream = io.StringIO()
    publish(run.study, run.folder, Problems(run.folder, Console(file=stream)), numbers)
    return stream.getvalue().splitlines()


def note(run: HandMadeRun, number: int) -> str:
    trial = run.study.get_trials(deepcopy=False)[number]
    return get_note(_NotePlace(run.study, trial._trial_id))


def artifacts(run: HandMadeRun, number: int) -> dict[str, bytes]:
    """Name and content of what the dashboard would show of a trial."""
    trial = run.study.get_trials(deepcopy=False)[number]
    attributes = run.study._storage.get_study_system_attrs(run.study._study_id)
    own = run.study._storage.get_trial_system_attrs(trial._trial_id)
    metas = list_trial_artifacts(attributes, own, trial)
    return {
        meta["filename"]: (run.folder / "artifacts" / meta["artifact_id"]).read_bytes()
        for meta in sorted(metas, key=lambda meta: meta["filename"])
    }


@contextmanager
def counting_writes(run: HandMadeRun, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Keys of the study's system attributes that are written."""
    keys: list[str] = []
    original = type(run.study._storage).set_study_system_attr

    def spy(self: Any, study_id: int, key: str, value: Any) -> None:
        keys.append(key)
        original(self, study_id, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(type(run.study._storage), "set_study_system_attr", spy)
        yield keys


def test_every_trial_has_its_note_and_what_it_left(
    night: HandMadeRun, coarse: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # it is drawn
    assert publish_and_tell(night) == []
    assert [list(artifacts(night, number)) for number in range(6)] == [
        ALL,
        ALL,
        ["history.csv", "history.png"],
        [],
        [],
        ["history.csv", "history.png"],
    ]
    files = artifacts(night, 0)
    assert files["history.csv"] == (night.candidate(0) / "history.csv").read_bytes()
    assert files["roc.png"].startswith(b"\x89PNG")
    assert note(night, 0).startswith("**complete**\n\n| on select | |")
    assert "| learning_rate | 0.0003 |" in note(night, 0)
    assert note(night, 3).startswith("**failed**: the loss must be finite\n")
    assert "Verdict of the rules: rejected; 0.37M" in note(night, 4)
    assert note(night, 5).startswith("**paused**: the time limit was reached\n")


def test_another_process_finds_them_in_the_journal(night: HandMadeRun) -> None:
    publish_and_tell(night)
    night.study = optuna.load_study(storage=open_storage(night.folder, None), study_name="night")
    assert note(night, 0).startswith("**complete**")
    assert list(artifacts(night, 0)) == ALL


def test_waiting_and_running_trials_have_none(night: HandMadeRun) -> None:
    assert night.study.ask().number == 5  # the paused one goes on
    night.study.enqueue_trial({})
    publish_and_tell(night)
    assert note(night, 5) == note(night, 6) == ""
    assert artifacts(night, 5) == {}


def test_only_the_trials_asked_for_are_published(night: HandMadeRun) -> None:
    publish_and_tell(night, {1})
    assert [bool(note(night, number)) for number in range(6)] == [False, True] + 4 * [False]


def test_what_is_published_is_not_published_again(
    night: HandMadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_and_tell(night)

    def fail(*_: object) -> Path:
        raise AssertionError("drawn again")

    monkeypatch.setattr(search.report.dashboard, "draw_candidate_roc", fail)
    monkeypatch.setattr(search.report.dashboard, "draw_epochs", fail)
    with counting_writes(night, monkeypatch) as keys:
        assert publish_and_tell(night) == []
    assert keys == []


@pytest.mark.parametrize("lost", ["folder", "one file"])
def test_lost_artifacts_are_made_again(lost: str, night: HandMadeRun) -> None:
    publish_and_tell(night)
    before = [artifacts(night, number) for number in range(6)]
    folder = night.folder / "artifacts"
    if lost == "folder":
        shutil.rmtree(folder)
    else:
        next(folder.iterdir()).unlink()
    assert publish_and_tell(night) == []
    assert [artifacts(night, number) for number in range(6)] == before
    assert len(list(folder.iterdir())) == sum(map(len, before)), "none beside the old ones"


def test_a_trial_that_went_on_is_published_as_it_ended(
    night: HandMadeRun, coarse: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # it is drawn, and drawn anew
    publish_and_tell(night)
    paused = artifacts(night, 5)
    trial = night.study.ask()
    assert trial.number == 5
    row = night.write_candidate(5, 2.0)
    with (night.candidate(5) / "history.csv").open("a") as history:
        history.write("3,0.4,0.9\n")
    trial.set_user_attr("row", row)
    trial.set_user_attr("reason", "")
    trial.set_user_attr("state", "complete")
    night.study.tell(trial, row["auc"])
    publish_and_tell(night, {5})
    assert note(night, 5).startswith("**complete**\n")
    files = artifacts(night, 5)
    assert list(files) == ALL
    assert files["history.csv"].endswith(b"3,0.4,0.9\n")
    assert files["history.png"] != paused["history.png"]


def test_killed_amid_publishing_the_next_one_makes_it_whole(
    night: HandMadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(_: object, target: Path) -> Path:
        target.write_bytes(b"drawn")
        return target

    monkeypatch.setattr(search.report.dashboard, "draw_candidate_roc", draw)
    monkeypatch.setattr(search.report.dashboard, "draw_epochs", draw)
    with counting_writes(night, monkeypatch) as keys:
        publish_and_tell(night)
    whole = [(note(night, number), artifacts(night, number)) for number in range(6)]
    for kept in range(0, len(keys), 3):
        run = HandMadeRun(night.folder.parent / f"killed{kept}")
        run.study.add_trials(night.study.get_trials())
        shutil.copytree(night.folder / "candidates", run.folder / "candidates")
        left = kept

        def write(self: Any, study_id: int, key: str, value: Any, original: Any) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            original(self, study_id, key, value)

        storage = type(run.study._storage)
        original = storage.set_study_system_attr
        with monkeypatch.context() as patch:
            patch.setattr(
                storage, "set_study_system_attr", lambda *args, o=original: write(*args, o)
            )
            with pytest.raises(KeyboardInterrupt):
                publish_and_tell(run)
        publish_and_tell(run)
        assert [(note(run, number), artifacts(run, number)) for number in range(6)] == whole


def test_what_a_user_wrote_or_deleted_stays(night: HandMadeRun) -> None:
    publish_and_tell(night)
    trial = night.study.trials[0]
    save_note(_NotePlace(night.study, trial._trial_id), "mine")
    attributes = night.study._storage.get_study_system_attrs(night.study._study_id)
    (key,) = (
        key
        for key, value in attributes.items()
        if key.startswith(f"dashboard:artifacts:{trial._trial_id}:") and "roc.png" in value
    )
    # As the dashboard's button does.
    (night.folder / "artifacts" / key.rpartition(":")[2]).unlink()
    night.study._storage.set_study_system_attr(night.study._study_id, key, json.dumps(None))
    (night.candidate(0) / "scores.csv").write_text("target,y_pred\n0,0.5\n1,0.6\n")
    for _ in range(2):
        publish_and_tell(night)
        assert note(night, 0) == "mine"
        assert list(artifacts(night, 0)) == ["history.csv", "history.png"]


def test_a_drawing_error_is_one_line_and_mended_by_the_next(
    night: HandMadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def fail(*_: object) -> Path:
            raise RuntimeError("no font")

        patch.setattr(search.report.dashboard, "draw_epochs", fail)
        (line,) = publish_and_tell(night)
    assert line.startswith("artifacts of 0000, 0001, 0002, 0005 could not be made: RuntimeError")
    assert "search report" in line
    assert note(night, 0).startswith("**complete**"), "the note is made all the same"
    assert publish_and_tell(night) == []
    assert list(artifacts(night, 0)) == ALL


def test_a_damaged_table_costs_its_own_artifact(night: HandMadeRun) -> None:
    (night.candidate(0) / "scores.csv").write_text("img_name\n")
    (line,) = publish_and_tell(night)
    assert str(Path("0000") / "scores.csv") in line
    assert list(artifacts(night, 0)) == ["history.csv", "history.png"]
    assert list(artifacts(night, 1)) == ALL
    night.write_candidate(0, 1.5)
    assert publish_and_tell(night) == []
    assert list(artifacts(night, 0)) == ALL


@pytest.mark.parametrize(
    ("attributes", "absent"),
    [
        ({}, ("on select", "Verdict", "recipe")),
        ({"row": {"auc": None, "params_exact": None}}, ("on select", "Verdict")),
        ({"row": {"auc": 0.5, "params_exact": 5}}, ("Verdict",)),
    ],
)
def test_a_note_leaves_out_what_is_not_known(
    attributes: dict[str, Any], absent: tuple[str, ...]
) -> None:
    text = trial_note("failed", "the process ended", attributes)
    assert text.startswith("**failed**: the process ended")
    assert not [word for word in absent if word in text]


def test_finished_trials_stay_as_they_were_told(night: HandMadeRun) -> None:
    before = night.study.get_trials()
    publish_and_tell(night)
    assert night.study.get_trials() == before
    assert night.study.trials[0].state is TrialState.COMPLETE
