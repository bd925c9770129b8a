"""The figures of a run: each from tables to one PNG, for a light or a dark page.

Figures are 4.8 inches wide with text of about 11 points, so that they can still be read in a column
of 350 pixels on a phone. Colours follow Okabe and Ito, told apart with any colour vision, and no
figure relies on colour alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from search.training.checkpoint import write_atomically
from search.training.metrics import roc_auc

WIDTH_INCHES, DPI = 4.8, 200
LOW_FPRS = {1e-3: "1e-3", 5e-3: "5e-3", 1e-2: "1e-2"}
"""False positive rates whose TPR breaks ties in the challenge."""

LOWEST_FPR = 5e-4
"""Where the logarithmic axis of a ROC begins; an FPR of 0 is drawn there."""


@dataclass(frozen=True)
class Theme:
    """Colours of a figure on one kind of page."""

    background: str
    text: str
    muted: str
    grid: str
    series: tuple[str, ...]  # of the best five candidates, by rank


LIGHT = Theme(
    background="#ffffff",
    text="#1f2328",
    muted="#6e7781",
    grid="#d8dee4",
    series=("#0072b2", "#d55e00", "#009e73", "#b8578f", "#8a6d00"),
)
DARK = Theme(
    background="#161b22",
    text="#e6edf3",
    muted="#8b949e",
    grid="#363d47",
    series=("#56b4e9", "#e69f00", "#2fbf94", "#d68fb8", "#f0e442"),
)
LINE_STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (1.2, 1.2)), "-")


def draw_pareto(
    leaderboard: pd.DataFrame, path: Path, theme: Theme = LIGHT, baseline: Collection[int] = ()
) -> Path:
    """AUC on select against parameters, with the front that no smaller network beats.

    Args:
        leaderboard: as `search.leaderboard.rows_from_study` makes it; complete trials are drawn.
        path: where the PNG goes.
        theme: of the page.
        baseline: numbers of the trials that are the challenge's own starting point.
    """
    figure, (axes,) = _figure(theme, 3.9)
    rows = leaderboard[leaderboard["state"] == "complete"].dropna(subset=["auc", "params_exact"])
    if rows.empty:
        return _save_note(figure, axes, theme, path, "No trial is complete yet.")
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
        style = {"color": theme.series[1], "ms": 6.0, "label": "baseline"}
        axes.plot(millions[is_baseline], auc[is_baseline], "D", **style)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("parameters (millions, exact count)")
    axes.set_ylabel("AUC on select, 95% interval")
    _legend(figure, theme, columns=3)
    names = [str(name).partition(".")[0] for name in rows["backbone"].iloc[front]]
    _name_points(axes, theme, millions[front], auc[front], names)
    return _save(figure, path)


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


def draw_history(leaderboard: pd.DataFrame, path: Path, theme: Theme = LIGHT) -> Path:
    """AUC on select of every trial in the order they were begun, and the best so far."""
    figure, (axes,) = _figure(theme, 3.9)
    rows = leaderboard.sort_index()
    scored = {
        state: rows[rows["state"] == state]["auc"].dropna() for state in ("complete", "pruned")
    }
    if all(aucs.empty for aucs in scored.values()):
        return _save_note(figure, axes, theme, path, "No trial has been scored yet.")
    best = scored["complete"].cummax()
    first = theme.series[0]
    if not best.empty:
        # Drawn on to the last trial, which may not have been the best.
        steps = pd.concat([best, pd.Series({rows.index[-1]: best.iloc[-1]})])
        axes.step(steps.index, steps, where="post", color=first, linewidth=1.6, label="best so far")
    axes.plot(scored["complete"], "o", color=first, ms=5, label="complete")
    axes.plot(scored["pruned"], "o", color=theme.muted, ms=5, mfc="none", label="pruned")
    unscored = rows.index[rows["auc"].isna()]
    if len(unscored):
        axes.plot(
            *(unscored, np.full(len(unscored), 0.03)),
            "x",
            color=theme.series[1],
            ms=6,
            label="failed or rejected",
            transform=axes.get_xaxis_transform(),
        )
    axes.margins(y=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel("AUC on select")
    _legend(figure, theme, columns=2)
    return _save(figure, path)


def draw_roc(scores: Mapping[str, pd.DataFrame], path: Path, theme: Theme = LIGHT) -> Path:
    """ROC curves on a linear and on a logarithmic FPR axis, the low FPRs of the challenge marked.

    Args:
        scores: at most five candidates' names, best first, with their (N, ...) scores: `target`
            and `y_pred`.
        path: where the PNG goes.
        theme: of the page.
    """
    figure, panels = _figure(theme, 6.9 + 0.2 * len(scores), rows=2)
    linear, logarithmic = panels
    curves = {name: table for name, table in scores.items() if table["target"].nunique() == 2}
    if not curves:
        return _save_note(figure, linear, theme, path, "No candidate has scores of both classes.")
    for place, (name, table) in enumerate(curves.items()):
        fpr, tpr, _ = roc_curve(table["target"], table["y_pred"], drop_intermediate=False)
        style = _series(theme, place)
        linear.plot(
            fpr, tpr, **style, label=f"{name}  {roc_auc(table['y_pred'], table['target']):.4f}"
        )
        # Steps: between two thresholds there is none that would give a rate between theirs.
        logarithmic.step(np.maximum(fpr, LOWEST_FPR), tpr, where="post", **style)
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
    logarithmic.set_xlabel("false positive rate (logarithmic)")
    for fpr in LOW_FPRS:
        logarithmic.axvline(fpr, color=theme.muted, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    _legend(figure, theme, columns=1, title="AUC on select")
    return _save(figure, path)


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
    shares = sorted(importance.items(), key=lambda item: item[1])
    figure, (axes,) = _figure(theme, 1.0 + 0.3 * max(5, len(shares)))
    if not shares:
        return _save_note(figure, axes, theme, path, note or "No importance is known.")
    names, values = zip(*shares, strict=True)
    bars = axes.barh(names, values, color=theme.series[0], height=0.65)
    axes.bar_label(
        bars, [f"{value:.0%}" for value in values], padding=3, color=theme.text, fontsize=9.5
    )
    axes.margins(x=0.14)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_xlabel("share of importance")
    return _save(figure, path)


def draw_epochs(histories: Mapping[str, pd.DataFrame], path: Path, theme: Theme = LIGHT) -> Path:
    """Training loss and AUC on select by epoch.

    Args:
        histories: at most five candidates' names, best first, with their histories: `epoch`,
            `train_loss`, `select_auc`.
        path: where the PNG goes.
        theme: of the page.
    """
    figure, (losses, aucs) = _figure(theme, 5.2 + 0.2 * len(histories), rows=2, sharex=True)
    if not histories:
        return _save_note(figure, losses, theme, path, "No candidate has finished an epoch yet.")
    for place, (name, history) in enumerate(histories.items()):
        style = {**_series(theme, place), "marker": "o", "ms": 3.5}
        losses.plot(history["epoch"], history["train_loss"], **style, label=name)
        aucs.plot(history["epoch"], history["select_auc"], **style)
    losses.set_ylabel("training loss")
    aucs.set_ylabel("AUC on select")
    aucs.set_xlabel("epoch")
    aucs.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, theme, columns=1)
    return _save(figure, path)


def _figure(
    theme: Theme, height_inches: float, rows: int = 1, *, sharex: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure without global state, its panels one above the other."""
    size = (WIDTH_INCHES, height_inches)
    figure = Figure(figsize=size, dpi=DPI, facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, 1, squeeze=False, sharex=sharex)[:, 0])
    for axes in panels:
        axes.set_facecolor(theme.background)
        axes.tick_params(colors=theme.text, labelsize=9.5, length=0)
        axes.tick_params(which="minor", length=0)
        axes.grid(color=theme.grid, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(theme.grid)
        axes.xaxis.label.set(color=theme.text, fontsize=11)
        axes.yaxis.label.set(color=theme.text, fontsize=11)
    return figure, panels


def _series(theme: Theme, place: int) -> dict[str, Any]:
    """The line of the candidate at a place; the same in all figures."""
    count = len(theme.series)
    return {
        "color": theme.series[place % count],
        "linestyle": LINE_STYLES[place % count],
        "linewidth": 1.6,
    }


def _legend(figure: Figure, theme: Theme, columns: int, title: str | None = None) -> None:
    """Above the panels, where it hides no data."""
    legend = figure.legend(
        loc="outside upper left",
        ncols=columns,
        title=title,
        frameon=False,
        fontsize=9.5,
        title_fontsize=9.5,
        labelcolor=theme.text,
        alignment="left",
        columnspacing=1.2,
    )
    legend.get_title().set_color(theme.text)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _name_points(
    axes: Axes, theme: Theme, x: NDArray[np.float64], y: NDArray[np.float64], names: list[str]
) -> None:
    """Names points, best first, where there is room beside them."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # type: ignore[no-untyped-call]
    frame, taken = axes.get_window_extent(), []
    for place in np.argsort(-y):
        for align, shift in (("left", (6, -11)), ("right", (-6, 5))):
            text = axes.annotate(
                names[place],
                (x[place], y[place]),
                shift,
                textcoords="offset points",
                ha=align,
                color=theme.text,
                fontsize=9,
                parse_math=False,
            )
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib, equal figures are equal files.
    options: dict[str, Any] = {"format": "png", "metadata": {"Software": None}}
    write_atomically(path, lambda temporary: figure.savefig(temporary, **options))
    return path


def _save_note(figure: Figure, axes: Axes, theme: Theme, path: Path, note: str) -> Path:
    """A figure that says why there is nothing to draw."""
    figure.clear()
    figure.set_size_inches(WIDTH_INCHES, 1.6)
    figure.text(0.5, 0.5, note, ha="center", va="center", color=theme.muted, fontsize=11, wrap=True)
    return _save(figure, path)
