"""The figures of a run: each from tables to one PNG."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial
from sklearn.metrics import roc_curve

from search.drawing.figure import (
    LIGHT,
    SMALL_POINTS,
    Theme,
    add_legend,
    name_points,
    new_figure,
    save,
    save_note,
)
from search.report.course import pieces_of
from search.study.trials import looks_of
from search.training.metrics import roc_auc
from search.training.objective import NAMES

LOW_FPRS = {1e-3: "1e-3", 5e-3: "5e-3", 1e-2: "1e-2"}
"""False positive rates whose TPR breaks ties in the challenge."""

LOWEST_FPR = 5e-4
"""Where the logarithmic axis of a ROC begins; an FPR of 0 is drawn there."""


def draw_pareto(
    leaderboard: pd.DataFrame, path: Path, theme: Theme = LIGHT, baseline: Collection[int] = ()
) -> Path:
    """AUC on select against parameters, with the front that no smaller network beats.

    Args:
        leaderboard: from `search.report.leaderboard.rows_from_study`; complete trials are drawn.
        path: where the PNG goes.
        theme: of the page.
        baseline: numbers of the trials that are the challenge's own starting point.
    """
    figure, (axes,) = new_figure(theme, 3.5)
    rows = leaderboard[leaderboard["state"] == "complete"].dropna(subset=["auc", "params_exact"])
    if rows.empty:
        return save_note(figure, theme, path, "No trial is complete yet.")
    millions, auc, low, high = (
        rows[name].to_numpy(dtype=np.float64, na_value=np.nan)
        for name in ("params_exact", "auc", "auc_low", "auc_high")
    )
    millions = millions / 1e6
    front = pareto_front(millions, auc)
    is_baseline = rows.index.isin(list(baseline))
    beaten = ~np.isin(np.arange(len(rows)), front) & ~is_baseline
    axes.vlines(millions, low, high, color=theme.grid, linewidth=1.6, zorder=1)
    axes.plot(millions[beaten], auc[beaten], "o", color=theme.muted, ms=4.5, label="candidate")
    first = theme.series[0]
    axes.step(millions[front], auc[front], where="post", color=first, linewidth=1.2)
    axes.plot(millions[front], auc[front], "o", color=first, ms=6.5, label="Pareto front")
    if is_baseline.any():
        style: dict[str, Any] = {"color": theme.series[1], "ms": 6.0, "label": "baseline"}
        axes.plot(millions[is_baseline], auc[is_baseline], "D", **style)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("parameters (millions, exact count)")
    axes.set_ylabel("AUC on select, 95% over groups")
    add_legend(figure, theme, columns=3)
    names = [str(name).partition(".")[0] for name in rows["backbone"].iloc[front]]
    name_points(axes, theme, millions[front], auc[front], names)
    return save(figure, path)


def pareto_front(costs: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the points that no other beats: none costs at most as much and is worth more, or
    costs less and is worth as much; by rising cost, of equal points the first.

    Args:
        costs: (N,).
        values: (N,).
    """
    order = np.lexsort((-values, costs))
    best_before = np.maximum.accumulate(np.r_[-np.inf, values[order]])[:-1]
    return order[values[order] > best_before]


def draw_history(
    leaderboard: pd.DataFrame,
    path: Path,
    theme: Theme = LIGHT,
    compared_by: str = NAMES["auc"],
) -> Path:
    """What every trial has reached on select, in the order they were begun, and the best so far."""
    figure, (axes,) = new_figure(theme, 3.5)
    rows = leaderboard.sort_index()
    scored = {
        state: rows[rows["state"] == state]["objective"].dropna()
        for state in ("complete", "pruned", "paused")
    }
    if all(aucs.empty for aucs in scored.values()):
        return save_note(figure, theme, path, "No trial has been scored yet.")
    best = scored["complete"].cummax()
    first = theme.series[0]
    if not best.empty:
        # Drawn on to the last trial, which may not have been the best.
        steps = pd.concat([best, pd.Series({rows.index[-1]: best.iloc[-1]})])
        axes.step(steps.index, steps, where="post", color=first, linewidth=1.6, label="best so far")
    axes.plot(scored["complete"], "o", color=first, ms=5, label="complete")
    axes.plot(scored["pruned"], "o", color=theme.muted, ms=5, mfc="none", label="pruned")
    if not scored["paused"].empty:
        style: dict[str, Any] = {"color": theme.series[2], "mfc": "none", "label": "paused"}
        axes.plot(scored["paused"], "s", ms=5, **style)
    unscored = rows.index[rows["objective"].isna()]
    if len(unscored):
        axes.plot(
            *(unscored, np.full(len(unscored), 0.03)),
            "x",
            color=theme.series[1],
            ms=6,
            label="without a score",
            transform=axes.get_xaxis_transform(),
        )
    axes.margins(y=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{compared_by} on select")
    add_legend(figure, theme, columns=2)
    return save(figure, path)


KINDS = ("drawn", "preset", "baseline")
"""Of configurations: drawn by the search, known to be good, the challenge's own."""


def draw_search(
    looks: pd.DataFrame,
    path: Path,
    theme: Theme = LIGHT,
    note: str = "",
    compared_by: str = NAMES["auc"],
) -> Path:
    """How good each candidate was when, and the best so far: lines are trainings, dots lead from
    where a candidate was paused to its first look after it was gone on with.

    Args:
        looks: a row a look: `trial`, `kind` (of KINDS), `own_seconds`, `seconds` (of all trials by
            then), `auc`, or whatever else looks are compared by.
        path: where the PNG goes.
        theme: of the page.
        note: drawn instead where there are no looks.
        compared_by: what looks are compared by, for people.
    """
    figure, (axes,) = new_figure(theme, 3.8)
    if looks.empty:
        return save_note(figure, theme, path, note or "No candidate was looked at yet.")
    looks = looks.sort_values("seconds", kind="stable")
    minutes = looks["seconds"] / 60
    colours = dict(zip(KINDS, (theme.series[0], theme.series[1], theme.muted), strict=True))
    named: set[str] = set()
    for _, own in looks.groupby("trial", sort=True):
        kind = str(own["kind"].iloc[0])
        style: dict[str, Any] = {"color": colours[kind], "linewidth": 0.9, "ms": 3.5}
        label = None if kind in named else kind
        named.add(kind)
        own_minutes, aucs = own["seconds"] / 60, own["auc"]
        pieces = np.array(pieces_of(own["own_seconds"].tolist(), own["seconds"].tolist()))
        axes.plot(own_minutes, aucs, "o", **style, label=label)
        for piece in range(pieces[-1] + 1):
            part = pieces == piece
            axes.plot(own_minutes[part], aucs[part], "-", **style)
        for later in np.flatnonzero(np.diff(pieces)) + 1:
            gap = slice(later - 1, later + 1)
            axes.plot(own_minutes.iloc[gap], aucs.iloc[gap], ":", **style)
    best = looks["auc"].cummax()
    axes.step(
        minutes, best, where="post", color=theme.text, linewidth=1.6, label="best so far", zorder=1
    )
    axes.margins(y=0.1)
    axes.set_xlabel("minutes of all trainings")
    axes.set_ylabel(f"{compared_by} on select")
    add_legend(figure, theme, columns=2)
    return save(figure, path)


def draw_roc(scores: Mapping[str, pd.DataFrame], path: Path, theme: Theme = LIGHT) -> Path:
    """ROC curves on a linear and on a logarithmic FPR axis, the low FPRs of the challenge marked.

    Args:
        scores: at most five candidates' names, best first, with their (N, ...) scores: `target`
            and `y_pred`.
        path: where the PNG goes.
        theme: of the page.
    """
    figure, panels = new_figure(theme, 6.2 + 0.2 * len(scores), rows=2)
    linear, logarithmic = panels
    curves = {name: table for name, table in scores.items() if table["target"].nunique() == 2}
    if not curves:
        return save_note(figure, theme, path, "No candidate has scores of both classes.")
    for place, (name, table) in enumerate(curves.items()):
        fpr, tpr, _ = roc_curve(table["target"], table["y_pred"], drop_intermediate=False)
        style = theme.line(place)
        linear.plot(
            fpr, tpr, **style, label=f"{name}  {roc_auc(table['y_pred'], table['target']):.4f}"
        )
        # Steps: between two thresholds there is none that would give a rate between theirs.
        first = np.searchsorted(fpr, 0, side="right") - 1
        logarithmic.step(np.maximum(fpr, LOWEST_FPR)[first:], tpr[first:], where="post", **style)
    chance = np.geomspace(LOWEST_FPR, 1, 100)
    for axes in panels:
        axes.plot(chance, chance, color=theme.muted, linewidth=0.9)
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel("true positive rate")
    linear.set_xlim(-0.02, 1.02)
    linear.set_xlabel("false positive rate")
    logarithmic.set_xscale("log")
    logarithmic.set_xlim(LOWEST_FPR, 1)
    marks = {**LOW_FPRS, 0.1: "0.1", 1.0: "1"}
    logarithmic.xaxis.set_major_locator(FixedLocator(list(marks)))
    logarithmic.xaxis.set_major_formatter(FuncFormatter(lambda value, _: marks[value]))
    logarithmic.xaxis.set_minor_locator(FixedLocator([]))
    # Side by side, these two would touch.
    _, left, right, *_ = logarithmic.get_xticklabels()
    left.set_horizontalalignment("right")
    right.set_horizontalalignment("left")
    logarithmic.set_xlabel("false positive rate (logarithmic)")
    for fpr in LOW_FPRS:
        logarithmic.axvline(fpr, color=theme.muted, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    add_legend(figure, theme, columns=1, title="AUC on select")
    return save(figure, path)


def draw_candidate_roc(scores: pd.DataFrame, path: Path, theme: Theme = LIGHT) -> Path:
    """`draw_roc` of one candidate."""
    return draw_roc({"AUC": scores}, path, theme)


def draw_importance(
    importance: Mapping[str, float], path: Path, theme: Theme = LIGHT, note: str = ""
) -> Path:
    """Share of each parameter in what told good trials from others.

    Args:
        importance: shares by name of the parameter.
        path: where the PNG goes.
        theme: of the page.
        note: drawn instead where there are no shares.
    """
    shares = sorted(importance.items(), key=lambda item: (item[1], item[0]))
    figure, (axes,) = new_figure(theme, 1.0 + 0.3 * max(5, len(shares)))
    if not shares:
        return save_note(figure, theme, path, note or "No importance is known.")
    names, values = zip(*shares, strict=True)
    bars = axes.barh(names, values, color=theme.series[0], height=0.65)
    axes.bar_label(
        bars,
        [f"{value:.0%}" for value in values],
        padding=3,
        color=theme.text,
        fontsize=SMALL_POINTS,
    )
    axes.margins(x=0.14)
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(NullLocator())
    axes.set_xlabel("share of importance")
    return save(figure, path)


def draw_epochs(histories: Mapping[str, pd.DataFrame], path: Path, theme: Theme = LIGHT) -> Path:
    """Training loss and AUC on select at each look, by epoch.

    Args:
        histories: at most five candidates' names, best first, with their histories: `epoch`,
            `train_loss`, `select_auc`.
        path: where the PNG goes.
        theme: of the page.
    """
    figure, (losses, aucs) = new_figure(theme, 4.8 + 0.2 * len(histories), rows=2, sharex=True)
    if not histories:
        return save_note(figure, theme, path, "No candidate was looked at yet.")
    for place, (name, history) in enumerate(histories.items()):
        style = {**theme.line(place), "marker": "o", "ms": 3.5}
        losses.plot(history["epoch"], history["train_loss"], **style, label=name)
        aucs.plot(history["epoch"], history["select_auc"], **style)
    losses.set_ylabel("training loss")
    aucs.set_ylabel("AUC on select")
    aucs.set_xlabel("epoch")
    add_legend(figure, theme, columns=1)
    return save(figure, path)


TRIALS_NEEDED = 10
"""Complete trials below which importance is noise: the evaluator asks for five good ones, and there
must be others to tell them from."""


def parameter_importance(study: optuna.Study) -> dict[str, float]:
    """Share of each parameter in what told a study's best trials from the others at their first
    look, which all of them had after the same stretch.

    PED-ANOVA (arXiv:2304.10255). Trials without parameters, as the baseline, are left out.

    Returns:
        Shares that sum to 1; none with fewer than `TRIALS_NEEDED` trials that were looked at, or if
        no parameter tells them apart.
    """
    trials = [
        create_trial(params=trial.params, distributions=trial.distributions, value=looks[0][2])
        for trial in study.get_trials(deepcopy=False)
        if trial.params and (looks := looks_of(trial))
    ]
    if len(trials) < TRIALS_NEEDED:
        return {}
    drawn = optuna.create_study(direction=study.direction)
    drawn.add_trials(trials)
    # The best tenth, as by default, but at least the five trials that the evaluator's notes advise.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, 5 / len(trials)))
    with warnings.catch_warnings(action="ignore"):
        importances = get_param_importances(drawn, evaluator=evaluator, normalize=False)
    total = sum(importances.values())
    return {name: value / total for name, value in importances.items()} if total > 0 else {}
