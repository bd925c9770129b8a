from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.data.quarantine import Quarantine
from search.errors import UserError
from search.interruption import Interrupted, Interruption
from search.settings import SearchSettings
from search.study.driving import (
    FAILURES_TO_STOP,
    FEWEST_COMPLETE,
    Search,
    drop_surplus_weights,
    kept_candidates,
    next_trial,
    set_aside_orphan,
)
from search.study.opening import (
    enqueue_baseline,
    enqueue_first_trials,
    make_pruner,
    open_study,
    recover,
)
from search.study.space import BASELINE, PRESET
from search.study.trials import PAUSED, REASON, ROW, STATE, paused_trials, record_outcome
from search.study.trials import RECIPE as RECIPE_ATTRIBUTE
from search.training.candidate import (
    CHECKPOINT,
    METRICS,
    WEIGHTS,
    Candidate,
    EpochRecord,
    save_progress,
)
from search.training.loop import NonFiniteLossError
from search.training.metrics import measure
from search.training.recipe import Recipe
from search.training.train import Watch

RECIPE = Recipe(backbone="test_resnet.r160_in1k", architecture="test_resnet", epochs=3)
VERDICT = SimpleNamespace(
    allowed=True,
    backbone="b",
    pretraining="p",
    params_thop=1,
    params_exact=1,
    gmacs=1.0,
    image_size=32,
    reasons=(),
)
FIGURES = measure([0.2, 0.8], [0, 1])


class Silent:
    """Counts what a progress display is told."""

    def __init__(self) -> None:
        self.finished: list[tuple[str, float | None, str]] = []
        self.paused: list[str] = []
        self.started: list[tuple[str, bool]] = []
        self.lines: list[str] = []

    def trial_started(self, name: str, recipe: Recipe, *, goes_on: bool = False) -> None:
        self.started.append((name, goes_on))

    def step(self, record: Any) -> None: ...

    def epoch(self, record: Any) -> None: ...

    def tell(self, line: str) -> None:
        self.lines.append(line)

    def trial_finished(self, state: str, auc: float | None, reason: str = "") -> None:
        self.finished.append((state, auc, reason))

    def trial_paused(self, reason: str) -> None:
        self.paused.append(reason)


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return open_study(SearchSettings(out=tmp_path, pruner="none").resolved(), "abc")


Trained = Callable[..., Candidate]


@pytest.fixture
def make_search(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Search]:
    """A search whose trainings are what a test says."""

    def make(train: Trained, trials: int = 4, allowed: bool = True) -> Search:
        monkeypatch.setattr("search.study.driving.train", train)
        verdict = SimpleNamespace(**{**vars(VERDICT), "allowed": allowed})
        plan: Any = SimpleNamespace(
            settings=SimpleNamespace(trials=trials, keep=2, checkpoint_minutes=10.0),
            space=SimpleNamespace(recipe=lambda _: RECIPE, epochs=RECIPE.epochs),
            judge_recipe=lambda _: verdict,
            splits=None,
            runtime=None,
            catalogue=SimpleNamespace(budget=200),
        )
        return Search(plan, tmp_path, study, Quarantine(None), Silent(), Interruption())

    return make


def leave_complete(folder: Path, auc: float = 0.75, **more: Any) -> Candidate:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(b"weights")
    metrics = {"auc": auc, "params_exact": 1, "path": f"candidates/{folder.name}", **more}
    (folder / METRICS).write_text(json.dumps(metrics))
    return Candidate(folder)


def raising(error: BaseException) -> Trained:
    def train(_recipe: Recipe, _splits: Any, _folder: Path, **_: Any) -> Candidate:
        raise error

    return train


def completing(_recipe: Recipe, _splits: Any, folder: Path, **_: Any) -> Candidate:
    return leave_complete(folder)


def test_a_trial_that_completes_is_told_with_what_lies_on_disk(
    make_search: Callable[..., Search], study: optuna.Study
) -> None:
    search = make_search(completing, trials=2)
    search.drive()
    assert [trial.value for trial in study.trials] == [0.75, 0.75]
    assert study.trials[1].user_attrs[STATE] == "complete"
    assert study.trials[1].user_attrs[ROW]["path"] == "candidates/0001"


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),  # a second Ctrl-C
        (Interrupted("interrupted by the user"), None),
        (UserError("at most 5% may be broken"), UserError),
        (RuntimeError("a worker was terminated"), None),
    ],
)
def test_a_trial_that_was_stopped_waits_under_its_number_and_goes_on_first(
    error: BaseException,
    raised: type[BaseException] | None,
    make_search: Callable[..., Search],
    study: optuna.Study,
) -> None:
    search = make_search(raising(error))
    search.interruption.requested = isinstance(error, RuntimeError)
    for x in (0.25, 0.75):
        study.enqueue_trial({"x": x}, user_attrs={PRESET: "anything"})
    trial = study.ask()
    if raised is None:
        assert search.run_trial(trial) is None
    else:
        with pytest.raises(raised):
            search.run_trial(trial)
    assert [t.state for t in study.trials] == [TrialState.WAITING] * 2
    (paused,) = paused_trials(study)
    assert paused.number == trial.number
    assert paused.user_attrs[PRESET] == "anything"
    progress: Any = search.progress
    assert progress.finished == []
    assert len(progress.paused) == 1
    assert next_trial(study).number == trial.number


@pytest.mark.parametrize(
    ("text", "raised"),
    [("CUDA error: an illegal memory access", True), ("CUDA error: out of memory", False)],
)
def test_a_lost_gpu_ends_the_search_and_no_other_trial(
    text: str, raised: bool, make_search: Callable[..., Search], study: optuna.Study
) -> None:
    search = make_search(raising(torch.AcceleratorError(text)))
    trial = study.ask()
    if raised:
        with pytest.raises(UserError, match="the GPU stopped working"):
            search.run_trial(trial)
        # Once is an accident, and costs nothing; one that kills the GPU each time is not tried
        # for ever.
        assert [trial.number for trial in paused_trials(study)] == [0]
        with pytest.raises(UserError, match="the GPU stopped working"):
            search.run_trial(next_trial(study))
    else:
        assert text in (search.run_trial(trial) or "")
    (failed,) = study.trials
    assert failed.state is TrialState.FAIL
    assert text in failed.user_attrs[REASON]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), UserError("too many images are broken")]
)
def test_what_no_recipe_is_to_blame_for_stops_the_search_and_loses_nothing(
    error: Exception, make_search: Callable[..., Search], study: optuna.Study, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "candidates" / "0000" / CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"state")
    search = make_search(raising(error))
    with pytest.raises(UserError, match=str(error.args[-1])):
        search.drive()
    assert checkpoint.exists()
    assert [trial.number for trial in paused_trials(study)] == [0]
    assert len(study.trials) == 1


def test_a_trial_that_is_paused_again_keeps_its_figures(
    make_search: Callable[..., Search], study: optuna.Study
) -> None:
    search = make_search(raising(Interrupted("stopped")))
    trial = study.ask()
    trial.set_user_attr(ROW, {"auc": 0.75, "train_seconds": 3.0})
    search.run_trial(trial)
    assert study.trials[0].user_attrs[ROW]["auc"] == 0.75


def test_a_trial_goes_on_with_the_recipe_that_it_began_with(
    make_search: Callable[..., Search], study: optuna.Study, tmp_path: Path
) -> None:
    trained: list[Recipe] = []

    def train(recipe: Recipe, _splits: Any, folder: Path, **_: Any) -> Candidate:
        trained.append(recipe)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CHECKPOINT).write_bytes(b"state")
        raise Interrupted("stopped")

    search = make_search(train)
    search.run_trial(study.ask())
    # The baseline's weights have come since, say; and another machine computes otherwise.
    other = replace(RECIPE, backbone="other", precision="bf16")
    search.plan.space.recipe = lambda _: other  # type: ignore[method-assign]
    search.run_trial(next_trial(study))
    assert trained == [RECIPE, replace(RECIPE, precision="bf16")]
    (tmp_path / "candidates" / "0000" / CHECKPOINT).unlink()
    search.run_trial(next_trial(study))
    assert trained[-1] == other


def test_a_failed_trial_leaves_no_checkpoint(
    make_search: Callable[..., Search], study: optuna.Study, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "candidates" / "0000" / CHECKPOINT

    def train(*_: Any, **__: Any) -> Candidate:
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(b"state")
        raise NonFiniteLossError("the loss must be finite, found nan")

    search = make_search(train)
    assert "found nan" in (search.run_trial(study.ask()) or "")
    assert not checkpoint.exists()
    assert study.trials[0].user_attrs[STATE] == "failed"


def test_a_study_of_failures_is_stopped(
    make_search: Callable[..., Search], study: optuna.Study
) -> None:
    search = make_search(raising(ValueError("out of paper")), trials=20)
    with pytest.raises(UserError, match=r"first 3 trials all failed.*out of paper"):
        search.drive()
    assert len(study.trials) == FAILURES_TO_STOP


def test_a_failure_after_a_success_stops_nothing(
    make_search: Callable[..., Search], study: optuna.Study
) -> None:
    def train(recipe: Recipe, splits: Any, folder: Path, **more: Any) -> Candidate:
        if folder.name == "0000":
            return completing(recipe, splits, folder, **more)
        raise ValueError("out of paper")

    make_search(train, trials=6).drive()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] + ["FAIL"] * 5


def test_what_the_rules_forbid_does_not_count(
    make_search: Callable[..., Search], study: optuna.Study
) -> None:
    search = make_search(raising(AssertionError("trained")), allowed=False)
    assert search.run_trial(study.ask()) is None
    assert study.trials[0].user_attrs[STATE] == "rejected"
    assert study.trials[0].state is TrialState.PRUNED


def test_a_trial_leaves_nothing_in_memory(
    make_search: Callable[..., Search], study: optuna.Study
) -> None:
    class Heavy:
        """Stands for a network and its optimizer, which refer to each other."""

        def __init__(self) -> None:
            self.itself = self

    alive: list[int] = []
    left: list[weakref.ref[Heavy]] = []

    def train(*_: Any, **__: Any) -> Candidate:
        alive.append(sum(ref() is not None for ref in left))
        heavy = Heavy()
        left.append(weakref.ref(heavy))
        raise optuna.TrialPruned

    gc.disable()
    try:
        make_search(train, trials=4).drive()
    finally:
        gc.enable()
    assert alive == [0, 0, 0, 0]


class Harsh(BasePruner):
    """Finds every trial lagging behind, and counts how often it was asked."""

    asked = 0

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        self.asked += 1
        return True


def pruned_after(
    make_search: Callable[..., Search],
    study: optuna.Study,
    epoch: int,
    *,
    complete: int,
    preset: str | None = None,
) -> tuple[bool, int]:
    study.pruner = pruner = Harsh()
    row = {"params_exact": 1}
    study.add_trial(create_trial(value=0.5, user_attrs={ROW: row, PRESET: BASELINE}))
    study.add_trials([create_trial(value=0.7, user_attrs={ROW: row})] * complete)

    def train(_recipe: Recipe, _splits: Any, folder: Path, *, watch: Watch, **_: Any) -> Candidate:
        record = EpochRecord(epoch, 0.6, 1e-3, 0.5, 0.7, 1.5)
        save_progress(folder, RECIPE, [record])
        watch.epoch(record, FIGURES)
        return leave_complete(folder)

    search = make_search(train)
    trial = study.ask()
    trial.set_user_attr(PRESET, preset)
    search.run_trial(trial)
    found = study.trials[trial.number]
    if found.state is TrialState.PRUNED:
        assert found.user_attrs[STATE] == "pruned"
        assert found.user_attrs[ROW]["auc"] == FIGURES.auc
        assert found.user_attrs[ROW]["train_seconds"] == 1.5
        assert found.user_attrs[ROW]["path"] == ""
    return found.state is TrialState.PRUNED, pruner.asked


@pytest.mark.parametrize(
    ("complete", "pruned"), [(0, False), (FEWEST_COMPLETE - 1, False), (FEWEST_COMPLETE, True)]
)
def test_nothing_is_pruned_before_there_is_something_to_merge(
    complete: int, pruned: bool, make_search: Callable[..., Search], study: optuna.Study
) -> None:
    assert pruned_after(make_search, study, 1, complete=complete) == (pruned, 1)


@pytest.mark.parametrize(("epoch", "preset"), [(RECIPE.epochs, None), (1, BASELINE)])
def test_the_last_epoch_and_the_baseline_are_not_asked_about(
    epoch: int, preset: str | None, make_search: Callable[..., Search], study: optuna.Study
) -> None:
    found = pruned_after(make_search, study, epoch, complete=FEWEST_COMPLETE, preset=preset)
    assert found == (False, 0)


def test_an_epoch_that_was_not_reported_before_a_kill_is_reported(
    make_search: Callable[..., Search], study: optuna.Study, tmp_path: Path
) -> None:
    trial = study.ask()
    trial.report(0.5, step=1)
    history = [EpochRecord(epoch, 0.6, 1e-3, 0.5 + epoch / 10, 0.7, 1.0) for epoch in (1, 2)]
    save_progress(tmp_path / "candidates" / "0000", RECIPE, history)
    make_search(completing).run_trial(trial)
    assert study.trials[0].intermediate_values == {1: 0.5, 2: 0.7}


def test_a_renamed_run_keeps_its_study(study: optuna.Study, tmp_path: Path) -> None:
    study.enqueue_trial({})
    renamed = tmp_path.rename(tmp_path.with_name("renamed"))
    settings = SearchSettings(out=renamed, pruner="none").resolved()
    assert len(open_study(settings, "abc", study.study_name).trials) == 1
    with pytest.raises(UserError, match=r"must have the study 'renamed' of .* found none"):
        open_study(settings, "abc", "renamed")


def test_a_storage_never_mixes_runs(study: optuna.Study, tmp_path: Path) -> None:
    settings = SearchSettings(out=tmp_path, pruner="none").resolved()
    assert open_study(settings, "abc").trials == []  # left by a process that was killed at once
    study.enqueue_trial({})
    with pytest.raises(UserError, match="found one with trials"):
        open_study(settings, "abc")
    with pytest.raises(UserError, match="images, found one of others"):
        open_study(settings, "xyz", study.study_name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("asha", SuccessiveHalvingPruner), ("hyperband", HyperbandPruner), ("none", NopPruner)],
)
def test_pruners_by_name(name: str, kind: type) -> None:
    assert isinstance(make_pruner(name, 4), kind)


def test_asha_looks_first_after_a_quarter_of_the_epochs() -> None:
    study = optuna.create_study(direction="maximize", pruner=make_pruner("asha", 8))
    outcomes = []
    for auc in (0.9, 0.6):
        trial = study.ask()
        trial.report(auc, step=1)
        first = trial.should_prune()
        trial.report(auc, step=2)
        outcomes.append((first, trial.should_prune()))
        study.tell(trial, auc)
    assert outcomes == [(False, False), (False, True)]


def test_the_baseline_is_enqueued_once(study: optuna.Study) -> None:
    enqueue_baseline(study)
    enqueue_baseline(study)
    assert [trial.user_attrs for trial in study.trials] == [{PRESET: BASELINE}]
    trial = study.ask()
    trial.set_user_attr(STATE, "failed")
    study.tell(trial, state=TrialState.FAIL)
    enqueue_baseline(study)
    assert len(study.trials) == 2


class Killed(BaseException):
    pass


@pytest.mark.parametrize("survived", range(6))
def test_the_first_trials_are_enqueued_once_wherever_a_process_was_killed(
    survived: int, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbones = tuple(SimpleNamespace(name=name) for name in ("a", "b"))
    rejected = [
        (None, SimpleNamespace(**{**vars(VERDICT), "backbone": name, "reasons": ("no",)}))
        for name in ("x", "y")
    ]
    plan: Any = SimpleNamespace(
        rejected=rejected,
        catalogue=SimpleNamespace(budget=200),
        space=SimpleNamespace(
            backbones=backbones, default_parameters=lambda backbone: {"backbone": backbone.name}
        ),
    )
    added: list[FrozenTrial] = []
    add = optuna.Study.add_trial

    def dies(self: optuna.Study, trial: FrozenTrial) -> None:
        if len(added) == survived:
            raise Killed
        added.append(trial)
        add(self, trial)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "add_trial", dies)
        if survived < 5:
            with pytest.raises(Killed):
                enqueue_first_trials(study, plan)
        else:
            enqueue_first_trials(study, plan)
    enqueue_first_trials(study, plan)
    states = [trial.state.name for trial in study.trials]
    assert sorted(states) == ["PRUNED"] * 2 + ["WAITING"] * 3
    presets = [trial.user_attrs.get(PRESET) for trial in study.trials]
    assert sorted(filter(None, presets)) == [BASELINE, "default:a", "default:b"]


def test_trials_of_a_killed_process_are_complete_or_go_on(
    study: optuna.Study, tmp_path: Path
) -> None:
    complete, half = study.ask(), study.ask()
    half.suggest_float("x", 0, 1)
    save_progress(leave_complete(tmp_path / "candidates" / "0000", 0.75).path, RECIPE, [])
    # It was killed between its last file and its state.
    save_progress(tmp_path / "candidates" / "0001", RECIPE, [])
    recover(study, tmp_path)
    first, second = study.trials
    assert (first.state, first.value) == (TrialState.COMPLETE, 0.75)
    assert first.user_attrs[STATE] == "complete"
    assert second.state is TrialState.WAITING
    assert second.user_attrs[STATE] == PAUSED
    assert "process ended" in second.user_attrs[REASON]
    assert second.params == half.params
    recover(study, tmp_path)
    assert len(study.trials) == 2
    assert complete.number == 0


def test_a_complete_folder_of_another_training_is_not_told(
    study: optuna.Study, tmp_path: Path
) -> None:
    trial = study.ask()
    trial.set_user_attr(RECIPE_ATTRIBUTE, asdict(replace(RECIPE, learning_rate=0.5)))
    save_progress(leave_complete(tmp_path / "candidates" / "0000").path, RECIPE, [])
    recover(study, tmp_path)
    assert study.trials[0].state is TrialState.WAITING
    trial = next_trial(study)
    trial.set_user_attr(RECIPE_ATTRIBUTE, asdict(RECIPE))
    recover(study, tmp_path)
    assert study.trials[0].state is TrialState.COMPLETE


@pytest.mark.parametrize("url", [None, "sqlite:///{folder}/study.db"])
def test_recovery_works_with_any_storage(url: str | None, tmp_path: Path) -> None:
    storage = None if url is None else url.format(folder=tmp_path)
    settings = SearchSettings(out=tmp_path, storage=storage).resolved()
    study = open_study(settings, "abc")
    study.ask()
    again = open_study(settings, "abc", study.study_name)
    recover(again, tmp_path)
    assert [trial.state for trial in again.trials] == [TrialState.WAITING]
    assert next_trial(again).number == 0


def test_a_finished_trials_checkpoint_is_cleared_away(study: optuna.Study, tmp_path: Path) -> None:
    trial = study.ask()
    record_outcome(trial, "pruned", row={})
    study.tell(trial, state=TrialState.PRUNED)
    checkpoint = tmp_path / "candidates" / "0000" / CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"state")
    recover(study, tmp_path)
    assert not checkpoint.exists()


def test_the_best_and_the_baseline_keep_their_weights(study: optuna.Study, tmp_path: Path) -> None:
    for number, auc in enumerate((0.6, 0.9, 0.7, 0.8)):
        trial = study.ask()
        leave_complete(tmp_path / "candidates" / f"{number:04d}", auc)
        trial.set_user_attr(PRESET, BASELINE if number == 0 else "x")
        record_outcome(trial, "complete", row={"params_exact": 1})
        study.tell(trial, auc)
    drop_surplus_weights(study, tmp_path, 2)
    assert [candidate.name for candidate in kept_candidates(study, tmp_path)] == [
        "0001",
        "0003",
        "0000",
    ]


def test_a_folder_of_another_training_is_set_aside(tmp_path: Path) -> None:
    told: list[str] = []
    folder = tmp_path / "candidates" / "0003"
    set_aside_orphan(folder, RECIPE, told.append)
    save_progress(folder, RECIPE, [])
    # How it is computed may change.
    set_aside_orphan(folder, replace(RECIPE, precision="bf16", micro_batch_size=4), told.append)
    assert told == []
    for name in (WEIGHTS, CHECKPOINT):
        (folder / name).write_bytes(b"of nobody")
    set_aside_orphan(folder, replace(RECIPE, learning_rate=0.5), told.append)
    assert not folder.exists()
    orphan = Candidate(tmp_path / "orphans" / "0003-1")
    assert orphan.recipe == RECIPE
    assert not orphan.has_weights
    assert not (orphan.path / CHECKPOINT).exists()
    assert len(told) == 1
