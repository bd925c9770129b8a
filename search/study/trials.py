"""A trial: drawn, checked against the rules, trained; what it tells of its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from search.catalogue.rules import Verdict
from search.data.batches import eval_loader
from search.data.quarantine import Quarantine
from search.errors import UserError
from search.interruption import Interrupted, Interruption
from search.report.dashboard import mark_infeasible, publish_trial
from search.report.plots import draw_candidate_roc, draw_epochs
from search.report.terminal import StudyProgress
from search.study.plan import Plan
from search.study.space import BASELINE, PRESET
from search.training.candidate import (
    HISTORY,
    WEIGHTS,
    Candidate,
    EpochRecord,
    copy_state,
    save_candidate,
    score_table,
)
from search.training.device import is_out_of_memory
from search.training.loop import FitResult, NonFiniteLossError, StepRecord, fit
from search.training.loss import classification_loss, training_batches
from search.training.network import Network, build_network
from search.training.recipe import Recipe
from search.training.scoring import Evaluation, evaluate

STATE = "state"
"""complete, pruned, failed or rejected."""

REASON = "reason"
"""Why, for failed and rejected."""

CANDIDATE = "candidate"
"""Name of the folder in candidates/; empty where the trial left none."""

ROW = "row"
"""The trial's values in the leaderboard's columns."""

RECIPE = "recipe"
"""All fields of the Recipe."""

INTERRUPTED = "interrupted"
"""True for a trial that was closed early and enqueued again."""

FIGURES = ("auc", "auc_low", "auc_high", "tpr_at_fpr_1e-2", "accuracy", "log_loss")


def record_outcome(
    trial: optuna.Trial,
    run: Path,
    *,
    state: str,
    reason: str,
    row: Mapping[str, Any],
    candidate: str,
) -> None:
    """Writes how a trial ended, for the leaderboard and for the dashboard.

    Must come before the trial is told to Optuna, which then takes no more attributes.

    Args:
        trial: the trial.
        run: the run folder.
        state: complete, pruned, failed or rejected.
        reason: why, for failed and rejected.
        row: its values in the leaderboard's columns.
        candidate: its folder in candidates/, or empty.
    """
    trial.set_user_attr(ROW, dict(row))
    trial.set_user_attr(CANDIDATE, candidate)
    trial.set_user_attr(REASON, reason)
    note = trial_note(state, reason, row, trial.user_attrs.get(RECIPE, {}))
    publish_trial(trial, note, _artifacts(run, candidate), run)
    # Last: `recover` takes a trial that has its state for finished.
    trial.set_user_attr(STATE, state)


def reject(trial: optuna.Trial, run: Path, verdict: Verdict, budget: int) -> None:
    """Tells Optuna, its dashboard and the leaderboard that the rules forbid a trial's backbone."""
    excess = max(verdict.params_exact, verdict.params_thop) / budget - 1.0
    # Provenance has no measure: 1 stands for a broken rule.
    mark_infeasible(trial, "rules", excess if excess > 0 else 1.0)
    row = {**trial.user_attrs.get(ROW, {}), **verdict_row(verdict), "path": ""}
    reason = "; ".join(verdict.reasons)
    record_outcome(trial, run, state="rejected", reason=reason, row=row, candidate="")


def verdict_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict in the leaderboard's columns."""
    return {
        "backbone": verdict.backbone,
        "pretraining": verdict.pretraining,
        "params_thop": verdict.params_thop,
        "params_exact": verdict.params_exact,
        "gmacs": verdict.gmacs,
        "image_size": verdict.image_size,
    }


def trial_note(state: str, reason: str, row: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Markdown: outcome, verdict of the rules, and the whole recipe."""
    lines = [f"**{state}**" + (f": {reason}" if reason else "")]
    if "auc" in row:
        lines += ["", "| on select | |", "|---|---|"]
        lines += [f"| {name} | {row[name]:.4f} |" for name in FIGURES if name in row]
    if "params_exact" in row:
        lines += [
            "",
            f"Verdict of the rules: {'rejected' if state == 'rejected' else 'allowed'}; "
            f"{row['params_thop'] / 1e6:.2f}M parameters by thop, "
            f"{row['params_exact'] / 1e6:.2f}M exactly; pretraining: {row['pretraining']}.",
        ]
    if recipe:
        lines += ["", "| recipe | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in recipe.items()]
    return "\n".join(lines)


def _artifacts(run: Path, name: str) -> list[Path]:
    """Draws a candidate's ROC and epochs; returns them and its history."""
    if not name:
        return []
    candidate = Candidate(run / "candidates" / name)
    folder = run / "plots" / "trials" / name
    folder.mkdir(parents=True, exist_ok=True)
    return [
        draw_candidate_roc(candidate.scores, folder / "roc.png"),
        draw_epochs({name: candidate.history}, folder / "history.png"),
        candidate.path / HISTORY,
    ]


FEWEST_COMPLETE = 3
"""Nothing is pruned before so many candidates are complete: a pruned trial leaves no weights, and
there must be something to merge. On dfdc-faces ASHA alone left one candidate, beside the baseline,
of the first nine trials."""

LARGEST_EVALUATION_BATCH = 256
"""At 384 px and 16 workers with two batches each, 3.6 GB of shared memory."""


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials, best first; of equals, as in the leaderboard, the smaller network."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(
        trials, key=lambda t: (-(t.value or 0.0), t.user_attrs[ROW]["params_exact"], t.number)
    )


def searched_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials without the baseline, best first."""
    return [t for t in complete_trials(study) if t.user_attrs.get(PRESET) != BASELINE]


def weights_threshold(study: optuna.Study, keep: int) -> float:
    """The AUC that a new candidate must reach for its weights to be among the `keep` best."""
    best = searched_trials(study)
    return -1.0 if len(best) < keep else float(best[keep - 1].value or 0.0)


def drop_surplus_weights(study: optuna.Study, run: Path, keep: int) -> None:
    """Deletes the weights of all but the `keep` best candidates and the baseline."""
    best = searched_trials(study)
    for trial in best[keep:]:
        Candidate(run / "candidates" / trial.user_attrs[CANDIDATE]).drop_weights()


def kept_candidates(study: optuna.Study, run: Path) -> list[Candidate]:
    """Candidates that have their weights, best first."""
    folders = [run / "candidates" / trial.user_attrs[CANDIDATE] for trial in complete_trials(study)]
    return [Candidate(folder) for folder in folders if (folder / WEIGHTS).exists()]


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


class TrialFailed(Exception):  # noqa: N818 - an outcome, caught by the study
    """The trial ended as failed; its reason is in its user attributes."""


class Objective(SearchContext):
    """Called by Optuna with a trial; returns the AUC on select."""

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
        training = TrialTraining(self, trial, recipe, row)
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


def _recipe_row(recipe: Recipe) -> dict[str, Any]:
    names = ("backbone", "image_size", "epochs", "learning_rate", "weight_decay", "batch_size")
    row = {name: getattr(recipe, name) for name in (*names, "seed")}
    row["augmentation"] = f"{recipe.augmentation}:{recipe.augmentation_strength:.2f}"
    return row
