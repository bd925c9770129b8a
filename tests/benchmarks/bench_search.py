"""Ways of searching in earnest: each has the same time of the clock, on the same images.

    python -m tests.benchmarks.bench_search --train-labels F --train-images D --train-groups G \\
        --val-labels F --val-images D --val-groups G --backbones B --pool P --weights-dir W \\
        --timeout 1h --folder W --output results/benchmarks/search.csv

`ours` is the command `search run --timeout`, from its start to its results; the others have their
images opened and decoded before their time begins, and score report after it. Each ends with one
complete network, the best on select; report chooses nothing. Nothing else may run meanwhile: arms
take turns, seed by seed, and the same command goes on after the last that came to its end.

Beside the table lie a summary, and the leaderboard of every run. Intervals (95%) are of means over
the seeds, and resample groups.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
import pandas as pd
from cyclopts import run
from numpy.typing import NDArray
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from rich.console import Console

from search.errors import Interrupted, UserError
from search.machine.files import CANDIDATES, write_atomically
from search.machine.interruption import Interruption
from search.pixels.loading.reading import Reader
from search.pixels.opening import fill, open_quarantine, open_reader
from search.report.terminal import StudyProgress
from search.run.folder import study_of
from search.run.search import run_search
from search.settings import SearchSettings
from search.study.decisions.pace import next_stretch
from search.study.plan import SearchPlan, prepare
from search.study.trials import recipe_row, searched_trials, trial_name
from search.training.candidate import Candidate, Look, score_on_report
from search.training.loop import NonFiniteLossError
from search.training.metrics import roc_auc
from search.training.recipe import Recipe
from search.training.scoring import first_look
from search.training.train import Watch, train
from tests.benchmarks.bench_anytime import RESAMPLINGS, resampled_groups
from tests.benchmarks.measured import kept_in
from tests.benchmarks.replay import earlier_space
from tests.benchmarks.replay.curves import Configuration, by_hand

COLUMNS = ["arm", "seed", "seconds", "best_auc", "auc_report"]
"""A row whenever the best look at select changes, and a last one of the network that the arm ends
with, on all of select; only that one is scored on report."""

OURS, PLAIN = "ours", "optuna"

EPOCHS_OF_A_TRIAL = 4
"""Of plain Optuna, as of the search of 70bbfd5."""

SHARE_OF_PRESETS = 0.25
"""Of the time, before the best preset has all that is left."""

MARGIN = 0.05
"""Share of the time left that such a training is not planned with, because speeds vary."""

ROWS, BOARD, SCORES = "rows.csv", "leaderboard.csv", "scores_report.csv"
"""In an arm's folder; its rows are written last, when it has come to its end."""

QUICK_SECONDS = 2.0

QUICK_BACKBONES = """
budget: 200000000
pretraining: ImageNet-1K alone
pools:
  demo: {test_resnet.r160_in1k: {image_sizes: [32], learning_rate: [0.0003, 0.01]}}
"""
"""Without a ResNet-18: the baseline's settings are applied to the pool's only network."""


@dataclass
class Seen(Watch):
    """The best look so far, and when it came, in seconds of the clock."""

    started: float = field(default_factory=time.monotonic)
    best: list[tuple[float, float]] = field(default_factory=list)
    last: float = float("nan")

    def look(self, record: Look, best: object = None) -> None:
        self.last = record.select_auc
        if not self.best or record.select_auc > self.best[-1][1]:
            self.best.append((time.monotonic() - self.started, record.select_auc))


@dataclass(frozen=True)
class Bench:
    """An arm's images, time and folder."""

    plan: SearchPlan
    reader: Reader
    folder: Path
    seconds: float
    seen: Seen

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seen.started + self.seconds - time.monotonic()

    @property
    def complete(self) -> list[Candidate]:
        """Candidates, best first."""
        paths = sorted((self.folder / CANDIDATES).glob("*"))
        found = [Candidate(path) for path in paths if Candidate(path).is_complete]
        return sorted(found, key=lambda candidate: -candidate.metrics["auc"])

    @property
    def images(self) -> int:
        """Of an epoch."""
        return len(self.plan.splits.fit)

    def train(
        self, recipe: Recipe, name: str, until: int | None = None, *, may_overrun: bool = False
    ) -> Candidate:
        """Trains a candidate of this arm, or goes on with it.

        Args:
            recipe: its.
            name: of its folder.
            until: images after which to take a look and pause.
            may_overrun: when the time is up, go on: the end is near, or there is nothing else yet.

        Raises:
            Interrupted: when the time is up.
        """
        return train(
            recipe,
            self.plan.splits,
            self.folder / CANDIDATES / name,
            until,
            Interruption(None if may_overrun else self.seconds, self.seen.started),
            runtime=self.plan.runtime,
            reader=self.reader,
            watch=self.seen,
            facts=recipe_row(recipe),
        )

    def to_the_end(self, recipe: Recipe, name: str, images: int, seconds: float) -> None:
        """Goes on with a training at a constant rate for all the time that is left.

        Args:
            recipe: its.
            name: of its folder.
            images: that it has seen.
            seconds: that it took for them.
        """
        rules = self.plan.rules
        while True:
            stretch = next_stretch(
                images,
                seconds / images,
                self.left,
                decay_fraction=rules.decay_fraction,
                first_look=rules.first_look,
            )
            if stretch.is_last:
                recipe = self.plan.ended(recipe, stretch.images, images)
                self.train(recipe, name, may_overrun=True)
                return
            began = time.monotonic()
            self.train(recipe, name, stretch.images)
            seconds, images = seconds + time.monotonic() - began, stretch.images


def plain_optuna(bench: Bench, seed: int) -> None:
    """Optuna as its documentation shows it, with the space of 70bbfd5: its default sampler, the
    median pruner, a cosine to the end of each trial."""
    study = optuna.create_study(
        direction="maximize", sampler=TPESampler(seed=seed), pruner=MedianPruner()
    )
    space = bench.plan.space
    while True:
        trial = study.ask()
        parameters = earlier_space.suggest(
            trial, space.backbones, pretrained=space.weights != "none"
        )
        configuration = Configuration(trial.number, "old", parameters)
        recipe = configuration.cosine(space, EPOCHS_OF_A_TRIAL)
        with suppress(NonFiniteLossError, FloatingPointError):
            study.tell(trial, *_outcome(trial, recipe, bench))
            continue
        study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _outcome(
    trial: optuna.Trial, recipe: Recipe, bench: Bench
) -> tuple[float | None, optuna.trial.TrialState | None]:
    for epoch in range(1, EPOCHS_OF_A_TRIAL + 1):
        until = None if epoch == EPOCHS_OF_A_TRIAL else epoch * bench.images
        name = f"{trial.number:04d}"
        candidate = bench.train(recipe, name, until, may_overrun=not bench.complete)
        trial.report(bench.seen.last, epoch)
        if until is not None and trial.should_prune():
            return None, optuna.trial.TrialState.PRUNED
    return float(candidate.metrics["auc"]), None


def presets_then_best(bench: Bench, seed: int) -> None:
    """Every preset for its share of a quarter of the time, then the best of them for all the rest,
    in the anytime way."""
    space, found, least = bench.plan.space, [], first_look(bench.images)
    share = SHARE_OF_PRESETS * bench.seconds / len(space.backbones)
    for number, backbone in enumerate(space.backbones):
        recipe, name = space.recipe(space.centre(backbone)), f"{number:04d}"
        recipe = replace(recipe, schedule="constant", epochs=None)
        began = time.monotonic()
        bench.train(recipe, name, least, may_overrun=True)
        speed = (time.monotonic() - began) / least
        images = max(least, round(share / speed))
        bench.train(recipe, name, images, may_overrun=True)
        seconds = time.monotonic() - began
        found.append((bench.seen.last, (recipe, name, images, seconds)))
    bench.to_the_end(*max(found, key=lambda one: one[0])[1])


def hand(bench: Bench, seed: int) -> None:
    """The recipe set by hand for all the time, with cosine: as many epochs as its speed allows."""
    space, least = bench.plan.space, first_look(bench.images)
    configuration = Configuration(0, "hand", by_hand(space))
    began = time.monotonic()
    bench.train(configuration.constant(space), "speed", least, may_overrun=True)
    speed = (time.monotonic() - began) / least
    images = max(bench.images, round((1 - MARGIN) * bench.left / speed))
    bench.train(configuration.cosine(space, images / bench.images), "0000", may_overrun=True)


ARMS: dict[str, Callable[[Bench, int], None]] = {
    PLAIN: plain_optuna,
    "presets, then best": presets_then_best,
    "hand": hand,
}


def main(
    settings: SearchSettings | None = None,
    *,
    output: Path | None = None,
    folder: Path | None = None,
    seeds: int = 3,
    arms: tuple[str, ...] = (OURS, *ARMS),
    quick: bool = False,
) -> None:
    """Gives every arm its time with every seed, and compares what they end with.

    Args:
        settings: of a search on these images, with its --timeout; the demo set's, from scratch, by
            default.
        output: CSV file.
        folder: keeps the runs, so that the same command goes on; default: none.
        seeds: of the divisions, the draws and the trainings.
        arms: which, for example `ours optuna`.
        quick: a few images and seconds: whether it works at all.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    settings, console = settings or SearchSettings(), Console()
    if quick:
        settings = replace(settings, limit_train=64, limit_val=80, image_size=32, probe=False)
        settings = replace(settings, trials=2, epochs=1, timeout=timedelta(minutes=10))
        seeds = 1
    unknown = [arm for arm in arms if arm not in (OURS, *ARMS)]
    if unknown:
        raise SystemExit(f"arms must be among {', '.join((OURS, *ARMS))}, found {unknown[0]}")
    if settings.timeout is None:
        raise SystemExit(
            "--timeout must say how long each arm has, found none; for example --timeout 1h"
        )
    seconds = QUICK_SECONDS if quick else settings.timeout.total_seconds()
    rows, ends, tables = [], [], {}
    with kept_in(folder) as kept:
        if quick:
            settings = replace(settings, backbones=kept / "backbones.yaml")
            (kept / "backbones.yaml").write_text(QUICK_BACKBONES)
        for seed in range(seeds):
            for arm in arms:
                place = kept / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
                own = replace(settings, seed=seed, out=place).resolved()
                with _opened(own) as (plan, reader):
                    tables[seed] = plan.splits.report
                    if not (place / ROWS).exists():
                        _spend(arm, seconds, own, plan, reader)
                found = pd.read_csv(place / ROWS)
                rows.append(found)
                ends.append((arm, seed, pd.read_csv(place / SCORES)["y_pred"].to_numpy(np.float64)))
                last = found.iloc[-1]
                console.print(
                    f"seed {seed}, {arm}: AUC on select {last['best_auc']:.4f}, on report "
                    f"{last['auc_report']:.4f}; {last['seconds']:.0f} s",
                    highlight=False,
                )
                if output is not None:
                    boards = output.with_suffix("")
                    boards.mkdir(parents=True, exist_ok=True)
                    board = pd.read_csv(place / BOARD)
                    board.to_csv(boards / f"{place.name}.csv", index=False)
    table = pd.concat(rows, ignore_index=True)[COLUMNS]
    told = summary(table, ends, tables, 20 if quick else RESAMPLINGS)
    console.print(told.to_string(index=False), highlight=False, soft_wrap=True)
    if output is not None:
        for name, one in (("", table.round(5)), ("_summary", told)):
            path = output.with_name(f"{output.stem}{name}.csv")
            write_atomically(path, partial(one.to_csv, index=False))


@contextmanager
def _opened(settings: SearchSettings) -> Iterator[tuple[SearchPlan, Reader]]:
    """What all arms of a seed find: the plan of a search, and its images, all of them decoded."""
    quiet = Console(quiet=True)
    plan = prepare(settings, console=quiet)
    assert settings.out is not None
    with open_reader(
        plan.splits,
        plan.space.canvas,
        cache=settings.cache,
        runtime=plan.runtime,
        quarantine=open_quarantine(settings.out, quiet),
        console=quiet,
    ) as reader:
        fill(reader, quiet, lambda: None)
        yield plan, reader


def _spend(
    arm: str, seconds: float, settings: SearchSettings, plan: SearchPlan, reader: Reader
) -> None:
    """Lets an arm spend its time, and keeps what came of it in its folder."""
    folder = settings.out
    assert folder is not None
    if folder.exists():
        # The clock of an arm that was stopped cannot go on.
        folder.rename(folder.with_name(f"{folder.name}-stopped-{time.time():.0f}"))
    bench = Bench(plan, reader, folder, seconds, Seen())
    if arm == OURS:
        complete = _search(settings, bench.seen)
        took = time.monotonic() - bench.seen.started
    else:
        with suppress(Interrupted):
            ARMS[arm](bench, settings.seed)
        took, complete = time.monotonic() - bench.seen.started, bench.complete
        facts = [{"candidate": one.name, **one.metrics} for one in complete]
        board = pd.DataFrame([{k: v for k, v in row.items() if k != "versions"} for row in facts])
        write_atomically(folder / BOARD, partial(board.to_csv, index=False))
    if not complete:
        raise UserError(
            f"--timeout must be enough for one candidate, found {arm} with none after "
            f"{took:.0f} s; give more"
        )
    best = complete[0]
    if best.report_scores is None:
        score_on_report(
            best, best.load(), plan.splits.report, plan.runtime, reader, on_batch=lambda: None
        )
    scores = best.report_scores
    assert scores is not None
    auc = roc_auc(scores["y_pred"].to_numpy(), scores["target"].to_numpy())
    rows = [(arm, settings.seed, *look, float("nan")) for look in bench.seen.best]
    rows.append((arm, settings.seed, took, best.metrics["auc"], auc))
    write_atomically(folder / SCORES, partial(scores.to_csv, index=False))
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_atomically(folder / ROWS, partial(table.to_csv, index=False))


def _search(settings: SearchSettings, seen: Seen) -> list[Candidate]:
    """The complete candidates of a search, best first."""
    with _watched(seen):
        run = run_search(settings, Console(quiet=True), seen.started)
    study = study_of(settings, run, Console(quiet=True))
    assert study is not None
    return [Candidate(run / CANDIDATES / trial_name(trial)) for trial in searched_trials(study)]


@contextmanager
def _watched(seen: Seen) -> Iterator[None]:
    """Looks of searches inside are seen."""
    shown = StudyProgress.look

    def look(progress: StudyProgress, record: Look) -> None:
        seen.look(record)
        shown(progress, record)

    with patch.object(StudyProgress, "look", look):
        yield


def summary(
    rows: pd.DataFrame,
    ends: list[tuple[str, int, NDArray[np.float64]]],
    tables: dict[int, pd.DataFrame],
    resamplings: int,
) -> pd.DataFrame:
    """A line an arm: means over the seeds of what it ends with, and by how much ours is above it
    on report; `share_of_time` is when ours is, on select, where the arm ends, in parts of the
    arm's time, median over the seeds (inf: it does not come to it).

    Args:
        rows: with COLUMNS.
        ends: arm, seed and (N,) scores on report of its last network.
        tables: report of each seed.
        resamplings: of the groups, for an interval.
    """
    scores = {(arm, seed): own for arm, seed, own in ends}
    last = rows.groupby(["arm", "seed"], sort=False).last()
    told = []
    for arm in rows["arm"].unique():
        its = last.loc[arm]
        line: dict[str, Any] = {"arm": arm, "seeds": len(its)}
        line |= {name: its[name].mean() for name in ("best_auc", "auc_report", "seconds")}
        if (OURS, its.index[0]) in scores:
            line |= _above(arm, scores, tables, resamplings)
            line["share_of_time"] = np.median(
                [_share_of_time(rows, seed, own) for seed, own in its.iterrows()]
            )
        told.append(line)
    return pd.DataFrame(told).round(4)


def _above(
    arm: str,
    scores: dict[tuple[str, int], NDArray[np.float64]],
    tables: dict[int, pd.DataFrame],
    resamplings: int,
) -> dict[str, float]:
    drawn = []
    for seed, table in tables.items():
        targets = table["target"].to_numpy()
        ours, its = scores[OURS, seed], scores[arm, seed]
        everything = np.arange(len(targets))
        drawn.append(
            [
                roc_auc(ours[index], targets[index]) - roc_auc(its[index], targets[index])
                for index in (everything, *resampled_groups(table, resamplings))
            ]
        )
    # Draws of one class are left out, of each seed its own.
    shortest = min(map(len, drawn))
    means = np.mean([own[:shortest] for own in drawn], axis=0)
    low, high = np.quantile(means[1:], (0.025, 0.975))
    return {"above_report": means[0], "above_low": low, "above_high": high}


def _share_of_time(rows: pd.DataFrame, seed: Any, end: pd.Series[Any]) -> float:
    ours = rows[(rows["arm"] == OURS) & (rows["seed"] == seed)]
    reached = ours[ours["best_auc"] >= end["best_auc"]]
    return float(reached["seconds"].iloc[0] / end["seconds"]) if len(reached) else float("inf")


if __name__ == "__main__":
    run(main)
