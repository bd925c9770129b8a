"""The generated samples that a submission's model was trained on, and the tool that made them.

The rules allow them if the tool is submitted. A run and a submission's reproduce/ keep both in one
form: data.yaml says how many were trained on, generated/ has the manifest and the tool's code. What
was blended while networks were trained lies in no file: their recipes say it, and blending/ of a
submission has the code.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ensemble.network.evidence import NO_SAMPLES
from ensemble.network.model import ModelSpec
from search.data.generated import (
    GENERATED,
    MANIFEST,
    check_tool,
    keep_record,
    read_manifest,
)
from search.data.inputs import DATA
from search.errors import UserError
from search.machine.files import file_sha256, read_json
from search.pixels.augmentation import blending
from search.training.recipe import Recipe

TOOL = "python -m search expand"

PLACE = f"reproduce/{GENERATED}"
"""Of the manifest and the tool in a submission."""


BLENDING = "blending"
"""Folder of the code that blends, in a reproduce/."""

BLENDING_FILES = ("blending.py", "colours.py", "geometry.py")

VERSIONS = "versions.json"

IN_TRAINING = "in_training"
"""Entry of what was blended while networks were trained."""


@dataclass(frozen=True)
class BlendingCode:
    """The code that blends images as a recipe asks for it."""

    folder: Path
    version: str  # of onefold

    @staticmethod
    def here() -> BlendingCode:
        """That of this process."""
        return BlendingCode(Path(blending.__file__).parent, version("onefold"))

    @staticmethod
    def carried(folder: Path) -> BlendingCode:
        """That of a submission's reproduce/."""
        return BlendingCode(folder / BLENDING, str(read_json(folder / VERSIONS)["onefold"]))


def describe_samples(
    folder: Path, spec: ModelSpec, recipes: Mapping[str, Recipe], code: BlendingCode
) -> dict[str, Any] | str:
    """What rules.json says of generated samples.

    Args:
        folder: of a run, or a submission's reproduce/.
        spec: of the model.
        recipes: of the trainings behind it, those of its teachers too, by name.
        code: that blends.

    Raises:
        UserError: if the manifest or a tool is absent, or not that of the images trained on.
    """
    blended = _blended(spec, recipes)
    described = _of_manifest(folder)
    if blended:
        described[IN_TRAINING] = {
            "networks": blended,
            "sources": "images that these were trained on alone",
            "tool": "onefold, search/pixels/augmentation",
            "tool_files": dict(_hashes(code.folder)),
            "version": code.version,
        }
    return described or NO_SAMPLES


def _of_manifest(folder: Path) -> dict[str, Any]:
    """What is said of the samples that `search expand` made; nothing where there are none."""
    trained_on = _trained_on(folder / DATA)
    place = folder / GENERATED
    if trained_on is None:
        if place.exists():
            raise UserError(f"{place} must not be there: {DATA} knows of no generated samples")
        return {}
    manifest = read_manifest(place / MANIFEST)
    check_tool(place, manifest)
    sha256 = file_sha256(place / MANIFEST)
    if sha256 != trained_on["manifest_sha256"]:
        raise UserError(
            f"{place / MANIFEST} must be the manifest that {DATA} records, SHA-256 "
            f"{trained_on['manifest_sha256']}, found {sha256}"
        )
    return {
        "samples": sum(trained_on["kinds"].values()),
        "kinds": dict(trained_on["kinds"]),
        "sources": "training images (fit) alone",
        "tool": TOOL,
        "tool_files": dict(manifest.head.tool),
        "version": manifest.head.version,
        "libraries": dict(manifest.head.libraries),
        "seed": manifest.head.seed,
        "manifest": f"{PLACE}/{MANIFEST}",
        "manifest_sha256": sha256,
    }


def _blended(spec: ModelSpec, recipes: Mapping[str, Recipe]) -> dict[str, dict[str, float]]:
    """Shares of images that were blended in training, and the seed, by network."""
    named = dict(recipes)
    # Of a model whose candidates are gone.
    named |= {
        f"trunk {number}": recipe
        for number, recipe in enumerate(spec.trunks, 1)
        if _shares(recipe) not in map(_shares, recipes.values())
    }
    return {
        name: {**_shares(recipe), "seed": recipe.seed}
        for name, recipe in named.items()
        if any(_shares(recipe).values())
    }


def _shares(recipe: Recipe) -> dict[str, float]:
    return {"self_blended": recipe.self_blended, "mixed_with_real": recipe.mixed_with_real}


def _hashes(folder: Path) -> Iterator[tuple[str, str]]:
    for name in BLENDING_FILES:
        try:
            yield name, file_sha256(folder / name)
        except OSError:
            raise UserError(
                f"{folder} must hold the code that blends images in training, but {name} is "
                "absent; restore it from a copy"
            ) from None


def carry_samples(run: Path, folder: Path, recipes: Mapping[str, Recipe], spec: ModelSpec) -> None:
    """Copies into a reproduce/ what made the samples: the manifest and the tool of a run, if it has
    them, and the code that blends, if a recipe asked for it."""
    if _trained_on(run / DATA) is not None:
        keep_record(run / GENERATED, folder)
    if _blended(spec, recipes):
        (folder / BLENDING).mkdir()
        for name in BLENDING_FILES:
            shutil.copyfile(BlendingCode.here().folder / name, folder / BLENDING / name)


def tell_samples(samples: dict[str, Any] | str) -> str:
    """The same in a sentence, for the model card."""
    if isinstance(samples, str):
        return samples
    told = []
    if "samples" in samples:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in samples["kinds"].items())
        told.append(
            f"{samples['samples']:,} ({kinds}), made of the training images alone by "
            f"`{samples['tool']}` of onefold {samples['version']}, seed {samples['seed']}; "
            f"`{PLACE}` has their manifest and the tool's code"
        )
    if found := samples.get(IN_TRAINING):
        shares = ", ".join(
            f"{name} {one['self_blended']:.0%} of the real images self-blended as fakes and "
            f"{one['mixed_with_real']:.0%} of the fakes mixed with a real, seed {one['seed']}"
            for name, one in found["networks"].items()
        )
        told.append(
            f"views blended in training, of its images alone ({shares}) by onefold "
            f"{found['version']}; `reproduce/{BLENDING}` has the code"
        )
    return "; and ".join(told)


def _trained_on(path: Path) -> dict[str, Any] | None:
    """What a data.yaml says of generated samples; None where there are none."""
    if not path.exists():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be YAML that onefold wrote: {error}") from None
    found: dict[str, Any] | None = (content or {}).get(GENERATED)
    return found
