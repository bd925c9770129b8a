"""What a submission says of generated samples is what it carries the proof of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from ensemble.settings import SubmitSettings
from ensemble.submission.manifest import write_manifest
from ensemble.submission.submit import run_submit
from ensemble.submission.verify import verify
from search.cli import app
from search.data.generated import keep_record
from search.data.inputs import read_splits, write_data
from search.errors import UserError
from search.expand.expand import run_expand
from search.settings.commands import ExpandSettings
from search.settings.saved import load_settings, write_settings

QUIET = Console(quiet=True)


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
    submission = SubmitSettings(
        run=run,
        images=plain.val_images,
        names=base / "list.txt",
        phase="test",
        model="0000",
        device="cpu",
    )
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
    plain = load_settings(run)
    assert plain.val_images is not None
    settings = SubmitSettings(
        run=run,
        images=plain.val_images,
        names=submitted.parents[1] / "list.txt",
        phase="test",
        model="0000",
        device="cpu",
    )
    with pytest.raises(UserError, match="must hold the code that made the samples"):
        run_submit(settings, QUIET)
