"""Kills real runs at random moments of every phase, goes on with them, and counts what was lost.

    python tests/faults/kill.py --kills 200 --output faults.csv

Each run is killed, examined and gone on with, again and again, until it comes to its end; then the
next one begins. The table has a line for each phase and signal; the exit status is 1 if a promise
was not kept, and the run in question is left where it is. The same command goes on after the last
finished run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.e2e.conftest import DataSet, make_data_set  # noqa: E402 - found from any folder
from tests.faults.courses import CHECKPOINT_MINUTES, SearchCourse  # noqa: E402
from tests.faults.evidence import Problem  # noqa: E402
from tests.faults.phases import SEARCH, Phase  # noqa: E402
from tests.faults.trace import TraceReader, phase_lengths, repeated_steps  # noqa: E402
from tests.faults.victim import Order, order_line  # noqa: E402

SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}

MOST_SECONDS_TO_STOP = 30.0
"""After SIGTERM and SIGINT."""

MOST_SECONDS_TO_LIVE = 180.0
"""Of one process; a run of seven trials takes twenty on two cores."""

BEYOND = 1.15
"""Share of a phase's length until which it is struck: what comes right after it is struck too."""

KILLS = "kills.csv"
TABLE = ("phase", "signal", "kills", "trials_lost", "trials_repeated", "seconds_repeated")


@dataclass(frozen=True)
class Settings:
    """What the command is told."""

    kills: int
    phases: tuple[Phase, ...]
    signals: tuple[str, ...]
    seed: int
    trials: int
    epochs: int
    kills_a_run: int
    work: Path
    output: Path | None


@dataclass(frozen=True)
class Target:
    """What to do to a process: which phase to strike, when, and with what."""

    phase: Phase
    signal: str
    occurrence: int  # of the phase in the process, from 1
    share: float  # of the phase's length


@dataclass
class Blow:
    """A kill and what it cost; a row of kills.csv."""

    run: int
    victim: int  # the process's number in the run
    phase: str
    signal: str
    status: int
    seconds_to_stop: float
    trials_lost: int = 0
    trials_repeated: int = 0
    seconds_repeated: float = 0.0
    problems: list[str] = field(default_factory=list)

    def blame(self, problem: Problem) -> None:
        """Counts a problem as this kill's."""
        self.trials_lost += problem.kind == "lost"
        self.trials_repeated += problem.kind == "repeated"
        self.problems.append(problem.text)


class Server:
    """The process that victims are forked from."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.victim"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            # Ctrl-C is for this process, which then ends the other ones.
            start_new_session=True,
        )
        self.pid = 0
        self._read()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def start(self, order: Order) -> None:
        """Forks a process, whose `pid` is set until it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(order_line(order).encode())
        self._process.stdin.flush()
        self.pid = int(self._read()["pid"])

    def wait(self, seconds: float) -> int | None:
        """The exit status of the process, negative for a signal; None if it lives on after so many
        seconds."""
        ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, seconds))
        if not ready:
            return None
        self.pid = 0
        return int(self._read()["status"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server of victims died; its messages are above")
        message: dict[str, Any] = json.loads(line)
        return message


class Harness:
    """Runs, kills and counts."""

    def __init__(self, settings: Settings, server: Server, console: Console) -> None:
        self.settings, self.server, self.console = settings, server, console
        data = settings.work / "data"
        # Hardly learned: figures that are all 1.0 could not tell runs apart.
        self.data = DataSet(data) if data.exists() else make_data_set(data, contrast=12)
        self.blows = self._read_blows()
        self.lengths: dict[str, list[float]] = {}
        self.unbroken: Path | None = None

    def kill_all(self) -> list[Blow]:
        """Goes on until there are as many kills as asked for; returns all."""
        self._run_unbroken()
        with Progress(console=self.console, disable=not self.console.is_terminal) as bar:
            task = bar.add_task("killing", total=self.settings.kills, completed=len(self.blows))
            while len(self.blows) < self.settings.kills:
                number = max((blow.run for blow in self.blows), default=0) + 1
                new = self._kill_run(number)
                self.blows += new
                self._write_blows()
                bar.update(task, completed=len(self.blows))
                told = f"run {number}: {len(new)} kills, {len(self.blows)} in all"
                self._tell(told + "".join(f"\n  {line}" for blow in new for line in blow.problems))
        return self.blows

    def _course(self, name: str, *, in_database: bool) -> SearchCourse:
        folder = self.settings.work / name
        shutil.rmtree(folder, ignore_errors=True)
        for path in folder.parent.glob(f"{name}.*"):
            path.unlink()
        return SearchCourse(
            folder,
            self.data,
            trials=self.settings.trials,
            epochs=self.settings.epochs,
            in_database=in_database,
            unbroken=self.unbroken,
        )

    def _run_unbroken(self) -> None:
        """A run without a blow, which the others shall equal; measures the phases."""
        course = self._course("unbroken", in_database=False)
        trace = TraceReader(course.run.with_suffix(".trace"))
        status, _ = self._live(course, trace, 0, None)
        trace.close()
        self.lengths = phase_lengths(trace.events)
        problems = [*course.examine(gracefully=True), *course.examine_end()]
        if status or problems:
            told = "; ".join(problem.text for problem in problems)
            raise RuntimeError(f"a run without a blow must end well, found status {status} {told}")
        missing = [p.name for p in course.phases if p.name not in self.lengths]
        if missing:
            raise RuntimeError(f"every phase must come in a run, found none of {missing}")
        self.unbroken = course.run / "leaderboard.csv"

    def _kill_run(self, number: int) -> list[Blow]:
        """One run from nothing to its end."""
        generator = random.Random(f"{self.settings.seed}:{number}")
        course = self._course(f"run{number:03d}", in_database=number % 2 == 0)
        trace = TraceReader(course.run.with_suffix(".trace"))
        blows: list[Blow] = []
        known: frozenset[str] = frozenset()  # trainings that were complete before the process
        problems: list[Problem] = []
        for victim in range(10 * self.settings.kills_a_run):
            target = self._choose(generator, course, blows)
            begun = len(trace.events)
            status, seconds = self._live(course, trace, victim, target)
            trained = {event.training for event in trace.events[begun:] if event.kind == "step"}
            problems += [
                Problem("repeated", f"{name} was complete and was trained again")
                for name in sorted(trained & known)
            ]
            if status == 0:
                break
            assert target is not None, f"process {victim} ended with {status} and was not struck"
            blow = Blow(number, victim, target.phase.name, target.signal, status, round(seconds, 2))
            blows.append(blow)
            problems += _judge_end(target, status, seconds)
            gracefully = status == 130
            problems += course.examine(gracefully=gracefully)
            known = course.finished
            for problem in problems:
                blow.blame(problem)
            problems = []
        trace.close()
        if status:
            problems.append(Problem("lost", "the run comes to no end"))
        problems += [*course.examine(gracefully=True), *course.examine_end()]
        self._count_repeated(blows, trace)
        if blows:
            for problem in problems:
                blows[-1].blame(problem)
        for phase, lengths in phase_lengths(trace.events).items():
            self.lengths.setdefault(phase, []).extend(lengths)
        if not any(blow.problems for blow in blows):
            shutil.rmtree(course.run)
            for path in course.run.parent.glob(f"{course.run.name}.*"):
                path.unlink()
        return blows

    def _choose(
        self, generator: random.Random, course: SearchCourse, blows: Sequence[Blow]
    ) -> Target | None:
        """What was struck least often, of what the next process comes to; None lets it end."""
        left = self.settings.kills - len(self.blows) - len(blows)
        if left <= 0 or len(blows) >= self.settings.kills_a_run:
            return None
        reachable = [phase for phase in course.reachable() if phase in self.settings.phases]
        if not reachable:
            return None
        counts = Counter((blow.phase, blow.signal) for blow in (*self.blows, *blows))
        choices = [(phase, name) for phase in reachable for name in self.settings.signals]
        fewest = min(counts[phase.name, name] for phase, name in choices)
        phase, name = generator.choice(
            [(phase, name) for phase, name in choices if counts[phase.name, name] == fewest]
        )
        occurrence = generator.randint(1, phase.occurrences)
        return Target(phase, name, occurrence, generator.uniform(0.0, BEYOND))

    def _live(
        self, course: SearchCourse, trace: TraceReader, victim: int, target: Target | None
    ) -> tuple[int, float]:
        """Lets a process live until it is struck or ends.

        Returns:
            Its exit status, and the seconds from the blow to its end (0 without a blow).
        """
        output = course.run.with_suffix(".log")
        trace_path = course.run.with_suffix(".trace")
        self.server.start(
            Order(course.program, course.arguments, victim, str(trace_path), str(output))
        )
        started = time.monotonic()
        seen, moment, struck = 0, None, None
        while (status := self.server.wait(0.001)) is None:
            for event in trace.new():
                if target is None or event.kind != "begin" or event.phase != target.phase.name:
                    continue
                seen += 1
                if seen == target.occurrence:
                    typical = statistics.median(self.lengths[event.phase])
                    moment = event.time + target.share * typical
            now = time.monotonic()
            if target is not None and moment is not None and struck is None and now >= moment:
                os.kill(self.server.pid, SIGNALS[target.signal])
                struck = now
            if now - started > MOST_SECONDS_TO_LIVE:
                os.kill(self.server.pid, signal.SIGKILL)
        trace.new()
        return status, 0.0 if struck is None else time.monotonic() - struck

    def _count_repeated(self, blows: list[Blow], trace: TraceReader) -> None:
        """Steps that were done twice, held against what a blow may cost."""
        by_victim = {blow.victim: blow for blow in blows}
        for victim, seconds in repeated_steps(trace.events).items():
            blow = by_victim[victim]
            blow.seconds_repeated = round(sum(seconds), 3)
            if blow.signal != "KILL":
                text = f"{len(seconds)} steps were repeated after SIG{blow.signal}"
                blow.blame(Problem("broken", text))
            # Before its last step no save was due: what came before it took less than the limit.
            elif sum(seconds[:-1]) > 60 * CHECKPOINT_MINUTES:
                text = f"{sum(seconds):.2f} s of work were repeated: {len(seconds)} steps"
                blow.blame(Problem("broken", text))

    def _read_blows(self) -> list[Blow]:
        path = self.settings.work / KILLS
        if not path.exists():
            return []
        table = pd.read_csv(path, converters={"problems": json.loads})
        return [Blow(**row) for row in table.to_dict("records")]

    def _write_blows(self) -> None:
        rows = [{**asdict(blow), "problems": json.dumps(blow.problems)} for blow in self.blows]
        pd.DataFrame(rows).to_csv(self.settings.work / KILLS, index=False)

    def _tell(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _judge_end(target: Target, status: int, seconds: float) -> list[Problem]:
    """How a process may end that was struck."""
    number = SIGNALS[target.signal]
    expected = {-number} if target.signal == "KILL" else {-number, 130}
    problems = []
    if status not in expected:
        text = f"SIG{target.signal} in {target.phase.name} ended the process with {status}"
        problems.append(Problem("broken", text))
    if seconds > MOST_SECONDS_TO_STOP:
        problems.append(Problem("broken", f"the process took {seconds:.0f} s to end"))
    return problems


def make_table(blows: Sequence[Blow]) -> pd.DataFrame:
    """A row for each phase and signal: how often it was struck, and what that cost; the seconds
    are the most that one kill cost."""
    rows = pd.DataFrame([asdict(blow) for blow in blows])
    rows["kills"] = 1
    rows["broken_promises"] = rows["problems"].map(len)
    order = {phase.name: number for number, phase in enumerate(SEARCH)}
    table = rows.groupby(["phase", "signal"], as_index=False).agg(
        {
            "kills": "sum",
            "trials_lost": "sum",
            "trials_repeated": "sum",
            "seconds_repeated": "max",
            "seconds_to_stop": "max",
            "broken_promises": "sum",
        }
    )
    return table.sort_values(["phase", "signal"], key=lambda c: c.map(lambda v: order.get(v, v)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Kills as told; returns 1 if anything was lost."""
    settings = _parse(arguments)
    console = Console()
    settings.work.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "ONEFOLD_CACHE": str(settings.work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
    }
    with Server(environment) as server:
        blows = Harness(settings, server, console).kill_all()
    table = make_table(blows)
    console.print(table.to_string(index=False), highlight=False, markup=False, soft_wrap=True)
    if settings.output is not None:
        table.to_csv(settings.output, index=False)
    broken = [blow for blow in blows if blow.problems]
    for blow in broken:
        for problem in blow.problems:
            console.print(
                f"run {blow.run}, {blow.phase}, SIG{blow.signal}: {problem}", soft_wrap=True
            )
    return 1 if broken else 0


def _parse(arguments: Sequence[str] | None) -> Settings:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [phase.name for phase in SEARCH]
    parser.add_argument("--kills", type=int, default=200, help="earlier ones of --work included")
    parser.add_argument("--phases", default=",".join(names), help="a,b; default: all")
    parser.add_argument("--signals", default=",".join(SIGNALS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=7, help="of each run")
    parser.add_argument("--epochs", type=int, default=3, help="of each trial")
    parser.add_argument("--kills-a-run", type=int, default=15, help="most of them")
    parser.add_argument("--work", type=Path, default=ROOT / "results" / "faults")
    parser.add_argument("--output", type=Path, help="CSV file for the table")
    given = parser.parse_args(arguments)
    phases = [phase for phase in SEARCH if phase.name in given.phases.split(",")]
    unknown = set(given.phases.split(",")) - set(names) or set(given.signals.split(",")) - set(
        SIGNALS
    )
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; the phases are {', '.join(names)}")
    return Settings(
        kills=given.kills,
        phases=tuple(phases),
        signals=tuple(signals),
        seed=given.seed,
        trials=given.trials,
        epochs=given.epochs,
        kills_a_run=given.kills_a_run,
        work=given.work.absolute(),
        output=given.output,
    )


if __name__ == "__main__":
    raise SystemExit(main())
