from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from search.data.splits import Splits
from search.errors import UserError
from search.machine.device import AUTOCAST_DTYPES, Runtime, seed_everything
from search.machine.files import write_text_atomically
from search.machine.interruption import Interrupted
from search.machine.seconds import SECONDS
from search.pixels.altered import altered_part
from search.pixels.loading.batches import Batch, Shown
from search.pixels.loading.epochs import Loader, eval_batches
from search.pixels.loading.reading import Reader
from search.training import train as module
from search.training.candidate import CHECKPOINT, METRICS, WEIGHTS, Candidate, Look
from search.training.loop import NonFiniteLossError, StepRecord, Training
from search.training.loss import Loss
from search.training.metrics import Metrics, roc_auc
from search.training.recipe import Recipe
from search.training.scoring import Evaluation
from search.training.train import Classification, Watch, steps_done, train, unfinished_training
from tests.search.training.small import SMALL
from tests.stopping import StopAfter

CPU = Runtime(torch.device("cpu"))
RECIPE = Recipe(
    backbone="test_resnet.r160_in1k",
    architecture=SMALL,
    image_size=32,
    canvas=32,
    weights="none",
    epochs=3,
    batch_size=8,
    learning_rate=2e-3,
    augmentation="light",
)
SETTINGS: list[dict[str, Any]] = [
    {
        "optimizer": "adam",
        "schedule": "step",
        "step_size_epochs": 1,
        "warmup_fraction": 0.0,
        "class_balance": "sampler",
        "augmentation": "randaugment",
    },
    {
        "mixup_alpha": 0.2,
        "cutmix_alpha": 1.0,
        "label_smoothing": 0.1,
        "lowest_layer_scale": 0.7,
        "drop_path": 0.1,
    },
    {"micro_batch_size": 3, "gradient_clip": None, "freeze_norm_fraction": 0.5},
    {"precision": "bf16", "channels_last": True},
    {"precision": "fp16"},
    {"select_limit": 8, "ema_decay": 0.9},
    {"schedule": "constant", "warmup_images": 16, "average_power": 7.0},
    {
        "self_blended": 0.5,
        "mixed_with_real": 0.5,
        "batch_order": "groups",
        "class_balance": "loss",
        "compression_quality": 80,
        "degradation_rounds": 2,
        "patch_masking": 0.2,
    },
]
"""What is independent stands in one, since each is trained twice."""


class Told(Watch):
    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.looks: list[Look] = []
        self.best: list[Metrics] = []
        self.lines: list[str] = []

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def look(self, record: Look, best: Metrics | None) -> None:
        self.looks.append(record)
        if best is not None:
            self.best.append(best)

    def tell(self, line: str) -> None:
        self.lines.append(line)


class WithLoss(Classification):
    """Learns by another loss."""

    def __init__(self, splits: Splits, recipe: Recipe, loss: Loss) -> None:
        super().__init__(recipe, splits, Reader(recipe.canvas))
        self.given = loss

    def loss(self) -> Loss:
        return self.given


def complete(splits: Splits, folder: Path, recipe: Recipe = RECIPE, **arguments: Any) -> Candidate:
    candidate = train(recipe, splits, folder, runtime=CPU, **arguments)
    assert candidate.is_complete
    assert not (folder / CHECKPOINT).exists()
    return candidate


@pytest.fixture(scope="module")
def unbroken(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    """A training by RECIPE that nothing stopped."""
    return complete(splits, tmp_path_factory.mktemp("unbroken") / "a")


def assert_same(first: Candidate, second: Candidate) -> None:
    """The same weights, scores and history, to the bit."""
    states = [load_file(candidate.path / WEIGHTS) for candidate in (first, second)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    pd.testing.assert_frame_equal(first.scores, second.scores, check_exact=True)
    assert timeless(first).equals(timeless(second))
    figures = [
        [c.metrics.get(name) for name in ("auc_low", "auc_high", "groups")] for c in (first, second)
    ]
    assert figures[0] == figures[1]


def timeless(candidate: Candidate) -> pd.DataFrame:
    return candidate.history.drop(columns=list(SECONDS))


def stop_often(
    splits: Splits,
    folder: Path,
    recipe: Recipe,
    checks: Callable[[], int],
    layers: Callable[[], int] | None = None,
    **arguments: Any,
) -> int:
    """Trains in pieces until it is complete, every other one stopped amid a pass if `layers` are
    given; returns how many there were."""
    for piece in range(1, 100):
        # Another process has other generators, and draws from them before it goes on.
        torch.manual_seed(piece)
        random.seed(piece)
        np.random.seed(piece)  # noqa: NPY002 - the very one
        amid = layers if piece % 2 else None
        stop = StopAfter(amid() if amid else checks())
        try:
            with stop.amid_passes(CPU.device, 0.0) if amid else nullcontext():
                train(recipe, splits, folder, None, stop, runtime=CPU, **arguments)
        except Interrupted:
            assert (folder / CHECKPOINT).exists()
            assert not (folder / METRICS).exists()
            continue
        return piece
    raise AssertionError("it made no progress")


@pytest.mark.parametrize("changes", SETTINGS)
def test_going_on_from_any_batch_and_layer_equals_never_having_stopped(
    changes: dict[str, Any], splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A scale that overflows and rises again: a training that lost it would skip other steps.
    on_the_edge = partial(GradScaler, init_scale=2.0**18, growth_interval=2)
    monkeypatch.setattr("search.training.step.GradScaler", on_the_edge)
    recipe = replace(RECIPE, **changes)
    unbroken = complete(splits, tmp_path / "unbroken", recipe)
    assert unbroken.metrics["auc"] > 0.9
    assert unbroken.metrics["precision"] == recipe.precision
    generator = random.Random(str(changes))
    pieces = stop_often(
        splits,
        tmp_path / "broken",
        recipe,
        checks=lambda: generator.randint(1, 7),
        layers=lambda: generator.randint(1, 150),
    )
    assert pieces > 3
    assert_same(unbroken, Candidate(tmp_path / "broken"))


def test_going_on_after_one_or_two_batches(splits: Splits, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=2, mixup_alpha=0.2, ema_decay=0.9)
    unbroken = complete(splits, tmp_path / "unbroken", recipe)
    # One check comes before the first batch, so that some pieces do nothing at all.
    checks = itertools.cycle([0, 1, 2])
    pieces = stop_often(splits, tmp_path / "broken", recipe, lambda: next(checks))
    assert pieces >= 12
    assert_same(unbroken, Candidate(tmp_path / "broken"))


def test_a_stop_after_an_epochs_last_batch_records_the_rate_that_comes_next(
    splits: Splits, tmp_path: Path
) -> None:
    """The schedule is told of the epoch after that batch: the look recorded the rate of before."""

    class Ends(Watch):
        def step(self, record: StepRecord) -> None:
            if record.step == record.steps:
                raise Interrupted("stopped by the test")

    recipe = replace(RECIPE, epochs=2, schedule="step", step_size_epochs=1, warmup_fraction=0.0)
    unbroken = complete(splits, tmp_path / "unbroken", recipe)
    with pytest.raises(Interrupted):
        train(recipe, splits, tmp_path / "broken", runtime=CPU, watch=Ends())
    assert_same(unbroken, complete(splits, tmp_path / "broken", recipe))


def test_a_kill_repeats_what_came_after_the_last_save(
    splits: Splits, unbroken: Candidate, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    class Dies(Told):
        def step(self, record: StepRecord) -> None:
            super().step(record)
            if len(self.steps) == 9:
                raise Killed

    folder, dies, told = tmp_path / "killed", Dies(), Told()
    with pytest.raises(Killed):
        train(RECIPE, splits, folder, runtime=CPU, watch=dies)
    going_on = complete(splits, folder, watch=told)
    # The first epoch was saved at its evaluation, the three steps after it were not.
    assert [(record.epoch, record.step) for record in told.steps][:2] == [(1, 1), (1, 2)]
    assert_same(unbroken, going_on)


def test_the_state_is_saved_when_it_is_due(splits: Splits, tmp_path: Path) -> None:
    saved: list[tuple[int, int]] = []

    class Looks(Watch):
        def step(self, record: StepRecord) -> None:
            if (tmp_path / "a" / CHECKPOINT).exists():
                state = torch.load(tmp_path / "a" / CHECKPOINT, weights_only=True)
                saved.append((state["epoch"], state["batch"]))

    recipe = replace(RECIPE, epochs=1)
    complete(splits, tmp_path / "a", recipe, watch=Looks(), checkpoint_minutes=1e-9)
    assert saved == [(0, batch) for batch in range(1, 6)]
    saved.clear()
    complete(splits, tmp_path / "a2", recipe, watch=Looks())
    assert saved == []


def test_until_pauses_and_goes_on(splits: Splits, unbroken: Candidate, tmp_path: Path) -> None:
    told = Told()
    paused = train(RECIPE, splits, tmp_path / "a", 96, runtime=CPU, watch=told)
    assert not paused.is_complete
    assert paused.history["epoch"].tolist() == [1, 2]
    assert_same(complete(splits, tmp_path / "a", watch=told), unbroken)
    assert [record.epoch for record in told.looks] == [1, 2, 3]
    assert [record.images for record in told.looks] == [48, 96, 144]
    assert [metrics.auc for metrics in told.best] == [
        max(record.select_auc for record in told.looks[: end + 1]) for end in range(3)
    ]


def test_waiting_for_images_to_be_scored_is_scoring(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a large select would make the training look slow."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr("search.machine.seconds.time", clock)

    class Slow:
        """A loader that one waits for; nothing else takes any time."""

        def __init__(self, loader: Loader) -> None:
            self.loader, self.table = loader, loader.table

        def __iter__(self) -> Iterator[Batch]:
            for batch in self.loader:
                clock.now += 0.25
                yield batch

    monkeypatch.setattr(
        module, "eval_batches", lambda *given, **more: Slow(eval_batches(*given, **more))
    )
    metrics = complete(splits, tmp_path / "a").metrics
    assert (metrics["score_seconds"], metrics["wait_seconds"]) == (3 * 0.25, 0.0)


@pytest.mark.parametrize(("until", "looks"), [(104, [48, 104]), (120, [48, 96, 120])])
def test_a_pause_right_after_a_look_is_scored_once(
    until: int, looks: list[int], splits: Splits, tmp_path: Path
) -> None:
    paused = train(RECIPE, splits, tmp_path / "a", until, runtime=CPU)
    assert paused.history["images"].tolist() == looks


def test_a_complete_candidate_is_never_trained_again(splits: Splits, tmp_path: Path) -> None:
    first = complete(splits, tmp_path / "a", facts={"path": "candidates/a"})
    before = {path.name: path.read_bytes() for path in first.path.iterdir()}
    # What a kill between the last file and the clean-up leaves.
    (first.path / CHECKPOINT).write_bytes(b"left over")
    told = Told()
    complete(splits, tmp_path / "a", watch=told)
    assert told.steps == []
    assert {path.name: path.read_bytes() for path in first.path.iterdir()} == before


def test_metrics_tell_where_and_how_it_was_made(splits: Splits, tmp_path: Path) -> None:
    metrics = complete(splits, tmp_path / "a", facts={"path": "candidates/a"}).metrics
    assert metrics["path"] == "candidates/a"
    assert metrics["device"].startswith("cpu")
    assert metrics["precision"] == "fp32"
    assert metrics["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert metrics["best_epoch"] in (1, 2, 3)
    assert metrics["scoring_images_per_second"] > 0


def test_a_training_on_select_measures_itself_by_nothing(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(*_: Any) -> Evaluation:
        raise AssertionError("there is nothing that it has not seen")

    monkeypatch.setattr(module, "evaluate", evaluate)
    seen: list[str] = []
    plain = module.training_batches

    def batches(table: pd.DataFrame, *arguments: Any) -> Any:
        seen.extend(table["path"])
        return plain(table, *arguments)

    monkeypatch.setattr(module, "training_batches", batches)
    told, recipe = Told(), replace(RECIPE, trained_on="fit+select", select_limit=8)
    found = complete(splits, tmp_path, recipe, watch=told)
    assert seen == [*splits.fit["path"], *splits.select["path"]]
    assert found.scores.empty
    assert not {"auc", "log_loss", "report"} & found.metrics.keys()
    assert found.history["select_auc"].isna().all()
    assert [record.epoch for record in told.looks] == [1, 2, 3]
    assert told.best == []
    assert (found.has_seen("select"), found.has_seen("report")) == (True, False)


def test_without_looks_the_average_at_the_end_is_kept(splits: Splits, tmp_path: Path) -> None:
    """As of a training on these images that no split watches, step by step."""
    recipe = replace(RECIPE, trained_on="all", schedule="constant", average_power=7.0, epochs=2)
    found = complete(splits, tmp_path / "found", recipe)
    seed_everything(recipe.seed)
    task = Classification(recipe, splits.seen_by("all"), Reader(recipe.canvas))
    training = Training(task.network(start=True), task.batches(), task.loss(), recipe, CPU)
    training.run(training.end)
    expected, kept = training.averaged.state_dict(), load_file(found.path / WEIGHTS)
    assert kept.keys() == expected.keys()
    for name, tensor in kept.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("trained_on", ["fit+select", "all"])
def test_going_on_without_looks_equals_never_having_stopped(
    trained_on: Any, splits: Splits, tmp_path: Path
) -> None:
    recipe = replace(
        RECIPE, trained_on=trained_on, schedule="constant", warmup_images=16, average_power=7.0
    )
    unbroken = complete(splits, tmp_path / "unbroken", recipe)
    generator = random.Random(trained_on)
    pieces = stop_often(splits, tmp_path / "broken", recipe, lambda: generator.randint(1, 7))
    assert pieces > 3
    assert_same(unbroken, Candidate(tmp_path / "broken"))


def test_a_training_on_other_splits_is_another_one(splits: Splits, tmp_path: Path) -> None:
    train(RECIPE, splits, tmp_path, 48, runtime=CPU)
    with pytest.raises(UserError, match="trained_on must stay as they were"):
        train(replace(RECIPE, trained_on="all"), splits, tmp_path, runtime=CPU)


@pytest.mark.parametrize(
    ("changes", "look"), [({"select_limit": 8}, 8), ({"precision": "bf16"}, 20), ({}, 20)]
)
def test_looks_are_cheap_and_the_kept_weights_are_scored_exactly(
    changes: dict[str, Any], look: int, splits: Splits, tmp_path: Path
) -> None:
    scored: list[tuple[int, str]] = []
    plain = module.evaluate

    def counts(*arguments: Any, **options: Any) -> Evaluation:
        found = plain(*arguments, **options)
        scored.append((len(found.predictions.scores), found.precision))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "evaluate", counts)
        found = complete(splits, tmp_path, replace(RECIPE, **changes))
    precision = changes.get("precision", "fp32")
    assert scored == [(look, precision)] * 3 + [(20, "fp32")] * bool(changes)
    assert found.metrics["images_of_a_look"] == look
    assert found.metrics["groups"] == splits.select["group"].nunique() < len(splits.select)
    # What is told are the figures of what was kept, on all of select.
    loader = eval_batches(Reader(32), splits.select, batch_size=64)
    exact = plain(found.load(), loader, CPU)
    np.testing.assert_allclose(found.scores["y_pred"], exact.predictions.scores, atol=1e-6)
    assert found.metrics["auc"] == exact.metrics.auc
    assert found.metrics["log_loss"] == pytest.approx(exact.metrics.log_loss, abs=1e-5)


class OverflowsWhenScored(Classification):
    """A network whose scores are no numbers in fp16, or at all."""

    def __init__(self, recipe: Recipe, splits: Splits, *, always: bool) -> None:
        super().__init__(recipe, splits, Reader(recipe.canvas))
        self.always = always

    def network(self, *, start: bool) -> nn.Module:
        def overflow(network: nn.Module, _: Any, logits: Tensor) -> Tensor:
            fails = self.always or torch.is_autocast_enabled("cpu")
            return logits * float("nan") if fails and not network.training else logits

        network = super().network(start=start)
        network.register_forward_hook(overflow)
        return network


@pytest.mark.parametrize("always", [False, True])
def test_a_look_that_overflows_fp16_is_scored_in_fp32(
    always: bool, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to end the training, and the same command came to the same end again."""
    # On a CPU that computes it in bf16.
    monkeypatch.setitem(AUTOCAST_DTYPES, "fp16", torch.bfloat16)
    told, recipe = Told(), replace(RECIPE, precision="fp16")
    task = OverflowsWhenScored(recipe, splits, always=always)
    if always:
        with pytest.raises(FloatingPointError, match="20 of 20 scores are not finite"):
            train(recipe, splits, tmp_path, runtime=CPU, task=task)
        return
    found = complete(splits, tmp_path, recipe, task=task, watch=told)
    assert told.lines == ["20 of 20 scores are not finite in fp16: the training goes on in fp32"]
    assert found.metrics["precision"] == "fp32"
    assert found.history["select_auc"].notna().tolist() == [True] * 3


def test_the_last_scoring_can_be_interrupted(splits: Splits, tmp_path: Path) -> None:
    recipe = replace(RECIPE, select_limit=8)
    unbroken = complete(splits, tmp_path / "a", recipe)
    # 18 steps, three looks of a batch each, and one check before: the next is in the last scoring.
    with pytest.raises(Interrupted):
        train(recipe, splits, tmp_path / "b", None, StopAfter(22), runtime=CPU)
    told = Told()
    assert_same(unbroken, complete(splits, tmp_path / "b", recipe, watch=told))
    assert told.steps == []
    assert told.looks == []


def test_the_seconds_of_all_pieces_add_up(splits: Splits, tmp_path: Path) -> None:
    started = time.perf_counter()
    pieces: list[float] = []

    class Slow(Watch):
        def step(self, record: StepRecord) -> None:
            # Of nobody's seconds: the training is not at fault.
            pieces.append(time.perf_counter())
            time.sleep(0.02)

    stop_often(splits, tmp_path, RECIPE, lambda: 5, watch=Slow())
    elapsed = time.perf_counter() - started
    metrics = Candidate(tmp_path).metrics
    seconds = {name: metrics[name] for name in SECONDS}
    assert all(value > 0 for name, value in seconds.items() if name != "wait_seconds"), seconds
    assert sum(seconds.values()) <= elapsed - 0.02 * len(pieces)
    # What the epochs tell is all but the last save.
    history = Candidate(tmp_path).history
    told = history[list(SECONDS)].sum()
    assert all(told[name] <= metrics[name] + 0.01 for name in SECONDS)
    assert told["train_seconds"] == pytest.approx(metrics["train_seconds"], abs=0.01)


def test_another_training_is_not_gone_on_with(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(RECIPE, splits, tmp_path, None, StopAfter(3), runtime=CPU)
    unfinished = unfinished_training(tmp_path)
    assert unfinished is not None
    assert unfinished["epochs"] == 3
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(UserError, match=r"whose epochs must stay.*epochs 5 instead of 3"):
        train(replace(RECIPE, epochs=5), splits, tmp_path, runtime=CPU)
    other = Splits(splits.report, splits.select, splits.fit)
    with pytest.raises(UserError, match="whose images must stay"):
        train(RECIPE, other, tmp_path, runtime=CPU)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    # How it is computed may change: another machine needs other micro-batches.
    complete(splits, tmp_path, replace(RECIPE, micro_batch_size=4))


def test_a_damaged_checkpoint_is_told_and_the_training_starts_anew(
    splits: Splits, unbroken: Candidate, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        train(RECIPE, splits, tmp_path / "a", None, StopAfter(5), runtime=CPU)
    checkpoint = tmp_path / "a" / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert unfinished_training(tmp_path / "a") is None
    told = Told()
    restarted = complete(splits, tmp_path / "a", watch=told)
    assert len(told.lines) == 1
    assert "starts anew" in told.lines[0]
    assert_same(restarted, unbroken)


def test_a_half_written_candidate_is_finished_from_its_checkpoint(
    splits: Splits, unbroken: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("search.training.candidate.save_weights", fail)
        with pytest.raises(OSError, match="no space"):
            train(RECIPE, splits, tmp_path / "a", runtime=CPU)
    assert not Candidate(tmp_path / "a").is_complete
    told = Told()
    finished = complete(splits, tmp_path / "a", watch=told)
    assert told.steps == []
    assert_same(finished, unbroken)


def test_a_broken_image_does_not_shift_what_comes_after_it(tmp_path: Path, splits: Splits) -> None:
    broken = splits.fit.copy()
    path = tmp_path / "broken.png"
    write_text_atomically(path, "no image")
    broken.loc[7, "path"] = str(path)
    damaged = Splits(broken, splits.select, splits.report)
    unbroken = complete(damaged, tmp_path / "a", reader=Reader(RECIPE.canvas))
    generator = random.Random(3)
    stop_often(
        damaged,
        tmp_path / "b",
        RECIPE,
        lambda: generator.randint(2, 6),
        # It finds the image broken once more, in the middle of an epoch.
        reader=Reader(RECIPE.canvas),
    )
    assert_same(unbroken, Candidate(tmp_path / "b"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training(
    value: float, splits: Splits, tmp_path: Path
) -> None:
    def broken(network: nn.Module, batch: Shown) -> Tensor:
        return network(batch.images).sum() * value

    with pytest.raises(NonFiniteLossError, match=r"the loss must be finite.*epoch 1.*0\.002"):
        train(RECIPE, splits, tmp_path, runtime=CPU, task=WithLoss(splits, RECIPE, broken))


def test_what_is_kept_is_the_part_that_the_task_names(
    splits: Splits, unbroken: Candidate, tmp_path: Path
) -> None:
    class Wrapped(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.image_sizes = inner, inner.image_sizes

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.inner(images)
            return logits

        def parameter_groups(
            self, weight_decay: float, lowest_layer_scale: float
        ) -> list[dict[str, Any]]:
            return self.inner.parameter_groups(weight_decay, lowest_layer_scale)

    class Wrapping(Classification):
        def network(self, *, start: bool) -> nn.Module:
            return Wrapped(super().network(start=start))

        def kept(self, network: nn.Module) -> nn.Module:
            inner: Any = network
            return inner.inner

    task = Wrapping(RECIPE, splits, Reader(RECIPE.canvas))
    wrapped = complete(splits, tmp_path / "a", task=task)
    assert_same(wrapped, unbroken)


def test_starting_weights_are_not_needed_to_go_on(splits: Splits, tmp_path: Path) -> None:
    starts: list[bool] = []

    class Counts(Classification):
        def network(self, *, start: bool) -> nn.Module:
            starts.append(start)
            return super().network(start=start)

    task = Counts(RECIPE, splits, Reader(RECIPE.canvas))
    with pytest.raises(Interrupted):
        train(RECIPE, splits, tmp_path, None, StopAfter(4), runtime=CPU, task=task)
    complete(splits, tmp_path, task=task)
    assert starts == [True, False]


def test_evaluations_are_scored_in_batches_that_fit() -> None:
    assert module.evaluation_batch(replace(RECIPE, batch_size=8)) == 64
    assert module.evaluation_batch(replace(RECIPE, batch_size=512)) == 256


CONSTANT = replace(
    RECIPE,
    schedule="constant",
    warmup_images=16,
    decay_fraction=0.5,
    average_power=0.0,
    average_after_images=16,
)


def test_a_constant_rate_can_be_trained_for_longer_than_was_thought(
    splits: Splits, tmp_path: Path
) -> None:
    """Up to its decay a training does not depend on where it ends."""
    straight = complete(splits, tmp_path / "straight", replace(CONSTANT, epochs=4))
    for folder, thought in (("short", 2), ("long", 40), ("open", None)):
        recipe = replace(CONSTANT, epochs=thought)
        began = train(recipe, splits, tmp_path / folder, 48, runtime=CPU)
        assert not began.is_complete
        assert_same(complete(splits, tmp_path / folder, replace(CONSTANT, epochs=4)), straight)


def test_the_end_stays_once_the_rate_falls(splits: Splits, tmp_path: Path) -> None:
    train(replace(CONSTANT, epochs=3), splits, tmp_path, 96, runtime=CPU)
    for changes in ({"epochs": 2.5}, {"epochs": 9}, {"decay_fraction": 0.2}):
        with pytest.raises(UserError, match=r"can end after \d+ steps instead of 18 only"):
            train(replace(CONSTANT, **{"epochs": 3, **changes}), splits, tmp_path, runtime=CPU)
    assert train(replace(CONSTANT, epochs=3), splits, tmp_path, runtime=CPU).is_complete


def test_other_schedules_end_where_they_began_to(splits: Splits, tmp_path: Path) -> None:
    train(RECIPE, splits, tmp_path, 48, runtime=CPU)
    with pytest.raises(UserError, match="unfinished training whose epochs must stay"):
        train(replace(RECIPE, epochs=5), splits, tmp_path, runtime=CPU)


PAUSED = replace(CONSTANT, epochs=4, drop_path=0.1)


@pytest.fixture(scope="module")
def straight(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    """A training by PAUSED that was not paused."""
    return complete(splits, tmp_path_factory.mktemp("straight") / "a", PAUSED)


@pytest.mark.parametrize("images", [8, 40, 56, 112])
def test_a_pause_in_the_middle_of_an_epoch_changes_nothing(
    images: int, splits: Splits, straight: Candidate, tmp_path: Path
) -> None:
    """But that it is looked at there, which may be the best look."""
    paused = train(PAUSED, splits, tmp_path, images, runtime=CPU)
    assert not paused.is_complete
    torch.manual_seed(images)
    found = complete(splits, tmp_path, PAUSED)
    looks = timeless(found)
    assert len(looks) == len(straight.history) + 1
    same = looks.drop(columns="train_loss")
    pd.testing.assert_frame_equal(
        same[looks["images"] % 48 == 0].reset_index(drop=True),
        timeless(straight).drop(columns="train_loss"),
        check_exact=True,
    )


def test_a_training_whose_end_is_not_settled_is_paused_or_told_its_end(
    splits: Splits, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="epochs must be known to a cosine schedule"):
        replace(RECIPE, epochs=None)
    unsettled = replace(CONSTANT, epochs=None)
    assert not train(unsettled, splits, tmp_path, 72, runtime=CPU).is_complete
    assert Recipe.load(tmp_path / "recipe.yaml").epochs is None
    # Its rate falls from where it is.
    ended = replace(CONSTANT, epochs=2, decay_fraction=3 / 12)
    found = complete(splits, tmp_path, ended)
    rates = found.history["learning_rate"].tolist()
    assert rates[:2] == [CONSTANT.learning_rate] * 2
    assert rates[-1] == 0.0
    assert found.recipe.epochs == 2


@pytest.mark.parametrize(
    ("epochs", "stop", "looks"),
    [
        # Paused at a look, in the middle of a piece, and while its rate falls.
        (None, None, [48, 72]),
        (None, 4, [32]),
        (3, 18, [48, 96, 128]),
    ],
)
def test_a_training_can_end_where_it_is(
    epochs: int | None, stop: int | None, looks: list[int], splits: Splits, tmp_path: Path
) -> None:
    """At its best look so far; no step is trained for it."""
    recipe = replace(CONSTANT, epochs=epochs)
    if stop is None:
        train(recipe, splits, tmp_path, 72, runtime=CPU)
    else:
        with pytest.raises(Interrupted):
            train(recipe, splits, tmp_path, None, StopAfter(stop), runtime=CPU)
    steps = steps_done(tmp_path, 6)
    assert steps == looks[-1] / 8
    told = Told()
    found = complete(
        splits, tmp_path, replace(CONSTANT, epochs=steps / 6, decay_fraction=0.0), watch=told
    )
    assert told.steps == []
    assert found.history["images"].tolist() == looks
    best = found.history.loc[found.history["select_auc"].idxmax()]
    assert found.metrics["best_epoch"] == best["epoch"]
    assert found.metrics["auc"] == best["select_auc"]
    assert steps_done(tmp_path, 6) is None


def test_a_training_that_was_to_end_where_it_is_can_still_go_on(
    splits: Splits, tmp_path: Path
) -> None:
    """A second stop, before it was scored, changes nothing."""
    recipe = replace(CONSTANT, epochs=3, select_limit=8)
    straight = complete(splits, tmp_path / "straight", recipe)
    folder = tmp_path / "broken"
    with pytest.raises(Interrupted):
        train(recipe, splits, folder, None, StopAfter(18), runtime=CPU)
    steps = steps_done(folder, 6)
    assert steps is not None
    ended = replace(recipe, epochs=steps / 6, decay_fraction=0.0)
    for checks in (1, 2):  # before its look, and after it
        with pytest.raises(Interrupted):
            train(ended, splits, folder, None, StopAfter(checks), runtime=CPU)
    assert_same(straight, complete(splits, folder, recipe))


def test_an_objective_decides_between_looks_and_is_kept(splits: Splits, tmp_path: Path) -> None:
    altered = altered_part(splits.select, RECIPE.canvas, tmp_path / "altered", seed=0)
    splits = replace(splits, altered=altered)
    recipe = replace(RECIPE, objective="mean", select_limit=8)
    found = complete(splits, tmp_path / "unbroken", recipe)
    metrics, scores = found.metrics, found.altered_scores
    assert scores is not None
    assert scores.columns.tolist() == ["img_name", "alteration", "target", "y_pred"]
    assert scores["alteration"].value_counts().tolist() == [20] * 4
    aucs = [roc_auc(own["y_pred"], own["target"]) for _, own in scores.groupby("alteration")]
    assert metrics["auc_stress"] == pytest.approx(np.mean(aucs))
    assert metrics["auc"] == roc_auc(found.scores["y_pred"], found.scores["target"])
    assert metrics["objective"] == pytest.approx((metrics["auc"] + metrics["auc_stress"]) / 2)
    assert (len(found.scores), metrics["n"], metrics["images_of_a_look"]) == (20, 20, 16)
    history = found.history
    assert history["select_objective"].notna().all()
    best = history["select_objective"].idxmax()
    assert metrics["best_epoch"] == history["epoch"][best]
    generator = random.Random(0)
    stop_often(splits, tmp_path / "broken", recipe, lambda: generator.randint(1, 7))
    assert_same(found, Candidate(tmp_path / "broken"))
    # By the AUC of images as they are, altered ones are only looked at at the end.
    plain = complete(splits, tmp_path / "plain", replace(recipe, objective="auc"))
    assert plain.metrics["images_of_a_look"] == 8
    assert plain.metrics["objective"] == plain.metrics["auc"]
    assert plain.altered_scores is not None


def test_an_objective_that_nothing_measures_is_refused(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs some, found none"):
        train(replace(RECIPE, objective="auc_stress"), splits, tmp_path / "a", runtime=CPU)
    with pytest.raises(UserError, match="--objective auc_unseen"):
        train(replace(RECIPE, objective="auc_unseen"), splits, tmp_path / "b", runtime=CPU)
