"""One trial's training, from its network to its folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial

from search.candidate import save_candidate, score_table
from search.data.loaders import eval_loader
from search.data.quarantine import Quarantine
from search.interruption import Interruption
from search.keeping import searched_trials, weights_threshold
from search.outcome import INTERRUPTED, record_outcome
from search.plan import Plan
from search.progress import StudyProgress
from search.space import BASELINE, PRESET
from search.training.checkpoint import copy_state
from search.training.evaluate import Evaluation, evaluate
from search.training.loop import fit
from search.training.network import Network, build_network
from search.training.recipe import Recipe
from search.training.records import EpochRecord, FitResult, StepRecord
from search.training.supervision import classification_loss, training_batches

FEWEST_COMPLETE = 3
"""Nothing is pruned before so many candidates are complete: a pruned trial leaves no weights, and
there must be something to merge. On dfdc-faces ASHA alone left one candidate, beside the baseline,
of the first nine trials."""

LARGEST_EVALUATION_BATCH = 256
"""At 384 px and 16 workers with two batches each, 3.6 GB of shared memory."""


@dataclass(frozen=True, eq=False)
class SearchContext:
    """What all trials of a search share."""

    plan: Plan
    run: Path
    quarantine: Quarantine
    progress: StudyProgress
    interruption: Interruption

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


class TrialTraining:
    """One trial's training, from its network to its folder."""

    def __init__(
        self, context: SearchContext, trial: optuna.Trial, recipe: Recipe, row: dict[str, Any]
    ) -> None:
        self.context, self.trial, self.recipe, self.row = context, trial, recipe, row
        self.history: list[EpochRecord] = []
        self.best: Evaluation | None = None
        self.folder = context.run / "candidates" / f"{trial.number:04d}"
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
        keep = auc >= weights_threshold(self.trial.study, self.context.plan.settings.keep)
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
        plan, recipe = self.context.plan, self.recipe
        table = plan.splits.fit
        evaluate_select = self.context.evaluator(recipe.image_size)

        def evaluate_and_remember(module: torch.nn.Module) -> Evaluation:
            evaluation = evaluate_select(module)
            if self.best is None or evaluation.metrics.auc > self.best.metrics.auc:
                self.best = evaluation
            return evaluation

        return fit(
            network,
            training_batches(table, recipe, plan.runtime, self.context.quarantine),
            classification_loss(table, recipe),
            recipe,
            evaluate=evaluate_and_remember,
            runtime=plan.runtime,
            on_epoch=self._on_epoch,
            on_step=self._on_step,
        )

    def _on_step(self, record: StepRecord) -> None:
        self.context.progress.step(record)
        self.context.interruption.check()

    def _on_epoch(self, record: EpochRecord) -> None:
        self.history.append(record)
        self.context.progress.epoch(record)
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
            scores=score_table(self.context.plan.splits.select, self.best.predictions),
            weights=weights,
        )

    def _mark(self, state: str, reason: str) -> None:
        has_candidate = (self.folder / "metrics.json").exists()
        if not has_candidate:
            self.row["path"] = ""
        record_outcome(
            self.trial,
            self.context.run,
            state=state,
            reason=reason,
            row=self.row,
            candidate=self.folder.name if has_candidate else "",
        )
        progress = self.context.progress
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
