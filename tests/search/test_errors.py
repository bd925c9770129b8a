"""How a command ends: Ctrl-C with one word, a disk that refuses with one line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from search.cli import main
from search.errors import Interrupted
from search.settings.saved import write_settings
from search.settings.search import SearchSettings
from tests.processes import Process

ROOT = Path(__file__).parents[2]

INTERRUPTED_IMPORT = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
except BaseException:
    pass  # some libraries swallow it, and fail for another reason
raise ImportError("half a library")
"""


def environment(*folders: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*folders, ROOT)))}


@pytest.mark.parametrize(
    ("library", "command"),
    [
        ("cyclopts", "search report --out x"),
        ("cyclopts", "ensemble compare --run x"),
        ("torch", "search run"),
        ("torch", "search baseline"),
        ("torch", "search report --out x"),
        ("torch", "search backbones"),
        ("optuna", "search dashboard --out x"),
        ("torch", "ensemble distill --run x"),
        ("torch", "ensemble fuse --run x"),
        ("torch", "ensemble soup --run x"),
        ("torch", "ensemble compare --run x"),
        ("torch", "ensemble submit --run x --images x --list x --phase test"),
        ("torch", "ensemble predict x --model x"),
        ("torch", "ensemble verify x"),
    ],
)
def test_ctrl_c_during_an_import(library: str, command: str, tmp_path: Path) -> None:
    source = INTERRUPTED_IMPORT
    if library == "cyclopts":
        # Before any handler there is nothing but the exception itself.
        source = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / f"{library}.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "stopped\n")


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), Interrupted("interrupted by the user")])
def test_ctrl_c_in_a_report_is_no_traceback(
    reason: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise reason

    monkeypatch.setattr("search.run.report.write_run_report", stop)
    before = signal.getsignal(signal.SIGINT)
    assert main(["report", "--out", "x"]) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(type(reason)):
        main(["report", "--out", "x", "--debug"])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied", "x/y.csv"), "x/y.csv must be open to this user"),
        (OSError(28, "No space left on device"), "found: No space left on device;"),
    ],
)
def test_what_a_disk_refuses_is_told_in_one_line(
    error: OSError, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("search.run.report.write_run_report", refuse)
    assert main(["report", "--out", "x"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert told in line
    assert line.count("\n") == 1
    with pytest.raises(OSError, match=str(error.strerror)):
        main(["report", "--out", "x", "--debug"])


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "x"), BrokenPipeError(32)])
def test_what_the_user_cannot_mend_stays_a_traceback(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("search.run.report.write_run_report", fail)
    with pytest.raises(type(error)):
        main(["report", "--out", "x"])


def test_a_folder_that_may_only_be_read_is_told_before_anything_is_drawn(
    tmp_path: Path, read_only: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_settings(SearchSettings(out=tmp_path).resolved(), tmp_path)
    read_only(tmp_path)
    assert main(["report", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} must be a folder that can be written to, found: Read-only file system; "
        "copy it to where it can\n"
    )


def test_ctrl_c_ends_the_dashboard(tmp_path: Path) -> None:
    settings = SearchSettings(train_labels=tmp_path / "a", train_images=tmp_path, out=tmp_path)
    write_settings(settings.resolved(), tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dashboard = ("dashboard", "--out", str(tmp_path), "--port", str(port))
    process = Process(tmp_path / "told.txt", "search", *dashboard)
    while process.is_alive:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    assert process.kill(signal.SIGINT) == 130
    assert "Traceback" not in process.told
    assert process.told.endswith("stopped\n")
