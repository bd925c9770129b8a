from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from search.cli import main
from search.settings.saved import write_settings
from search.settings.search import SearchSettings

COMMANDS = (
    *("run", "baseline", "backbones", "report", "dashboard"),
    *("profile", "stress", "audit", "refit", "expand"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"search {command}" in text
    assert "--" in text


def test_every_setting_has_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for line in (
        "Label file of the training images",
        "Optuna storage URL",
        "End the whole command after this time",
    ):
        assert line in text


@pytest.mark.parametrize("package", ["search"])
def test_help_loads_nothing_heavy(package: str) -> None:
    code = (
        "import sys\n"
        f"from {package}.cli import main\n"
        "main(['--help'])\n"
        "heavy = {'torch', 'timm', 'optuna', 'pandas', 'sklearn', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--trails", "3"], "Did you mean --trials?"),
        (["run", "--trials", "0"], "--trials"),
        (["run", "--seed", "-1"], "--seed"),
        (["run", "--timeout", "8q"], "90m, 8h, 1d"),
        (["run", "--weights", "jft"], "hub"),
        (["run", "--train-labels", "x.txt"], "add --train-images"),
        (["rum"], 'Did you mean "run"?'),
        (["report", "--out", "nowhere"], "must be the folder of a search"),
        (["dashboard", "--out", "nowhere"], "must be the folder of a search"),
        (["backbones", "--backbones", "nowhere.yaml"], "nowhere.yaml"),
        (["expand", "--count", "3"], "--out"),
        (["expand", "--count", "3", "--share", "1", "--out", "x"], "both say how many"),
        (["expand", "--run", "a", "--train-images", "b", "--out", "x"], "exclude each other"),
        (["expand", "--train-labels", "x.txt", "--out", "x"], "add --train-images"),
        (["expand", "--from", "nowhere.json", "--out", "x"], "nowhere.json"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_saved_setting_stands_in_for_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = SearchSettings(
        train_labels=tmp_path / "a.txt",
        train_images=tmp_path,
        trials=3,
        epochs=7,
        skip_missing=True,
        out=tmp_path,
    ).resolved()
    write_settings(saved, tmp_path)
    seen: list[SearchSettings] = []
    monkeypatch.setattr("search.run.search.run_search", lambda settings, *_: seen.append(settings))
    assert main(["run", "--out", str(tmp_path), "--trials", "9"]) == 0
    (settings,) = seen
    assert settings.trials == 9
    assert settings.epochs == 7
    assert settings.skip_missing
    assert settings.train_labels == tmp_path / "a.txt"


def test_debug_shows_the_traceback() -> None:
    from search.errors import UserError

    with pytest.raises(UserError):
        main(["report", "--out", "nowhere", "--debug"])


@pytest.mark.parametrize("timeout", ["-5m", "0s"])
def test_a_time_limit_lies_ahead(timeout: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--timeout", timeout]) == 2
    told = capsys.readouterr().err
    assert "--timeout" in told
    assert "it must be above 0" in told
