"""The page that a figure is drawn on: theme, panels, legend, names beside points, PNG.

Figures are 4.2 inches wide with text of about 11 points, so that they can still be read in a column
of 350 pixels on a phone. Colours follow Okabe and Ito, told apart with any colour vision, and lines
differ in their dashes as well. Nothing here touches matplotlib's global state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from search.machine.files import write_atomically

WIDTH_INCHES, DPI = 4.2, 220
TEXT_POINTS, SMALL_POINTS = 11.0, 9.5


@dataclass(frozen=True)
class Theme:
    """Colours of a figure on one kind of page."""

    background: str
    text: str
    muted: str
    grid: str
    series: tuple[str, ...]  # of the best five candidates, by rank

    def line(self, place: int) -> dict[str, Any]:
        """The style of the candidate at a place from 0, the same in all figures."""
        count = len(self.series)
        return {
            "color": self.series[place % count],
            "linestyle": DASHES[place % len(DASHES)],
            "linewidth": 1.6,
        }


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
PLACES = (("left", (6, -11)), ("right", (-6, 5)), ("left", (6, 5)), ("right", (-6, -11)))
"""Where a name may stand beside its point, in points, as it is preferred."""

DASHES = ("-", (0, (5, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (1.2, 1.2)), (0, (9, 2)))


def new_figure(
    theme: Theme, height_inches: float, rows: int = 1, *, sharex: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure without global state, its panels one above the other."""
    size = (WIDTH_INCHES, height_inches)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=size, dpi=DPI, facecolor=theme.background, layout=layout)
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, 1, squeeze=False, sharex=sharex)[:, 0])
    for axes in panels:
        axes.set_facecolor(theme.background)
        axes.tick_params(colors=theme.text, labelsize=SMALL_POINTS, length=0)
        axes.tick_params(which="minor", length=0)
        axes.grid(color=theme.grid, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(theme.grid)
        axes.xaxis.label.set(color=theme.text, fontsize=TEXT_POINTS)
        axes.yaxis.label.set(color=theme.text, fontsize=TEXT_POINTS)
    return figure, panels


def add_legend(figure: Figure, theme: Theme, columns: int, title: str | None = None) -> None:
    """Above the panels, where it hides no data."""
    box = figure.legend(
        loc="outside upper left",
        ncols=columns,
        title=title,
        frameon=False,
        fontsize=SMALL_POINTS,
        title_fontsize=SMALL_POINTS,
        labelcolor=theme.text,
        alignment="left",
        columnspacing=1.2,
    )
    box.get_title().set_color(theme.text)
    for text in box.get_texts():
        text.set_parse_math(False)


def name_points(
    axes: Axes, theme: Theme, x: NDArray[np.float64], y: NDArray[np.float64], names: list[str]
) -> None:
    """Names points where there is room beside them, the highest first.

    Args:
        axes: of a figure that is otherwise finished, since later changes would move the names.
        theme: of the page.
        x: (N,).
        y: (N,).
        names: N of them.
    """
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    taken: list[Bbox] = []
    for place in np.argsort(-y):
        for align, shift in PLACES:
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


def save(figure: Figure, path: Path) -> Path:
    """Writes the PNG, its folder too, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib, equal figures are equal files.
    options: dict[str, Any] = {"format": "png", "metadata": {"Software": None}}
    write_atomically(path, lambda temporary: figure.savefig(temporary, **options))
    return path


def save_note(figure: Figure, theme: Theme, path: Path, note: str) -> Path:
    """A figure that says why there is nothing to draw."""
    figure.clear()
    figure.set_size_inches(WIDTH_INCHES, 1.6)
    figure.text(
        0.5, 0.5, note, ha="center", va="center", color=theme.muted, fontsize=TEXT_POINTS, wrap=True
    )
    return save(figure, path)
