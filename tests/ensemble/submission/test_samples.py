"""What a submission says of generated samples is what it carries the proof of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from ensemble.network.model import HeadSpec, ModelSpec
from ensemble.settings import SubmitSettings
from ensemble.submission.manifest import write_manifest
from ensemble.submission.samples import BlendingCode, describe_samples
from ensemble.submission.submit import run_submit
from ensemble.submission.verify import verify
from search.cli import app
from search.data.generated import keep_record
from search.data.inputs import read_splits, write_data
from search.errors import UserError
from search.expand.expand import run_expand
from search.settings.saved import load_settings, write_settings
from search.settings.subcommands import ExpandSettings
from search.training.recipe import Recipe

QUIET = Console(quiet=True)


def submission_of(run: Path, names: Path) -> SubmitSettings:
    """Of a run's first candidate, with scores of the images that are listed."""
    images = load_settings(run).val_images
    assert images is not None
    return SubmitSettings(
        run=run, images=images, names=names, phase="test", model="0000", device="cpu"
    )


@pytest.fixture(scope="module")
def submitted(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A submission of a run that was given generated samples, as far as its records say."""
    base = tmp_path_factory.mktemp("samples")
    run = Path(shutil.copytree(tiny_run, base / "run"))
    plain = load_settings(run)
    out = base / "generated"
    run_expand(ExpandSettings(run=run, kinds="self-blended,recompressed", count=6, out=out), QUIET)
    settings = replace(plain, generated=out)
    splits = read_splits(settings)
    write_settings(settings, run)
    write_data(run, splits, run.name, budget=200_000_000, canvas={"side": 32})
    keep_record(out, run)
    assert plain.val_images is not None
    names = sorted(path.name for path in plain.val_images.iterdir())[:4]
    (base / "list.txt").write_text("\n".join(["img_name", *names, ""]), encoding="utf-8")
    submission = submission_of(run, base / "list.txt")
    return run_submit(submission, QUIET, clock=lambda: datetime(2025, 3, 4, tzinfo=UTC))


@pytest.fixture
def folder(submitted: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(submitted, tmp_path / "elsewhere"))


def test_it_says_what_was_generated_and_carries_the_tool(submitted: Path) -> None:
    rules = json.loads((submitted / "rules.json").read_text("utf-8"))["generated_samples"]
    assert rules["samples"] == 6
    assert rules["kinds"] == {"self-blended": 3, "recompressed": 3}
    assert rules["seed"] == 0
    place = submitted / "reproduce" / "generated"
    assert {path.name for path in (place / "tool").iterdir()} == {"kinds.py", "images.py"}
    assert (place / "manifest.json").is_file()
    card = (submitted / "model_card.md").read_text("utf-8")
    assert "Generated samples: 6 (3 self-blended, 3 recompressed), made of the training" in card
    assert "No other image was trained on, but what was made of them." in card
    told = {check.name: (check.ok, check.detail) for check in verify(submitted)}
    assert told["samples"] == (
        True,
        "6 generated samples, with their manifest and the 2 files of the tool that computed them",
    )


def test_its_commands_make_the_samples_first_and_the_same(submitted: Path, tmp_path: Path) -> None:
    lines = (submitted / "reproduce" / "commands.sh").read_text("utf-8").splitlines()
    assert lines[3].startswith("python -m search expand --from generated/manifest.json")
    assert "--generated " in lines[4]
    command = lines[3].split()[3:]
    _, bound, _ = app.parse_args(command, exit_on_error=False, print_error=False)
    run = load_settings(submitted.parent)
    again = replace(
        bound.arguments["settings"],
        manifest=submitted / "reproduce" / "generated" / "manifest.json",
        train_images=run.train_images,
        out=tmp_path / "again",
    )
    assert bound.arguments["settings"].out == Path(*Path(str(run.generated)).parts[-2:])
    run_expand(again, QUIET)
    made = {path.name: path.read_bytes() for path in (tmp_path / "again" / "images").iterdir()}
    assert run.generated is not None
    assert made == {path.name: path.read_bytes() for path in (run.generated / "images").iterdir()}


@pytest.fixture(scope="module")
def blended(submitted: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A submission of a model that saw blended views in training, as its recipe says."""
    base = tmp_path_factory.mktemp("blended")
    run = Path(shutil.copytree(tiny_run, base / "run"))
    recipe = run / "candidates" / "0000" / "recipe.yaml"
    replace(Recipe.load(recipe), self_blended=0.25, mixed_with_real=0.1).save(recipe)
    submission = submission_of(run, submitted.parents[1] / "list.txt")
    return run_submit(submission, QUIET, clock=lambda: datetime(2025, 3, 4, tzinfo=UTC))


def test_views_that_were_blended_in_training_are_generated_samples(blended: Path) -> None:
    rules = json.loads((blended / "rules.json").read_text("utf-8"))["generated_samples"]
    found = rules["in_training"]
    assert found["networks"] == {"0000": {"self_blended": 0.25, "mixed_with_real": 0.1, "seed": 0}}
    assert found["version"] == version("onefold")
    card = (blended / "model_card.md").read_text("utf-8")
    assert "0000 25% of the real images self-blended as fakes and 10% of the fakes mixed" in card
    assert "No other image was trained on, but what was made of them." in card
    code = blended / "reproduce" / "blending"
    assert {path.name for path in code.iterdir()} == found["tool_files"].keys()
    told = {check.name: (check.ok, check.detail) for check in verify(blended)}
    assert told["samples"] == (
        True,
        "views blended in the training of 0000, with the code that blended them",
    )


def edit_recipe(folder: Path) -> None:
    for path in (folder / "reproduce" / "recipes" / "0000.yaml", folder / "model.yaml"):
        path.write_text(path.read_text("utf-8").replace("self_blended: 0.25", "self_blended: 0.0"))


@pytest.mark.parametrize(
    ("tamper", "detail"),
    [
        (lambda folder: (folder / "reproduce/blending/blending.py").write_text(""), "recorded as"),
        (
            lambda folder: (folder / "reproduce/blending/colours.py").unlink(),
            "colours.py is absent",
        ),
        (edit_recipe, "generated samples are recorded as {'in_training'"),
    ],
)
def test_verify_finds_what_was_hidden_of_blending(
    tamper: Callable[[Path], Any], detail: str, blended: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(blended, tmp_path / "elsewhere"))
    tamper(folder)
    write_manifest(folder)
    failed = {check.name: check.detail for check in verify(folder) if not check.ok}
    assert failed.keys() == {"samples"}
    assert detail in failed["samples"]


PLAIN = Recipe(backbone="test_resnet.r160_in1k", architecture="test_resnet", canvas=32)
BLENDS = replace(PLAIN, self_blended=0.25)


@pytest.mark.parametrize(
    ("trunks", "recipes", "expected"),
    [
        ((PLAIN,), {"distilled": PLAIN, "0003": BLENDS}, {"0003"}),  # a teacher
        ((PLAIN, BLENDS), {"0001": PLAIN, "0002": BLENDS}, {"0002"}),  # a member
        ((BLENDS,), {}, {"trunk 1"}),  # its candidate is gone
        ((PLAIN,), {"0000": PLAIN}, set()),
    ],
)
def test_whatever_stands_behind_a_model_counts(
    trunks: tuple[Recipe, ...], recipes: dict[str, Recipe], expected: set[str], tiny_run: Path
) -> None:
    head = HeadSpec(kind="mean") if len(trunks) > 1 else None
    spec = ModelSpec(kind="fused" if head else "single", trunks=trunks, head=head)
    found = describe_samples(tiny_run, spec, recipes, BlendingCode.here())
    if expected:
        assert isinstance(found, dict)
        assert found["in_training"]["networks"].keys() == expected
    else:
        assert found == "none"


def edit_rules(folder: Path) -> None:
    rules = json.loads((folder / "rules.json").read_text("utf-8"))
    rules["generated_samples"] = "none"
    (folder / "rules.json").write_text(json.dumps(rules), encoding="utf-8")


def edit_data(folder: Path) -> None:
    path = folder / "reproduce" / "data.yaml"
    data = yaml.safe_load(path.read_text("utf-8"))
    del data["generated"]
    path.write_text(yaml.safe_dump(data), encoding="utf-8")


def append(name: str) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        with (folder / "reproduce" / "generated" / name).open("a", encoding="utf-8") as file:
            file.write("\n")

    return tamper


@pytest.mark.parametrize(
    ("tamper", "detail"),
    [
        (edit_rules, "generated samples are recorded as none, found {"),
        (edit_data, "data.yaml knows of no generated samples"),
        (append("manifest.json"), "must be the manifest that data.yaml records"),
        (append("tool/kinds.py"), "kinds.py is another"),
        (lambda folder: (folder / "reproduce/generated/tool/images.py").unlink(), "is absent"),
        (lambda folder: shutil.rmtree(folder / "reproduce/generated"), "found nothing there"),
    ],
)
def test_verify_finds_what_was_tampered_with(
    tamper: Callable[[Path], Any], detail: str, folder: Path
) -> None:
    tamper(folder)
    write_manifest(folder)
    failed = {check.name: check.detail for check in verify(folder) if not check.ok}
    assert failed.keys() == {"samples"}
    assert detail in failed["samples"]


def test_a_run_that_lost_the_tool_is_not_submitted(submitted: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(submitted.parent, tmp_path / "run"))
    shutil.rmtree(run / "generated" / "tool")
    with pytest.raises(UserError, match="must hold the code that made the samples"):
        run_submit(submission_of(run, submitted.parents[1] / "list.txt"), QUIET)
