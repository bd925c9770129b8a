"""The one training loop, and all of its state: it can be saved after any batch and goes on from it,
on the CPU to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, cast

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from search.errors import Interrupted, UserError
from search.machine.device import (
    Runtime,
    compile_anew,
    fast_float32,
    random_state,
    restore_random_state,
    seed_everything,
)
from search.machine.seconds import Seconds
from search.pixels.loading.batches import Batch
from search.training.candidate import Look, copy_state
from search.training.loss import Loss
from search.training.network import mend_batch_norm, set_batch_norm
from search.training.objective import value_of
from search.training.recipe import Recipe
from search.training.scoring import Evaluation, Predictions, first_look, measure_predictions
from search.training.step import (
    OptimizerStep,
    decay_start,
    make_optimizer,
    make_scheduler,
    training_steps,
)

FAR_ENOUGH = 0.9
"""Of the steps of a look, how many the one before may have had at most to be worth its scoring:
there is one at every pause, and at the end."""

STEPS_BETWEEN_CHECKS = 20
"""Steps between two readings of the summed loss; one waits for the GPU, and NaN stays in a sum."""

FEWEST_OVERFLOWS = 5
"""Steps in a row, all of which overflow, that say that fp16 will not do."""


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite."""


class Batches(Protocol):
    """What a training asks of a `search.pixels.loading.epochs.Loader`."""

    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None:
        """Chooses order and views of the iterations from now on."""

    def numbered(self, start: int = 0, sizes: Collection[int] = ()) -> Iterator[tuple[int, Batch]]:
        """Batches of the epoch from number `start` on, each with its number; they will be shown at
        these sizes."""


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step tells a progress display."""

    epoch: int  # from 0
    step: int  # finished steps of this epoch
    steps: int  # of one epoch
    loss: float | None  # mean since it was last read; None in between
    images_per_second: float


@dataclass
class _Sums:
    """What was added up since the last look."""

    loss: Tensor  # () of images whose loss was finite
    counted: Tensor  # () those images
    overflows: Tensor  # () steps whose loss was not, in fp16
    images: int = 0
    seconds: float = 0.0  # of training steps, and of waiting for their batches
    steps: int = 0  # since the loss was last read, as the next
    read_loss: float = 0.0
    read_counted: float = 0.0
    read_overflows: int = 0


class Training:
    """A network, its optimizer, and how far they are.

    Attributes:
        network: what is trained.
        averaged: what is scored and kept: the average of the weights where one is made.
        epoch: the one that comes next or is under way, from 0.
        batch: how many of its batches are done.
        steps: optimizer steps of one epoch.
        end: those of the whole training.
        history: one record a look.
        looked: steps that were done at the last look; 0 before the first.
        seconds: what all of it has taken; scoring and saving are added by who does it.
        peak_bytes: the most memory of a GPU that it has taken by its last look, in all its pieces.
        best: the evaluation of the best look; None before the first, and where none is evaluated.
        best_epoch: the epochs that were done then; 0 before the first.
        best_state: its weights, on the CPU.
        step: see `OptimizerStep`.
    """

    def __init__(
        self, network: nn.Module, batches: Batches, loss: Loss, recipe: Recipe, runtime: Runtime
    ) -> None:
        """
        Args:
            network: maps (N, 3, H, W) RGB in [0, 1] to logits (N, 2); has `parameter_groups`.
            batches: of `recipe.batch_size` images.
            loss: mean loss of a network on a (micro-)batch.
            recipe: optimizer, schedule, averaging, precision, seed.
            runtime: the device.
        """
        self.batches, self.recipe, self.runtime = batches, recipe, runtime
        self.network = network.to(runtime.device)
        if recipe.channels_last:
            # torch before 2.15 has no types for this argument.
            self.network = cast(Any, self.network).to(memory_format=torch.channels_last)
        # The compiled module shares its parameters with the network.
        compiled = self.network
        if recipe.compile:
            compiled = compile_anew(self.network)
        self._average = _average(self.network, recipe)
        self._optimizer = make_optimizer(self.network, recipe, runtime)
        self.steps = len(batches)
        self.end = training_steps(recipe, self.steps)
        self._scheduler = make_scheduler(self._optimizer, recipe, self.steps)
        self.step = OptimizerStep(compiled, self._optimizer, loss, recipe, runtime)
        self.epoch = self.batch = 0
        self._fell_back = False  # in an earlier piece, maybe elsewhere
        self._sums = self._no_sums()
        self._random: dict[str, Any] | None = None
        self.history: list[Look] = []
        self.looked = 0
        self.seconds = Seconds()
        self._recorded = Seconds()
        self.images_seen = 0
        self.peak_bytes = 0
        self.best: Evaluation | None = None
        self.best_epoch = 0.0
        self.best_state: dict[str, Tensor] = {}

    @property
    def averaged(self) -> nn.Module:
        """What is scored and kept."""
        return self.network if self._average is None else self._average.module

    @property
    def done(self) -> int:
        """Optimizer steps that are done, of all epochs."""
        return self.epoch * self.steps + self.batch

    @property
    def next_look(self) -> int:
        """How many steps will be done at the next look: see `FIRST_LOOK` and `FAR_ENOUGH`. The last
        one is at the end."""
        batch_size = self.recipe.batch_size
        step = max(1, first_look(self.steps * batch_size) // batch_size)
        while FAR_ENOUGH * step <= self.looked:
            step *= 2
        return min(step, self.end)

    def run(
        self,
        until: int,
        on_step: Callable[[StepRecord], None] = lambda _: None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Trains until so many steps are done, from where it is.

        Args:
            until: steps, of all epochs.
            on_step: told of every step; the state is whole when it is called, so that what it
                raises ends the training where it can go on.
            tell: given a line on what a user should know.

        Raises:
            NonFiniteLossError: if the loss becomes NaN or infinite.
            torch.OutOfMemoryError: if the smallest micro-batch does not fit into memory.
        """
        while self.done < until:
            self._run_within_epoch(min(until - self.epoch * self.steps, self.steps), on_step, tell)
            if self.batch == self.steps:
                self.epoch, self.batch = self.epoch + 1, 0
                self._scheduler.step(self.epoch)
        if self._sums.steps:
            # Broken images may have left the last batches too small.
            self._read_loss(tell)

    def _run_within_epoch(
        self, until: int, on_step: Callable[[StepRecord], None], tell: Callable[[str], None]
    ) -> None:
        """Trains on the batches of the epoch from `batch` to `until`."""
        if self.batch == 0:
            # Reseeding by epoch makes the epochs independent of what was drawn before them.
            seed_everything(self.recipe.seed * 100_003 + self.epoch)
        elif self._random is not None:
            restore_random_state(self._random, self.runtime.device)
        self._random = None
        self.batches.set_epoch(self.epoch)
        self.network.train()
        frozen_steps = round(self.recipe.freeze_norm_fraction * self.end)
        is_frozen = False
        sizes: Any = self.network.image_sizes
        before = self.epoch * self.steps
        started = time.perf_counter()
        for number, batch in self.seconds.waited_for(self.batches.numbered(self.batch, sizes)):
            if number >= until:
                break
            update = before + number + 1
            if is_frozen != (update <= frozen_steps):
                is_frozen = not is_frozen
                set_batch_norm(self.network, training=not is_frozen)
            with self.seconds.spent_on("train"), fast_float32(self.runtime.device):
                with self._as_if_never_begun():
                    loss = self.step(batch)
                self._add(loss, len(batch.targets))
                self._scheduler.step_update(update)
                if self._average is not None:
                    self._average.update(self.network, step=update)
                self.batch = number + 1
                mean_loss = None
                if self.batch % STEPS_BETWEEN_CHECKS == 0 or self.batch == until:
                    mean_loss = self._read_loss(tell)
            sums = self._sums
            sums.seconds += time.perf_counter() - started
            speed = sums.images / sums.seconds
            on_step(StepRecord(self.epoch, self.batch, self.steps, mean_loss, speed))
            if self.batch == until:
                break
            started = time.perf_counter()
        # Batches that broken images left too small are done as well.
        self.batch = until

    @contextmanager
    def _as_if_never_begun(self) -> Iterator[None]:
        """Puts network and generators back where a request stops a step amid its passes, before it
        steps the optimizer; on a GPU nothing does."""
        if self.runtime.device.type != "cpu":
            yield
            return
        random = random_state(self.runtime.device)
        buffers = list(self.network.buffers())
        before = [buffer.clone() for buffer in buffers]  # statistics of batch norm, mostly
        try:
            yield
        except Interrupted:
            restore_random_state(random, self.runtime.device)
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            self._optimizer.zero_grad(set_to_none=True)
            raise

    def look(self, evaluation: Evaluation | None) -> Look:
        """Takes a look at where the training is: its record, and its weights if they are the best
        yet.

        Args:
            evaluation: of `averaged`, on the images that looks are compared on; None where there
                are no such images: then the last look's weights are the best.
        """
        sums = self._sums
        taken = self.seconds - self._recorded
        self._recorded = replace(self.seconds)
        record = Look(
            images=self.done * self.recipe.batch_size,
            epoch=round(self.done / self.steps, 4),
            train_loss=sums.loss.item() / max(sums.counted.item(), 1.0),
            # The largest among the groups, which is the head's.
            learning_rate=max(float(group["lr"]) for group in self._optimizer.param_groups),
            select_auc=math.nan if evaluation is None else evaluation.metrics.auc,
            select_log_loss=math.nan if evaluation is None else evaluation.metrics.log_loss,
            select_objective=math.nan
            if evaluation is None
            else value_of(evaluation.metrics.to_dict(), self.recipe.objective),
            train_seconds=taken.train,
            score_seconds=taken.score,
            save_seconds=taken.save,
            wait_seconds=taken.wait,
        )
        best_before = max((row.select_objective for row in self.history), default=-math.inf)
        self.history.append(record)
        self.looked = self.done
        self.images_seen += sums.images
        if self.runtime.on_cuda:
            peak = torch.cuda.max_memory_allocated(self.runtime.device)
            self.peak_bytes = max(self.peak_bytes, peak)
        self._sums = self._no_sums()
        if evaluation is None or record.select_objective > best_before or not self.best_state:
            self.best_epoch, self.best = record.epoch, evaluation
            self.best_state = copy_state(self.averaged)
        return record

    def state_dict(self) -> dict[str, Any]:
        """Everything that going on depends on: tensors, numbers, lists, tuples and dicts."""
        sums = self._sums
        best = self.best and {
            name: torch.from_numpy(values)
            for name, values in vars(self.best.predictions).items()
            if values is not None
        }
        best_precision = None if self.best is None else self.best.precision
        return {
            "network": self.network.state_dict(),
            "averaged": None if self._average is None else self._average.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "precision": self.step.precision,
            "fell_back": self._fell_back or self.step.precision != self.recipe.precision,
            "micro_batch_size": self.step.micro_batch_size,
            "end": self.end,
            "decay_start": decay_start(self.recipe, self.steps),
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": {name: getattr(sums, name) for name in sums.__dataclass_fields__},
            # Not those of now, if they still wait to be put back.
            "random": self._random or random_state(self.runtime.device),
            "history": [asdict(record) for record in self.history],
            "looked": self.looked,
            "seconds": asdict(self.seconds),
            "recorded": asdict(self._recorded),
            "images_seen": self.images_seen,
            "peak_bytes": self.peak_bytes,
            "best_epoch": self.best_epoch,
            "best_state": self.best_state,
            "best": best,
            "best_precision": best_precision,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave.

        Raises:
            UserError: if the training is to end elsewhere, but its rate falls to its old or its
                new end already.
        """
        self._check_end(state)
        self.network.load_state_dict(state["network"])
        if self._average is not None:
            self._average.module.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])
        # Before that was told apart, whatever was in fp32 had fallen back to it.
        self._fell_back = state.get("fell_back", state["precision"] == "fp32")
        if self._fell_back:
            self.step.fall_back()
        if self.step.skips_overflows and state["scaler"]:
            self.step.scaler.load_state_dict(state["scaler"])
        self.step.micro_batch_size = min(self.step.micro_batch_size, state["micro_batch_size"])
        self.epoch, self.batch = state["epoch"], state["batch"]
        if self.batch == self.steps:
            # Stopped before the schedule was told of the epoch, whose look records its rate.
            self.epoch, self.batch = self.epoch + 1, 0
        sums: dict[str, Any] = {
            name: value.to(self.runtime.device) if isinstance(value, Tensor) else value
            for name, value in state["sums"].items()
        }
        self._sums = _Sums(**sums)
        self._random = state["random"]
        # Before there were objectives, looks were compared by their AUC.
        self.history = [
            Look(**{"select_objective": row["select_auc"], **row}) for row in state["history"]
        ]
        self.looked = state["looked"]
        self.seconds = Seconds(**state["seconds"])
        self._recorded = Seconds(**state["recorded"])
        self.images_seen = state["images_seen"]
        self.peak_bytes = state.get("peak_bytes", 0)
        self.best_epoch, self.best_state = state["best_epoch"], state["best_state"]
        if state["best"] is not None:
            found = Predictions(**{name: value.numpy() for name, value in state["best"].items()})
            self.best = Evaluation(found, measure_predictions(found), state["best_precision"])
        if self.done:
            self._scheduler.step_update(self.done)
            self._scheduler.step(self.epoch)

    def _check_end(self, state: dict[str, Any]) -> None:
        done = state["epoch"] * self.steps + state["batch"]
        if self.recipe.schedule != "constant" or done == self.end:
            return
        before, now = state["decay_start"], decay_start(self.recipe, self.steps)
        if (before, state["end"]) != (now, self.end) and done > min(before, now):
            raise UserError(
                f"a training can end after {self.end} steps instead of {state['end']} only before "
                f"its rate falls, at step {min(before, now)}, found it at step {done}; go on as it "
                "began"
            )

    def _no_sums(self) -> _Sums:
        loss, counted, overflows = torch.zeros(3, device=self.runtime.device).unbind()
        return _Sums(loss.clone(), counted.clone(), overflows.clone())

    def _add(self, loss: Tensor, images: int) -> None:
        """Counts a step, without waiting for the GPU."""
        sums = self._sums
        sums.images += images
        sums.steps += 1
        if self.step.skips_overflows:
            is_finite = loss.isfinite()
            sums.overflows += ~is_finite
            sums.loss += torch.where(is_finite, loss, 0.0) * images
            sums.counted += is_finite * images
        else:
            sums.loss += loss * images
            sums.counted += images

    def _read_loss(self, tell: Callable[[str], None]) -> float:
        """The mean loss since it was last read, checked."""
        sums = self._sums
        loss, counted, overflows = sums.loss.item(), sums.counted.item(), int(sums.overflows.item())
        new, steps = overflows - sums.read_overflows, sums.steps
        mean = (loss - sums.read_loss) / max(counted - sums.read_counted, 1.0)
        if new:
            # The forward pass has spoilt the statistics, whatever became of the step.
            mend_batch_norm(self.network)
            mend_batch_norm(self.averaged)
        if new == steps >= FEWEST_OVERFLOWS or self.step.overflows_for_good:
            self.step.fall_back()
            tell(
                f"fp16 overflowed in epoch {self.epoch + 1} by step {self.batch}: the training "
                "goes on in fp32"
            )
        elif not math.isfinite(mean):
            raise NonFiniteLossError(
                f"the loss must be finite, found {mean} in epoch {self.epoch + 1} by step "
                f"{self.batch} of {self.steps}; a lower learning rate (now "
                f"{self.recipe.learning_rate:g}) may help"
            )
        sums.read_loss, sums.read_counted, sums.read_overflows = loss, counted, overflows
        sums.steps = 0
        return mean


def _average(network: nn.Module, recipe: Recipe) -> ModelEmaV3 | None:
    """The average of the weights that a recipe asks for."""
    if recipe.average_power is not None:
        # With these the newest step of n counts for (power + 1) / (power + n).
        gamma = recipe.average_power + 1
        form: dict[str, Any] = {"decay": 1.0, "warmup_gamma": gamma, "warmup_power": 1.0}
        first = round(recipe.average_after_images / recipe.batch_size)
        return ModelEmaV3(network, use_warmup=True, update_after_step=first, **form)
    if recipe.ema_decay > 0:
        # Its own warm-up: a short training must not average over its random start.
        return ModelEmaV3(network, decay=recipe.ema_decay, use_warmup=True)
    return None
