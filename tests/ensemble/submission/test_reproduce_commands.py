from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cyclopts import App

from ensemble.network.model import HeadSpec, ModelSpec, TeacherOrigin
from ensemble.settings import DistillSettings, SubmitSettings
from ensemble.submission.reproduce import merge_commands, search_command, sources_of, submit_command
from search.cli import app
from search.settings.saved import load_settings
from search.settings.subcommands import RefitSettings
from search.training.candidate import save_candidate
from search.training.recipe import Recipe

RESNET = Recipe(
    backbone="test_resnet.r160_in1k",
    architecture="test_resnet",
    image_size=48,
    canvas=48,
    epochs=7,
    learning_rate=1.5e-4,
    augmentation="flip",
    precision="bf16",
    micro_batch_size=16,
    seed=3,
)
FUSED = ModelSpec(
    kind="fused",
    trunks=(RESNET, RESNET),
    head=HeadSpec(kind="mlp", hidden_size=8),
    method="fused",
    merged_from=("0003", "0007"),
)


def parse(settings_type: type, command: list[str]) -> Any:
    """What the command line makes of a command."""
    parser = App()
    found = []

    def take(*, settings: Any) -> None:
        found.append(settings)

    take.__annotations__["settings"] = settings_type
    parser.default(take)
    parser(command[4:], exit_on_error=False, print_error=False, result_action="return_value")
    return found[0]


def teacher(name: str, weight: float) -> TeacherOrigin:
    return TeacherOrigin(name, "test_vit.r160_in1k", "hub", "ImageNet-1K", weight)


def save_merged(run: Path, name: str, spec: ModelSpec, **metrics: Any) -> Path:
    folder = run / "merged" / name
    save_candidate(
        folder,
        recipe=replace(RESNET, epochs=2),
        metrics=metrics,
        history=[],
        scores=pd.DataFrame(),
        weights=None,
    )
    spec.save(folder / "model.yaml")
    return folder


def test_the_search_command_gives_the_same_settings(tiny_run: Path) -> None:
    settings = load_settings(tiny_run)
    command = search_command(settings, tiny_run)
    assert command[:4] == ["python", "-m", "search", "run"]
    _, bound, _ = app.parse_args(command[3:], exit_on_error=False, print_error=False)
    again = bound.arguments["settings"]
    paths = ("train_labels", "train_images", "val_labels", "val_images")
    moved = {name: Path(*getattr(settings, name).parts[-2:]) for name in paths}
    assert again == replace(settings, out=Path("results") / tiny_run.name, **moved)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (ModelSpec(kind="single", trunks=(RESNET,)), []),
        (
            ModelSpec(kind="single", trunks=(RESNET,), method="soup-greedy", merged_from=("0003",)),
            "soup --method greedy",
        ),
        (
            ModelSpec(kind="single", trunks=(RESNET,), method="soup-uniform"),
            "soup --method uniform",
        ),
        (FUSED, "fuse --members 0003,0007 --head mlp --finetune-epochs 2"),
    ],
)
def test_each_way_to_merge_has_its_command(spec: ModelSpec, expected: str, tmp_path: Path) -> None:
    folder = save_merged(tmp_path / "demo", "any", spec)
    commands = merge_commands(tmp_path / "demo", folder, spec)
    told = [" ".join(command).replace("--run results/demo ", "") for command in commands]
    assert told == ([f"python -m ensemble {expected}"] if expected else [])


@pytest.mark.parametrize(
    ("teachers", "views", "expected"),
    [
        ((teacher("0003", 0.5), teacher("0007", 0.5)), 8, "0003,0007"),
        ((teacher("0003", 0.7), teacher("0007", 0.3)), 4, "auto"),
        ((teacher("fused", 0.5), teacher("fused", 0.5)), None, "fused"),
    ],
)
def test_the_distill_command_gives_the_same_settings(
    teachers: tuple[TeacherOrigin, ...], views: int | None, expected: str, tmp_path: Path
) -> None:
    run = tmp_path / "demo"
    spec = ModelSpec(
        kind="single",
        trunks=(RESNET,),
        method="distilled",
        merged_from=("0003",),
        teachers=teachers,
    )
    losses = {
        "match": "mse",
        "temperature": 3.0,
        "hard_label": 0.2,
        "relation": 1.0,
        "feature": 0.1,
    }
    folder = save_merged(run, "distilled", spec, distillation={"losses": losses, "views": views})
    save_merged(run, "fused", FUSED)
    *before, command = merge_commands(run, folder, spec)
    assert len(before) == (expected == "fused")
    assert parse(DistillSettings, command) == DistillSettings(
        run=Path("results/demo"),
        student="test_resnet.r160_in1k",
        teachers=expected,
        start="best",
        epochs=7,
        image_size=48,
        batch_size=32,
        precision="bf16",
        micro_batch_size=16,
        learning_rate=1.5e-4,
        augmentation="flip",
        augmentation_strength=0.5,
        seed=3,
        match="mse",
        temperature=3.0,
        hard_label_weight=0.2,
        relation_weight=1.0,
        feature_weight=0.1,
        views=8 if views is None else views,
        live_teacher=views is None,
    )


def test_the_models_behind_a_merged_teacher_are_sources_too(tmp_path: Path) -> None:
    save_merged(tmp_path, "fused", FUSED)
    student = ModelSpec(
        kind="single", trunks=(RESNET,), merged_from=("0001",), teachers=(teacher("fused", 1.0),)
    )
    assert sources_of(tmp_path, student) == ["0001", "fused", "0003", "0007"]


def test_names_that_leave_the_run_are_no_sources(tmp_path: Path) -> None:
    save_merged(tmp_path / "inner", "fused", FUSED)
    spec = ModelSpec(
        kind="single",
        trunks=(RESNET,),
        merged_from=("../0001", "/etc/x", "..", "0002"),
        teachers=(teacher("../merged/fused", 1.0),),
    )
    assert sources_of(tmp_path / "inner", spec) == ["0002"]


def test_the_submit_command_gives_the_same_settings() -> None:
    settings = SubmitSettings(
        run=Path("some/where/demo"),
        images=Path("/data/faces/testset"),
        names=Path("/data/faces/list.txt"),
        phase="test",
        broken_score=0.5,
        batch_size=5,
        precision="bf16",
    )
    command = submit_command(settings, "merged/fused")
    assert parse(SubmitSettings, command) == replace(
        settings,
        run=Path("results/demo"),
        model="merged/fused",
        images=Path("faces/testset"),
        names=Path("faces/list.txt"),
    )


def test_a_refit_is_made_by_the_search(tmp_path: Path) -> None:
    recipe = replace(RESNET, epochs=3.25, trained_on="fit+select")
    spec = ModelSpec(kind="single", trunks=(recipe,), method="refit", merged_from=("0007",))
    folder = tmp_path / "refits" / "refit-0007"
    (command,) = merge_commands(tmp_path, folder, spec)
    assert command[:4] == ["python", "-m", "search", "refit"]
    found = parse(RefitSettings, command)
    assert found == RefitSettings(
        run=Path(f"results/{tmp_path.name}"),
        candidate=7,
        on="fit+select",
        epochs=3.25,
        image_size=48,
        seed=3,
        name="refit-0007",
    )
    assert sources_of(tmp_path, spec) == ["0007"]
