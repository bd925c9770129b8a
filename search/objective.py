"""The objective: a trial is drawn, checked against the rules, trained, and ends in a state."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import optuna
import torch

from search.errors import UserError
from search.interruption import Interrupted
from search.outcome import RECIPE, ROW, reject, verdict_row
from search.rules import Verdict
from search.training.loop import NonFiniteLossError
from search.training.recipe import Recipe
from search.training.runtime import is_out_of_memory
from search.trial_training import SearchContext, TrialTraining


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
