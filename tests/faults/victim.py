"""Starts real runs, one process each, that say where they are: `python -m tests.faults.victim`.

One server imports torch once, then forks a process for each order, a line of JSON on its standard
input: importing takes ten times as long as what a blow needs. The program is onefold's own, with
functions of the phases wrapped so that they tell their begin and end; some are slowed down, because
a moment of a millisecond would hardly ever be hit.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.blank import PIXEL
from tests.faults.phases import COMMANDS, TELLING, Phase
from tests.faults.trace import TraceWriter

STEP_PAUSE = 0.03
"""Seconds that a training step takes longer."""

RENAME_PAUSE = 0.01
"""Seconds between a file's content and its name."""

CANVAS_PAUSE = 0.002
"""Seconds before each part of a canvas that is written to the cache."""

LINE_PAUSE = 0.005
"""Seconds between the halves of what is appended to the journal while a trial is told."""

PROGRAMS = {"search": "search.cli", "ensemble": "ensemble.cli"}

HEAVY = (
    *("search.run.search", "matplotlib.pyplot", "ensemble.distill.distill", "ensemble.fuse.fuse"),
    *("ensemble.compare.compare", "ensemble.submission.submit"),
)
"""What the programs import when they are told what to do."""

CONSTANTS = {
    # A round of these few images shall be several batches.
    "ensemble.distill.distill:SCORING_BATCH": 16,
    # No phase that is struck, and most of a merge's time.
    "ensemble.compare.speed:SECONDS_PER_MEASUREMENT": 0.001,
}
"""What is another number in a victim."""


@dataclass(frozen=True)
class Order:
    """A process to start.

    Attributes:
        program: of `PROGRAMS`.
        arguments: of its command line.
        victim: the process's number in its run.
        trace: file that it appends its events to.
        output: file that its standard output and error are appended to.
    """

    program: str
    arguments: tuple[str, ...]
    victim: int
    trace: str
    output: str


def serve() -> None:
    """Forks a process for each order; tells `{"pid": ...}` at once and `{"status": ...}`, negative
    for a signal, at its end."""
    for module in (*HEAVY, *PROGRAMS.values()):
        importlib.import_module(module)
    # A search collects garbage after every piece of a trial, and need not look through torch.
    gc.freeze()
    _tell({"ready": True})
    for line in sys.stdin:
        order = Order(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            _live(order)
        _tell({"pid": pid})
        _, status = os.waitpid(pid, 0)
        _tell({"status": os.waitstatus_to_exitcode(status)})


def _tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _live(order: Order) -> None:
    """Runs the program as if it were a process of its own; never returns."""
    status = 70
    try:
        os.fsync = lambda _: None  # a kill loses nothing that was written
        # As a shell starts it, whatever this server was told to ignore.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open(order.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for new, number in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(new, number)
        print(f"== process {order.victim}: {' '.join(order.arguments)}", flush=True)
        phases = COMMANDS[order.program, order.arguments[0]]
        wrap_phases(TraceWriter(Path(order.trace), order.victim), phases)
        status = importlib.import_module(PROGRAMS[order.program]).main(list(order.arguments))
    except KeyboardInterrupt:
        status = 130  # it came before or after the program's own care
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit: the server's own end is not this process's.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wrap_phases(trace: TraceWriter, phases: tuple[Phase, ...]) -> None:
    """Makes this process tell its phases and training steps, and slow down where they are short."""
    for phase in phases:
        for place in phase.places:
            _wrap(place, functools.partial(_traced, trace, phase.name))
    training = _Steps(trace)
    for place in TRAININGS:
        _wrap(place, training.traced_train)
    _wrap("search.training.loop:Training.run", training.traced_run)
    _wrap("ensemble.distill.recordings:_Round.add", training.traced_answer)
    for place, value in CONSTANTS.items():
        owner, name = find(place)
        assert hasattr(owner, name), f"{place} is no more: it would be set in vain"
        setattr(owner, name, value)
    for place in ("pathlib:Path.replace", "pathlib:Path.rename"):
        _wrap(place, _slow_rename)
    _wrap("search.pixels.cache:_write", _slow_write)
    _wrap("matplotlib.figure:Figure.savefig", _one_pixel)
    _wrap(
        "optuna.storages.journal:JournalFileBackend.append_logs",
        functools.partial(_in_halves, trace),
    )


TRAININGS = ("search.study.driving:train", "ensemble.network.training:train")
"""Where a training is begun: its folder is the third argument."""

VIEWS = "views"
"""What the teachers' answers are called among the trainings: a round is an epoch."""


def _wrap(place: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    owner, name = find(place)
    setattr(owner, name, wrapper(getattr(owner, name)))


def find(place: str) -> tuple[Any, str]:
    """What holds the function of a `Phase.places` entry, and its name there."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *owners, name = path.split(".")
    for part in owners:
        owner = getattr(owner, part)
    return owner, name


def _traced(trace: TraceWriter, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with trace.phase(name):
            return function(*args, **kwargs)

    return traced


class _Steps:
    """Tells of every training step, and of every batch that the teachers were asked about."""

    def __init__(self, trace: TraceWriter) -> None:
        self.trace = trace
        self.training = ""

    def traced_train(self, train: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(train)
        def traced(recipe: Any, splits: Any, folder: Path, *args: Any, **kwargs: Any) -> Any:
            self.training = folder.name
            return train(recipe, splits, folder, *args, **kwargs)

        return traced

    def traced_run(self, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def traced(training: Any, until: int, on_step: Callable[[Any], None], *args: Any) -> Any:
            last = time.monotonic()

            def step(record: Any) -> None:
                nonlocal last
                time.sleep(STEP_PAUSE)
                values = {"epoch": record.epoch, "batch": record.step}
                seconds = time.monotonic() - last
                self.trace.write("step", training=self.training, seconds=seconds, **values)
                on_step(record)
                last = time.monotonic()

            return run(training, until, step, *args)

        return traced

    def traced_answer(self, add: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(add)
        def traced(round_: Any, number: int, *args: Any) -> None:
            started = time.monotonic()
            time.sleep(STEP_PAUSE)
            add(round_, number, *args)
            values = {"epoch": int(round_.margins_file.stem.split("_")[1]), "batch": number}
            seconds = time.monotonic() - started
            self.trace.write("step", training=VIEWS, seconds=seconds, **values)

        return traced


def _slow_rename(replace: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(replace)
    def slow(path: Path, target: Any) -> Path:
        time.sleep(RENAME_PAUSE)
        result: Path = replace(path, target)
        return result

    return slow


def _one_pixel(_savefig: Callable[..., Any]) -> Callable[..., Any]:
    """Nobody looks at a figure; its file is written and renamed all the same."""

    def saved(_figure: Any, path: Path, **_: Any) -> None:
        path.write_bytes(PIXEL)

    return saved


def _slow_write(write: Callable[..., None]) -> Callable[..., None]:
    """In two parts, as a kill may leave it."""

    @functools.wraps(write)
    def slow(file: int, content: bytes, place: int) -> None:
        half = len(content) // 2
        for part, where in ((content[:half], place), (content[half:], place + half)):
            time.sleep(CANVAS_PAUSE)
            write(file, part, where)

    return slow


def _in_halves(trace: TraceWriter, append: Callable[..., Any]) -> Callable[..., Any]:
    """While a trial is told, the journal's lines are written in two parts: a kill between them
    leaves what a full disk or a power cut leaves."""
    from optuna.storages.journal._file import get_lock_file

    @functools.wraps(append)
    def appended(backend: Any, logs: list[dict[str, Any]]) -> None:
        if not trace.is_in(TELLING.name):
            append(backend, logs)
            return
        content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with get_lock_file(backend._lock), Path(backend._file_path).open("ab") as file:
            for part in (content[: len(content) // 2], content[len(content) // 2 :]):
                file.write(part)
                file.flush()
                time.sleep(LINE_PAUSE)
            os.fsync(file.fileno())

    return appended


def order_line(order: Order) -> str:
    """An order as the server reads it."""
    return json.dumps(asdict(order)) + "\n"


if __name__ == "__main__":
    serve()
