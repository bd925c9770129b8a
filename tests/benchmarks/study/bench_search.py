"""Ways of searching in earnest: each has the same time of the clock, on the same images.

    python -m tests.benchmarks.study.bench_search --train-labels F --train-images D \\
        --train-groups G --val-labels F --val-images D --val-groups G --backbones B --pool P \\
        --weights-dir W --timeout 1h --folder W --output results/benchmarks/search.csv

`ours` is the command `search run --timeout`, from its start to its results, its baseline and its
scoring of report included, and `ours, a fifth` the same with a fifth of the time; the others
(`real/arms.py`) score report after their time. Images are decoded, and the arithmetic of every
backbone is chosen, before any clock begins. Each arm ends with one complete network, the best on
select; report chooses nothing. Nothing else may run meanwhile: arms take turns, seed by seed, and
the same command goes on after the last that came to its end.

Beside the table lie a summary, and the leaderboard of every run. Intervals (95%) are of means over
the seeds, and resample groups.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from math import nan
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
import pandas as pd
import yaml
from cyclopts import run
from rich.console import Console

from search.errors import Interrupted
from search.machine.files import CANDIDATES, write_atomically, write_yaml_atomically
from search.pixels.loading.reading import Reader
from search.pixels.opening import fill, open_quarantine, open_reader
from search.report.terminal import StudyProgress
from search.run.folder import study_of
from search.run.search import run_search
from search.settings.search import SearchSettings
from search.study.plan import SearchPlan, prepare
from search.study.trials import searched_trials, trial_name
from search.training.arithmetic import choose_arithmetic
from search.training.candidate import Candidate, Look, score_on_report
from search.training.metrics import roc_auc
from search.training.network import build_network
from search.training.recipe import Recipe
from tests.benchmarks.measured import RESAMPLINGS, kept_in
from tests.benchmarks.study.real.arms import ARMS, NEEDED, Allotment, Seen
from tests.benchmarks.study.real.summary import Floats, summary
from tests.benchmarks.study.replay.arms import A_FIFTH, OURS

COLUMNS = ["arm", "seed", "seconds", "best_auc", "auc_report"]
"""A row whenever the best look at select changes, and a last one of the network that the arm ends
with, on all of select; only that one is scored on report."""

ROWS, BOARD, SCORES, GIVEN = "rows.csv", "leaderboard.csv", "scores_report.csv", "given.yaml"
"""In an arm's folder; its rows are written last, when it has come to its end."""

QUICK_SECONDS = 1.0

QUICK_BACKBONES = """
budget: 200000000
pretraining: ImageNet-1K alone
pools:
  demo: {test_resnet.r160_in1k: {image_sizes: [32], learning_rate: [0.0003, 0.01]}}
"""
"""Without a ResNet-18: the baseline's settings are applied to the pool's only network."""


def main(
    settings: SearchSettings | None = None,
    *,
    output: Path | None = None,
    folder: Path | None = None,
    seeds: int = 3,
    arms: tuple[str, ...] = (OURS, A_FIFTH, *ARMS),
    quick: bool = False,
) -> None:
    """Gives every arm its time with every seed, and compares what they end with.

    Args:
        settings: of a search on these images, with its --timeout; the demo set's, from scratch, by
            default.
        output: CSV file.
        folder: keeps the runs, so that the same command goes on; default: none.
        seeds: of the divisions, the draws and the trainings.
        arms: which, for example `--arms ours --arms optuna`.
        quick: a few images and seconds: whether it works at all.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    settings, console = settings or SearchSettings(), Console()
    if quick:
        settings = replace(settings, limit_train=64, limit_val=80, image_size=32, probe=False)
        settings = replace(settings, trials=2, epochs=1, timeout=timedelta(minutes=10))
        seeds = 1
    check(settings, arms)
    assert settings.timeout is not None
    seconds = QUICK_SECONDS if quick else settings.timeout.total_seconds()
    rows, scores, tables = [], {}, {}
    with kept_in(folder) as kept:
        if quick:
            settings = replace(settings, backbones=kept / "backbones.yaml")
            (kept / "backbones.yaml").write_text(QUICK_BACKBONES)
        for seed in range(seeds):
            for arm in arms:
                place = kept / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
                own = replace(settings, seed=seed, out=place).resolved()
                with _opened(own) as (plan, reader):
                    given = _describe(own, plan, seconds)
                    if not _is_done(place, given):
                        names = {b.architecture for b in plan.space.backbones}
                        if not quick and NEEDED.get(arm, "") not in {"", *names}:
                            raise SystemExit(
                                f"the pool must have {NEEDED[arm]} for the arm '{arm}', found "
                                f"{', '.join(sorted(names))}; choose others with --arms"
                            )
                        _spend(arm, seconds, own, plan, reader)
                        write_yaml_atomically(place / GIVEN, given)
                    tables[seed] = plan.splits.report
                found = pd.read_csv(place / ROWS)
                rows.append(found)
                scores[arm, seed] = _scores_of(place, tables[seed])
                end = found.iloc[-1]
                console.print(
                    f"seed {seed}, {arm}: AUC on select {end['best_auc']:.4f}, on report "
                    f"{end['auc_report']:.4f}; {end['seconds']:.0f} s",
                    highlight=False,
                )
                if output is not None:
                    boards = output.with_suffix("")
                    boards.mkdir(parents=True, exist_ok=True)
                    board = pd.read_csv(place / BOARD)
                    board.to_csv(boards / f"{place.name}.csv", index=False)
    table = pd.concat(rows, ignore_index=True)[COLUMNS]
    told = summary(table, scores, tables, 20 if quick else RESAMPLINGS)
    console.print(told.to_string(index=False), highlight=False, soft_wrap=True)
    if output is not None:
        for name, one in (("", table.round(5)), ("_summary", told)):
            path = output.with_name(f"{output.stem}{name}.csv")
            write_atomically(path, partial(one.to_csv, index=False))


def check(settings: SearchSettings, arms: tuple[str, ...]) -> None:
    """
    Raises:
        SystemExit: if there is no such arm, no time, or something that only ours would go by.
    """
    known = (OURS, A_FIFTH, *ARMS)
    unknown = [arm for arm in arms if arm not in known]
    if unknown:
        raise SystemExit(f"arms must be among {', '.join(known)}, found {unknown[0]}")
    if settings.timeout is None:
        raise SystemExit(
            "--timeout must say how long each arm has, found none; for example --timeout 1h"
        )
    if settings.objective != "auc":
        raise SystemExit(
            f"--objective must be auc, which all arms go by, found {settings.objective}"
        )


@contextmanager
def _opened(settings: SearchSettings) -> Iterator[tuple[SearchPlan, Reader]]:
    """What all arms of a seed find: the plan of a search, its images, all of them decoded, and the
    arithmetic of its backbones, chosen."""
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
        for backbone in plan.space.backbones:
            recipe = plan.space.recipe(plan.space.centre(backbone))
            if recipe.precision == "auto":
                network = build_network(recipe, pretrained=False)
                choose_arithmetic(network, recipe, plan.runtime, lambda _: None, lambda: None)
        yield plan, reader


def _describe(settings: SearchSettings, plan: SearchPlan, seconds: float) -> dict[str, Any]:
    """What an arm is given, as plain values, but for where it lies."""
    own = {name: value for name, value in settings.to_yaml().items() if name != "out"}
    return {"settings": own, "images": plan.splits.fingerprint(), "seconds": seconds}


def _is_done(place: Path, given: Mapping[str, Any]) -> bool:
    """Whether an arm has come to its end.

    Raises:
        SystemExit: if it was given something else.
    """
    if not (place / GIVEN).exists():
        return False
    before = yaml.safe_load((place / GIVEN).read_text("utf-8"))
    if before != given:
        names = [name for name in given if before.get(name) != given[name]]
        raise SystemExit(
            f"{place.name} must have been given what it would be given now, found other "
            f"{', '.join(names)}; choose another --folder"
        )
    return True


def _spend(
    arm: str, seconds: float, settings: SearchSettings, plan: SearchPlan, reader: Reader
) -> None:
    """Lets an arm spend its time, and keeps what came of it in its folder.

    Raises:
        SystemExit: if it ends with nothing.
    """
    folder = settings.out
    assert folder is not None
    if folder.exists():
        # The clock of an arm that was stopped cannot go on.
        folder.rename(folder.with_name(f"{folder.name}-stopped-{time.time():.0f}"))
    given = Allotment(plan, reader, folder, seconds, Seen())
    if arm in (OURS, A_FIFTH):
        if arm == A_FIFTH and settings.timeout is not None:
            settings = replace(settings, timeout=settings.timeout / 5)
        complete = _search(settings, given.seen)
        took = time.monotonic() - given.seen.started
    else:
        with suppress(Interrupted):
            ARMS[arm](given, settings.seed)
        took, complete = time.monotonic() - given.seen.started, given.complete
        facts = [{"candidate": one.name, **one.metrics} for one in complete]
        board = pd.DataFrame([{k: v for k, v in row.items() if k != "versions"} for row in facts])
        write_atomically(folder / BOARD, partial(board.to_csv, index=False))
    if not complete:
        raise SystemExit(
            f"{arm} must end with a complete network, found none after {took:.0f} s; its trainings "
            "failed, or --timeout is too short"
        )
    best = complete[0]
    if best.report_scores is None:
        report = plan.splits.report
        score_on_report(best, best.load(), report, plan.runtime, reader, lambda: None)
    scores = best.report_scores
    assert scores is not None
    auc = roc_auc(scores["y_pred"].to_numpy(), scores["target"].to_numpy())
    rows = [(arm, settings.seed, *look, nan) for look in given.seen.best]
    rows.append((arm, settings.seed, took, best.metrics["auc"], auc))
    write_atomically(folder / SCORES, partial(scores.to_csv, index=False))
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_atomically(folder / ROWS, partial(table.to_csv, index=False))


def _search(settings: SearchSettings, seen: Seen) -> list[Candidate]:
    """The complete candidates of a search, best first."""
    with _watched(seen):
        folder = run_search(settings, Console(quiet=True), seen.started)
    study = study_of(settings, folder, Console(quiet=True))
    assert study is not None
    assert seen.best, "no look was seen"
    return [Candidate(folder / CANDIDATES / trial_name(trial)) for trial in searched_trials(study)]


@contextmanager
def _watched(seen: Seen) -> Iterator[None]:
    """Looks of searches inside are seen; those at the challenge's baseline are not the search's."""
    started, shown, is_baseline = StudyProgress.trial_started, StudyProgress.look, False

    def trial_started(progress: StudyProgress, name: str, recipe: Recipe, **details: Any) -> None:
        nonlocal is_baseline
        is_baseline = recipe.augmentation == "baseline"
        started(progress, name, recipe, **details)

    def look(progress: StudyProgress, record: Look) -> None:
        if not is_baseline:
            seen.look(record)
        shown(progress, record)

    with (
        patch.object(StudyProgress, "trial_started", trial_started),
        patch.object(StudyProgress, "look", look),
    ):
        yield


def _scores_of(place: Path, report: pd.DataFrame) -> Floats:
    """An arm's scores in the rows of report; NaN: not read."""
    own = pd.read_csv(place / SCORES, dtype={"img_name": str}, keep_default_na=False)
    scores = own.set_index("img_name")["y_pred"].astype(float)
    found: Floats = scores.reindex(report["img_name"]).to_numpy(np.float64)
    return found


if __name__ == "__main__":
    run(main)
