from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from ensemble.fuse import fuse
from ensemble.fuse.fuse import find_members, run_fuse
from ensemble.fuse.joint import JointTraining, joint_recipe
from ensemble.network.heads import HeadKind
from ensemble.network.model import FusedNetwork, HeadSpec, load_model, merged_folder, merged_models
from ensemble.pool.pool import Pool
from search.catalogue.rules import count_parameters
from search.errors import UserError
from search.machine.interruption import Interrupted, Interruption
from search.machine.seconds import SECONDS
from search.training.metrics import roc_auc
from search.training.recipe import Recipe
from tests.stopping import StopAfter


def with_budget(pool: Pool, budget: int) -> Pool:
    return replace(pool, catalogue=replace(pool.catalogue, budget=budget))


@pytest.mark.parametrize("head", get_args(HeadKind))
def test_a_fused_network_is_kept_whole(head: HeadKind, pool: Pool) -> None:
    console = Console(record=True, width=200)
    candidate = run_fuse(pool, members=["0002", "0003"], head=head, console=console)
    assert candidate.path == merged_folder(pool.run, "fused")
    model, spec = load_model(candidate.path)
    assert isinstance(model, FusedNetwork)
    assert spec.merged_from == tuple(name for name in pool.names if name in ("0002", "0003"))
    assert model.image_size == 48
    metrics = candidate.metrics
    counts = count_parameters(model, 48)
    assert (metrics["params_thop"], metrics["params_exact"]) == (
        counts.params_thop,
        counts.params_exact,
    )
    found = pool.evaluate(model, "report").predictions.scores
    assert candidate.report_scores is not None
    np.testing.assert_allclose(candidate.report_scores["y_pred"], found, atol=1e-6)
    assert "fused: 0." in console.export_text()
    if head != "mean":
        assert metrics["auc"] >= metrics["equal_weights"] - 1e-9


def test_the_mean_of_networks_of_one_size_scores_as_their_ensemble(pool: Pool) -> None:
    candidate = run_fuse(pool, members=["0002", "0004"], head="mean")
    expected = pool.select[["0002", "0004"]].mean(axis=1)
    np.testing.assert_allclose(candidate.scores["y_pred"], expected, atol=1e-6)
    assert candidate.metrics["auc"] == roc_auc(expected, pool.select["target"])
    assert candidate.recipe.architecture == "fused"


def test_members_are_chosen_with_the_head_inside_the_budget(tiny_pool: Pool) -> None:
    costs = {c.name: c.metrics["params_exact"] for c in tiny_pool.candidates}
    hidden = 64
    # test_vit and test_efficientnet have features of 64 and 256, whatever is chosen beside them.
    pair = costs["0002"] + costs["0004"]
    head = (64 + 256) * hidden + hidden + 2 * (hidden + 1)
    just_enough = with_budget(tiny_pool, pair + head)
    names = {c.name for c in find_members(just_enough, None, HeadSpec("mlp", hidden))}
    assert names == {"0002", "0004"}
    with pytest.raises(UserError, match=r"even .* have "):
        find_members(with_budget(tiny_pool, pair + head - 1), None, HeadSpec("mlp", hidden))
    assert len(find_members(with_budget(tiny_pool, pair), None, HeadSpec("mean"))) == 2


def test_a_named_set_over_the_budget_is_refused_before_anything_is_loaded(pool: Pool) -> None:
    costs = {c.name: c.metrics["params_exact"] for c in pool.candidates}
    room = costs["0002"] + costs["0004"]
    message = f"{costs['0000']:,} too many; the largest set of them that fits: "
    with pytest.raises(UserError, match=message):
        run_fuse(with_budget(pool, room), members=["0000", "0002", "0004"], head="mean")
    assert not (pool.run / "merged").exists()


def test_the_module_is_counted_whatever_the_candidates_records_say(pool: Pool) -> None:
    # Records that understate: the module itself is what counts.
    for name in ("0000", "0001"):
        path = pool.get(name).path / "metrics.json"
        path.write_text(path.read_text("utf-8").replace("372882", "1000"), "utf-8")
    with pytest.raises(UserError, match=r"fused network of 2 members .*745,764 exactly"):
        run_fuse(with_budget(pool, 700_000), members=["0000", "0001"], head="mean")
    assert not (pool.run / "merged").exists()


def test_nothing_is_chosen_by_report(pool: Pool) -> None:
    report = pool.splits.report
    flipped = replace(
        pool,
        splits=replace(pool.splits, report=report.assign(target=1 - report["target"])),
        report=pool.report.assign(target=1 - pool.report["target"]),
    )
    states = []
    for one in (pool, flipped):
        candidate = run_fuse(one, head="mlp", finetune_epochs=1)
        states.append(load_model(candidate.path)[0].state_dict())
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_a_joint_training_that_does_not_help_is_undone(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JointTraining, "_evaluate", lambda *_: 1.0)
    before = run_fuse(pool, members=["0002", "0004"]).scores["y_pred"]
    after = run_fuse(pool, members=["0002", "0004"], finetune_epochs=1)
    assert after.scores["y_pred"].tolist() == before.tolist()
    assert after.metrics["finetune_kept"] is False
    assert after.metrics["best_epoch"] == 0
    assert len(after.history) == 1


def test_a_joint_training_that_helps_is_kept(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JointTraining, "_evaluate", lambda *_: 0.0)
    before = run_fuse(pool, members=["0002", "0004"])
    state = load_model(before.path)[0].state_dict()
    console = Console(record=True, width=200)
    after = run_fuse(pool, members=["0002", "0004"], finetune_epochs=2, console=console)
    assert after.metrics["finetune_kept"] is True
    assert after.metrics["best_epoch"] in (1, 2)
    assert after.metrics["precision"] == after.recipe.precision == "fp32"
    assert after.metrics["device"].startswith("cpu")
    assert after.metrics["train_seconds"] > 0
    assert not working(pool).exists()
    assert after.history["epoch"].tolist() == [1, 2]
    changed = [
        name
        for name, tensor in load_model(after.path)[0].state_dict().items()
        if not torch.equal(tensor, state[name])
    ]
    assert any(name.startswith("trunks.0") for name in changed)
    assert any(name.startswith("trunks.1") for name in changed)
    assert "epoch 2/2" in console.export_text()


def test_the_joint_recipe_is_the_best_members_with_smaller_steps(tiny_pool: Pool) -> None:
    best = Recipe(
        backbone="b",
        architecture="a",
        canvas=224,
        learning_rate=1e-3,
        mixup_alpha=0.2,
        precision="bf16",
        micro_batch_size=4,
        augmentation="strong",
        compile=True,
    )
    recipe = joint_recipe(best, 96, 3, tiny_pool)
    assert recipe.learning_rate == pytest.approx(1e-4)
    assert (recipe.epochs, recipe.image_size) == (3, 96)
    assert (recipe.micro_batch_size, recipe.augmentation) == (4, "strong")
    # What this machine is fast in, whichever one searched.
    assert (recipe.mixup_alpha, recipe.precision, recipe.compile) == (0.0, "auto", False)


@pytest.mark.parametrize("finetune_epochs", [0, 1])
def test_an_interrupted_fusion_writes_nothing(finetune_epochs: int, pool: Pool) -> None:
    interruption = Interruption()
    interruption.requested = True
    with pytest.raises(Interrupted):
        run_fuse(pool, finetune_epochs=finetune_epochs, interruption=interruption)
    assert not (pool.run / "merged").exists()


class StopJointTraining(StopAfter):
    """Asks for the end after so many checks, once there is a joint training."""

    def __init__(self, folder: Path, checks: int) -> None:
        super().__init__(checks)
        self.folder = folder

    def check(self) -> None:
        if self.folder.exists():
            super().check()


def working(pool: Pool) -> Path:
    return pool.run / "merged" / ".fused"


@pytest.mark.parametrize("amid_passes", [False, True])
def test_going_on_from_any_batch_equals_never_having_stopped(
    amid_passes: bool, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JointTraining, "_evaluate", lambda *_: 0.0)
    other = tmp_path / "other"
    shutil.copytree(pool.run, other)
    arguments: dict[str, Any] = {"members": ["0002", "0004"], "head": "mlp", "finetune_epochs": 2}
    unbroken = run_fuse(replace(pool, run=other), **arguments)
    console = Console(record=True, width=400)
    generator = random.Random("mlp")
    pieces, broken = 0, None
    while broken is None:
        pieces += 1
        # A batch has some hundred layers and gradients, an evaluation as many.
        checks = generator.randint(1, 2000 if amid_passes else 4)
        interruption = StopJointTraining(working(pool), checks)
        device = pool.runtime.device
        try:
            with interruption.amid_passes(device, 0.0) if amid_passes else nullcontext():
                broken = run_fuse(pool, **arguments, console=console, interruption=interruption)
        except Interrupted:
            assert working(pool).exists()
            assert merged_models(pool.run) == ()
    assert pieces > 3
    text = console.export_text()
    assert "going on with the training in" in text
    assert text.count("epoch 2/2") == 1
    states = [load_file(candidate.path / "model.safetensors") for candidate in (unbroken, broken)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    pd.testing.assert_frame_equal(unbroken.scores, broken.scores, check_exact=True)
    timeless = [candidate.history.drop(columns=list(SECONDS)) for candidate in (unbroken, broken)]
    pd.testing.assert_frame_equal(*timeless, check_exact=True)
    assert not working(pool).exists()


@pytest.mark.parametrize("head", ["mean", "weights"])
def test_a_joint_training_gets_on_however_short_the_time_limit(
    head: HeadKind, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head was fitted and the start scored anew after each stop: with a limit that both filled
    the training never came to its first batch."""
    made: list[str] = []

    def counted(what: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            made.append(what)
            return result

        return call

    monkeypatch.setattr(JointTraining, "_evaluate", counted("start", JointTraining._evaluate))
    monkeypatch.setattr(fuse, "fit_head", counted("head", fuse.fit_head))
    arguments: dict[str, Any] = {"members": ["0002", "0004"], "head": head, "finetune_epochs": 2}
    needed = StopAfter(10**6)
    run_fuse(pool, members=["0002", "0004"], head=head, interruption=needed)
    # Fitting and keeping, less the two passes of keeping: what a start takes, but for its scoring.
    each = 10**6 - needed.left - 2 + 1
    made.clear()
    for _ in range(20):
        try:
            candidate = run_fuse(pool, **arguments, interruption=StopAfter(max(each, 3)))
        except Interrupted:
            continue
        break
    assert len(candidate.history) == 2
    assert made == ["head", "start"][head == "mean" :]
    assert ("head_epoch" in candidate.metrics) == (head != "mean")
    assert not working(pool).exists()


def test_a_stop_after_the_fitting_keeps_the_head(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill, even: and what was fitted is what would have been trained."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    arguments: dict[str, Any] = {"members": ["0002", "0004"], "finetune_epochs": 1}
    with monkeypatch.context() as patch:
        patch.setattr(JointTraining, "_evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run_fuse(pool, **arguments)
    for name in ("start.json", "head.safetensors"):
        assert (working(pool) / name).exists()
    with pytest.raises(UserError, match=r"a fitted head, whose epochs .* found epochs 2 instead"):
        run_fuse(pool, members=["0002", "0004"], finetune_epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(fuse, "fit_head", killed)
        run_fuse(pool, **arguments)
    assert not working(pool).exists()


def test_a_damaged_start_is_made_anew_and_told(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {"members": ["0002", "0004"], "finetune_epochs": 1}
    with pytest.raises(Interrupted):
        run_fuse(pool, **arguments, interruption=StopJointTraining(working(pool), checks=2))
    (working(pool) / "start.json").write_text("{")
    console = Console(record=True, width=400)
    run_fuse(pool, **arguments, console=console)
    assert "start.json cannot be read: the head is fitted anew" in console.export_text()


def test_an_unfinished_joint_training_is_deleted_only_with_discard(pool: Pool) -> None:
    arguments: dict[str, Any] = {"members": ["0002", "0004"], "head": "mean"}
    with pytest.raises(Interrupted):
        run_fuse(
            pool,
            **arguments,
            finetune_epochs=2,
            interruption=StopJointTraining(working(pool), checks=3),
        )
    checkpoint = working(pool) / "checkpoint.pt"
    before = checkpoint.read_bytes()
    with pytest.raises(UserError, match=r"found epochs 3 instead of 2; go on .* --discard"):
        run_fuse(pool, **arguments, finetune_epochs=3)
    with pytest.raises(UserError, match="whose members must stay as they were"):
        run_fuse(pool, members=["0002", "0001"], head="mean", finetune_epochs=2)
    # Without a joint training nothing is in its way.
    run_fuse(pool, **arguments)
    assert checkpoint.read_bytes() == before
    console = Console(record=True, width=400)
    after = run_fuse(pool, **arguments, finetune_epochs=3, discard=True, console=console)
    assert "discarded" in console.export_text()
    assert len(after.history) == 3
    assert not working(pool).exists()


def test_a_kill_while_the_model_is_kept_repeats_no_training(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"members": ["0002", "0004"], "finetune_epochs": 1}

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ensemble.fuse.fuse.keep_merged", killed)
        with pytest.raises(KeyboardInterrupt):
            run_fuse(pool, **arguments)
    console = Console(record=True, width=400)
    after = run_fuse(pool, **arguments, console=console)
    assert "epoch 1/1" not in console.export_text()
    assert len(after.history) == 1
    assert not working(pool).exists()


def test_an_override_travels_into_the_spec(pool: Pool) -> None:
    tainted = replace(pool, tainted={"0002": "ig1b: pretrained on IG-1B"}, allow_tainted=True)
    candidate = run_fuse(tainted, members=["0002", "0004"])
    (line,) = load_model(candidate.path)[1].overrides
    assert "0002" in line
    assert "IG-1B" in line
    assert candidate.metrics["overrides"] == [line]
