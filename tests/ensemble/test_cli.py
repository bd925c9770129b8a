from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from ensemble.cli import main

COMMANDS = ("distill", "fuse", "soup", "compare", "submit", "predict", "verify")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"ensemble {command}" in capsys.readouterr().out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from ensemble.cli import main\n"
        "main(['distill', '--help'])\n"
        "heavy = {'torch', 'timm', 'optuna', 'pandas', 'sklearn', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "--run", "nowhere"], "must be the folder of a search"),
        (["fuse", "--run", "nowhere"], "must be the folder of a search"),
        (["soup", "--run", "nowhere", "--method", "minestrone"], "greedy"),
        (["compare", "--run", "nowhere"], "must be the folder of a search"),
        (["predict", "x.png", "--model", "nowhere"], "found nothing there"),
        (["verify", "nowhere"], "nowhere"),
        (["verify", "tests"], "found none of manifest.json"),
        (["predict", "LICENSE", "--model", "x", "--output", "tests"], "found the folder tests"),
        (
            ["predict", "LICENSE", "--model", "x", "--output", "LICENSE/x.csv"],
            "must lie in a folder",
        ),
        (
            ["predict", "--model", "x", "--export", "onnx", "--export-file", "LICENSE/x"],
            "--export-file",
        ),
        (["distil"], 'Did you mean "distill"?'),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_commands_lead_to_a_verified_submission(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--run", str(run_folder), "--device", "cpu", "--workers", "0"]
    assert main(["soup", *run]) == 0
    assert main(["fuse", *run, "--head", "weights"]) == 0
    assert main(["distill", *run, "--epochs", "2", "--views", "2"]) == 0
    comparison = pd.read_csv(run_folder / "comparison.csv")
    assert {"soup-greedy", "fused", "distilled"} <= set(comparison["model"])
    settings = (run_folder / "settings.yaml").read_text()
    images = next(
        line.partition(": ")[2] for line in settings.splitlines() if line.startswith("val_images")
    )
    names = Path(images).parent / "valset_label.txt"
    listed = ["--images", images, "--list", str(names), "--phase", "validation"]
    assert main(["submit", *run, *listed]) == 0
    submission = run_folder / "submission"
    assert main(["verify", str(submission), "--images", images]) == 0
    prediction = pd.read_csv(submission / "prediction.csv")
    assert prediction.columns.tolist() == ["img_name", "y_pred"]
    capsys.readouterr()
    first = Path(images) / prediction["img_name"].iloc[0]
    assert main(["predict", str(first), "--model", str(submission)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert float(line.split(",")[1]) == pytest.approx(prediction["y_pred"].iloc[0], abs=1e-6)


def test_a_time_limit_ends_a_distillation_which_goes_on_later(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["distill", "--run", str(run_folder), "--device", "cpu", "--workers", "0"]
    command += ["--epochs", "2", "--views", "2"]
    assert main([*command, "--timeout", "0s"]) == 130
    assert "the time limit was reached" in capsys.readouterr().out
    assert main(command) == 0
