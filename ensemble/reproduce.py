"""reproduce/: settings, recipes, seeds, versions, hashes and commands that a model came from.

No path of the machine goes in: of every path the last two parts are kept.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

import pandas as pd
import timm
import yaml
from huggingface_hub import try_to_load_from_cache

from ensemble.manifest import file_sha256
from ensemble.model import SPEC, ModelSpec
from search.candidate import RECIPE, WEIGHTS
from search.inputs import DATA
from search.settings import SETTINGS, SearchSettings, flag, load_settings
from search.training.recipe import Recipe
from search.weights import HUB_FILES

FOLDER = "reproduce"
IMAGES = "images.csv"
PACKAGES = (
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
KEPT_TO_ITSELF = frozenset({"storage", "out"})
"""Settings that say more of the machine than of the model; a storage URL may hold a password."""


def write_reproduction(
    folder: Path,
    *,
    run: Path,
    model: Path,
    spec: ModelSpec,
    names: Sequence[str],
    label_files: Sequence[Path],
    probe_seed: int,
    submit_arguments: Sequence[str],
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
        submit_arguments: of the command that made the submission.
    """
    settings = load_settings(run)
    folder.mkdir()
    _write_yaml(folder / SETTINGS, _portable_settings(settings))
    for name in (DATA, "backbones.yaml"):
        if (run / name).exists():
            shutil.copyfile(run / name, folder / name)
    recipes = dict(_recipes(run, model, spec))
    (folder / "recipes").mkdir()
    for name, recipe in recipes.items():
        portable(recipe).save(folder / "recipes" / f"{name}.yaml")
    pd.DataFrame({"img_name": list(names)}).to_csv(folder / IMAGES, index=False)
    _write_json(folder / "versions.json", versions())
    _write_json(
        folder / "seeds.json",
        {
            "search": settings.seed,
            "trainings": {name: recipe.seed for name, recipe in recipes.items()},
            "probes": probe_seed,
        },
    )
    labels = [path for name, path in _paths(settings) if name.endswith(("labels", "groups"))]
    _write_json(
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
    commands = [_search_command(settings, run), *_merge_commands(run, model, spec)]
    commands.append(["python", "-m", "ensemble", "submit", *submit_arguments])
    text = "\n".join(["#!/bin/sh", "set -e", *map(shlex.join, commands), ""])
    (folder / "commands.sh").write_text(text, encoding="utf-8")


def portable(recipe: Recipe) -> Recipe:
    """The recipe without the folder that its starting weights lay in."""
    if recipe.weights_file is None:
        return recipe
    return replace(recipe, weights_file=Path(recipe.weights_file).name)


def portable_spec(spec: ModelSpec) -> ModelSpec:
    """The spec with portable recipes."""
    return replace(spec, trunks=tuple(portable(recipe) for recipe in spec.trunks))


def last_parts(path: PurePath) -> str:
    """The last two parts of a path: enough to tell files apart, without the user's folders."""
    return "/".join(path.parts[-2:]).lstrip("/")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that scores depend on."""
    found = {"python": platform.python_version(), "system": platform.system()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _recipes(run: Path, model: Path, spec: ModelSpec) -> Iterable[tuple[str, Recipe]]:
    """Recipes of the candidates behind a model, and its own, by name."""
    for name in _sources(spec):
        path = run / "candidates" / name / RECIPE
        if path.exists():
            yield name, Recipe.load(path)
    if (model / RECIPE).exists():
        yield model.name, Recipe.load(model / RECIPE)


def _sources(spec: ModelSpec) -> list[str]:
    """Names of the models that a model was merged from or taught by, each once."""
    return list(dict.fromkeys([*spec.merged_from, *(teacher.name for teacher in spec.teachers)]))


def _weights(run: Path, model: Path, spec: ModelSpec) -> dict[str, str | None]:
    folders = [run / kind / name for name in _sources(spec) for kind in ("candidates", "merged")]
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


def _paths(settings: SearchSettings) -> list[tuple[str, Path]]:
    return [(name, value) for name, value in vars(settings).items() if isinstance(value, Path)]


def _portable_settings(settings: SearchSettings) -> dict[str, Any]:
    paths = {name: last_parts(path) for name, path in _paths(settings)}
    plain = {**settings.to_yaml(), **paths}
    return {name: value for name, value in plain.items() if name not in KEPT_TO_ITSELF}


def _search_command(settings: SearchSettings, run: Path) -> list[str]:
    """The flags that differ from the defaults, and the run folder."""
    command = ["python", "-m", "search", "run"]
    defaults = {field.name: field.default for field in fields(SearchSettings)}
    for name, value in _portable_settings(settings).items():
        if value == defaults[name]:
            continue
        command += [flag(name)] if value is True else [flag(name), str(value)]
    return [*command, "--out", f"results/{run.name}"]


def _merge_commands(run: Path, model: Path, spec: ModelSpec) -> list[list[str]]:
    """What merged the model, after what merged its teachers."""
    commands = []
    for name in _sources(spec):
        taught = run / "merged" / name
        if taught != model and (taught / SPEC).exists():
            commands.append(_merge_command(run, ModelSpec.load(taught / SPEC)))
    return [command for command in [*commands, _merge_command(run, spec)] if command]


def _merge_command(run: Path, spec: ModelSpec) -> list[str]:
    command = ["python", "-m", "ensemble"]
    where = ["--run", f"results/{run.name}"]
    if spec.method in ("soup-greedy", "soup-uniform"):
        return [*command, "soup", *where, "--method", spec.method.removeprefix("soup-")]
    if spec.head is not None:
        members = ["--members", ",".join(spec.merged_from), "--head", spec.head.kind]
        return [*command, "fuse", *where, *members]
    return []


def _write_yaml(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
