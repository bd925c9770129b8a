"""Processes of our programs that need not import torch: they are forked from one that has."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from multiprocessing import forkserver, get_context
from pathlib import Path

from tests.blank import blank

ROOT = Path(__file__).parents[1]

PATIENCE_SECONDS = 240.0
"""For a line to be told."""


class Process:
    """`python -m module arguments`, or `python program.py`, in a group of processes of its own.

    Not for what is told of the import itself: `subprocess` starts a new interpreter.
    """

    def __init__(self, output: Path, module: str, *arguments: str, blank: bool = False) -> None:
        """
        Args:
            output: file that gets the standard output and error.
            module: with a `__main__` or a part for being one; or the path of a program.
            arguments: of its command line.
            blank: its figures are one pixel each.
        """
        self.output = output
        context = get_context("forkserver")
        context.set_forkserver_preload(["tests.preloaded"])
        before = os.environ.get("PYTHONPATH")
        # It is there for what the server imports; only the first process starts one.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
        try:
            forkserver.ensure_running()
        finally:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before
        self._process = context.Process(
            target=_live,
            args=(str(output), dict(os.environ), str(Path.cwd()), module, arguments, blank),
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def told(self) -> str:
        """What it has written so far."""
        return self.output.read_text("utf-8") if self.output.exists() else ""

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def wait_for(self, text: str) -> None:
        """Returns once the text is told; it is an error to end without."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.told:
            assert self.is_alive or text in self.told, self.told[-2000:]
            assert time.monotonic() < deadline, self.told[-2000:]
            time.sleep(0.02)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends a signal, and waits."""
        os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        """The exit status once it has ended, negative for a signal."""
        self._process.join()
        status = self._process.exitcode
        assert status is not None
        return status


def _live(
    output: str,
    environment: dict[str, str],
    folder: str,
    module: str,
    arguments: tuple[str, ...],
    is_blank: bool,
) -> None:
    """What the new process does."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.fsync = lambda _: None  # as for the tests: only a power cut could tell
    sys.argv = [module, *arguments]
    if is_blank:
        blank(setattr)
    if module.endswith(".py"):
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
