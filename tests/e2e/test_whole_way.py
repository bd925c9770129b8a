"""README's way from nothing to a verified submission, on the demo set."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from ensemble.cli import main as ensemble
from search.cli import main as search
from search.data.demo import make_demo
from search.machine.files import cache_folder
from search.settings.search import DEMO_DEFAULTS
from tests.e2e.conftest import BACKBONES

README = Path(__file__).parents[2] / "README.md"


def commands() -> list[list[str]]:
    block = re.search(r"<!-- whole-way -->\n```\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block.group(1).strip().splitlines()]


@pytest.mark.timeout(600)
def test_three_commands_lead_to_a_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # The demo's own defaults take minutes; the commands are README's, to the letter.
    for name, value in (("trials", 3), ("epochs", 1), ("limit_train", 100), ("limit_val", 120)):
        monkeypatch.setitem(DEMO_DEFAULTS, name, value)
    monkeypatch.setattr("ensemble.settings.DEMO_EPOCHS", 1)
    # Nor is the baseline a ResNet-18, which is nearly all of the time.
    catalogue = tmp_path / "backbones.yaml"
    catalogue.write_text(BACKBONES.replace("tiny:", "demo:"))
    for module in ("search.run.search", "search.study.plan"):
        monkeypatch.setattr(f"{module}.DEFAULT_PATH", catalogue)
    demo = make_demo(cache_folder() / "demo")
    names = {"IMAGES": str(demo.val_images), "LIST": str(demo.val_labels)}
    steps = commands()
    assert len(steps) == 3
    for step in steps:
        arguments = [names.get(word, word) for word in step[3:]]
        program = search if step[2] == "search" else ensemble
        assert program(arguments) == 0, capsys.readouterr().err
    submission = tmp_path / "results" / "demo" / "submission"
    prediction = pd.read_csv(submission / "prediction.csv")
    assert len(prediction) == 600
    assert prediction["y_pred"].between(0, 1).all()
    assert ensemble(["verify", str(submission), "--images", str(demo.val_images)]) == 0
    capsys.readouterr()
    first = demo.val_images / prediction["img_name"].iloc[0]
    assert ensemble(["predict", str(first), "--model", str(submission)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert float(line.split(",")[1]) == pytest.approx(prediction["y_pred"].iloc[0], abs=1e-6)


def test_nothing_that_readme_writes_becomes_part_of_the_repository() -> None:
    root = README.parent
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("this is no git checkout")
    flags = ("out", "output", "export-file")
    written = {
        word.removeprefix(f"--{flag}").strip(" =")
        for flag in flags
        for word in re.findall(rf"--{flag}[ =][^\s`]+", README.read_text("utf-8"))
    }
    assert {"results/NAME", "results/scores.jsonl", "results/NAME/model.onnx"} <= written
    for path in written:
        ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=root, check=False)
        assert ignored.returncode == 0, path
