"""`compare`: every merged model and refit beside the best single one, on the report split; no
figure on a split that a model was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from torch import nn

from ensemble.compare.display import (
    draw_comparison,
    draw_elsewhere,
    print_comparison,
    print_elsewhere,
    recommendation,
)
from ensemble.compare.elsewhere import (
    Elsewhere,
    digest_scores,
    read_elsewhere,
    score_elsewhere,
)
from ensemble.compare.on_report import with_all_models
from ensemble.compare.speed import BATCH_SIZES, measure_speed
from ensemble.network.evidence import find_breaches, record_networks
from ensemble.network.model import load_model, merged_models, refit_of
from ensemble.pool.pool import Pool
from ensemble.teachers import choose_teachers
from search.catalogue.rules import count_parameters
from search.data.splits import TrainedOn
from search.drawing.figure import DARK, LIGHT
from search.machine.files import CANDIDATES, COMPARISON, write_atomically
from search.machine.interruption import Interruption
from search.machine.progress import tell_line
from search.settings.data import Objective
from search.training.candidate import Candidate, complete_refits
from search.training.metrics import Metrics, PairedTest, delong_test, holm, measure
from search.training.objective import value_of

Floats = NDArray[np.float64]

SINGLE = "best single"
TEACHERS = "teacher ensemble"
PLOT = "comparison.png"
DARK_PLOT = "comparison-dark.png"

COLUMNS = (
    "model",
    "kind",
    "path",
    "auc",
    "auc_low",
    "auc_high",
    "auc_seen",
    "auc_unseen",
    "auc_select",
    "auc_stress",
    "objective",
    "objective_name",
    "difference",
    "p_value",
    "p_value_holm",
    "tpr_at_fpr_1e-2",
    "tpr_at_fpr_5e-3",
    "tpr_at_fpr_1e-3",
    "params_thop",
    "params_exact",
    "gmacs",
    "images_per_second_1",
    "images_per_second_32",
    "allowed",
    "recommended",
    "reason",
    "trained_on",
)
"""Figures are on report, but for auc_select, auc_stress and objective, which are on select: by the
last, which objective_name names as --objective does, models are ranked. Intervals are those of
`delong_interval` over groups; difference and p_value (paired DeLong test over groups) are against
the best single model, and p_value_holm is corrected for the number of such tests in the table. What
is blank, a model was trained on."""


ELSEWHERE_COLUMNS = (
    *("model", "kind", "path", "auc_select", "auc_report", "auc", "auc_low", "auc_high"),
    *("difference", "p_value", "p_value_holm"),
    *("tpr_at_fpr_1e-2", "tpr_at_fpr_5e-3", "tpr_at_fpr_1e-3", "accuracy", "log_loss"),
    *("images", "groups", "images_of_the_run", "scores_sha256"),
)
"""Of a set from elsewhere; figures are on it, but for auc_select and auc_report. images_of_the_run
were in fit, select or report as well. scores_sha256 is of the file that the figures are of."""


@dataclass(frozen=True, eq=False)
class Contestant:
    """A model of the comparison."""

    model: str
    kind: str
    path: str  # relative to the run; empty for the teacher ensemble
    scores: Floats | None  # (N,) on report, in the pool's order; None if it was trained on it
    metrics: Metrics | None  # on report, likewise
    auc_select: float  # this and the next two: NaN if it was trained on select
    objective: float
    auc_stress: float  # NaN as well if it was not measured
    breaches: tuple[str, ...]  # rules that it breaks
    trained_on: TrainedOn = "fit"
    network: nn.Module | None = None
    costs: Mapping[str, Any] = field(default_factory=dict)  # counts and GMACs


def run_compare(
    pool: Pool,
    console: Console,
    interruption: Interruption | None = None,
    source: Elsewhere | None = None,
) -> pd.DataFrame:
    """Compares all models of a run on report, writes comparison.csv and its plot, and recommends
    the one that is best on select by the search's objective.

    Sets from elsewhere that these models were scored on are columns `auc@NAME`, `auc_low@NAME` and
    `auc_high@NAME`.

    Args:
        pool: of the run.
        console: where the table goes.
        interruption: asked before every measurement of a speed, and while images are scored.
        source: a set from elsewhere to score all models on.

    Raises:
        Interrupted: if asked to stop; what was scored is kept.
        UserError: if a merged model was scored on other images than the candidates, or too many
            images are broken.
    """
    interruption = interruption or Interruption()
    check, device = interruption.check, pool.runtime.device
    with interruption.amid_passes(device):
        pool = with_all_models(pool, console, check)
        contestants = gather(pool, check)
    with console.status("measuring speed"):
        speeds = _speeds(contestants, pool, interruption)
    targets, groups = pool.report["target"].to_numpy(np.int64), pool.report["group"].to_numpy()
    table = compare(contestants, targets, speeds, groups, pool.objective)
    path = pool.run / COMPARISON
    _write(table, path)
    if source is not None:
        with interruption.amid_passes(device):
            compare_elsewhere(pool, source, contestants, console, check)
    sets = read_elsewhere(pool.run, table)
    table = pd.concat([table, *(own.add_suffix(f"@{name}") for name, own in sets.items())], axis=1)
    _write(table, path)
    for name, theme in ((PLOT, LIGHT), (DARK_PLOT, DARK)):
        draw_comparison(table, pool.run / name, theme)
    assert contestants[0].metrics is not None
    print_comparison(table, console, groups=contestants[0].metrics.groups)
    print_elsewhere(table["model"].tolist(), sets, console)
    for refit in complete_refits(pool.run):
        if refit.has_seen("select") and refit_of(refit.path) == pool.best.name:
            tell_line(
                console,
                f"{refit.name} is the best single's recipe trained on {refit.recipe.trained_on}; "
                f"nothing here chose it: submit it by its name, --model {refit.name}",
            )
    tell_line(console, f"wrote {path} and {PLOT}")
    return table


def _write(table: pd.DataFrame, path: Path) -> None:
    write_atomically(path, lambda temporary: table.to_csv(temporary, index=False))


def compare_elsewhere(
    pool: Pool,
    source: Elsewhere,
    contestants: list[Contestant],
    console: Console,
    check: Callable[[], None],
) -> pd.DataFrame:
    """Scores all models on a set from elsewhere, writes its own comparison.csv and plot; nothing is
    chosen by it, not even the order of the rows.

    Args:
        pool: of the run.
        source: the set.
        contestants: see `gather`; the first is what the others are tested against.
        console: is told what is scored.
        check: called after every batch; what it raises ends it, and models that were scored stay.
    """
    teachers = choose_teachers(pool, check=check)
    merged, refits = merged_models(pool.run), complete_refits(pool.run)
    models = [pool.best, *map(pool.get, teachers.names), *merged, *refits]
    aligned = score_elsewhere(pool, source, models, console, check)
    taught = aligned.rename(columns={f"{CANDIDATES}/{name}": name for name in teachers.names})
    scores = [
        teachers.scores(taught)
        if not contestant.path
        else aligned[contestant.path].to_numpy(np.float64)
        for contestant in contestants
    ]
    targets, groups = aligned["target"].to_numpy(np.int64), aligned["group"].to_numpy()
    tests = paired_tests(scores, targets, groups)
    rows = [
        {
            **measure(own, targets, groups).to_dict(),
            **test,
            "model": contestant.model,
            "kind": contestant.kind,
            "path": contestant.path,
            "auc_select": contestant.auc_select,
            "objective": contestant.objective,
            "auc_report": contestant.metrics.auc if contestant.metrics else math.nan,
            "images": len(targets),
            "images_of_the_run": sum(source.known.values()),
            "scores_sha256": digest_scores(pool.run, contestant.path, source.name),
        }
        for contestant, own, test in zip(contestants, scores, tests, strict=True)
    ]
    table = pd.DataFrame(rows).sort_values("objective", ascending=False, kind="stable")
    table = table.reindex(columns=list(ELSEWHERE_COLUMNS)).reset_index(drop=True)
    _write(table, source.folder / COMPARISON)
    for name, theme in ((PLOT, LIGHT), (DARK_PLOT, DARK)):
        draw_elsewhere(table, source.folder / name, source.name, theme)
    tell_line(console, f"wrote {source.folder / COMPARISON} and {PLOT}")
    return table


def gather(pool: Pool, check: Callable[[], None] = lambda: None) -> list[Contestant]:
    """The best single candidate first, the teacher ensemble, every merged model and every refit.

    Args:
        pool: of the run, see `with_all_models`.
        check: called while teachers are chosen; what it raises ends it.
    """
    best = _contestant(pool, pool.best, SINGLE, "single")
    teachers = choose_teachers(pool, check=check)
    scores = teachers.scores(pool.report)
    reference = Contestant(
        model=TEACHERS,
        kind="reference",
        path="",
        scores=scores,
        metrics=_measured(pool, scores),
        auc_select=teachers.select_auc,
        objective=teachers.objective,
        auc_stress=_or_nan(teachers.select.auc_stress),
        breaches=(
            f"{len(teachers.names)} models, and the rules allow one"
            if len(teachers.names) > 1
            else f"a reference, which is {teachers.names[0]} alone",
        ),
        costs=_sum_costs(pool, teachers.names),
    )
    others = (*merged_models(pool.run), *complete_refits(pool.run))
    return [best, reference, *(_contestant(pool, model, model.name) for model in others)]


def compare(
    contestants: list[Contestant],
    targets: NDArray[np.int64],
    speeds: Mapping[int, Mapping[str, float]],
    groups: ArrayLike | None = None,
    objective: Objective = "auc",
) -> pd.DataFrame:
    """The table of a comparison, best on select first, and those that were trained on select last.
    The first that keeps the rules and has not seen select is recommended: report only measures, so
    that the figure of the one to submit flatters nobody.

    Args:
        contestants: see `gather`; the first is what the others are tested against.
        targets: (N,) of report, 1 = fake.
        speeds: by batch size and path, images a second.
        groups: (N,) equal where images are of one source; None: each image is its own.
        objective: what the contestants' `objective` is.
    """
    tests = paired_tests([contestant.scores for contestant in contestants], targets, groups)
    rows: list[dict[str, Any]] = []
    for contestant, test in zip(contestants, tests, strict=True):
        rows.append(
            {
                **(contestant.metrics.to_dict() if contestant.metrics else {}),
                **contestant.costs,
                "model": contestant.model,
                "kind": contestant.kind,
                "path": contestant.path,
                "auc_select": contestant.auc_select,
                "auc_stress": contestant.auc_stress,
                "objective": contestant.objective,
                "objective_name": objective,
                **test,
                **{
                    f"images_per_second_{size}": speeds.get(size, {}).get(contestant.path)
                    for size in BATCH_SIZES
                },
                "allowed": not contestant.breaches,
                "recommended": False,
                "reason": "; ".join(contestant.breaches),
                "trained_on": contestant.trained_on,
            }
        )
    table = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    table = table.sort_values(
        ["objective", "params_exact"], ascending=[False, True], kind="stable", ignore_index=True
    )
    allowed = table[table["allowed"] & table["objective"].notna()]
    if not allowed.empty:
        winner = allowed.index[0]
        table.loc[winner, "recommended"] = True
        table.loc[winner, "reason"] = recommendation(table, winner, objective)
    return table


def paired_tests(
    scores: Sequence[Floats | None], targets: ArrayLike, groups: ArrayLike | None
) -> list[dict[str, float]]:
    """How each model does against the first: difference, p_value and p_value_holm; NaN of the first
    itself, and of those without scores.

    Args:
        scores: (N,) of each model, of the same images; None of one that was trained on them.
        targets: (N,) 1 = fake.
        groups: (N,), see `delong_test`.
    """
    first, *others = scores
    assert first is not None
    tests = [
        PairedTest(math.nan, math.nan, math.nan)
        if own is None
        else delong_test(own, first, targets, groups)
        for own in others
    ]
    corrected = holm([test.p_value for test in tests])
    rows = [
        {"difference": test.difference, "p_value": test.p_value, "p_value_holm": float(p_value)}
        for test, p_value in zip(tests, corrected, strict=True)
    ]
    return [dict.fromkeys(("difference", "p_value", "p_value_holm"), math.nan), *rows]


def _measured(pool: Pool, scores: Floats) -> Metrics:
    """On report."""
    table = pool.report
    unseen = table["unseen"].to_numpy(np.bool_) if "unseen" in table else None
    return measure(scores, table["target"].to_numpy(np.int64), table["group"], unseen=unseen)


def _or_nan(figure: float | None) -> float:
    return math.nan if figure is None else float(figure)


def _contestant(pool: Pool, candidate: Candidate, name: str, kind: str | None = None) -> Contestant:
    network, spec = load_model(candidate.path)
    declared = {backbone.name: backbone.pretraining for backbone in pool.catalogue.backbones}
    networks = record_networks(spec, declared)
    counts = count_parameters(network, network.image_size)
    path = candidate.path.relative_to(pool.run).as_posix()
    scores = None if candidate.has_seen("report") else pool.report[path].to_numpy(np.float64)
    on_select = {} if candidate.has_seen("select") else candidate.metrics
    return Contestant(
        model=name,
        kind=kind or spec.method,
        path=path,
        scores=scores,
        metrics=None if scores is None else _measured(pool, scores),
        auc_select=_or_nan(on_select.get("auc")),
        objective=value_of(on_select, pool.objective) if on_select else math.nan,
        auc_stress=_or_nan(on_select.get("auc_stress")),
        trained_on=candidate.recipe.trained_on,
        breaches=tuple(find_breaches(counts, pool.catalogue.budget, spec, networks)),
        network=network,
        costs={
            "params_thop": counts.params_thop,
            "params_exact": counts.params_exact,
            "gmacs": counts.macs / 1e9,
        },
    )


def _sum_costs(pool: Pool, names: tuple[str, ...]) -> dict[str, Any]:
    metrics = [pool.get(name).metrics for name in names]
    columns = ("params_thop", "params_exact", "gmacs")
    return {column: sum(row[column] for row in metrics) for column in columns}


def _speeds(
    contestants: list[Contestant], pool: Pool, interruption: Interruption
) -> dict[int, dict[str, float]]:
    models = {c.path: c.network for c in contestants if c.network is not None}
    device = pool.runtime.device
    return {size: measure_speed(models, device, size, interruption) for size in BATCH_SIZES}
