"""The model card: what a model was made of, what it is worth, and what it is not good for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from ensemble.network.model import ModelSpec
from ensemble.submission.samples import tell_samples
from search.data.splits import SEEN
from search.pixels.canvas import DECODER, FILTER, explain
from search.settings.data import Objective
from search.training.objective import NAMES

CARD = "model_card.md"

SUMMARIES = {
    "candidate": "One network, as the search trained it.",
    "refit": "One network, trained anew by the recipe of a candidate of the search, for longer or "
    "on more images.",
    "soup-greedy": "A greedy soup (arXiv:2203.05482): the mean of the weights of networks of one "
    "architecture and one start, each added only if it made none worse on `select`.",
    "soup-uniform": "A uniform soup (arXiv:2203.05482): the mean of the weights of networks of one "
    "architecture and one start.",
    "fused": "Several trunks inside one module: one forward pass, one file of weights, one head "
    "that joins their answers.",
    "distilled": "One network that learned from the answers of an ensemble (arXiv:1503.02531, "
    "arXiv:2106.05237) besides the labels.",
}
HEADS = {
    "mean": "the mean of the trunks' probabilities",
    "weights": "learned convex weights on the trunks' logits",
    "mlp": "the mean of the trunks' probabilities, corrected by an MLP on their features",
}
SPLIT_USES = {
    "fit": "training",
    "select": "choosing settings, epochs and models",
    "report": "figures only",
}
SEEN_USES = {
    "fit": "training",
    "select": "choosing the recipe, then training",
    "report": "training",
}
"""Of the splits that a model was trained on."""

FIGURES = {
    "auc": "AUC",
    "auc_seen": "AUC on forgery methods that fit has",
    "auc_unseen": "AUC on forgery methods that fit lacks",
    "auc_stress": "AUC under stress, of altered images",
    "tpr_at_fpr_1e-2": "TPR at FPR 1e-2",
    "tpr_at_fpr_5e-3": "TPR at FPR 5e-3",
    "tpr_at_fpr_1e-3": "TPR at FPR 1e-3",
    "accuracy": "accuracy at 0.5",
    "log_loss": "log loss",
}
WHERE_MEASURED = ("auc_seen", "auc_unseen", "auc_stress")
"""Figures that have no row where no split has them."""

MISSING = "\N{EN DASH}"


def render_card(
    *,
    title: str,
    spec: ModelSpec,
    rules: Mapping[str, Any],
    metrics: Mapping[str, Any],
    data: Mapping[str, Any],
    objective: Objective,
    reason: str = "",
) -> str:
    """The card's Markdown.

    Args:
        title: the model's name.
        spec: what it is made of.
        rules: from `ensemble.network.evidence.describe_rules`.
        metrics: the figures on select, and under "report" those on report, of metrics.json.
        data: content of the run's data.yaml.
        objective: what the run's models were chosen by.
        reason: why the run's comparison recommends it; empty if it does not.
    """
    template = files("ensemble.submission").joinpath(f"{CARD}.jinja").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=False,  # noqa: S701 - it is Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_in_one_line,
    )
    seen = {name for recipe in spec.trunks for name in SEEN[recipe.trained_on]}
    shown = [name for name in ("select", "report") if name not in seen and _of_split(metrics, name)]
    return environment.from_string(template).render(
        title=title,
        method=spec.method,
        notes=spec.notes,
        summary=SUMMARIES[spec.method],
        facts={**_facts(spec, rules), "models were chosen by": f"{NAMES[objective]} on select"},
        networks=rules["pretraining"]["networks"],
        merged_from=spec.merged_from,
        teachers=[f"{teacher.name} x {teacher.weight:.2f}" for teacher in spec.teachers],
        generated_samples=tell_samples(rules["generated_samples"]),
        overrides=rules["overrides"],
        splits=data.get("splits", {}),
        division=_division(data.get("division") or {}),
        uses=SPLIT_USES | {name: SEEN_USES[name] for name in seen},
        seen=[name for name in SPLIT_USES if name in seen and name != "fit"],
        splits_shown=shown,
        figures=_figures([_of_split(metrics, split) for split in shown]),
        comparison=reason,
        canvas=spec.trunks[0].canvas,
        canvas_code=_Code(explain(spec.trunks[0].canvas).rstrip()),
    )


def _facts(spec: ModelSpec, rules: Mapping[str, Any]) -> dict[str, str]:
    parameters = rules["parameters"]
    facts = {
        "parameters, by the rule's counter": f"{parameters['params_thop']:,} "
        f"({parameters['counter']})",
        "parameters, counted exactly": f"{parameters['params_exact']:,}",
        "allowed": f"{parameters['budget']:,}, both counts",
        "cost of one image": f"{parameters['gmacs']:.2f} GMACs",
        "canvas": f"{spec.trunks[0].canvas} px, {DECODER}, antialiased {FILTER} filter",
        "image size of its networks": ", ".join(
            f"{size} px" for size in dict.fromkeys(recipe.image_size for recipe in spec.trunks)
        ),
    }
    if spec.method == "refit":
        recipe = spec.trunks[0]
        facts["training"] = f"{recipe.epochs:.3g} epochs on {' and '.join(SEEN[recipe.trained_on])}"
    if spec.head is not None:
        facts["head"] = HEADS[spec.head.kind]
    return facts


def _division(division: Mapping[str, Any]) -> str:
    """How images were divided, as data.yaml says; those of before it did were kept by group."""
    if division.get("kind") == "random":
        return (
            "They were divided image by image (`--split random`), whatever their groups: where "
            "images of one group lie in several splits, figures are too high."
        )
    whole = "Images of one group are in one split only"
    if division.get("kind") != "unseen":
        return f"{whole}."
    methods = "; ".join(
        f"{split} {', '.join(map(str, own))}" for split, own in division["methods"].items()
    )
    found = division.get("found_by")
    return (
        f"{whole}, and forgery methods were held out (`--split unseen`): `select` and `report` "
        f"show some that `fit` lacks. Of their own each has: {methods}, "
        f"{f'found by {found}' if found else 'as files name them'}; {division['left_out']:,} "
        "images were left out for it."
    )


def _of_split(metrics: Mapping[str, Any], split: str) -> Mapping[str, Any]:
    """The figures of one split; those of select stand at the top of metrics.json."""
    figures: Mapping[str, Any] = (metrics.get("report") or {}) if split == "report" else metrics
    return figures if "auc" in figures else {}


def _figures(splits: list[Mapping[str, Any]]) -> dict[str, list[str]]:
    """One row a figure, one cell a split."""
    if not splits:
        return {}
    rows = {
        title: [_number(split.get(name)) for split in splits]
        for name, title in FIGURES.items()
        if name not in WHERE_MEASURED or any(split.get(name) is not None for split in splits)
    }
    intervals = [[_number(split.get(f"auc_{end}")) for end in ("low", "high")] for split in splits]
    rows["AUC"] = [
        f"{auc} (95% over groups: {low} to {high})"
        for auc, (low, high) in zip(rows["AUC"], intervals, strict=True)
    ]
    return rows


def _number(value: Any) -> str:
    return MISSING if value is None or not math.isfinite(value) else f"{value:.4f}"


class _Code(str):
    """Lines that stay as they are."""

    __slots__ = ()


def _in_one_line(value: Any) -> Any:
    """Keeps a text from ending its table cell or its line."""
    if isinstance(value, _Code):
        return value
    return " ".join(value.replace("|", "\\|").split()) if isinstance(value, str) else value
