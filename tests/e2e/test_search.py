"""The search as a user runs it, on real image files."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock
from optuna.exceptions import StorageInternalError

from search.cli import main
from search.data.inputs import canvas_of, read_splits
from search.machine.device import Runtime, library_versions
from search.machine.seconds import SECONDS
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from search.report.terminal import StudyProgress
from search.run.reserve import Reserve
from search.settings.saved import FORMAT, load_settings
from search.study.storage import open_storage
from search.training import scoring
from search.training.candidate import Candidate
from search.training.loop import StepRecord
from search.training.scoring import predict
from search.training.train import Watch
from tests.e2e.conftest import QUICK, DataSet, make_data_set
from tests.processes import Process

MEASURED = [*SECONDS, "images_per_second"]


def leaderboard(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "leaderboard.csv", dtype={"candidate": str})


def study_of(run: Path) -> optuna.Study:
    return optuna.load_study(study_name=run.name, storage=open_storage(run, None))


def test_a_run_leaves_everything_it_promises(finished_run: Path) -> None:
    for name in (
        "settings.yaml",
        "study.journal",
        "leaderboard.csv",
        "report.html",
        "candidates/0000/model.safetensors",
        "candidates/0000/recipe.yaml",
        "candidates/0000/metrics.json",
        "candidates/0000/history.csv",
        "candidates/0000/scores.csv",
        "candidates/0000/scores_report.csv",
    ):
        assert (finished_run / name).stat().st_size > 0, name
    assert len(list((finished_run / "plots").glob("*.png"))) >= 5
    table = leaderboard(finished_run)
    assert set(table["state"]) == {"complete", "paused"}
    complete = table[table["state"] == "complete"]
    assert complete["rank"].tolist() == list(range(1, len(complete) + 1))
    assert complete["auc"].is_monotonic_decreasing
    assert complete["auc_report"].notna().all()
    assert (complete["auc_low"] <= complete["auc"]).all()
    assert (complete["auc"] <= complete["auc_high"]).all()
    assert table["pretraining"].str.contains("scratch").all()
    unfinished = {path.parent.name for path in finished_run.glob("candidates/*/checkpoint.pt")}
    assert unfinished == set(table["candidate"][table["state"] == "paused"])


def test_the_best_go_on_to_twice_the_images_and_three_are_finished(finished_run: Path) -> None:
    table = leaderboard(finished_run)
    looks = {
        name: Candidate(finished_run / "candidates" / name).history for name in table["candidate"]
    }
    first = {name: history["select_auc"].iloc[0] for name, history in looks.items()}
    images = {name: history["images"].tolist() for name, history in looks.items()}
    # The baseline is compared with none: two epochs in batches of 40.
    assert images.pop("0000") == [40, 80]
    assert sorted(map(tuple, images.values())) == [(64,)] * 4 + [(64, 128)] + [(64, 128, 256)] * 3
    went_on = {name for name, seen in images.items() if len(seen) > 1}
    best = sorted(images, key=lambda name: (-first[name], name))
    assert went_on == set(best[:4])
    finished = table["candidate"][(table["state"] == "complete") & (table["candidate"] != "0000")]
    second = {name: looks[name]["select_auc"].iloc[1] for name in went_on}
    assert set(finished) == set(sorted(second, key=lambda name: (-second[name], name))[:3])


def test_a_paused_trial_keeps_its_history_and_its_checkpoint_and_is_no_candidate(
    finished_run: Path,
) -> None:
    table = leaderboard(finished_run)
    for row in table[table["state"] == "paused"].to_dict("records"):
        folder = finished_run / "candidates" / row["candidate"]
        kept = {"recipe.yaml", "history.csv", "checkpoint.pt"}
        assert {path.name for path in folder.iterdir()} == kept
        history = pd.read_csv(folder / "history.csv")
        assert row["epochs"] == history["epoch"].iloc[-1] < 4
        assert row["objective"] == history["select_auc"].max()
        assert 0 < row["objective"] < 1
        assert pd.isna(row["auc"])
        assert row["reason"] == "others are trained first"
        assert pd.isna(row["rank"])
        assert study_of(finished_run).trials[row["trial"]].state.name == "WAITING"


def test_a_loaded_candidate_gives_the_scores_on_disk(finished_run: Path) -> None:
    splits = read_splits(load_settings(finished_run))
    runtime = Runtime(torch.device("cpu"))
    for name in ("0000", "0001"):
        candidate = Candidate(finished_run / "candidates" / name)
        network = candidate.load()
        for table, scores in (
            (splits.select, candidate.scores),
            (splits.report, candidate.report_scores),
        ):
            assert scores is not None
            # Another batch size than the search's: scores must not depend on it.
            loader = eval_batches(Reader(network.canvas), table, batch_size=5)
            predictions = predict(network, loader, runtime)
            assert scores["img_name"].tolist() == table["img_name"].tolist()
            np.testing.assert_allclose(scores["y_pred"], predictions.scores, atol=1e-5)


def test_the_baseline_is_the_challenges(finished_run: Path) -> None:
    baseline = Candidate(finished_run / "candidates" / "0000")
    recipe = baseline.recipe
    # The largest size of the pool: no image is smaller.
    assert recipe.canvas == canvas_of(finished_run) == 32
    # Its own ResNet-18 is not in this catalogue, and the report says so.
    assert recipe.architecture == "test_resnet"
    assert "its settings were applied to test_resnet" in (finished_run / "report.html").read_text()
    assert (recipe.optimizer, recipe.schedule, recipe.learning_rate) == ("adam", "step", 5e-3)
    assert (recipe.epochs, recipe.batch_size, recipe.augmentation) == (2, 40, "baseline")


def test_more_trials_resume_and_repeat_nothing(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "finished"
    shutil.copytree(finished_run, run)
    before = leaderboard(run)
    looks = {name: Candidate(run / "candidates" / name).history for name in before["candidate"]}
    assert main(["run", "--out", str(run), "--trials", "10", "--keep", "1"]) == 0
    after = leaderboard(run)
    assert len(after) == 10
    finished = before[before["state"] == "complete"].drop(columns="rank").set_index("candidate")
    still = after.drop(columns="rank").set_index("candidate").loc[finished.index]
    pd.testing.assert_frame_equal(finished, still, check_exact=True)
    for name, history in looks.items():
        # One that was paused may have gone on; its looks so far were not taken again.
        now = Candidate(run / "candidates" / name).history
        pd.testing.assert_frame_equal(history, now.head(len(history)), check_exact=True)
    # The best one and the baseline keep their weights, everyone keeps the rest.
    with_weights = {path.parent.name for path in run.glob("candidates/*/model.safetensors")}
    complete = after[after["state"] == "complete"]
    best = complete[complete["candidate"] != "0000"].iloc[0]["candidate"]
    assert with_weights == {"0000", best}
    assert len(list(run.glob("candidates/*/scores.csv"))) == len(complete)
    before = leaderboard(run)
    assert main(["run", "--out", str(run)]) == 0
    pd.testing.assert_frame_equal(before, leaderboard(run))


def test_a_run_of_other_data_is_refused(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "finished"
    shutil.copytree(finished_run, run)
    data = yaml.safe_load((run / "data.yaml").read_text())
    data["fingerprint"] = "0" * 64
    (run / "data.yaml").write_text(yaml.safe_dump(data))
    assert main(["run", "--out", str(run), "--trials", "9"]) == 2


class Killed(BaseException):
    """Stands for kill -9 inside one process: nothing of the search may catch it."""


def ending(trial: int, steps: int, end: Callable[[], None]) -> Callable[[Watch, StepRecord], None]:
    """Ends a search at a step of a trial, as a signal or a kill would."""
    left = [steps]

    def step(watch: Any, _record: StepRecord) -> None:
        if watch.trial.number == trial:
            left[0] -= 1
            if left[0] == 0:
                end()

    return step


def kill() -> None:
    raise Killed


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("end", "steps", "cache"), [(terminate, 2, "off"), (kill, 6, "auto")])
def test_a_stopped_search_goes_on_and_loses_nothing(
    end: Callable[[], None],
    steps: int,
    cache: str,
    finished_run: Path,
    data_set: DataSet,
    quick: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the cache of canvases, as the finished run, and without it: the same seed gives the same
    leaderboard."""
    run = tmp_path / "run"
    arguments = ["run", *data_set.flags, *quick, "--epochs", "4", "--trials", "9"]
    arguments += ["--cache", cache]
    with monkeypatch.context() as patch:
        # Of a backbone's default, before its first look, or when it goes on to its second.
        patch.setattr("search.study.driving._TrialWatch.step", ending(1, steps, end))
        if end is kill:
            with pytest.raises(Killed):
                main([*arguments, "--out", str(run)])
            # What Python's own clean-up gave back, a kill would have left to the lock's end.
            assert study_of(run).trials[1].state.name == "RUNNING"
        else:
            assert main([*arguments, "--out", str(run)]) == 130
            told = capsys.readouterr()
            assert "Traceback" not in told.err
            assert "resume with: python -m search run --out" in told.out
            assert (run / "report.html").exists()
            table = leaderboard(run).set_index("trial")
            assert table["state"].tolist() == ["complete"] + ["paused"] * (len(table) - 1)
            assert "interrupted" in table.loc[1, "reason"]
            assert set(table.drop(index=[0, 1])["reason"]) <= {"others are trained first"}
            assert study_of(run).trials[1].state.name == "WAITING"
    assert (run / "candidates" / "0001" / "checkpoint.pt").exists()
    known = {path.name for path in run.glob("candidates/*")}
    assert known == ({"0000", "0001"} if steps < 4 else set(finished_candidates(finished_run)))
    baseline = (run / "candidates" / "0000" / "metrics.json").read_bytes()
    begun: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        StudyProgress,
        "trial_started",
        lambda progress, name, recipe, *, until=None, goes_on=False: begun.append((name, goes_on)),
    )
    assert main(["run", "--out", str(run)]) == 0
    # The one that was stopped goes on first, under its number; none is repeated.
    assert begun[0] == ("0001", True)
    assert [name for name, goes_on in begun if not goes_on] == [
        f"{number:04d}" for number in range(len(known), 9)
    ]
    metrics = json.loads((run / "candidates" / "0000" / "metrics.json").read_bytes())
    assert json.loads(baseline) == {k: v for k, v in metrics.items() if k != "report"}
    states = [trial.state.name for trial in study_of(run).trials]
    assert len(states) == 9
    assert set(states) == {"COMPLETE", "WAITING"}
    # All ends as in a search that was never stopped, and what is drawn is the same: it compares
    # trials that the search drew, and some that stay paused, not defaults alone.
    drawn = [trial for trial in study_of(run).trials if "preset" not in trial.user_attrs]
    assert len(drawn) == 6
    pd.testing.assert_frame_equal(
        leaderboard(finished_run).drop(columns=MEASURED),
        leaderboard(run).drop(columns=MEASURED),
        check_exact=True,
    )
    for name in finished_candidates(finished_run):
        first, second = (
            Candidate(folder / "candidates" / name).history.drop(columns=list(SECONDS))
            for folder in (finished_run, run)
        )
        pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_what_has_no_room_on_the_disk_is_pruned(
    data_set: DataSet, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same trials, also in a search that was stopped amid one."""
    arguments = ["run", *data_set.flags, *quick, "--epochs", "4", "--trials", "7"]
    gigabytes = 0.012
    arguments += ["--disk", f"{gigabytes}"]
    unbroken, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    assert main([*arguments, "--out", str(unbroken)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("search.study.driving._TrialWatch.step", ending(1, 2, terminate))
        assert main([*arguments, "--out", str(stopped)]) == 130
    assert main(["run", "--out", str(stopped)]) == 0
    table = leaderboard(unbroken)
    pruned = table[table["state"] == "pruned"]
    assert set(pruned["reason"]) == {"its checkpoint was deleted: --disk"}
    assert pruned["rank"].isna().all()
    assert {trial.state.name for trial in study_of(unbroken).trials} >= {"COMPLETE", "PRUNED"}
    checkpoints = {path.parent.name: path for path in unbroken.glob("candidates/*/checkpoint.pt")}
    assert set(checkpoints) == set(table["candidate"][table["state"] == "paused"])
    assert sum(path.stat().st_size for path in checkpoints.values()) <= gigabytes * 1e9
    assert not list(unbroken.glob(f"candidates/{pruned['candidate'].iloc[0]}/model.safetensors"))
    # Of drawn trials some are pruned.
    drawn = {t.number for t in study_of(unbroken).trials if "preset" not in t.user_attrs}
    assert drawn & set(pruned["trial"])
    pd.testing.assert_frame_equal(
        table.drop(columns=MEASURED),
        leaderboard(stopped).drop(columns=MEASURED),
        check_exact=True,
    )


def finished_candidates(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("candidates/*"))


def test_a_second_interruption_ends_at_once_and_the_trial_goes_on(
    data_set: DataSet, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    run = tmp_path / "run"
    arguments = ["run", *data_set.flags, *quick, "--epochs", "2", "--trials", "2"]
    with monkeypatch.context() as patch:
        patch.setattr("search.study.driving._TrialWatch.step", ending(1, 2, twice))
        assert main([*arguments, "--out", str(run)]) == 130
    assert [trial.state.name for trial in study_of(run).trials][:2] == ["COMPLETE", "WAITING"]
    assert main(["run", "--out", str(run)]) == 0
    assert leaderboard(run)["state"].tolist() == ["complete", "complete"]


def test_a_killed_process_leaves_a_run_that_goes_on(
    data_set: DataSet, quick: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ["run", *data_set.flags, *quick, "--epochs", "300", "--trials", "2"]
    process = Process(tmp_path / "told.txt", "search", *arguments, "--out", str(run), blank=True)
    process.wait_for("\ntrial 0001 goes on to its end")
    assert (run / "candidates" / "0001" / "checkpoint.pt").exists()
    assert process.kill() == -signal.SIGKILL
    assert study_of(run).trials[1].state.name == "RUNNING"
    assert main(["report", "--out", str(run)]) == 0
    assert leaderboard(run)["state"].tolist() == ["complete", "paused"]
    assert "process ended" in leaderboard(run)["reason"].iloc[1]
    assert study_of(run).trials[1].state.name == "WAITING"


def test_a_signal_to_the_workers_as_well_saves_the_training(
    data_set: DataSet, quick: list[str], tmp_path: Path
) -> None:
    """As batch systems send it: to the whole group of processes."""
    run, flags = tmp_path / "run", [*quick]
    flags[flags.index("--workers") + 1] = "2"
    arguments = ["run", *data_set.flags, *flags, "--epochs", "300", "--trials", "2"]
    process = Process(tmp_path / "told.txt", "search", *arguments, "--out", str(run), blank=True)
    process.wait_for("epoch 4/300")
    process.wait_for("epoch 8/300")
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 130
    assert "Traceback" not in process.told
    assert "resume with" in process.told
    table = leaderboard(run)
    assert table["state"].tolist() == ["complete", "paused"]
    assert table["reason"].iloc[1] == "interrupted by the user"
    assert (run / "candidates" / "0001" / "checkpoint.pt").exists()


def test_a_candidate_that_is_complete_on_disk_is_never_trained_again(
    data_set: DataSet, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object, **__: object) -> float:
        raise Killed

    run = tmp_path / "run"
    arguments = ["run", *data_set.flags, *quick, "--epochs", "2", "--trials", "2"]
    with monkeypatch.context() as patch:
        patch.setattr("search.study.driving.tell_complete", dies)
        with pytest.raises(Killed):
            main([*arguments, "--out", str(run)])
    weights = run / "candidates" / "0000" / "model.safetensors"
    before = (weights.stat().st_mtime_ns, weights.read_bytes())
    assert main(["run", "--out", str(run)]) == 0
    assert (weights.stat().st_mtime_ns, weights.read_bytes()) == before
    assert [trial.number for trial in study_of(run).trials if trial.value is not None] == [0, 1]


def test_what_cannot_be_drawn_costs_no_trial(
    data_set: DataSet,
    quick: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object, **__: object) -> Path:
        raise ValueError("no ink")

    run = tmp_path / "run"
    arguments = ["run", *data_set.flags, *quick, "--epochs", "2", "--trials", "2"]
    with monkeypatch.context() as patch:
        for module in ("page", "dashboard"):
            for name in ("draw_candidate_roc", "draw_epochs", "draw_roc", "draw_pareto"):
                patch.setattr(f"search.report.{module}.{name}", fails, raising=False)
        assert main([*arguments, "--out", str(run)]) == 0
    told = capsys.readouterr()
    assert "no ink" in told.out
    assert "Traceback" not in told.out + told.err
    assert leaderboard(run)["state"].tolist() == ["complete", "complete"]


def test_moved_folders_go_on_with_their_new_paths(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data_set(tmp_path / "data")
    run, moved = tmp_path / "run", tmp_path / "elsewhere"
    arguments = ["run", *data.flags, *quick, "--epochs", "2", "--trials", "1"]
    assert main([*arguments, "--out", str(run)]) == 0
    there = DataSet((tmp_path / "data").rename(tmp_path / "data2"))
    run.rename(moved)
    assert main(["run", "--out", str(moved), "--trials", "2"]) == 2
    assert "data" in capsys.readouterr().err
    assert main(["run", *there.flags, "--out", str(moved), "--trials", "2"]) == 0
    assert main(["run", "--out", str(moved), "--trials", "3"]) == 0
    assert len(leaderboard(moved)) == 3
    # The run's own catalogue stays; the file that it was copied from may move, too.
    catalogue = tmp_path / "catalogue.yaml"
    same = ["run", *there.flags, "--out", str(moved), "--trials", "3", "--backbones"]
    assert main([*same, str(catalogue)]) == 2
    assert "--backbones must be a file" in capsys.readouterr().err
    catalogue.write_bytes((moved / "backbones.yaml").read_bytes())
    assert main([*same, str(catalogue)]) == 0
    (tmp_path / "other.yaml").write_text(catalogue.read_text() + "# another one")
    assert main([*same, str(tmp_path / "other.yaml")]) == 2
    assert "its own backbones.yaml" in capsys.readouterr().err
    other = make_data_set(tmp_path / "other", val=40)
    assert main(["run", *other.flags, "--out", str(moved)]) == 2
    assert "another data set" in capsys.readouterr().err


def test_a_report_needs_the_folder_alone(
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "elsewhere"
    shutil.copytree(finished_run, run)
    for path in run.glob("candidates/0001/scores_report.csv"):
        path.unlink()
    settings = (run / "settings.yaml").read_text()
    elsewhere = settings.replace("data", "gone").replace("device: cpu", "device: cuda:7")
    (run / "settings.yaml").write_text(elsewhere)
    here, there = f'"torch": "{library_versions()["torch"]}"', '"torch": "9.8.7"'
    for path in run.glob("candidates/*/metrics.json"):
        assert here in path.read_text()
        path.write_text(path.read_text().replace(here, there))

    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("a report must not need this")

    monkeypatch.setattr("PIL.Image.open", nothing)
    assert main(["report", "--out", str(run)]) == 0
    assert "left blank: 0001" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "torch 9.8.7" in page
    assert f"torch {library_versions()['torch']}," not in page


@pytest.fixture
def without_report(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run that has lost its page, and the scores of one candidate on report."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (run / "report.html").unlink()
    (run / "candidates" / "0001" / "scores_report.csv").unlink()
    return run


@pytest.mark.parametrize("lost", ["recover", "score_what_is_missing"])
def test_a_report_outlives_a_database_that_is_lost(
    lost: str,
    without_report: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lose(*_: object, **__: object) -> None:
        raise StorageInternalError("the server closed\nthe connection")

    monkeypatch.setattr(f"search.run.report.{lost}", lose)
    assert main(["report", "--out", str(without_report)]) == 0
    told = capsys.readouterr()
    assert "the report split is left as it is: the server closed the connection\n" in told.out
    assert (without_report / "report.html").exists()


def test_ctrl_c_leaves_a_report_that_scores(
    without_report: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def signalled(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("search.run.report.score_what_is_missing", signalled)
    assert main(["report", "--out", str(without_report)]) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert not (without_report / "report.html").exists()


@pytest.mark.parametrize(
    "damage", ["no data", "no yaml", "no fingerprint", "weights", "candidate", "lock"]
)
def test_a_report_survives_damage(
    damage: str,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "damaged"
    shutil.copytree(finished_run, run)
    (best,) = leaderboard(run).query("rank == 1")["candidate"]
    if damage == "no data":
        (run / "data.yaml").unlink()
    elif damage == "no yaml":
        (run / "data.yaml").write_text("{")
    elif damage == "no fingerprint":
        (run / "data.yaml").write_text("notes: []\n")
    elif damage == "weights":
        (run / "candidates" / best / "model.safetensors").write_bytes(b"no weights")
        (run / "candidates" / best / "scores_report.csv").unlink()
    elif damage == "candidate":
        shutil.rmtree(run / "candidates" / best)
    else:

        def read_only(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("search.run.report.FileLock.acquire", read_only)
    capsys.readouterr()
    assert main(["report", "--out", str(run)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert (run / "report.html").stat().st_mtime_ns > (
        finished_run / "report.html"
    ).stat().st_mtime_ns
    if damage in ("weights", "candidate"):
        # A search goes on, too.
        assert main(["run", "--out", str(run)]) == 0


def test_a_model_that_cannot_be_scored_costs_itself_only(
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "finished"
    shutil.copytree(finished_run, run)
    for path in run.glob("candidates/*/scores_report.csv"):
        path.unlink()
    calls = []

    def evaluate(*arguments: object, **more: object) -> object:
        calls.append(arguments)
        if len(calls) == 1:
            raise FloatingPointError("1 of 24 scores are not finite")
        return scoring.evaluate(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("search.training.candidate.evaluate", evaluate)
    (run / "report.html").unlink()
    assert main(["run", "--out", str(run)]) == 0
    assert "could not be scored on report: 1 of 24" in capsys.readouterr().out
    kept = {path.parent.name for path in run.glob("candidates/*/model.safetensors")}
    scored = {path.parent.name for path in run.glob("candidates/*/scores_report.csv")}
    assert len(kept - scored) == 1
    assert (run / "report.html").exists()


def test_a_run_of_another_format_is_refused_with_one_line(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "old"
    shutil.copytree(finished_run, run)
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    for saved in (None, 1, FORMAT + 1):
        settings["format"] = saved
        (run / "settings.yaml").write_text(
            yaml.safe_dump({k: v for k, v in settings.items() if v is not None})
        )
        for command in ("run", "report", "baseline"):
            assert main([command, "--out", str(run)]) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            assert "format" in error


def test_forbidden_backbones_are_told_and_never_trained(
    data_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = yaml.safe_load((Path(__file__).parents[2] / "backbones.yaml").read_text())
    catalogue["budget"] = 350_000
    path = tmp_path / "backbones.yaml"
    path.write_text(yaml.safe_dump(catalogue))
    run = tmp_path / "run"
    arguments = [
        "run",
        *data_set.flags,
        *QUICK,
        "--image-size",
        "32",
        "--pool",
        "demo",
        "--epochs",
        "2",
        "--trials",
        "1",
        "--out",
        str(run),
    ]
    assert main([*arguments, "--backbones", str(path)]) == 0
    table = leaderboard(run)
    rejected = table[table["state"] == "rejected"]
    assert len(rejected) > 0
    assert (rejected["params_exact"] > 350_000).all()
    assert rejected["reason"].str.contains("over the budget").all()
    assert rejected["auc"].isna().all()
    for trial in study_of(run).trials:
        if trial.user_attrs.get("state") == "rejected":
            assert max(trial.system_attrs["constraints"]) > 0
            assert trial.state.name == "PRUNED"
    assert "over the budget" in capsys.readouterr().out


def test_a_nan_loss_fails_the_trial_and_not_the_study(
    quick: list[str], data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from search.training.loss import ClassificationLoss

    plain = ClassificationLoss.__call__
    calls = {"count": 0}

    def sometimes_nan(self: ClassificationLoss, network: torch.nn.Module, batch: object) -> object:
        calls["count"] += 1
        factor = float("nan") if calls["count"] == 1 else 1.0
        return plain(self, network, batch) * factor  # type: ignore[arg-type]

    monkeypatch.setattr(ClassificationLoss, "__call__", sometimes_nan)
    run = tmp_path / "run"
    arguments = [
        "run",
        *data_set.flags,
        *quick,
        "--epochs",
        "2",
        "--trials",
        "2",
        "--out",
        str(run),
    ]
    assert main(arguments) == 0
    table = leaderboard(run)
    assert table["state"].tolist() == ["complete", "failed"]
    assert "the loss must be finite" in table["reason"].iloc[1]


def test_broken_images_are_quarantined_and_training_goes_on(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data_set(tmp_path / "data")
    (data.folder / "trainset" / "trainset003.png").write_bytes(b"broken")
    (data.folder / "valset" / "valset000.png").write_bytes(b"")
    run = tmp_path / "run"
    arguments = ["run", *data.flags, *quick, "--epochs", "2", "--trials", "1", "--out", str(run)]
    assert main(arguments) == 0
    quarantine = pd.read_csv(run / "quarantine.csv")
    assert set(quarantine["img_name"]) == {"trainset003.png", "valset000.png"}
    assert quarantine["reason"].str.len().min() > 5
    assert "set aside trainset003.png: " in capsys.readouterr().out


def test_many_broken_images_end_the_search(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data_set(tmp_path / "data")
    for number in range(20):
        (data.folder / "trainset" / f"trainset{number:03d}.png").write_bytes(b"broken")
    run = tmp_path / "run"
    arguments = ["run", *data.flags, *quick, "--epochs", "2", "--trials", "1", "--out", str(run)]
    assert main(arguments) == 2
    assert "5%" in capsys.readouterr().err
    assert (run / "quarantine.csv").exists()
    assert (run / "leaderboard.csv").exists()


def test_a_broken_report_split_is_told_after_everything_is_written(
    finished_run: Path, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data_set(tmp_path / "data")
    # The finished run has the same images, and divides them alike.
    for name in read_splits(load_settings(finished_run)).report["img_name"]:
        (data.folder / "valset" / name).write_bytes(b"broken")
    run = tmp_path / "run"
    arguments = ["run", *data.flags, *quick, "--epochs", "2", "--trials", "1", "--out", str(run)]
    capsys.readouterr()
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert "5%" in told.err
    assert "Best candidates" in told.out
    assert (run / "report.html").exists()
    assert leaderboard(run)["state"].tolist() == ["complete"]


def test_the_time_limit_ends_the_search_with_a_leaderboard(
    quick: list[str], data_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = ["run", *data_set.flags, *quick, "--schedule", "cosine", "--epochs", "1000"]
    assert main([*arguments, "--out", str(run), "--timeout", "8s"]) == 0
    told = capsys.readouterr().out
    assert "the time limit was reached" in told
    assert "resume with: python -m search run --out" in told
    # A thousand epochs were not: the one that ran goes on another time.
    assert leaderboard(run)["state"].iloc[-1] == "paused"
    assert (run / "report.html").exists()


def test_a_search_that_is_told_its_time_alone_trains_on_what_it_began(
    quick: list[str],
    data_set: DataSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("search.run.reserve.RESULTS_SECONDS", 1.0)
    counted: list[bool] = []
    plain = Reserve.seconds_to_keep_one

    def kept_back(reserve: Reserve) -> float:
        counted.append(reserve.plan.splits.altered is not None)
        return plain(reserve)

    monkeypatch.setattr(Reserve, "seconds_to_keep_one", kept_back)
    run = tmp_path / "run"
    assert main(["run", *data_set.flags, *quick, "--out", str(run), "--timeout", "10s"]) == 0
    # Once they are there, altered images of select are among what is to be scored.
    assert len(counted) > 2
    assert all(counted[1:])
    told = capsys.readouterr().out
    assert "about 20 configurations, for " in told
    # What a piece of work was to reach is reached: none comes again.
    pieces = [line for line in told.splitlines() if line.startswith("trial ")]
    assert len(set(pieces)) == len(pieces) > 0
    assert (load_settings(run).epochs, load_settings(run).trials) == (None, None)
    assert set(leaderboard(run)["state"]) <= {"complete", "paused"}
    assert not (run / "orphans").exists()
    for trial in study_of(run).trials:
        images = [look[0] for look in trial.user_attrs.get("looks", [])]
        assert images == sorted(set(images))
        if trial.state.name == "COMPLETE":
            history = Candidate(run / "candidates" / f"{trial.number:04d}").history
            assert history["images"].tolist() == images
    assert (run / "report.html").exists()


@pytest.mark.parametrize("objective", ["auc", "auc_stress"])
def test_time_that_is_up_before_the_first_trial_is_told(
    objective: str,
    quick: list[str],
    data_set: DataSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fill(_reader: object, _console: object, check: Any) -> None:
        check.__self__.deadline = 0.0
        check()

    monkeypatch.setattr("search.run.search.fill", fill)
    run = tmp_path / "run"
    arguments = ["run", *data_set.flags, *quick, "--objective", objective, "--timeout", "60s"]
    assert main([*arguments, "--out", str(run)]) == 0
    told = capsys.readouterr().out
    assert "the time limit was reached" in told
    assert "resume with: python -m search run --out" in told
    assert leaderboard(run).empty


def test_what_is_not_scored_in_time_is_told_with_the_command(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "finished"
    shutil.copytree(finished_run, run)
    for path in run.glob("candidates/*/scores_report.csv"):
        path.unlink()
    assert main(["run", "--out", str(run), "--timeout", "1s"]) == 0
    told = capsys.readouterr().out
    assert "not scored on report: " in told
    assert f"python -m search report --out {run}" in told
    assert main(["report", "--out", str(run)]) == 0
    kept = {path.parent.name for path in run.glob("candidates/*/model.safetensors")}
    assert {path.parent.name for path in run.glob("candidates/*/scores_report.csv")} == kept


def test_the_baseline_command_adds_a_candidate(
    quick: list[str], data_set: DataSet, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ["baseline", *data_set.flags, *quick, "--epochs", "1", "--out", str(run)]
    assert main(arguments) == 0
    table = leaderboard(run)
    assert table["backbone"].tolist() == ["test_resnet.r160_in1k"]
    assert main(["run", "--out", str(run), "--trials", "2"]) == 0
    assert len(leaderboard(run)) == 2
    # Another one waits; the baseline is there, and nothing more is trained.
    assert main(["run", "--out", str(run), "--trials", "1"]) == 0
    assert main(["baseline", "--out", str(run)]) == 0
    assert len(leaderboard(run)) == 2


def test_the_report_is_written_anew(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "finished"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "plots")
    (run / "report.html").unlink()
    (run / "leaderboard.csv").unlink()
    assert main(["report", "--out", str(run)]) == 0
    pd.testing.assert_frame_equal(leaderboard(run), leaderboard(finished_run))
    assert "onefold" in (run / "report.html").read_text()


def test_what_killed_processes_left_half_written_is_deleted(
    finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    for folder in (run, run / "plots", run / "candidates" / "0000"):
        (folder / ".roc.png.123.part").write_bytes(b"half")
    assert main(["report", "--out", str(run)]) == 0
    assert list(run.rglob(".*.part")) == []


def test_a_report_of_a_running_search_leaves_the_report_split_alone(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "renamed"
    shutil.copytree(finished_run, run)
    for scores in run.glob("candidates/*/scores_report.csv"):
        scores.unlink()
    with FileLock(run / ".lock"):
        assert main(["report", "--out", str(run)]) == 0
    assert "the search is running" in capsys.readouterr().out
    assert not list(run.glob("candidates/*/scores_report.csv"))
    assert len(leaderboard(run)) == len(leaderboard(finished_run))


def test_trials_carry_their_note_and_artifacts(finished_run: Path) -> None:
    # The dashboard keeps the notes and artifacts of finished trials with the study.
    study = study_of(finished_run)
    kept = json.dumps(study._storage.get_study_system_attrs(study._study_id))
    assert "Verdict of the rules: allowed" in kept
    assert f"{study.trials[1].value:.4f}" in kept
    assert "roc.png" in kept
    assert "history.png" in kept


def test_a_one_class_list_is_refused(
    shared_data: Path, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared_data / "multiffdi-sample"
    (labels,) = folder.glob("trainset*label*")
    (images,) = (path for path in folder.iterdir() if path.is_dir() and "train" in path.name)
    out = tmp_path / "run"
    arguments = ["run", "--train-labels", str(labels), "--train-images", str(images)]
    assert main([*arguments, *quick, "--out", str(out)]) == 2
    assert "found only fake (1) ones among 5" in capsys.readouterr().err
    assert not out.exists()
