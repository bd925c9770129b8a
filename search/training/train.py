"""`train`: the one way to train anything; a folder is what it owns, and where it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from search.data.splits import Splits
from search.errors import UserError
from search.machine.device import Precision, Runtime, describe_device, library_versions
from search.machine.interruption import Interrupted, Interruption
from search.pixels.loading.epochs import Loader, eval_batches
from search.pixels.loading.reading import Reader
from search.training.arithmetic import Arithmetic, choose_arithmetic, describe_machine
from search.training.candidate import (
    CHECKPOINT,
    Candidate,
    Look,
    copy_state,
    load_state,
    save_candidate,
    save_progress,
    save_state,
    score_tables,
)
from search.training.loop import FAR_ENOUGH, Batches, StepRecord, Training
from search.training.loss import Loss, classification_loss, training_batches
from search.training.metrics import Metrics
from search.training.network import build_network
from search.training.objective import needs_altered, needs_unseen, value_of
from search.training.recipe import Recipe
from search.training.scoring import (
    Evaluation,
    Predictions,
    altered_of_a_look,
    evaluate,
    first_look,
    images_of_a_look,
    with_altered,
)

CHECKPOINT_MINUTES = 10.0

HOW_NOT_WHAT = (
    "weights_file",
    "micro_batch_size",
    "precision",
    "channels_last",
    "compile",
)
"""Fields of a Recipe that say how or from where, not what is learned: a training goes on on another
machine that needs others."""

ITS_END = ("epochs", "decay_fraction")
"""Fields of a Recipe that say where a constant schedule ends: within what `Training` checks, a
training goes on with others."""


class Task(Protocol):
    """A kind of training: what is trained, on which batches, by which loss."""

    def identity(self) -> Mapping[str, Any]:
        """All that the result depends on besides recipe and images, as plain values."""

    def network(self, *, start: bool) -> nn.Module:
        """The network, which has `parameter_groups` and `image_sizes`.

        Args:
            start: with its starting weights; else with any, because others are loaded over them.
        """

    def batches(self) -> Batches:
        """The training batches."""

    def loss(self) -> Loss:
        """The mean loss of the network on a (micro-)batch."""

    def kept(self, network: nn.Module) -> nn.Module:
        """The part of the trained network whose weights are the candidate's."""


class Classification:
    """A network that learns the labels: a trial, the baseline, or a refit."""

    def __init__(self, recipe: Recipe, splits: Splits, reader: Reader) -> None:
        self.recipe, self.table, self.reader = recipe, splits.fit, reader

    def identity(self) -> Mapping[str, Any]:
        """Nothing: the recipe says it all."""
        return {}

    def network(self, *, start: bool) -> nn.Module:
        """The recipe's network."""
        return build_network(self.recipe, pretrained=start)

    def batches(self) -> Batches:
        """Batches of fit, as the recipe augments and orders them."""
        return training_batches(self.table, self.recipe, self.reader)

    def loss(self) -> Loss:
        """The recipe's loss."""
        return classification_loss(self.table, self.recipe)

    def kept(self, network: nn.Module) -> nn.Module:
        """All of it."""
        return network


class Watch:
    """Follows a training; what a method raises ends it where it can go on."""

    def step(self, record: StepRecord) -> None:
        """Told of every step."""

    def resumed(self, best: Metrics) -> None:
        """Told of a training that goes on after a look; `best` are its figures so far."""

    def look(self, record: Look, best: Metrics | None) -> None:
        """Told of every look, once its state is saved; `best` are the figures so far, None where it
        is trained on select."""

    def tell(self, line: str) -> None:
        """Told what a user should know."""


def train(
    recipe: Recipe,
    splits: Splits,
    folder: Path,
    until: int | None = None,
    interruption: Interruption | None = None,
    *,
    runtime: Runtime,
    reader: Reader | None = None,
    task: Task | None = None,
    watch: Watch | None = None,
    facts: Mapping[str, Any] | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> Candidate:
    """Trains a network in its folder, or goes on with it, and keeps the weights that are best by
    the recipe's objective.

    They are compared at looks, which come as the images seen double, and at a pause and the end,
    but not right before these: in the precision of the training, or in fp32 where scores overflow
    it, on the part of select that the recipe asks for. The weights that are kept are scored once on
    all of select and its altered images, in fp32. Where the recipe is trained on select as well,
    nothing is scored and the weights at the end are kept.

    The state is saved every `checkpoint_minutes`, at each evaluation, and when the training is
    interrupted; called again, `train` goes on from that very batch, on the CPU with the same result
    to the bit as if it had never stopped. metrics.json is written last: with it the candidate is
    complete, the checkpoint is gone, and `train` only returns it.

    Args:
        recipe: all that it depends on besides images and task.
        splits: the run's; which of them are trained on, the recipe says. The task has the images
            that it trains on from elsewhere.
        folder: the candidate's; made if absent.
        until: images after which to take a look and pause; None trains to the end.
        interruption: asked between batches whether to go on.
        runtime: the device.
        reader: reads the images, at the recipe's canvas; None makes one for this training, with
            the runtime's workers.
        task: the kind of training; None learns the labels, see `Classification`.
        watch: follows it.
        facts: further entries of metrics.json.
        checkpoint_minutes: longest time of work that a kill can cost.

    Returns:
        The candidate, complete unless `until` came first.

    Raises:
        Interrupted: if it was interrupted; nothing is lost.
        NonFiniteLossError: if the loss becomes NaN or infinite.
        FloatingPointError: if a score is not a finite number in fp32.
        torch.OutOfMemoryError: if the smallest micro-batch does not fit into memory.
        UserError: if the folder holds another training, or the images are at fault.
    """
    candidate = Candidate(folder)
    if candidate.is_complete:
        candidate.drop_checkpoint()
        return candidate
    reader = reader or Reader.on(runtime, recipe.canvas)
    seen = splits.seen_by(recipe.trained_on)
    task = task or Classification(recipe, seen, reader)
    watch, interruption = watch or Watch(), interruption or Interruption()
    identity = describe_training(recipe, splits, task)
    splits = seen  # from here on nothing can score what it is trained on
    saved = _saved_state(folder, identity, watch)
    network = task.network(start=saved is None)
    if recipe.precision == "auto":
        recipe = _computed_fast(recipe, network, runtime, saved, watch, interruption)
    training = Training(network, task.batches(), task.loss(), recipe, runtime)
    if saved is not None:
        training.load_state_dict(saved)
        del saved
        if training.best is not None:
            watch.resumed(training.best.metrics)
    if runtime.on_cuda:
        torch.cuda.reset_peak_memory_stats(runtime.device)
    keeper = _Keeper(folder, identity, training, 60 * checkpoint_minutes)
    select_loader = partial(eval_batches, reader, batch_size=evaluation_batch(recipe))
    look = splits.select
    if not splits.select.empty:
        look = images_of_a_look(
            splits.select,
            recipe.select_limit,
            images_before=first_look(len(splits.fit)),
            seed=recipe.seed,
            with_unseen=needs_unseen(recipe.objective),
        )
        if needs_altered(recipe.objective):
            look = with_altered(look, altered_of_a_look(splits, len(look), recipe.seed))
    whole = with_altered(splits.select, splits.altered)
    look_loader = None if look.empty else select_loader(look)

    scoring_speed: float | None = None

    def score(network: nn.Module, loader: Loader, precision: Precision) -> Evaluation:
        nonlocal scoring_speed
        started = time.perf_counter()
        with training.seconds.spent_on("score"):
            found = evaluate(network, loader, runtime, on_batch, precision, table=loader.table)
        scoring_speed = len(found.predictions.scores) / (time.perf_counter() - started)
        return found

    def score_look(loader: Loader) -> Evaluation:
        """In the precision of the training, which goes on in fp32 where scores overflow it."""
        precision = training.step.precision
        try:
            return score(training.averaged, loader, precision)
        except FloatingPointError as error:
            if precision == "fp32":
                raise
            training.step.fall_back()
            watch.tell(f"{error} in {precision}: the training goes on in fp32")
        return score(training.averaged, loader, "fp32")

    def on_step(record: StepRecord) -> None:
        watch.step(record)
        on_batch()

    def on_batch() -> None:
        interruption.check()
        keeper.save_if_due()

    try:
        interruption.check()
        stop = training.end
        if until is not None:
            stop = min(stop, max(1, round(until / recipe.batch_size)))
        while training.looked < stop:
            look_at = training.next_look if training.next_look < FAR_ENOUGH * stop else stop
            training.run(look_at, on_step, watch.tell)
            evaluation = None
            if look_loader is not None:
                evaluation = score_look(look_loader)
            record = training.look(evaluation)
            save_progress(folder, recipe, training.history)
            keeper.save()
            watch.look(record, training.best.metrics if training.best else None)
        if training.looked < training.end:
            return candidate
        final = training.best
        training.network.load_state_dict(training.best_state)
        if final and (len(look) < len(whole) or final.precision != "fp32"):
            final = score(training.network, select_loader(whole), "fp32")
    except Interrupted:
        keeper.save()
        raise
    facts = {**(facts or {}), "images_of_a_look": len(look), **_costs(training)}
    if scoring_speed is not None:
        facts["scoring_images_per_second"] = round(scoring_speed, 1)
    return _complete(candidate, training, task, splits, final, facts)


def free_fields(recipe: Recipe) -> frozenset[str]:
    """Fields of a Recipe that may be others while it is still the same training."""
    return frozenset((*HOW_NOT_WHAT, *(ITS_END if recipe.schedule == "constant" else ())))


def describe_training(recipe: Recipe, splits: Splits, task: Task) -> dict[str, Any]:
    """What tells a training from others, as plain values: a checkpoint goes on only as the same."""
    left_out = free_fields(recipe)
    what = {name: value for name, value in asdict(recipe).items() if name not in left_out}
    described = {**what, "images": splits.fingerprint(), **task.identity()}
    plain: dict[str, Any] = json.loads(json.dumps(described))  # as it will be read
    return plain


def unfinished_training(folder: Path) -> dict[str, Any] | None:
    """What `describe_training` said of the training that a folder's checkpoint is of; None without
    a checkpoint that can be read."""
    try:
        found: dict[str, Any] = json.loads(load_state(folder / CHECKPOINT)["identity"])
    except (UserError, KeyError, ValueError):
        return None
    return found


def steps_done(folder: Path, steps_per_epoch: int) -> int | None:
    """Optimizer steps after which a folder's checkpoint was saved; None without one that can be
    read."""
    try:
        state = load_state(folder / CHECKPOINT)
        return int(state["epoch"]) * steps_per_epoch + int(state["batch"])
    except (UserError, KeyError, ValueError):
        return None


def evaluation_batch(recipe: Recipe) -> int:
    """Images of one forward pass of an evaluation: canvases of 384 px, 16 workers with two batches
    each, 256 take 3.6 GB of shared memory."""
    return min(max(64, 2 * recipe.batch_size), 256)


ARITHMETIC = "arithmetic"
"""Entry of a checkpoint: what its steps were computed in, and for which machine that was chosen."""


def _computed_fast(
    recipe: Recipe,
    network: nn.Module,
    runtime: Runtime,
    saved: Mapping[str, Any] | None,
    watch: Watch,
    interruption: Interruption,
) -> Recipe:
    """The recipe in the arithmetic that its training began with on this machine, or else in the
    fastest."""
    recorded = (saved or {}).get(ARITHMETIC)
    if recorded is not None and recorded["machine"] == describe_machine(runtime.device):
        return Arithmetic(**recorded["chosen"]).applied(recipe)
    chosen = choose_arithmetic(network, recipe, runtime, watch.tell, interruption.check)
    return chosen.applied(recipe)


class _Keeper:
    """Saves a training's state, now or when it is due."""

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], training: Training, seconds: float
    ) -> None:
        self.path, self.training, self.seconds = folder / CHECKPOINT, training, seconds
        recipe, machine = training.recipe, describe_machine(training.runtime.device)
        chosen = {name: getattr(recipe, name) for name in Arithmetic.__dataclass_fields__}
        self.about = {
            "identity": json.dumps(identity),
            ARITHMETIC: {"machine": machine, "chosen": chosen},
        }
        self.saved = time.monotonic()
        # Nothing will be trained: whoever goes on may still move its end.
        self.is_needed = training.done < training.end

    def save_if_due(self) -> None:
        """Saves if the last time is long enough ago."""
        if time.monotonic() - self.saved >= self.seconds:
            self.save()

    def save(self) -> None:
        """Replaces the checkpoint as a whole, if there is something new."""
        if not self.is_needed:
            return
        with self.training.seconds.spent_on("save"):
            save_state(self.path, {**self.about, **self.training.state_dict()})
        self.saved = time.monotonic()


def _saved_state(folder: Path, identity: Mapping[str, Any], watch: Watch) -> dict[str, Any] | None:
    """The state to go on from; None to begin."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state = load_state(path)
        found = json.loads(state.pop("identity"))
    except (UserError, KeyError, ValueError):
        watch.tell(f"{path} cannot be read: this training starts anew")
        return None
    # What recipes did not have when the training began was what it still is by default.
    before = {**default_recipe(), **found}
    changed = [name for name in identity if before.get(name) != identity[name]]
    if changed:
        name = changed[0]
        raise UserError(
            f"{folder} holds an unfinished training whose {', '.join(changed)} must stay as they "
            f"were, found {name} {identity[name]} instead of {found.get(name)}; go on with the "
            f"settings of before, or delete {path.name} there to start anew"
        )
    return state


def default_recipe() -> dict[str, Any]:
    """The fields of a Recipe that have a plain default."""
    return {field.name: field.default for field in fields(Recipe) if field.default is not MISSING}


def _costs(training: Training) -> dict[str, Any]:
    """What the training took, and where it ran."""
    runtime, seconds = training.runtime, training.seconds
    fed = seconds.train + seconds.wait
    return {
        **seconds.columns(),
        "images_per_second": round(training.images_seen / fed, 1) if fed else 0.0,
        "peak_memory_mb": round(training.peak_bytes / 2**20, 1) or None,
        "best_epoch": training.best_epoch,
        "micro_batch_size": training.step.micro_batch_size,
        "device": describe_device(runtime.device),
        "precision": training.step.precision,
        "versions": library_versions(),
    }


def _complete(
    candidate: Candidate,
    training: Training,
    task: Task,
    splits: Splits,
    final: Evaluation | None,
    facts: Mapping[str, Any],
) -> Candidate:
    figures: dict[str, Any] = {}
    if final is not None:
        figures = final.metrics.to_dict()
        figures["objective"] = value_of(figures, training.recipe.objective)
    scores, altered = score_tables(splits, final.predictions if final else Predictions.none())
    save_candidate(
        candidate.path,
        recipe=training.recipe,
        metrics={**facts, **figures},
        history=training.history,
        scores=scores,
        altered_scores=altered,
        weights=copy_state(task.kept(training.network)),
    )
    candidate.drop_checkpoint()
    return candidate
