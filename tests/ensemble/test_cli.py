from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from ensemble.cli import LOCK, main
from ensemble.pool.pool import open_pool

COMMANDS = ("distill", "fuse", "soup", "compare", "submit", "predict", "stress", "verify")

pytestmark = pytest.mark.usefixtures("blank_figures")


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


def command_of(name: str, run: Path, *more: str) -> list[str]:
    return [name, "--run", str(run), "--device", "cpu", "--workers", "0", *more]


DISTILL = ("--epochs", "2", "--views", "2")
GOES_ON = "the same command goes on from there"
STARTS_ANEW = "the same command starts anew"


@pytest.mark.parametrize(
    ("name", "more", "how"),
    [
        ("distill", DISTILL, GOES_ON),
        ("fuse", ("--finetune-epochs", "1"), GOES_ON),
        ("fuse", (), STARTS_ANEW),
        ("soup", (), STARTS_ANEW),
    ],
)
def test_a_time_limit_is_no_failure_and_tells_how_to_go_on(
    name: str, more: tuple[str, ...], how: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = command_of(name, run_folder, *more)
    open_pool(run_folder, device="cpu")  # nothing is left to score
    assert main([*command, "--timeout", "0.001s"]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == f"the time limit was reached: {how}"
    assert told.err == ""
    assert main(command) == 0


def test_a_time_limit_while_a_run_is_opened_goes_on_as_well(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command_of("soup", run_folder, "--timeout", "0.001s")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"the time limit was reached: {GOES_ON}"


def on_call(monkeypatch: pytest.MonkeyPatch, where: str, action: Callable[[], None]) -> None:
    """Lets something happen when a function is called."""
    module, name = where.rsplit(".", 1)
    original = getattr(import_module(module), name)

    def called(*arguments: object, **options: object) -> object:
        action()
        return original(*arguments, **options)

    monkeypatch.setattr(where, called)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_told_and_ends_with_130(
    number: int,
    run_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = command_of("distill", run_folder, *DISTILL)
    with monkeypatch.context() as patch:
        kill = "ensemble.distill.distill.plan_distillation"
        on_call(patch, kill, lambda: os.kill(os.getpid(), number))
        assert main(command) == 130
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == f"interrupted by the user: {GOES_ON}"
    assert told.err == "stopped\n"
    assert main(command) == 0


def test_a_stop_while_a_students_comparison_is_made_points_to_it(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command would distil once more."""
    kill = "ensemble.compare.compare.gather"
    on_call(monkeypatch, kill, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(command_of("distill", run_folder, *DISTILL)) == 130
    assert (run_folder / "merged" / "distilled" / "metrics.json").exists()
    assert capsys.readouterr().out.splitlines()[-1] == (
        "interrupted by the user: compare all models with: python -m ensemble compare --run "
        f"{run_folder}"
    )


# --- one merge at a time


@pytest.mark.parametrize("name", ["distill", "fuse", "soup", "compare"])
def test_a_second_merge_of_a_run_is_refused_in_one_line(
    name: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(run_folder / LOCK):
        assert main(command_of(name, run_folder)) == 2
    error = capsys.readouterr().err
    assert "must be merged by one process at a time, and another one is at it" in error
    assert error.count("\n") == 1
    assert not (run_folder / "merged").exists()


def test_a_merge_may_run_beside_a_search_and_frees_the_run(run_folder: Path) -> None:
    with FileLock(run_folder / ".lock"):
        assert main(command_of("soup", run_folder)) == 0
    with FileLock(run_folder / LOCK, timeout=0):
        pass


def test_no_lock_is_left_where_there_is_no_run(tmp_path: Path) -> None:
    assert main(command_of("soup", tmp_path)) == 2
    assert main(command_of("soup", tmp_path / "nowhere")) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_written_to_is_told_in_one_line_and_predicts(
    run_folder: Path, capsys: pytest.CaptureFixture[str], read_only: Callable[[Path], None]
) -> None:
    image = next(Path(run_folder).glob("candidates/0001/*.csv")).with_suffix(".png")
    Image.new("RGB", (32, 32)).save(image)
    read_only(run_folder)
    assert main(command_of("fuse", run_folder)) == 2
    error = capsys.readouterr().err
    assert "must be a folder that merging can write to, found: [Errno 30] Read-only" in error
    assert error.count("\n") == 1
    model = run_folder / "candidates" / "0001"
    assert main(["predict", str(image), "--model", str(model), "--device", "cpu"]) == 0
    assert "img_name,y_pred" in capsys.readouterr().out


def test_what_killed_merges_left_half_written_is_gone(run_folder: Path) -> None:
    left = [
        run_folder / "merged" / folder / f".{file}.4711.part"
        for folder in ("views", ".distilled", "fused")
        for file in ("margins_0000.npy", "checkpoint.pt")
    ]
    left += [
        run_folder / f".{file}.4711.part" for file in ("comparison.csv", "comparison-dark.png")
    ]
    of_the_search = run_folder / ".leaderboard.csv.4711.part"
    for path in (*left, of_the_search):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert main(command_of("compare", run_folder)) == 0
    assert not [path for path in left if path.exists()]
    assert of_the_search.exists()
