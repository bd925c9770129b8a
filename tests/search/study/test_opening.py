from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from search.errors import UserError
from search.settings.search import SearchSettings
from search.study.decisions.space import BASELINE, PRESET
from search.study.opening import (
    enqueue_baseline,
    enqueue_first_trials,
    in_settled_pool,
    is_begun,
    open_study,
    recover,
    settle_pool,
)
from search.study.plan import SearchPlan
from search.study.prior import Probe
from search.study.trials import (
    PAUSED,
    REASON,
    STATE,
    claim,
    paused_trials,
    put_back,
    record_outcome,
)
from search.study.trials import RECIPE as RECIPE_ATTRIBUTE
from search.training.candidate import CHECKPOINT, save_progress
from tests.search.study.conftest import RECIPE, VERDICT, leave_complete
from tests.search.study.decisions.test_space import SMALL, SPACE


def test_a_renamed_run_keeps_its_study(study: optuna.Study, tmp_path: Path) -> None:
    study.enqueue_trial({})
    renamed = tmp_path.rename(tmp_path.with_name("renamed"))
    settings = SearchSettings(out=renamed).resolved()
    assert len(open_study(settings, "abc", study.study_name).trials) == 1
    with pytest.raises(UserError, match=r"must have the study 'renamed' of .* found none"):
        open_study(settings, "abc", "renamed")


def test_a_storage_never_mixes_runs(study: optuna.Study, tmp_path: Path) -> None:
    settings = SearchSettings(out=tmp_path).resolved()
    assert open_study(settings, "abc").trials == []  # left by a process that was killed at once
    study.enqueue_trial({})
    with pytest.raises(UserError, match="found one with trials"):
        open_study(settings, "abc")
    with pytest.raises(UserError, match="images, found one of others"):
        open_study(settings, "xyz", study.study_name)


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
            backbones=backbones,
            centre=lambda backbone: {"backbone": backbone.name},
            distributions={"backbone": CategoricalDistribution(["a", "b"])},
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


def test_presets_come_in_the_order_of_their_probes_and_those_left_out_never(
    study: optuna.Study,
) -> None:
    plan: Any = SimpleNamespace(space=SPACE, rejected=())
    assert in_settled_pool(plan, study) is plan
    names = [backbone.name for backbone in SMALL[:4]]
    probes = [
        Probe(name, 224, auc=auc, kept=auc != 0.9)
        for name, auc in zip(names, (0.6, 0.9, 0.8, None), strict=True)
    ]
    settle_pool(study, probes)
    narrowed = in_settled_pool(replace(_plan(), space=SPACE), study)
    # What is drawn depends on the file's order, not on a probe's last digits.
    assert [one.name for one in narrowed.space.backbones] == [names[0], names[2], names[3]]
    assert not is_begun(study)
    enqueue_first_trials(study, narrowed)
    assert is_begun(study)
    assert [trial.params.get("backbone") for trial in study.trials] == [
        *(None, names[2], names[0], names[3])
    ]
    enqueue_first_trials(study, narrowed)
    assert len(study.trials) == 4


def _plan() -> SearchPlan:
    unused: Any = None
    return SearchPlan(unused, unused, unused, unused, (), unused, 0, ())


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


def test_a_trial_that_was_put_back_though_it_was_complete_is_told(
    study: optuna.Study, tmp_path: Path
) -> None:
    """A second Ctrl-C came between the last file and the telling."""
    for number, auc in enumerate((0.75, None)):
        trial = study.ask()
        trial.set_user_attr(RECIPE_ATTRIBUTE, asdict(RECIPE))
        folder = tmp_path / "candidates" / f"{number:04d}"
        if auc is not None:
            leave_complete(folder, auc)
        save_progress(folder, RECIPE, [])
    for trial in study.trials:
        record_outcome(optuna.Trial(study, trial._trial_id), PAUSED, "interrupted by the user")
        put_back(study, trial)
    recover(study, tmp_path)
    first, second = study.trials
    assert (first.state, first.value) == (TrialState.COMPLETE, 0.75)
    assert (first.user_attrs[STATE], first.user_attrs[REASON]) == ("complete", "")
    assert (second.state, second.user_attrs[STATE]) == (TrialState.WAITING, PAUSED)


def test_a_complete_folder_of_another_training_is_not_told(
    study: optuna.Study, tmp_path: Path
) -> None:
    trial = study.ask()
    trial.set_user_attr(RECIPE_ATTRIBUTE, asdict(replace(RECIPE, learning_rate=0.5)))
    save_progress(leave_complete(tmp_path / "candidates" / "0000").path, RECIPE, [])
    recover(study, tmp_path)
    assert study.trials[0].state is TrialState.WAITING
    trial = claim(study, study.trials[0])
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
    assert [trial.number for trial in paused_trials(again)] == [0]


def test_a_candidate_that_was_taken_as_it_was_is_told_after_a_kill(
    study: optuna.Study, tmp_path: Path
) -> None:
    """Its trial still says that its end is open."""
    begun = replace(RECIPE, schedule="constant", epochs=None)
    study.ask().set_user_attr(RECIPE_ATTRIBUTE, asdict(begun))
    ended = replace(begun, epochs=1.5, decay_fraction=0.0)
    save_progress(leave_complete(tmp_path / "candidates" / "0000").path, ended, [])
    recover(study, tmp_path)
    assert study.trials[0].state is TrialState.COMPLETE


def test_a_finished_trials_checkpoint_is_cleared_away(study: optuna.Study, tmp_path: Path) -> None:
    trial = study.ask()
    record_outcome(trial, "pruned", row={})
    study.tell(trial, state=TrialState.PRUNED)
    checkpoint = tmp_path / "candidates" / "0000" / CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"state")
    recover(study, tmp_path)
    assert not checkpoint.exists()
