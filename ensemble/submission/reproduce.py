"""reproduce/: settings, recipes, seeds, versions, hashes and commands that a model came from.

No path of the machine goes in: of every path the last two parts are kept.
"""

from __future__ import annotations

import platform
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import timm
from huggingface_hub import try_to_load_from_cache

from ensemble.network.model import SPEC, ModelSpec
from ensemble.settings import SubmitSettings
from ensemble.submission.samples import VERSIONS, carry_samples
from ensemble.teachers import AUTO, FUSED
from search.catalogue.downloads import HUB_FILES
from search.data.generated import GENERATED, MANIFEST
from search.data.inputs import DATA, DIVISION
from search.machine.files import (
    BACKBONES,
    CANDIDATES,
    MERGED,
    file_sha256,
    write_json_atomically,
    write_yaml_atomically,
)
from search.settings.data import flag
from search.settings.saved import SETTINGS, load_settings
from search.settings.search import SearchSettings
from search.training.candidate import METRICS, RECIPE, WEIGHTS, Candidate
from search.training.recipe import Recipe

FOLDER = "reproduce"
IMAGES, RECIPES = "images.csv", "recipes"
PACKAGES = (
    "onefold",
    "torch",
    "torchvision",
    "timm",
    "safetensors",
    "thop",
    "numpy",
    "pandas",
    "pillow",
    "scikit-learn",
    "scipy",
    "optuna",
)


def write_reproduction(
    folder: Path,
    *,
    run: Path,
    model: Path,
    spec: ModelSpec,
    names: Sequence[str],
    label_files: Sequence[Path],
    probe_seed: int,
    submit: Sequence[str],
) -> None:
    """Writes the folder reproduce/ of a submission.

    Args:
        folder: it; made here.
        run: the run folder.
        model: the folder of the submitted model, in the run or elsewhere.
        spec: the model's.
        names: the scored images, in the list's order.
        label_files: further files to hash: the list.
        probe_seed: of the probe images.
        submit: the command that made the submission, see `ensemble.submission.reproduce`.
    """
    settings = load_settings(run)
    folder.mkdir()
    write_yaml_atomically(folder / SETTINGS, portable_settings(settings))
    for name in (DATA, DIVISION, BACKBONES):
        if (run / name).exists():
            shutil.copyfile(run / name, folder / name)
    recipes = recipes_behind(run, model, spec)
    carry_samples(run, folder, recipes, spec)
    (folder / RECIPES).mkdir()
    for name, recipe in recipes.items():
        portable_recipe(recipe).save(folder / RECIPES / f"{name}.yaml")
    pd.DataFrame({"img_name": list(names)}).to_csv(folder / IMAGES, index=False)
    write_json_atomically(folder / VERSIONS, versions())
    write_json_atomically(
        folder / "seeds.json",
        {
            "search": settings.seed,
            "trainings": {name: recipe.seed for name, recipe in recipes.items()},
            "probes": probe_seed,
        },
    )
    labels = [path for name, path in paths_of(settings) if name.endswith(("labels", "groups"))]
    write_json_atomically(
        folder / "sha256.json",
        {
            "label_files": {last_parts(path): _hash(path) for path in [*labels, *label_files]},
            "weights": _weights(run, model, spec),
            "starting_weights": {
                recipe.backbone: _hash(_starting_weights(recipe))
                for recipe in (*spec.trunks, *recipes.values())
                if recipe.weights != "none"
            },
        },
    )
    commands = [
        *expand_commands(settings),
        search_command(settings, run),
        *merge_commands(run, model, spec),
        submit,
    ]
    note = "# Of each path the last two parts are kept: put yours in their place."
    text = "\n".join(["#!/bin/sh", note, "set -e", *map(shlex.join, commands), ""])
    (folder / "commands.sh").write_text(text, encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that scores depend on."""
    found = {"python": platform.python_version(), "system": platform.system()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def recipes_behind(run: Path, model: Path, spec: ModelSpec) -> dict[str, Recipe]:
    """Recipes of the trainings behind a model, those of its teachers too, and its own, by name."""
    folders = [run / kind / name for name in sources_of(run, spec) for kind in (CANDIDATES, MERGED)]
    return {
        folder.name: Recipe.load(folder / RECIPE)
        for folder in [*folders, model]
        if (folder / RECIPE).exists()
    }


def carried_recipes(folder: Path) -> dict[str, Recipe]:
    """The same, as a reproduce/ has them."""
    return {path.stem: Recipe.load(path) for path in sorted((folder / RECIPES).glob("*.yaml"))}


def _weights(run: Path, model: Path, spec: ModelSpec) -> dict[str, str | None]:
    folders = [run / kind / name for name in sources_of(run, spec) for kind in (CANDIDATES, MERGED)]
    return {
        last_parts(folder / WEIGHTS): _hash(folder / WEIGHTS)
        for folder in [model, *folders]
        if folder.is_dir()
    }


def _starting_weights(recipe: Recipe) -> Path | None:
    """The file that training started from, if it is still on this machine."""
    if recipe.weights == "file":
        return Path(recipe.weights_file) if recipe.weights_file else None
    config = timm.get_pretrained_cfg(recipe.backbone)
    for name in HUB_FILES:
        found = config and config.hf_hub_id and try_to_load_from_cache(config.hf_hub_id, name)
        if isinstance(found, str):
            return Path(found)
    return None


def _hash(path: Path | None) -> str | None:
    """None where the file is gone: weights of candidates that were not kept, for example."""
    return file_sha256(path) if path is not None and path.is_file() else None


ENSEMBLE = ("python", "-m", "ensemble")


def expand_commands(settings: SearchSettings) -> list[list[str]]:
    """What makes the samples again that the search was given; nothing where there were none."""
    if settings.generated is None:
        return []
    command = ["python", "-m", "search", "expand", "--from", f"{GENERATED}/{MANIFEST}"]
    if settings.train_images is not None:
        command += ["--train-images", last_parts(settings.train_images)]
    return [[*command, "--out", last_parts(settings.generated)]]


def search_command(settings: SearchSettings, run: Path) -> list[str]:
    """The flags that differ from the defaults, and the run folder."""
    command = ["python", "-m", "search", "run"]
    defaults = {field.name: field.default for field in fields(SearchSettings)}
    given = portable_settings(settings)
    if settings.split == "unseen":
        # Elsewhere the same forgeries may be described a little differently, and divided anew.
        given["division"] = DIVISION
    for name, value in given.items():
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
    defaults = {field.name: field.default for field in fields(SubmitSettings)}
    for name in ("batch_size", "precision"):  # they bear on the last digits of a score
        if (value := getattr(settings, name)) != defaults[name]:
            command += [flag(name), str(value)]
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
    if spec.method == "refit":
        return ["python", "-m", "search", "refit", *where, *_refit_flags(folder.name, spec)]
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


def _refit_flags(name: str, spec: ModelSpec) -> list[str]:
    """
    Args:
        name: of its folder; that of a submission is nobody's wish.
        spec: the refit's.
    """
    recipe, (candidate,) = spec.trunks[0], spec.merged_from
    chosen = {
        "candidate": candidate.lstrip("0") or "0",
        "on": recipe.trained_on,
        # As the time settled it, if it was told no epochs.
        "epochs": recipe.epochs,
        "image_size": recipe.image_size,
        "seed": recipe.seed,
        "name": name,
    }
    return [part for field, value in chosen.items() for part in (flag(field), str(value))]


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
        "teacher_precision": details.get("teacher_precision"),
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


KEPT_TO_ITSELF = frozenset({"storage", "out", "cache"})
"""Settings that say more of the machine than of the model; a storage URL may hold a password."""


def portable_recipe(recipe: Recipe) -> Recipe:
    """The recipe without the folder that its starting weights lay in."""
    if recipe.weights_file is None:
        return recipe
    return replace(recipe, weights_file=Path(recipe.weights_file).name)


def portable_spec(spec: ModelSpec) -> ModelSpec:
    """The spec with portable recipes."""
    return replace(spec, trunks=tuple(portable_recipe(recipe) for recipe in spec.trunks))


def last_parts(path: Path) -> str:
    """The last two parts of a path: enough to tell files apart, without the user's folders."""
    return "/".join(path.absolute().parts[-2:]).lstrip("/")


def paths_of(settings: SearchSettings) -> list[tuple[str, Path]]:
    """The settings that are paths, by name."""
    return [(name, value) for name, value in vars(settings).items() if isinstance(value, Path)]


def portable_settings(settings: SearchSettings) -> dict[str, Any]:
    """The settings as plain values, without the user's folders and secrets."""
    paths = {name: last_parts(path) for name, path in paths_of(settings)}
    plain = {**settings.to_yaml(), **paths}
    return {name: value for name, value in plain.items() if name not in KEPT_TO_ITSELF}
