"""Starts processes, strikes them, and holds what is left against what was promised."""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import Progress

from tests.e2e.conftest import BACKBONES, DataSet, make_data_set
from tests.faults.courses import CHECKPOINT_MINUTES, Command, Course, SearchCourse, cache_of
from tests.faults.evidence import Problem
from tests.faults.merging import OF_DISTILLING, MergeCourse
from tests.faults.phases import MERGE, SEARCH, Phase
from tests.faults.trace import TraceReader, phase_lengths, repeated_steps
from tests.faults.victim import Order, order_line

ROOT = Path(__file__).resolve().parents[2]

SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}

MOST_SECONDS_TO_STOP = 30.0
"""After SIGTERM and SIGINT."""

MOST_SECONDS_TO_LIVE = 180.0
"""Of one process; a run of seven trials takes thirty on two cores."""

BEYOND = 1.15
"""Share of a phase's length until which it is struck: what comes right after it is struck too."""

KILLS = "kills.csv"

UNBROKEN = {SEARCH: "unbroken", MERGE: "unbroken-merge"}
"""Folders of the courses without a blow, by their phases."""


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
        self.kill(signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def start(self, order: Order) -> None:
        """Forks a process, whose `pid` is set until it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(order_line(order).encode())
        self._process.stdin.flush()
        self.pid = int(self._read()["pid"])

    def kill(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if it lives."""
        if self.pid:
            # It may have ended since it was last waited for.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

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
        (data / "backbones.yaml").write_text(BACKBONES)
        self.blows = self._read_blows()
        self.lengths: dict[str, list[float]] = {}
        self.occurrences: dict[str, int] = {}  # of each phase in an unbroken course
        self.is_unbroken_there = False

    def kill_all(self) -> list[Blow]:
        """Goes on until there are as many kills as asked for; returns all."""
        if len(self.blows) >= self.settings.kills:
            return self.blows
        for phases in (SEARCH, MERGE):
            self._run_unbroken(phases)
        self.is_unbroken_there = True
        with Progress(console=self.console, disable=not self.console.is_terminal) as bar:
            task = bar.add_task("killing", total=self.settings.kills, completed=len(self.blows))
            number = max((blow.run for blow in self.blows), default=0)
            while len(self.blows) < self.settings.kills:
                number += 1
                new = self._kill_run(number)
                self.blows += new
                self._write_blows()
                bar.update(task, completed=len(self.blows))
                told = f"run {number}: {len(new)} kills, {len(self.blows)} in all"
                self._tell(told + "".join(f"\n  {line}" for blow in new for line in blow.problems))
        return self.blows

    def _course(self, name: str, phases: tuple[Phase, ...], *, in_database: bool = False) -> Course:
        folder, settings = self.settings.work / name, self.settings
        for left in (folder, cache_of(folder)):
            shutil.rmtree(left, ignore_errors=True)
        for path in folder.parent.glob(f"{name}.*"):
            path.unlink()
        unbroken = settings.work / UNBROKEN[phases] if self.is_unbroken_there else None
        if phases == MERGE:
            finished = settings.work / UNBROKEN[SEARCH]
            distils = bool(set(OF_DISTILLING) & set(settings.phases))
            return MergeCourse(
                folder, self.data, finished=finished, unbroken=unbroken, distils=distils
            )
        return SearchCourse(
            folder,
            self.data,
            trials=settings.trials,
            epochs=settings.epochs,
            in_database=in_database,
            unbroken=unbroken,
        )

    def _run_unbroken(self, phases: tuple[Phase, ...]) -> None:
        """A course without a blow, which the others shall equal; measures the phases."""
        course = self._course(UNBROKEN[phases], phases)
        trace = TraceReader(course.run.with_suffix(".trace"))
        victim = 0
        while (command := course.command()) is not None:
            status, _ = self._live(command, course.run, trace, victim, None)
            if status:
                log = course.run.with_suffix(".log")
                raise RuntimeError(f"without a blow a command must end well, found {status}: {log}")
            course.succeeded()
            victim += 1
        trace.close()
        lengths = phase_lengths(trace.events)
        self.lengths |= lengths
        self.occurrences |= {name: len(times) for name, times in lengths.items()}
        problems = [*course.examine(gracefully=True), *course.examine_end()]
        if problems:
            told = "; ".join(problem.text for problem in problems)
            raise RuntimeError(f"a course without a blow must keep every promise, found {told}")
        missing = [p.name for p in course.phases if p.name not in self.lengths]
        if missing:
            raise RuntimeError(f"every phase must come in a course, found none of {missing}")

    def _kill_run(self, number: int) -> list[Blow]:
        """One course from nothing to its end."""
        generator = random.Random(f"{self.settings.seed}:{number}")
        phases = min((SEARCH, MERGE), key=lambda phases: self._fewest(phases, ())[0])
        course = self._course(f"run{number:03d}", phases, in_database=number % 2 == 0)
        trace = TraceReader(course.run.with_suffix(".trace"))
        blows: list[Blow] = []
        known: frozenset[str] = frozenset()  # trainings that were complete before the process
        problems: list[Problem] = []
        for victim in range(10 * self.settings.kills_a_run):
            command = course.command()
            if command is None:
                break
            target = self._choose(generator, course, blows)
            begun = len(trace.events)
            status, seconds = self._live(command, course.run, trace, victim, target)
            trained = {event.training for event in trace.events[begun:] if event.kind == "step"}
            problems += [
                Problem("repeated", f"{name} was complete and was trained again")
                for name in sorted(trained & known)
            ]
            if status == 0:
                course.succeeded()
            elif target is None:
                text = f"process {victim} ended with {status} though nothing struck it"
                problems.append(Problem("broken", text))
                break
            else:
                struck = (target.phase.name, target.signal)
                blows.append(Blow(number, victim, *struck, status, round(seconds, 2)))
                problems += _judge_end(target, status, seconds)
            problems += course.examine(gracefully=status in (0, 130))
            known = course.finished
            if blows:
                for problem in problems:
                    blows[-1].blame(problem)
                problems = []
        trace.close()
        if course.command() is not None:
            problems.append(Problem("lost", "the course comes to no end"))
        problems += course.examine_end()
        self._count_repeated(blows, trace)
        for problem in problems:
            if not blows:
                raise RuntimeError(f"without a blow a course must end well: {problem.text}")
            blows[-1].blame(problem)
        for phase, lengths in phase_lengths(trace.events).items():
            self.lengths.setdefault(phase, []).extend(lengths)
        if not any(blow.problems for blow in blows):
            shutil.rmtree(course.run)
            for path in course.run.parent.glob(f"{course.run.name}.*"):
                path.unlink()
        return blows

    def _fewest(self, phases: Iterable[Phase], blows: Sequence[Blow]) -> tuple[int, list[Phase]]:
        """How often what was struck least often was struck, and the phases it is in."""
        wanted = [phase for phase in phases if phase in self.settings.phases]
        if not wanted:
            return sys.maxsize, []
        counts = Counter((blow.phase, blow.signal) for blow in (*self.blows, *blows))
        lowest = [min(counts[p.name, name] for name in self.settings.signals) for p in wanted]
        fewest = min(lowest)
        return fewest, [p for p, count in zip(wanted, lowest, strict=True) if count == fewest]

    def _choose(
        self, generator: random.Random, course: Course, blows: Sequence[Blow]
    ) -> Target | None:
        """What was struck least often, if the next process comes to it; None lets it end."""
        left = self.settings.kills - len(self.blows) - len(blows)
        if left <= 0 or len(blows) >= self.settings.kills_a_run:
            return None
        fewest, rarest = self._fewest(self.settings.phases, blows)
        # In the course's order: what it has passed it may not come to again.
        phase = next((phase for phase in course.reachable() if phase in rarest), None)
        if phase is None:
            return None
        counts = Counter(b.signal for b in (*self.blows, *blows) if b.phase == phase.name)
        signals = [name for name in self.settings.signals if counts[name] == fewest]
        most = min(phase.occurrences, self.occurrences[phase.name])
        share = generator.uniform(0.0, BEYOND)
        return Target(phase, generator.choice(signals), generator.randint(1, most), share)

    def _live(
        self,
        command: Command,
        run: Path,
        trace: TraceReader,
        victim: int,
        target: Target | None,
    ) -> tuple[int, float]:
        """Lets a process live until it is struck or ends.

        Returns:
            Its exit status, and the seconds from the blow to its end (0 without a blow).
        """
        files = [str(run.with_suffix(suffix)) for suffix in (".trace", ".log")]
        self.server.start(Order(command.program, command.arguments, victim, *files))
        started = time.monotonic()
        seen, moment, struck = 0, None, None
        pause = 0.05 if target is None else 0.002
        while (status := self.server.wait(pause)) is None:
            for event in trace.new():
                if target is None or event.kind != "begin" or event.phase != target.phase.name:
                    continue
                seen += 1
                if seen == target.occurrence:
                    typical = statistics.median(self.lengths[event.phase])
                    moment = event.time + target.share * typical
            now = time.monotonic()
            if target is not None and moment is not None and struck is None and now >= moment:
                self.server.kill(SIGNALS[target.signal])
                struck = now
            if now - started > MOST_SECONDS_TO_LIVE:
                self.server.kill(signal.SIGKILL)
        trace.new()
        return status, 0.0 if struck is None else time.monotonic() - struck

    def _count_repeated(self, blows: list[Blow], trace: TraceReader) -> None:
        """Steps that were done twice, held against what a blow may cost."""
        by_victim = {blow.victim: blow for blow in blows}
        for victim, seconds in repeated_steps(trace.events).items():
            blow = by_victim.get(victim)
            if blow is None:
                raise RuntimeError(f"process {victim} was not struck, and its steps were repeated")
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
