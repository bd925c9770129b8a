"""audit.html: one self-contained page, with no image of the user's in it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from search.drawing.figure import (
    DARK,
    LIGHT,
    SMALL_POINTS,
    Theme,
    add_legend,
    new_figure,
    save,
    save_note,
)
from search.drawing.template import embedded, load_template
from search.machine.files import write_text_atomically
from search.validation.audit.findings import Audit
from search.validation.audit.headers import FEATURES
from search.validation.audit.leaks import Telling

CLASSES = ("real", "fake")

MOST_BARS = 12
"""Features that are drawn, and values of a category."""

MOST_ROWS = 50
"""Of each list on the page; audit.json has more."""

Draw = Callable[[Path, Theme], Path]


def write_page(audit: Audit, headers: pd.DataFrame, path: Path) -> None:
    """Writes the page of an audit.

    Args:
        audit: what is told.
        headers: (N, F + 1), from `search.validation.audit.headers`, with the column `target`.
        path: of the page.
    """
    figures = [
        _figure(
            "What headers tell",
            "AUC of a small model of each feature alone, cross-validated by groups, with the "
            "interval for all features together. The dotted line is chance.",
            lambda file, theme: draw_signals(audit.headers, file, theme),
        )
    ]
    figures += [
        _figure(
            one.label.capitalize() if one.label[1:2].islower() else one.label,
            f"By class, among the images of fit and select. Alone: AUC {one.auc:.2f}.",
            lambda file, theme, name=one.feature: draw_feature(headers, name, file, theme),  # type: ignore[misc]
        )
        for one in audit.headers.signals[:2]
    ]
    page = load_template("search.validation.audit", "audit.html.jinja").render(
        audit=asdict(audit), figures=figures, most=MOST_ROWS, classes=CLASSES
    )
    write_text_atomically(path, page)


def draw_signals(told: Telling, path: Path, theme: Theme) -> Path:
    """The AUC of each feature alone with its interval, strongest on top; leaks in another
    colour."""
    signals = told.signals[:MOST_BARS][::-1]
    figure, (axes,) = new_figure(theme, max(1.8, 0.5 + 0.28 * len(signals)))
    if not signals:
        return save_note(figure, theme, path, told.note.capitalize())
    places = np.arange(len(signals))
    axes.axvline(0.5, color=theme.muted, linestyle=":", linewidth=1.2)
    for place, one in zip(places, signals, strict=True):
        colour = theme.series[1 if one.is_leak else 0]
        marker = "D" if one.is_leak else "o"
        axes.plot([one.low, one.high], [place, place], color=colour, linewidth=1.6)
        axes.plot([one.auc], [place], color=colour, marker=marker, markersize=5)
    axes.set_yticks(places, [one.label for one in signals])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.set_xlim(min(0.4, *(one.low for one in signals)) - 0.02, 1.02)
    axes.set_xlabel("AUC")
    return save(figure, path)


def draw_feature(headers: pd.DataFrame, name: str, path: Path, theme: Theme) -> Path:
    """How a feature is distributed in either class, in shares of the class."""
    figure, (axes,) = new_figure(theme, 2.6)
    feature = next(one for one in FEATURES if one.name == name)
    if feature.is_category:
        _draw_category(axes, headers, name, theme)
    else:
        _draw_number(axes, headers, name, theme)
        axes.set_xlabel(feature.label)
        axes.set_ylabel("share of the class")
    add_legend(figure, theme, columns=2)
    return save(figure, path)


def _draw_category(axes: Axes, headers: pd.DataFrame, name: str, theme: Theme) -> None:
    values = headers[name].astype(str)
    top = values.value_counts().index[:MOST_BARS][::-1]
    for target, label in enumerate(CLASSES):
        shares = values[headers["target"] == target].value_counts(normalize=True)
        axes.barh(
            np.arange(len(top)) + 0.2 - 0.4 * target,
            shares.reindex(top, fill_value=0.0),
            height=0.38,
            color=theme.series[target],
            label=label,
        )
    axes.set_yticks(np.arange(len(top)), [value[:28] for value in top])
    for text in axes.get_yticklabels():
        text.set(fontsize=SMALL_POINTS - 1)
        text.set_parse_math(False)
    axes.set_xlabel("share of the class")


def _draw_number(axes: Axes, headers: pd.DataFrame, name: str, theme: Theme) -> None:
    values = headers[name].to_numpy(np.float64)
    known = np.isfinite(values)
    edges = np.histogram_bin_edges(values[known], bins=30) if known.any() else np.array([0.0, 1.0])
    for target, label in enumerate(CLASSES):
        own = (headers["target"] == target).to_numpy()
        counts, _ = np.histogram(values[known & own], edges)
        style = theme.line(target)
        axes.stairs(counts / max(1, own.sum()), edges, label=label, **style)


def _figure(title: str, caption: str, draw: Draw) -> dict[str, Any]:
    """A figure of the page, on a light and on a dark one."""
    with tempfile.TemporaryDirectory() as folder:
        light, dark = (
            embedded(draw(Path(folder) / f"{name}.png", theme))
            for name, theme in (("light", LIGHT), ("dark", DARK))
        )
    return {"title": title, "caption": caption, "light": light, "dark": dark}
