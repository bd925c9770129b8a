"""reproduce/: settings, recipes, seeds, versions, hashes and commands that a model came from.

No path of the machine goes in: of every path the last two parts are kept.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import yaml
from huggingface_hub import try_to_load_from_cache

from ensemble.commands import merge_commands, search_command, sources_of
from ensemble.manifest import file_sha256
from ensemble.model import ModelSpec
from ensemble.portable import last_parts, paths_of, portable_recipe, portable_settings
from search.candidate import RECIPE, WEIGHTS
from search.inputs import DATA
from search.settings_file import SETTINGS, load_settings
from search.training.recipe import Recipe
from search.weights import HUB_FILES

FOLDER = "reproduce"
IMAGES = "images.csv"
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
        submit: the command that made the submission, see `ensemble.commands`.
    """
    settings = load_settings(run)
    folder.mkdir()
    _write_yaml(folder / SETTINGS, portable_settings(settings))
    for name in (DATA, "backbones.yaml"):
        if (run / name).exists():
            shutil.copyfile(run / name, folder / name)
    recipes = dict(_recipes(run, model, spec))
    (folder / "recipes").mkdir()
    for name, recipe in recipes.items():
        portable_recipe(recipe).save(folder / "recipes" / f"{name}.yaml")
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
    labels = [path for name, path in paths_of(settings) if name.endswith(("labels", "groups"))]
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
    commands = [search_command(settings, run), *merge_commands(run, model, spec), submit]
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


def _recipes(run: Path, model: Path, spec: ModelSpec) -> Iterable[tuple[str, Recipe]]:
    """Recipes of the candidates behind a model, and its own, by name."""
    for name in sources_of(run, spec):
        path = run / "candidates" / name / RECIPE
        if path.exists():
            yield name, Recipe.load(path)
    if (model / RECIPE).exists():
        yield model.name, Recipe.load(model / RECIPE)


def _weights(run: Path, model: Path, spec: ModelSpec) -> dict[str, str | None]:
    folders = [
        run / kind / name for name in sources_of(run, spec) for kind in ("candidates", "merged")
    ]
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


def _write_yaml(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
