"""The objective: a trial's Recipe is checked, trained, scored and kept as a Candidate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial

from search.candidate import save_candidate, score_table
from search.data.augment import train_transform
from search.data.loaders import eval_loader, train_loader
from search.data.quarantine import Quarantine
from search.errors import UserError
from search.interruption import Interrupted, Interruption
from search.keeping import searched_trials, weights_threshold
from search.outcome import (
    INTERRUPTED,
    RECIPE,
    ROW,
    record_outcome,
    reject,
    verdict_row,
)
from search.plan import Plan
from search.progress import StudyProgress
from search.rules import Verdict
from search.space import BASELINE, PRESET
from search.training.checkpoint import copy_state
from search.training.evaluate import Evaluation, evaluate
from search.training.loop import NonFiniteLossError, fit
from search.training.loss import ClassificationLoss
from search.training.network import Network, build_network
from search.training.recipe import Recipe
from search.training.records import EpochRecord, FitResult, StepRecord
from search.training.runtime import is_out_of_memory

FEWEST_COMPLETE = 3
"""Nothing is pruned before so many candidates are complete: a pruned trial leaves no weights, and
there must be something to merge. On dfdc-faces ASHA alone left one candidate, beside the baseline,
of the first nine trials."""


LARGEST_EVALUATION_BATCH = 256
"""At 384 px and 16 workers with two batches each, 3.6 GB of shared memory."""


class TrialFailed(Exception):  # noqa: N818 - an outcome, caught by the study
    """The trial ended as failed; its reason is in its user attributes."""


class Objective:
    """Called by Optuna with a trial; returns the AUC on select."""

    def __init__(
        self,
        plan: Plan,
        run: Path,
        quarantine: Quarantine,
        progress: StudyProgress,
        interruption: Interruption,
    ) -> None:
        self.plan, self.run = plan, run
        self.quarantine, self.progress, self.interruption = quarantine, progress, interruption

    def __call__(self, trial: optuna.Trial) -> float:
        """
        Raises:
            optuna.TrialPruned: if the rules forbid the backbone, or the pruner stops the trial.
            TrialFailed: if the training failed or was interrupted.
            UserError: if the data are at fault, which no further trial could mend.
        """
        name = f"{trial.number:04d}"
        recipe = self.plan.space.recipe(trial)
        verdict = self._judge(recipe)
        row = _recipe_row(recipe) | verdict_row(verdict)
        row["path"] = f"candidates/{name}"
        trial.set_user_attr(RECIPE, asdict(recipe))
        trial.set_user_attr(ROW, row)
        if not verdict.allowed:
            reject(trial, self.run, verdict, self.plan.catalogue.budget)
            raise optuna.TrialPruned
        self.progress.trial_started(name, recipe)
        training = _TrialTraining(self, trial, recipe, row)
        try:
            return training.complete()
        except optuna.TrialPruned:
            training.close("pruned", "")
            raise
        except Interrupted as interruption:
            training.queue_again()
            trial.study.stop()
            training.close("failed", str(interruption))
            raise TrialFailed from interruption
        except (NonFiniteLossError, FloatingPointError, torch.OutOfMemoryError) as error:
            training.close("failed", " ".join(str(error).split()))
            raise TrialFailed from error
        except torch.AcceleratorError as error:
            found = " ".join(str(error).split())[:200]
            training.close("failed", found)
            if is_out_of_memory(error):
                raise TrialFailed from error
            # The GPU is lost to this process: every later trial would fail within seconds.
            raise UserError(
                f"the GPU stopped working ({found}); the run is as it was after the last trial: "
                "the same command goes on, in a new process"
            ) from error
        except UserError as error:
            # To be tried again once the data are mended.
            training.queue_again()
            training.close("failed", str(error))
            raise
        except KeyboardInterrupt:
            training.queue_again()
            raise
        except Exception as error:
            if self.interruption.requested:
                # Workers that the signal reached as well may fail first.
                training.queue_again()
                trial.study.stop()
            # One broken recipe must not cost the night; `drive` stops if nothing else works.
            training.close("failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
            raise TrialFailed from error

    def _judge(self, recipe: Recipe) -> Verdict:
        backbones = (*self.plan.space.backbones, self.plan.space.baseline)
        backbone = next(b for b in backbones if b is not None and b.name == recipe.backbone)
        return self.plan.judge(backbone, recipe.image_size)

    def evaluator(
        self, image_size: int, split: str = "select"
    ) -> Callable[[torch.nn.Module], Evaluation]:
        """Scores a network on a split, asking between batches whether to go on."""
        loader = eval_loader(
            getattr(self.plan.splits, split),
            image_size,
            batch_size=min(max(64, 2 * self.plan.space.batch_size), LARGEST_EVALUATION_BATCH),
            workers=self.plan.runtime.workers,
            quarantine=self.quarantine,
            pin_memory=self.plan.runtime.on_cuda,
        )
        return lambda network: evaluate(
            network, loader, self.plan.runtime, on_batch=self.interruption.check
        )


class _TrialTraining:
    """One trial's training, from its network to its folder."""

    def __init__(
        self, objective: Objective, trial: optuna.Trial, recipe: Recipe, row: dict[str, Any]
    ) -> None:
        self.objective, self.trial, self.recipe, self.row = objective, trial, recipe, row
        self.history: list[EpochRecord] = []
        self.best: Evaluation | None = None
        self.folder = objective.run / "candidates" / f"{trial.number:04d}"
        self.started = time.monotonic()

    def complete(self) -> float:
        """Trains to the end, keeps the candidate, and returns its AUC."""
        network = build_network(self.recipe)
        result = self._fit(network)
        self.best = result.best
        auc = result.best.metrics.auc
        self.row |= {
            "train_seconds": round(result.train_seconds, 2),
            "images_per_second": round(result.images_per_second, 1),
            "peak_memory_mb": result.peak_memory_mb and round(result.peak_memory_mb, 1),
        }
        keep = auc >= weights_threshold(self.trial.study, self.objective.plan.settings.keep)
        keep = keep or self.trial.user_attrs.get(PRESET) == BASELINE
        extra = {"best_epoch": result.best_epoch, "micro_batch_size": result.micro_batch_size}
        self._save(copy_state(network) if keep else None, extra)
        self._mark("complete", "")
        return auc

    def queue_again(self) -> None:
        """Has the trial repeated; this one will not count."""
        self.trial.set_user_attr(INTERRUPTED, True)
        enqueue_again(self.trial.study, self.trial)

    def close(self, state: str, reason: str) -> None:
        """Ends a trial that did not complete; its scores so far are kept, its weights are not."""
        if self.best is not None and state == "pruned":
            self.row["train_seconds"] = round(sum(r.seconds for r in self.history), 2)
            self._save(None, {"best_epoch": None, "micro_batch_size": None})
        self._mark(state, reason)

    def _fit(self, network: Network) -> FitResult:
        plan, recipe = self.objective.plan, self.recipe
        table = plan.splits.fit
        loader = train_loader(
            table,
            train_transform(recipe.augmentation, recipe.augmentation_strength, recipe.image_size),
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            balance=recipe.class_balance == "sampler",
            workers=plan.runtime.workers,
            quarantine=self.objective.quarantine,
            pin_memory=plan.runtime.on_cuda,
        )
        counts = np.bincount(table["target"], minlength=2)
        evaluate_select = self.objective.evaluator(recipe.image_size)

        def evaluate_and_remember(module: torch.nn.Module) -> Evaluation:
            evaluation = evaluate_select(module)
            if self.best is None or evaluation.metrics.auc > self.best.metrics.auc:
                self.best = evaluation
            return evaluation

        return fit(
            network,
            loader,
            ClassificationLoss(recipe, (int(counts[0]), int(counts[1]))),
            recipe,
            evaluate=evaluate_and_remember,
            runtime=plan.runtime,
            on_epoch=self._on_epoch,
            on_step=self._on_step,
        )

    def _on_step(self, record: StepRecord) -> None:
        self.objective.progress.step(record)
        self.objective.interruption.check()

    def _on_epoch(self, record: EpochRecord) -> None:
        self.history.append(record)
        self.objective.progress.epoch(record)
        self.trial.report(record.select_auc, step=record.epoch)
        if self.trial.user_attrs.get(PRESET) == BASELINE or record.epoch == self.recipe.epochs:
            return
        # Always asked: ASHA compares later trials with what this one had at its rungs.
        lags_behind = self.trial.should_prune()
        if lags_behind and len(searched_trials(self.trial.study)) >= FEWEST_COMPLETE:
            raise optuna.TrialPruned

    def _save(self, weights: dict[str, torch.Tensor] | None, extra: dict[str, Any]) -> None:
        assert self.best is not None
        figures = self.best.metrics.to_dict()
        self.row |= figures
        save_candidate(
            self.folder,
            recipe=self.recipe,
            metrics={**self.row, **extra},
            history=self.history,
            scores=score_table(self.objective.plan.splits.select, self.best.predictions),
            weights=weights,
        )

    def _mark(self, state: str, reason: str) -> None:
        has_candidate = (self.folder / "metrics.json").exists()
        if not has_candidate:
            self.row["path"] = ""
        record_outcome(
            self.trial,
            self.objective.run,
            state=state,
            reason=reason,
            row=self.row,
            candidate=self.folder.name if has_candidate else "",
        )
        progress = self.objective.progress
        if self.trial.user_attrs.get(INTERRUPTED):
            progress.trial_interrupted(reason)
        else:
            auc = self.best.metrics.auc if self.best is not None else None
            progress.trial_finished(state, auc, reason)


def enqueue_again(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> None:
    """Queues a trial's parameters once more, for a trial that did not come to its end."""
    preset = trial.user_attrs.get(PRESET)
    # It may have ended before all that was asked for was suggested.
    queued = study._storage.get_trial(trial._trial_id).system_attrs.get("fixed_params", {})
    parameters = {**queued, **trial.params}
    study.enqueue_trial(parameters, user_attrs={PRESET: preset} if preset else None)


def _recipe_row(recipe: Recipe) -> dict[str, Any]:
    names = ("backbone", "image_size", "epochs", "learning_rate", "weight_decay", "batch_size")
    row = {name: getattr(recipe, name) for name in (*names, "seed")}
    row["augmentation"] = f"{recipe.augmentation}:{recipe.augmentation_strength:.2f}"
    return row
