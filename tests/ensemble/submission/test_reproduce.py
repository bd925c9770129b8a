from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import yaml

from ensemble.network.model import ModelSpec, TeacherOrigin, load_spec
from ensemble.submission import reproduce
from ensemble.submission.reproduce import (
    carried_recipes,
    recipes_behind,
    versions,
    write_reproduction,
)
from search.training.recipe import Recipe


def write(run: Path, spec: ModelSpec, folder: Path, **changes: object) -> Path:
    arguments = {
        "run": run,
        "model": run / "candidates" / "0000",
        "spec": spec,
        "names": ["a, b.png", "\u00e9.png"],
        "label_files": [],
        "probe_seed": 5,
        "submit": ["python", "-m", "ensemble", "submit", "--list", "my list.txt"],
    }
    write_reproduction(folder, **{**arguments, **changes})  # type: ignore[arg-type]
    return folder


def started_from(weights: str, file: str | None, run: Path) -> ModelSpec:
    spec = load_spec(run / "candidates" / "0000")
    recipe = replace(spec.trunks[0], weights=weights, weights_file=file)  # type: ignore[arg-type]
    return replace(spec, trunks=(recipe,))


def starting_weights(folder: Path) -> dict[str, str | None]:
    content = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
    return dict(content["starting_weights"])


def test_the_file_that_training_started_from_is_hashed(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "start.safetensors"
    file.write_bytes(b"weights")
    spec = started_from("file", str(file), run_folder)
    found = starting_weights(write(run_folder, spec, tmp_path / "out"))
    assert found == {"test_resnet.r160_in1k": hashlib.sha256(b"weights").hexdigest()}
    file.unlink()
    found = starting_weights(write(run_folder, spec, tmp_path / "again"))
    assert found == {"test_resnet.r160_in1k": None}


@pytest.mark.parametrize("is_cached", [True, False])
def test_weights_of_the_hub_are_hashed_where_they_are_cached(
    is_cached: bool, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "pytorch_model.bin"
    cached.write_bytes(b"hub")

    def look_up(repository: str, name: str) -> str | None:
        assert repository == "timm/test_resnet.r160_in1k"
        return str(cached) if is_cached and name == cached.name else None

    monkeypatch.setattr(reproduce, "try_to_load_from_cache", look_up)
    spec = started_from("hub", None, run_folder)
    found = starting_weights(write(run_folder, spec, tmp_path / "out"))
    expected = hashlib.sha256(b"hub").hexdigest() if is_cached else None
    assert found == {"test_resnet.r160_in1k": expected}


def test_teachers_are_recorded_beside_members(run_folder: Path, tmp_path: Path) -> None:
    teacher = TeacherOrigin("0002", "test_vit.r160_in1k", "none", "none (from scratch)", 1.0)
    spec = replace(load_spec(run_folder / "candidates" / "0000"), teachers=(teacher,))
    folder = write(run_folder, spec, tmp_path / "out")
    recipes = {path.stem: Recipe.load(path) for path in (folder / "recipes").iterdir()}
    assert recipes == {
        name: Recipe.load(run_folder / "candidates" / name / "recipe.yaml")
        for name in ("0000", "0002")
    }
    weights = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))["weights"]
    content = (run_folder / "candidates" / "0002" / "model.safetensors").read_bytes()
    assert weights["0002/model.safetensors"] == hashlib.sha256(content).hexdigest()
    seeds = json.loads((folder / "seeds.json").read_text(encoding="utf-8"))
    assert seeds == {"search": 0, "trainings": {"0000": 0, "0002": 0}, "probes": 5}


def test_commands_are_quoted_and_settings_are_readable(run_folder: Path, tmp_path: Path) -> None:
    spec = load_spec(run_folder / "candidates" / "0000")
    folder = write(run_folder, spec, tmp_path / "out")
    lines = (folder / "commands.sh").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/sh"
    assert lines[2] == "set -e"
    assert lines[-1] == "python -m ensemble submit --list 'my list.txt'"
    settings = yaml.safe_load((folder / "settings.yaml").read_text(encoding="utf-8"))
    assert settings["pool"] == "test"
    assert "out" not in settings
    text = (folder / "images.csv").read_text(encoding="utf-8")
    assert text.splitlines() == ["img_name", '"a, b.png"', "\u00e9.png"]


def test_the_joint_training_of_a_teacher_is_behind_a_student(
    run_folder: Path, tmp_path: Path
) -> None:
    member = load_spec(run_folder / "candidates" / "0000")
    fused = run_folder / "merged" / "fused"
    fused.mkdir(parents=True)
    replace(member, merged_from=("0000",)).save(fused / "model.yaml")
    joint = replace(member.trunks[0], self_blended=0.25)
    joint.save(fused / "recipe.yaml")
    teacher = TeacherOrigin("fused", "test_resnet.r160_in1k", "none", "none (from scratch)", 1.0)
    model = run_folder / "candidates" / "0002"
    spec = replace(load_spec(model), teachers=(teacher,))
    found = recipes_behind(run_folder, model, spec)
    assert found.keys() == {"0000", "0002", "fused"}
    assert found["fused"] == joint
    folder = write(run_folder, spec, tmp_path / "out", model=model)
    assert carried_recipes(folder) == found


def test_which_images_were_held_out_is_carried(run_folder: Path, tmp_path: Path) -> None:
    """Found anew elsewhere, methods may be divided otherwise."""
    settings = yaml.safe_load((run_folder / "settings.yaml").read_text("utf-8"))
    (run_folder / "settings.yaml").write_text(
        yaml.safe_dump({**settings, "split": "unseen"}), encoding="utf-8"
    )
    (run_folder / "split.csv").write_text("set,img_name\n", encoding="utf-8")
    spec = load_spec(run_folder / "candidates" / "0000")
    folder = write(run_folder, spec, tmp_path / "out")
    assert (folder / "split.csv").read_text("utf-8") == "set,img_name\n"
    commands = (folder / "commands.sh").read_text("utf-8")
    assert "--split unseen" in commands
    assert "--division split.csv" in commands


def test_a_package_that_is_absent_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(name: str) -> str:
        if name == "scipy":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(reproduce, "version", look_up)
    found = versions()
    assert found["scipy"] == "not installed"
    assert found["torch"] == "1.0"
