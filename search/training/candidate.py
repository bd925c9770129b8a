"""A Candidate: what a finished trial leaves on disk, and how to load it again."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from search.data.splits import SEEN, Splits
from search.errors import UserError
from search.machine.device import Runtime
from search.machine.files import REFITS, read_json, write_atomically, write_json_atomically
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from search.training.network import Network, build_network
from search.training.recipe import Recipe
from search.training.scoring import SCORING_BATCH, Predictions, evaluate

WEIGHTS = "model.safetensors"
RECIPE = "recipe.yaml"
METRICS = "metrics.json"
HISTORY = "history.csv"
SCORES = "scores.csv"
CHECKPOINT = "checkpoint.pt"
"""The state of a training that may go on; gone when the candidate is complete."""

REPORT_SCORES = "scores_report.csv"

ALTERED_SCORES = "scores_altered.csv"
"""Of altered images of select, where the run has some."""

REFIT_OF = "refit_of"
"""Entry of a refit's metrics.json: the candidate whose recipe it was trained by."""


@dataclass(frozen=True)
class Look:
    """One row of history.csv: how good a training is after so many images."""

    images: int  # that it has seen, one as often as it came
    epoch: float  # the same in passes over all of them
    train_loss: float  # mean since the look before
    learning_rate: float  # of the head, after the last step
    select_auc: float  # on the images of a look, as the next; NaN where it is trained on select
    select_log_loss: float
    train_seconds: float  # this and the next: what `Seconds` took since the look before
    score_seconds: float = 0.0
    save_seconds: float = 0.0
    wait_seconds: float = 0.0
    select_objective: float = math.nan  # what looks are compared by; NaN as select_auc

    @property
    def seconds(self) -> float:
        """All that it took since the look before."""
        return self.train_seconds + self.score_seconds + self.save_seconds + self.wait_seconds


def describe_look(look: Look, epochs: float | None) -> str:
    """A look in one line: how far of so many epochs, if that is known, and how good."""
    end = "" if epochs is None else f"/{epochs:.3g}"
    auc = "" if math.isnan(look.select_auc) else f", AUC {look.select_auc:.4f}"
    if not math.isnan(look.select_objective) and look.select_objective != look.select_auc:
        auc += f", objective {look.select_objective:.4f}"
    return f"epoch {look.epoch:.3g}{end}: loss {look.train_loss:.3f}{auc}, {look.seconds:.1f} s"


@dataclass(frozen=True)
class Candidate:
    """A network's folder: recipe, history and, once its training is complete, scores, weights (of
    the best candidates) and metrics. Nothing is read before it is asked for."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's name, the trial's number in four digits for candidates of a search."""
        return self.path.name

    @cached_property
    def recipe(self) -> Recipe:
        """recipe.yaml: what the network was trained with."""
        return Recipe.load(self.path / RECIPE)

    @property
    def metrics(self) -> dict[str, Any]:
        """metrics.json: figures on select, costs, and under "report" the figures on report."""
        try:
            return read_json(self.path / METRICS)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path / METRICS} must hold a candidate's figures: {error}"
            ) from None

    @property
    def history(self) -> pd.DataFrame:
        """One row a look: the fields of Look."""
        return load_table(self.path / HISTORY)

    @property
    def scores(self) -> pd.DataFrame:
        """Scores on select: img_name, target, y_pred (probability of fake)."""
        return load_table(self.path / SCORES)

    @property
    def altered_scores(self) -> pd.DataFrame | None:
        """The same of altered images of select, with their `alteration`; None without any."""
        path = self.path / ALTERED_SCORES
        return load_table(path) if path.exists() else None

    @property
    def report_scores(self) -> pd.DataFrame | None:
        """Scores on report, once the study has ended, of candidates whose weights are kept; never
        of one that was trained on it."""
        path = self.path / REPORT_SCORES
        return load_table(path) if path.exists() and not self.has_seen("report") else None

    def has_seen(self, split: str) -> bool:
        """Whether it was trained on a split, which cannot measure it then."""
        return split in SEEN[self.recipe.trained_on]

    @property
    def is_complete(self) -> bool:
        """Whether its training came to its end: metrics.json is written last."""
        return (self.path / METRICS).exists()

    @property
    def has_weights(self) -> bool:
        """Whether the search kept its weights."""
        return (self.path / WEIGHTS).exists()

    def load(self) -> Network:
        """The trained network, on the CPU, in evaluation mode.

        Raises:
            UserError: if it is not complete, or its weights were deleted (only the best `--keep`
                are kept) or do not fit.
        """
        if not self.has_weights and not self.is_complete:
            raise UserError(
                f"candidate {self.name} must be complete, but its training is not: {self.path} has "
                f"no {METRICS}; choose one that is"
            )
        if not self.has_weights:
            raise UserError(
                f"candidate {self.name} must have its weights, but {self.path / WEIGHTS} is gone: "
                "the search keeps those of the best --keep candidates; choose one of them, or "
                "search again with a larger --keep"
            )
        network = build_network(self.recipe, pretrained=False)
        load_weights(self.path / WEIGHTS, network)
        return network

    def drop_weights(self) -> None:
        """Deletes the weights; everything else stays."""
        (self.path / WEIGHTS).unlink(missing_ok=True)

    def drop_checkpoint(self) -> None:
        """Deletes the state that a training would go on from."""
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    def save_report(
        self, table: pd.DataFrame, predictions: Predictions, figures: Mapping[str, Any]
    ) -> None:
        """Adds scores and figures on the report split.

        Raises:
            UserError: if it was trained on report.
        """
        if self.has_seen("report"):
            raise UserError(
                f"{self.name} must be measured on images that it was not trained on, found it "
                f"trained on {self.recipe.trained_on}: it has no figures on report"
            )
        write_json_atomically(self.path / METRICS, {**self.metrics, "report": dict(figures)})
        # Last: whoever finds the scores takes the figures to be there.
        _write_csv(self.path / REPORT_SCORES, score_table(table, predictions))


def complete_refits(run: Path) -> list[Candidate]:
    """The refits of a run that came to their end, by name."""
    return [Candidate(path.parent) for path in sorted((run / REFITS).glob(f"*/{METRICS}"))]


def save_candidate(
    folder: Path,
    *,
    recipe: Recipe,
    metrics: Mapping[str, Any],
    history: Sequence[Look],
    scores: pd.DataFrame,
    weights: Mapping[str, Tensor] | None,
    altered_scores: pd.DataFrame | None = None,
) -> Candidate:
    """Writes a candidate's folder.

    Args:
        folder: candidates/0007, say; made if absent.
        recipe: what it was trained from.
        metrics: figures for metrics.json; without those on select where it is trained on that.
        history: one record a look.
        scores: see `score_table`.
        weights: the network's state dict; None writes no weights.
        altered_scores: see `score_tables`; None writes none.
    """
    save_progress(folder, recipe, history)
    _write_csv(folder / SCORES, scores)
    if altered_scores is not None:
        _write_csv(folder / ALTERED_SCORES, altered_scores)
    if weights is not None:
        save_weights(folder / WEIGHTS, weights)
    # Last: a folder with metrics.json is complete.
    write_json_atomically(folder / METRICS, metrics)
    return Candidate(folder)


def save_progress(folder: Path, recipe: Recipe, history: Sequence[Look]) -> None:
    """Writes what is known of a training before its end: recipe.yaml and history.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RECIPE, recipe.save)
    columns = [field.name for field in fields(Look)]
    _write_csv(folder / HISTORY, pd.DataFrame(map(asdict, history), columns=columns))


def score_on_report(
    candidate: Candidate,
    network: Network,
    table: pd.DataFrame,
    runtime: Runtime,
    reader: Reader,
    on_batch: Callable[[], None],
) -> None:
    """Scores a candidate on the report split and keeps scores and figures; nothing chooses by them.

    Args:
        candidate: whose folder they go to.
        network: the candidate's, loaded.
        table: the split.
        runtime: the device.
        reader: reads the images, at the network's canvas.
        on_batch: called after every batch; what it raises ends the scoring, and nothing is kept.
    """
    assert reader.side == network.canvas
    loader = eval_batches(reader, table, batch_size=SCORING_BATCH)
    found = evaluate(network, loader, runtime, on_batch, table=table)
    candidate.save_report(table, found.predictions, found.metrics.to_dict())


def score_table(table: pd.DataFrame, predictions: Predictions) -> pd.DataFrame:
    """img_name, target and y_pred of the images that were scored, in the table's order."""
    rows = table.iloc[predictions.indices]
    return pd.DataFrame(
        {
            "img_name": rows["img_name"].to_numpy(),
            "target": predictions.targets,
            "y_pred": predictions.scores,
        }
    )


def score_tables(
    splits: Splits, predictions: Predictions
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """`score_table` of predictions on `with_altered(splits.select, splits.altered)`: of the images
    as they are, and of the altered ones with their `alteration`; None without any."""
    if splits.altered is None or predictions.alterations is None:
        return score_table(splits.select, predictions), None
    is_altered = predictions.alterations >= 0
    altered = predictions.of(is_altered)
    rows = altered.indices - len(splits.select)
    found = score_table(splits.altered, replace(altered, indices=rows))
    found.insert(1, "alteration", splits.altered["alteration"].to_numpy()[rows])
    return score_table(splits.select, predictions.of(~is_altered)), found


def load_table(path: Path) -> pd.DataFrame:
    """A table of a candidate, such as `score_table` makes.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        # pandas would take an image called NA for a missing one.
        return pd.read_csv(path, dtype={"img_name": str}, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must be a table that onefold wrote: {error}") from None


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_atomically(path, lambda temporary: table.to_csv(temporary, index=False))


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state dict as contiguous copies on the CPU."""
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in module.state_dict().items()
    }


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Writes a state dict as safetensors.

    Raises:
        OSError: if it cannot be written.
    """
    with _telling_full_disks(path):
        write_atomically(path, lambda temporary: save_file(dict(state), temporary))


def load_weights(path: Path, module: nn.Module) -> None:
    """Loads safetensors into a module; every key and shape must agree.

    Raises:
        UserError: if the file is absent or damaged, or does not fit the module.
    """
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} must hold the weights of this very network: {reason}") from error


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a training state (tensors, numbers, lists and dicts of them).

    Raises:
        OSError: if it cannot be written.
    """
    with _telling_full_disks(path):
        write_atomically(path, lambda temporary: torch.save(dict(state), temporary))


@contextmanager
def _telling_full_disks(path: Path) -> Iterator[None]:
    """torch and safetensors have errors of their own for what the system said."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise OSError(errno.EIO, f"it cannot be written: {error}", str(path)) from error


def load_state(path: Path) -> dict[str, Any]:
    """Reads a training state that `save_state` wrote, onto the CPU.

    Raises:
        UserError: if the file is absent or damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} must be a training state that onefold wrote, but it cannot be read "
            f"({type(error).__name__}); delete it to start this training anew"
        ) from error
    return state
