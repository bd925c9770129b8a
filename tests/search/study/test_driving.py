from __future__ import annotations

import gc
import math
import re
import shutil
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from search.errors import UserError
from search.machine.interruption import Interrupted, Interruption
from search.pixels.loading.reading import Reader
from search.study.decisions.layout import Rules
from search.study.decisions.scheduler import GoOn, Start, Stop, next_work
from search.study.decisions.space import BASELINE, PRESET
from search.study.driving import (
    FAILURES_TO_STOP,
    NO_ROOM,
    RESTING,
    Search,
    drop_surplus_weights,
    kept_candidates,
)
from search.study.opening import recover
from search.study.trials import (
    LOOKS,
    PAUSED,
    REASON,
    ROW,
    STATE,
    claim,
    known_trials,
    new_trial,
    paused_trials,
    put_back,
    record_outcome,
)
from search.training.candidate import (
    CHECKPOINT,
    METRICS,
    Candidate,
    Look,
    save_progress,
)
from search.training.loop import NonFiniteLossError
from search.training.metrics import measure
from search.training.recipe import Recipe
from search.training.train import Watch
from tests.search.study.conftest import RECIPE, VERDICT, leave_complete
from tests.search.study.decisions.test_space import SMALL, SPACE

FIGURES = measure([0.2, 0.8], [0, 1])
CENTRE = SPACE.centre(SMALL[0])


def looks_of(candidate: Candidate) -> list[Look]:
    rows: list[Any] = candidate.history.to_dict("records")
    return [Look(**row) for row in rows]


class Silent:
    """Counts what a progress display is told."""

    def __init__(self) -> None:
        self.finished: list[tuple[str, float | None, str]] = []
        self.paused: list[str] = []
        self.started: list[tuple[str, bool]] = []
        self.lines: list[str] = []

    def trial_started(
        self, name: str, recipe: Recipe, *, until: int | None = None, goes_on: bool = False
    ) -> None:
        self.started.append((name, goes_on))

    def step(self, record: Any) -> None: ...

    def look(self, record: Any) -> None: ...

    def tell(self, line: str) -> None:
        self.lines.append(line)

    def trial_finished(self, state: str, auc: float | None, reason: str = "") -> None:
        self.finished.append((state, auc, reason))

    def trial_paused(self, reason: str = "") -> None:
        self.paused.append(reason)


Trained = Callable[..., Candidate]


@pytest.fixture
def make_search(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Search]:
    """A search whose trainings are what a test says."""

    def make(train: Trained, trials: int = 4, allowed: bool = True, **rules: Any) -> Search:
        monkeypatch.setattr("search.study.driving.train", train)
        verdict = SimpleNamespace(**{**vars(VERDICT), "allowed": allowed})
        plan: Any = SimpleNamespace(
            settings=SimpleNamespace(keep=2, checkpoint_minutes=10.0),
            rules=Rules(**{"first_look": 1_000, "trials": trials, "longest": 1_000, **rules}),
            space=SPACE,
            recipe_of=lambda _: RECIPE,
            ended=lambda recipe, _images, _done: recipe,
            disk_bytes=lambda _: math.inf,
            judge_recipe=lambda _: verdict,
            splits=None,
            runtime=None,
            catalogue=SimpleNamespace(budget=200),
        )
        return Search(plan, tmp_path, study, Reader(32), Silent(), Interruption())

    return make


def raising(error: BaseException) -> Trained:
    def train(*_: Any, **__: Any) -> Candidate:
        raise error

    return train


def stopping(trained: list[Recipe]) -> Trained:
    """Trainings that are stopped at once; their recipes are added to a list."""

    def train(recipe: Recipe, *_: Any, **__: Any) -> Candidate:
        trained.append(recipe)
        raise Interrupted("stopped")

    return train


def completing(
    _recipe: Recipe, _splits: Any, folder: Path, _until: int | None, **_: Any
) -> Candidate:
    return leave_complete(folder)


def looking(
    _recipe: Recipe, _splits: Any, folder: Path, until: int | None, *, watch: Watch, **_: Any
) -> Candidate:
    """A training that is as good as its number says, and looked at where it is told to stop."""
    images = until or 8_000
    auc = 0.5 + int(folder.name) / 100 + images / 100_000
    path = folder / "history.csv"
    history = looks_of(Candidate(folder)) if path.exists() else []
    look = Look(images, images / 1_000, 0.6, 1e-3, auc, 0.7, 1.5, wait_seconds=0.5)
    save_progress(folder, RECIPE, [*history, look])
    watch.look(look, FIGURES)
    if until is None:
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return leave_complete(folder, auc)
    (folder / CHECKPOINT).write_bytes(b"state")
    return Candidate(folder)


def test_a_trial_that_completes_is_told_with_what_lies_on_disk(
    make_search: Callable[..., Search], study: optuna.Study
) -> None:
    search = make_search(completing, trials=2)
    search.drive()
    assert [trial.value for trial in study.trials] == [0.75, 0.75]
    assert study.trials[1].user_attrs[STATE] == "complete"
    assert study.trials[1].user_attrs[ROW]["path"] == "candidates/0001"


def test_without_time_to_finish_one_the_best_is_kept_as_it_is(
    make_search: Callable[..., Search], study: optuna.Study
) -> None:
    search = make_search(looking, trials=3, longest=None)
    ends: list[tuple[int, int]] = []

    def ended(recipe: Recipe, images: int, done: int) -> Recipe:
        ends.append((images, done))
        return recipe

    plan: Any = search.plan
    plan.ended, plan.steps = ended, 100
    for _ in range(3):
        new_trial(study, CENTRE, SPACE)
        search.run_trial(claim(study, study.trials[-1]), 1_000)
    # The best checkpoint of all cannot be read; the next one was saved amid its second epoch.
    state = {"epoch": 1, "batch": 20}
    torch.save(state, search.folder(study.trials[1]) / CHECKPOINT)
    search.keep_best()
    seen = 120 * SPACE.batch_size
    assert ends == [(seen, seen)]
    complete = [trial.number for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert complete == [1]
    progress: Any = search.progress
    assert progress.lines == ["no time is left: trial 0001 is taken as it was at its best look"]
    # With one that is complete, the others wait.
    search.keep_best()
    assert [trial.number for trial in paused_trials(study)] == [0, 2]


def test_a_look_that_a_trial_lost_hides_no_later_one(
    make_search: Callable[..., Search], study: optuna.Study
) -> None:
    """A training that was kept in vain was looked at where it goes on without a look."""
    search = make_search(looking, trials=1)
    new_trial(study, CENTRE, SPACE)
    search.run_trial(claim(study, study.trials[0]), 1_000)
    told = study.trials[0].user_attrs[LOOKS]
    lost = [1_300, told[0][1] + 1, 0.6, told[0][3] + 1]
    study._storage.set_trial_user_attr(study.trials[0]._trial_id, LOOKS, [*told, lost])
    search.run_trial(claim(study, study.trials[0]), 2_000)
    assert [look[0] for look in study.trials[0].user_attrs[LOOKS]] == [1_000, 1_300, 2_000]


def test_a_schedule_that_must_know_its_end_is_not_cut_short(
    make_search: Callable[..., Search], study: optuna.Study
) -> None:
    search = make_search(looking, trials=1, prolongs=False)
    new_trial(study, CENTRE, SPACE)
    search.run_trial(claim(study, study.trials[0]), 1_000)
    search.keep_best()
    assert len(paused_trials(study)) == 1


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
    for _ in range(2):
        new_trial(study, CENTRE, SPACE, **{PRESET: "anything"})
    trial = claim(study, study.trials[0])
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
    work = next_work(known_trials(study), search.plan.rules)
    assert work == GoOn(trial.number, None)


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
            search.run_trial(claim(study, study.trials[0]))
    else:
        assert text in (search.run_trial(trial) or "")
    (failed,) = study.trials
    assert failed.state is TrialState.FAIL
    assert text in failed.user_attrs[REASON]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(24, "Too many open files"),
        UserError("too many images are broken"),
        StorageInternalError("the connection was closed"),
    ],
)
def test_what_no_recipe_is_to_blame_for_stops_the_search_and_loses_nothing(
    error: Exception, make_search: Callable[..., Search], study: optuna.Study, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "candidates" / "0000" / CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"state")
    search = make_search(raising(error))
    raised = StorageInternalError if isinstance(error, StorageInternalError) else UserError
    with pytest.raises(raised, match=str(error.args[-1])) as found:
        search.drive()
    assert ("mend that" in str(found.value)) == (getattr(error, "errno", None) == 28)
    assert checkpoint.exists()
    recover(study, tmp_path)  # as the next command does
    assert [trial.number for trial in paused_trials(study)] == [0]
    assert len(study.trials) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"auc": null}', '{"auc": "high"}'])
def test_damaged_figures_are_told_with_the_remedy_which_helps(
    content: str, make_search: Callable[..., Search], study: optuna.Study, tmp_path: Path
) -> None:
    """Every later command failed, and none said what to do."""
    folder = tmp_path / "candidates" / "0000"

    def damaged(recipe: Recipe, *_: Any, **__: Any) -> Candidate:
        candidate = leave_complete(folder)
        save_progress(folder, recipe, [])
        if not study.trials[0].user_attrs.get("mended"):
            (folder / METRICS).write_text(content)
        return candidate

    search = make_search(damaged, trials=1)
    remedy = re.escape(f"delete {folder}, and the search trains it anew")
    with pytest.raises(UserError, match=remedy) as found:
        search.drive()
    assert "\n" not in str(found.value)
    assert [trial.state for trial in study.trials] == [TrialState.WAITING]
    shutil.rmtree(folder)
    study._storage.set_trial_user_attr(study.trials[0]._trial_id, "mended", True)
    recover(study, tmp_path)
    search.drive()
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE]


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

    def train(
        recipe: Recipe, _splits: Any, folder: Path, _until: int | None, **_: Any
    ) -> Candidate:
        trained.append(recipe)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CHECKPOINT).write_bytes(b"state")
        raise Interrupted("stopped")

    search = make_search(train)
    search.run_trial(study.ask())
    # The baseline's weights have come since, say; and another machine computes otherwise.
    other = replace(RECIPE, backbone="other", precision="bf16")
    search.plan.recipe_of = lambda _: other  # type: ignore[method-assign]
    search.run_trial(claim(study, study.trials[0]))
    assert trained == [RECIPE, replace(RECIPE, precision="bf16")]
    (tmp_path / "candidates" / "0000" / CHECKPOINT).unlink()
    search.run_trial(claim(study, study.trials[0]))
    assert trained[-1] == other


def test_a_trial_that_begins_anew_ends_where_that_was_settled(
    make_search: Callable[..., Search], study: optuna.Study
) -> None:
    """Else it would train without end, and before all others."""
    trained: list[Recipe] = []
    search = make_search(stopping(trained), longest=None)
    endless = replace(RECIPE, epochs=None, schedule="constant")
    plan: Any = search.plan
    plan.recipe_of = lambda _: endless
    plan.ended = lambda recipe, images, _done: replace(
        recipe, epochs=images / 100, decay_fraction=0.1
    )
    search.run_trial(study.ask(), None, 300)
    search.run_trial(claim(study, study.trials[0]), None)
    assert trained == [replace(endless, epochs=3.0, decay_fraction=0.1)] * 2


def test_a_schedule_that_knows_its_end_is_finished_as_it_began(
    make_search: Callable[..., Search], study: optuna.Study
) -> None:
    """With another fall it would be another training, and begin anew."""
    trained: list[Recipe] = []
    search = make_search(stopping(trained), prolongs=False)
    plan: Any = search.plan
    plan.ended = lambda recipe, _images, _done: replace(recipe, decay_fraction=0.1)
    search.run_trial(study.ask(), None, 1_000)
    assert trained == [RECIPE]


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


def test_what_a_failed_trial_took_is_kept(
    make_search: Callable[..., Search], study: optuna.Study
) -> None:
    """A scheduler that does not know it begins one after the other."""

    def fail(*_: Any, **__: Any) -> Candidate:
        time.sleep(0.05)
        raise NonFiniteLossError("the loss must be finite, found nan")

    make_search(fail).run_trial(study.ask())
    assert known_trials(study)[0].lost >= 0.05


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
    def train(
        recipe: Recipe, splits: Any, folder: Path, until: int | None, **more: Any
    ) -> Candidate:
        if folder.name == "0000":
            return looking(recipe, splits, folder, until, **more)
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
        raise ValueError("out of paper")

    gc.disable()
    try:
        with pytest.raises(UserError, match="all failed"):
            make_search(train, trials=4).drive()
    finally:
        gc.enable()
    assert alive == [0, 0, 0]


def test_halves_go_on_from_their_checkpoint_and_the_best_are_finished(
    make_search: Callable[..., Search], study: optuna.Study, tmp_path: Path
) -> None:
    search = make_search(looking, trials=8, longest=8_000)
    assert search.drive() == ""
    trials = study.trials
    assert [trial.state.name for trial in trials] == ["WAITING"] * 5 + ["COMPLETE"] * 3
    seen = [max(trial.intermediate_values) for trial in trials]
    assert seen == [1_000] * 4 + [2_000] + [8_000] * 3
    assert trials[5].user_attrs[LOOKS] == [
        [1_000, 2.0, pytest.approx(0.56), 12.0],
        [2_000, 4.0, pytest.approx(0.57), 22.0],
        [4_000, 6.0, pytest.approx(0.59), 30.0],
        [8_000, 8.0, pytest.approx(0.63), 36.0],
    ]
    paused = trials[0].user_attrs
    assert (paused[STATE], paused[REASON]) == (PAUSED, RESTING)
    assert paused[ROW]["auc"] == FIGURES.auc
    assert paused[ROW]["train_seconds"] == 1.5
    assert paused[ROW]["wait_seconds"] == 0.5
    assert paused[ROW]["epochs"] == 1.0
    assert (tmp_path / "candidates" / "0000" / CHECKPOINT).exists()
    # All were drawn from the space, and are in Optuna with their parameters.
    assert all(set(trial.params) == set(SPACE.distributions) for trial in trials)
    progress: Any = search.progress
    assert len(progress.started) == 8 + 4 + 3 + 3


def test_what_comes_beside_the_training_is_not_planned_with(
    make_search: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, given = SimpleNamespace(now=0.0), list[float]()

    def slow(*arguments: Any, **more: Any) -> Candidate:
        clock.now += 12.0
        return looking(*arguments, **more)  # two seconds of which it counts as trained

    def asked(known: Any, rules: Rules, left: float | None) -> Any:
        assert left is not None
        given.append(left)
        return Start(None, 1_000) if len(given) < 3 else Stop()

    search = make_search(slow)
    monkeypatch.setattr("search.study.driving.time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr("search.study.driving.next_work", asked)
    monkeypatch.setattr(Interruption, "seconds_left", property(lambda _: 1_000 - clock.now))
    search.drive()
    assert given == [1_000, 988 - 10, 976 - 10]


def test_a_small_disk_costs_the_worst_their_checkpoint(
    make_search: Callable[..., Search], study: optuna.Study, tmp_path: Path
) -> None:
    search = make_search(looking, trials=7, longest=8_000)
    # Claimed by a process that died before it trained: it has no checkpoint to lose.
    new_trial(study, CENTRE, SPACE)
    record_outcome(claim(study, study.trials[0]), PAUSED, "the process ended", {})
    put_back(study, study.trials[0])
    search.plan.disk_bytes = lambda _: 3 * len(b"state")  # type: ignore[method-assign]
    search.drive()
    states = [trial.user_attrs[STATE] for trial in study.trials]
    assert states == ["pruned"] * 4 + ["complete"] * 3
    assert study.trials[0].user_attrs[REASON] == NO_ROOM
    assert study.trials[0].user_attrs[LOOKS]
    assert not list(tmp_path.glob(f"candidates/*/{CHECKPOINT}"))


def test_a_look_that_was_not_reported_before_a_kill_is_reported(
    make_search: Callable[..., Search], study: optuna.Study, tmp_path: Path
) -> None:
    trial = study.ask()
    trial.report(0.6, step=1_000)
    history = [Look(1_000 * n, n, 0.6, 1e-3, 0.5 + n / 10, 0.7, 1.0) for n in (1, 2)]
    save_progress(tmp_path / "candidates" / "0000", RECIPE, history)
    make_search(completing).run_trial(trial)
    assert study.trials[0].intermediate_values == {1_000: 0.6, 2_000: 0.7}
    assert [point.images for point in known_trials(study)[0].points] == [1_000, 2_000]


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
