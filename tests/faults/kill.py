"""Kills real runs at random moments of every phase, goes on with them, and counts what was lost.

    python tests/faults/kill.py --kills 200 --output faults.csv

Each run is killed, examined and gone on with, again and again, until it comes to its end; then the
next one begins: a search, or the way from a finished search to a submission. The table has a line
for each phase and signal; the exit status is 1 if a promise was not kept, and the run in question
is left where it is. The same command goes on after the last finished run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.faults.harness import SIGNALS, Blow, Harness, Server, Settings  # noqa: E402
from tests.faults.phases import EVERY  # noqa: E402


def make_table(blows: Sequence[Blow]) -> pd.DataFrame:
    """A row for each phase and signal: how often it was struck, and what that cost; the seconds
    are the most that one kill cost."""
    rows = pd.DataFrame([asdict(blow) for blow in blows])
    rows["kills"] = 1
    rows["broken_promises"] = rows["problems"].map(len)
    order = {phase.name: number for number, phase in enumerate(EVERY)}
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
    names = [phase.name for phase in EVERY]
    parser.add_argument("--kills", type=int, default=200, help="earlier ones of --work included")
    parser.add_argument("--phases", default=",".join(names), help="a,b; default: all")
    parser.add_argument("--signals", default=",".join(SIGNALS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=7, help="of each run")
    parser.add_argument("--epochs", type=int, default=3, help="of each finished trial")
    parser.add_argument("--kills-a-run", type=int, default=18, help="most of them")
    parser.add_argument("--work", type=Path, default=ROOT / "results" / "faults")
    parser.add_argument("--output", type=Path, help="CSV file for the table")
    given = parser.parse_args(arguments)
    phases = [phase for phase in EVERY if phase.name in given.phases.split(",")]
    for kind, known in (("phases", names), ("signals", list(SIGNALS))):
        unknown = [name for name in getattr(given, kind).split(",") if name not in known]
        if unknown:
            parser.error(f"--{kind} must be among {', '.join(known)}, found '{unknown[0]}'")
    return Settings(
        kills=given.kills,
        phases=tuple(phases),
        signals=tuple(given.signals.split(",")),
        seed=given.seed,
        trials=given.trials,
        epochs=given.epochs,
        kills_a_run=given.kills_a_run,
        work=given.work.absolute(),
        output=given.output,
    )


if __name__ == "__main__":
    raise SystemExit(main())
