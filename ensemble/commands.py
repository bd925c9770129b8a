"""The commands that a model came from, to be run where the data lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ensemble.deploy_settings import SubmitSettings
from ensemble.merged import MERGED
from ensemble.model import SPEC, ModelSpec
from ensemble.portable import last_parts, portable_settings
from ensemble.teacher_plan import AUTO, FUSED
from search.candidate import METRICS, RECIPE, Candidate
from search.settings import SearchSettings, flag
from search.training.recipe import Recipe

ENSEMBLE = ("python", "-m", "ensemble")


def search_command(settings: SearchSettings, run: Path) -> list[str]:
    """The flags that differ from the defaults, and the run folder."""
    command = ["python", "-m", "search", "run"]
    defaults = {field.name: field.default for field in fields(SearchSettings)}
    for name, value in portable_settings(settings).items():
        if value == defaults[name]:
            continue
        command += [flag(name)] if value is True else [flag(name), str(value)]
    return [*command, "--out", _place(run)]


def merge_commands(run: Path, model: Path, spec: ModelSpec) -> list[list[str]]:
    """What merged the model, after what merged its teachers."""
    merged = [
        (run / MERGED / name, ModelSpec.load(run / MERGED / name / SPEC))
        for name in _merged_sources(run, spec)
    ]
    commands = [_merge_command(run, folder, one) for folder, one in [*merged, (model, spec)]]
    return [command for command in commands if command]


def submit_command(settings: SubmitSettings, model: str) -> list[str]:
    """The command that makes a submission; `model` is relative to the run folder."""
    command = [*ENSEMBLE, "submit", "--run", _place(settings.run), "--model", model]
    command += ["--images", last_parts(settings.images), "--list", last_parts(settings.names)]
    command += ["--phase", settings.phase]
    if settings.broken_score is not None:
        command += ["--broken-score", repr(settings.broken_score)]
    return command


def sources_of(run: Path, spec: ModelSpec) -> list[str]:
    """Names of the models that a model was merged from or taught by, and of those behind a teacher
    that was itself merged, each once."""
    names = dict.fromkeys([*spec.merged_from, *(teacher.name for teacher in spec.teachers)])
    for name in _merged_sources(run, spec):
        names |= dict.fromkeys(ModelSpec.load(run / MERGED / name / SPEC).merged_from)
    # Files are called after them: a spec from elsewhere must not choose other folders.
    return [name for name in names if _is_plain(name)]


def _merged_sources(run: Path, spec: ModelSpec) -> list[str]:
    names = dict.fromkeys(teacher.name for teacher in spec.teachers)
    return [name for name in names if _is_plain(name) and (run / MERGED / name / SPEC).exists()]


def _is_plain(name: str) -> bool:
    """Whether a name stays in the folder that it is looked up in."""
    return name != ".." and Path(name).name == name


def _merge_command(run: Path, folder: Path, spec: ModelSpec) -> list[str]:
    where = ["--run", _place(run)]
    if spec.method in ("soup-greedy", "soup-uniform"):
        command = [*ENSEMBLE, "soup", *where, "--method", spec.method.removeprefix("soup-")]
        # A greedy soup may have kept only the best of its members.
        several = len(spec.merged_from) > 1
        return [*command, "--members", ",".join(spec.merged_from)] if several else command
    if spec.head is not None:
        command = [*ENSEMBLE, "fuse", *where, "--members", ",".join(spec.merged_from)]
        command += ["--head", spec.head.kind]
        # The recipe beside a fused network is that of its joint training.
        epochs = Recipe.load(folder / RECIPE).epochs if (folder / RECIPE).exists() else 0
        return [*command, "--finetune-epochs", str(epochs)]
    if spec.method == "distilled" and (folder / METRICS).exists():
        details = Candidate(folder).metrics.get("distillation", {})
        return [*ENSEMBLE, "distill", *where, *_distill_flags(spec, details)]
    return []


def _distill_flags(spec: ModelSpec, details: Mapping[str, Any]) -> list[str]:
    """
    Args:
        spec: the student's.
        details: what metrics.json records of its distillation.
    """
    recipe, losses = spec.trunks[0], details.get("losses", {})
    views = details.get("views")
    chosen = {
        "student": recipe.backbone,
        "teachers": _teachers(spec),
        "start": "best" if spec.merged_from else "imagenet",
        "epochs": recipe.epochs,
        "image_size": recipe.image_size,
        "batch_size": recipe.batch_size,
        # The relation loss looks at one micro-batch at a time.
        "micro_batch_size": recipe.micro_batch_size,
        "precision": recipe.precision,
        "learning_rate": recipe.learning_rate,
        "augmentation": recipe.augmentation,
        "augmentation_strength": recipe.augmentation_strength,
        "seed": recipe.seed,
        "match": losses.get("match"),
        "temperature": losses.get("temperature"),
        "hard_label_weight": losses.get("hard_label"),
        "relation_weight": losses.get("relation"),
        "feature_weight": losses.get("feature"),
        "views": views,
    }
    given = [(flag(name), str(value)) for name, value in chosen.items() if value is not None]
    flags = [part for pair in given for part in pair]
    return flags if views is not None else [*flags, "--live-teacher"]


def _teachers(spec: ModelSpec) -> str:
    """What --teachers was: named candidates weigh alike, the chosen ensemble need not."""
    names = list(dict.fromkeys(teacher.name for teacher in spec.teachers))
    if FUSED in names:
        return FUSED
    alike = len({teacher.weight for teacher in spec.teachers}) == 1
    return ",".join(names) if alike else AUTO


def _place(run: Path) -> str:
    return f"results/{run.resolve().name}"
