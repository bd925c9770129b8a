"""Figures: that they are drawn with no, one and many candidates, and that they show the truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib._pylab_helpers import Gcf
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image

import search.drawing.figure
import search.report.plots
from search.drawing.figure import DARK, DPI, LIGHT, WIDTH_INCHES, Theme
from search.report.plots import (
    KINDS,
    TRIALS_NEEDED,
    draw_candidate_roc,
    draw_epochs,
    draw_history,
    draw_importance,
    draw_pareto,
    draw_roc,
    draw_search,
    parameter_importance,
    pareto_front,
)
from search.study.decisions.space import BASELINE, PRESET
from search.study.trials import LOOKS
from search.training.metrics import roc_auc, tpr_at_fpr

STATES = ("complete", "complete", "pruned", "failed", "complete", "rejected", "complete")


def leaderboard(size: int) -> pd.DataFrame:
    """The first `size` trials of a study with every state; the second is the baseline."""
    auc = np.array([0.7, 0.6, 0.65, np.nan, 0.9, np.nan, 0.8])
    return pd.DataFrame(
        {
            "state": STATES,
            "backbone": [f"backbone{number}.tag" for number in range(7)],
            "params_exact": pd.array([4e6, 11e6, 4e6, None, 88e6, 300e6, 20e6], dtype="Int64"),
            "auc": auc,
            "auc_low": auc - 0.05,
            "auc_high": auc + 0.05,
            "objective": auc,
        },
        index=pd.RangeIndex(7, name="trial"),
    ).head(size)


def scores(seed: int, size: int = 400) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    target = generator.permutation(np.repeat([0, 1], size // 2))
    noisy = np.round(generator.normal(1.5 * target), 2)
    return pd.DataFrame({"target": target, "y_pred": 1 / (1 + np.exp(-noisy))})


def history(looks: int) -> pd.DataFrame:
    epochs = 0.25 * 2.0 ** np.arange(looks)
    return pd.DataFrame({"epoch": epochs, "train_loss": 1 / epochs, "select_auc": 1 - 0.1 / epochs})


DRAWN: dict[str, Callable[[int, Path, Theme], Path]] = {
    "pareto": lambda size, path, theme: draw_pareto(leaderboard(size), path, theme, {1}),
    "history": lambda size, path, theme: draw_history(leaderboard(size), path, theme),
    "roc": lambda size, path, theme: draw_roc(
        {f"000{seed}": scores(seed) for seed in range(min(size, 5))}, path, theme
    ),
    "search": lambda size, path, theme: draw_search(looks(size), path, theme),
    "epochs": lambda size, path, theme: draw_epochs(
        {f"000{looks}": history(looks) for looks in range(1, min(size, 5) + 1)}, path, theme
    ),
    "importance": lambda size, path, theme: draw_importance(
        {f"parameter{place}": 1 / size for place in range(size)}, path, theme, "too few trials"
    ),
}


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the resolution in a quarter of the time."""
    monkeypatch.setattr(search.drawing.figure, "DPI", DPI / 2)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that would have been saved."""
    caught: list[Figure] = []
    monkeypatch.setattr(
        search.report.plots, "save", lambda figure, path: [caught.append(figure), path][1]
    )
    return caught


@pytest.mark.parametrize(("size", "theme"), [(0, LIGHT), (1, LIGHT), (7, LIGHT), (7, DARK)])
@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_drawn(name: str, size: int, theme: Theme, tmp_path: Path) -> None:
    path = tmp_path / "plots" / f"{name}.png"
    assert DRAWN[name](size, path, theme) == path
    assert list(path.parent.iterdir()) == [path]
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == round(WIDTH_INCHES * DPI / 2)
        shown = image.convert("RGB")
    found = shown.getcolors(shown.width * shown.height)
    colours = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in found}
    assert "#{:02x}{:02x}{:02x}".format(*shown.getpixel((0, 0))) == theme.background
    assert len(colours) > 10, "nothing was drawn"
    assert (theme.series[0] in colours) == (size > 0)
    assert not Gcf.figs, "a figure was left in pyplot's global state"


def test_equal_data_are_equal_files(tmp_path: Path) -> None:
    first = DRAWN["roc"](2, tmp_path / "a.png", LIGHT).read_bytes()
    assert first == DRAWN["roc"](2, tmp_path / "b.png", LIGHT).read_bytes()


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_pareto_front_is_what_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    costs, values = np.array(points, dtype=float).reshape(-1, 2).T
    front = pareto_front(costs, values)
    unbeaten = {
        (cost, value)
        for cost, value in points
        if not any((c <= cost and v > value) or (c < cost and v >= value) for c, v in points)
    }
    chosen = [(costs[place], values[place]) for place in front]
    assert set(chosen) == unbeaten
    assert len(chosen) == len(unbeaten)
    assert chosen == sorted(chosen)
    assert all(points.index(points[place]) == place for place in front)


def test_pareto_shows_the_baseline_and_names_the_front(
    figures: list[Figure], tmp_path: Path
) -> None:
    draw_pareto(leaderboard(7), tmp_path / "a.png", LIGHT, {1})
    axes = figures[0].axes[0]
    lines = {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines}
    assert lines["baseline"] == [[11, 0.6]]
    assert lines["Pareto front"] == [[4, 0.7], [20, 0.8], [88, 0.9]]
    assert lines["candidate"] == []
    assert {text.get_text() for text in axes.texts} == {"backbone0", "backbone4", "backbone6"}


def test_history_shows_the_best_so_far_and_the_trials_without_a_score(
    figures: list[Figure], tmp_path: Path
) -> None:
    draw_history(leaderboard(7).sample(frac=1, random_state=0), tmp_path / "a.png")
    lines = {str(line.get_label()): line for line in figures[0].axes[0].lines}
    best = lines["best so far"].get_xydata().tolist()
    assert best == [[0, 0.7], [1, 0.7], [4, 0.9], [6, 0.9], [6, 0.9]]
    assert lines["pruned"].get_xydata().tolist() == [[2, 0.65]]
    assert list(lines["without a score"].get_xdata()) == [3, 5]


def test_history_shows_paused_trials_apart(figures: list[Figure], tmp_path: Path) -> None:
    table = leaderboard(7)
    table.loc[[2, 3], "state"] = "paused"
    draw_history(table, tmp_path / "a.png")
    lines = {str(line.get_label()): line.get_xydata().tolist() for line in figures[0].axes[0].lines}
    assert lines["paused"] == [[2, 0.65]]
    assert [x for x, _ in lines["without a score"]] == [3, 5]


@pytest.mark.parametrize("state", ["paused", "pruned"])
def test_history_without_a_complete_trial_shows_the_others(
    state: str, figures: list[Figure], tmp_path: Path
) -> None:
    draw_history(leaderboard(3).tail(1).assign(state=state), tmp_path / "a.png")
    lines = {str(line.get_label()): line.get_xydata().tolist() for line in figures[0].axes[0].lines}
    assert "best so far" not in lines
    assert lines[state] == [[2, 0.65]]


def looks(size: int) -> pd.DataFrame:
    """As many candidates, each looked at twice: all once, then all again."""
    rows = [
        (
            *(trial, KINDS[trial % 3], 60.0 * place, 60.0 * (place * size + trial)),
            0.6 + 0.05 * trial + place / 100,
        )
        for place in range(2)
        for trial in range(size)
    ]
    return pd.DataFrame(rows, columns=["trial", "kind", "own_seconds", "seconds", "auc"])


def test_the_search_is_drawn_against_time(figures: list[Figure], tmp_path: Path) -> None:
    draw_search(looks(4).sample(frac=1, random_state=0), tmp_path / "a.png")
    *drawn, best = figures[0].axes[0].lines
    lines = [line for line in drawn if line.get_marker() == "o"]
    assert [line.get_xdata().tolist() for line in lines] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    # Each kind is named once.
    names = [str(line.get_label()) for line in lines]
    assert names[:3] == list(KINDS)
    assert names[3].startswith("_")
    assert lines[3].get_color() == lines[0].get_color() != lines[1].get_color()
    assert best.get_label() == "best so far"
    assert best.get_xdata().tolist() == list(range(8))
    assert best.get_ydata().tolist() == pytest.approx([0.6, 0.65, 0.7, 0.75, *[0.75] * 3, 0.76])


@pytest.mark.parametrize(
    ("size", "solid", "dotted"), [(1, [[0, 1]], []), (2, [[0], [2], [1], [3]], [[0, 2], [1, 3]])]
)
def test_where_a_candidate_waited_its_line_is_dotted(
    size: int, solid: list[Any], dotted: list[Any], figures: list[Figure], tmp_path: Path
) -> None:
    draw_search(looks(size), tmp_path / "a.png")
    found: dict[str, list[Any]] = {"-": [], ":": []}
    for line in figures[0].axes[0].lines[:-1]:
        if line.get_marker() != "o":
            found[str(line.get_linestyle())].append(np.asarray(line.get_xdata()).tolist())
    assert found == {"-": solid, ":": dotted}


def test_looks_are_drawn_where_they_came(figures: list[Figure], tmp_path: Path) -> None:
    draw_epochs({"0007 vit": history(4)}, tmp_path / "a.png")
    losses, aucs = (axes.lines[0].get_xydata().tolist() for axes in figures[0].axes)
    assert losses == [[0.25, 4], [0.5, 2], [1, 1], [2, 0.5]]
    assert [x for x, _ in aucs] == [0.25, 0.5, 1, 2]


@pytest.mark.parametrize(
    "table",
    [
        scores(0, 4000),
        # Every threshold calls one more fake and one more real: a diagonal of steps.
        pd.DataFrame({"target": [0, 1] * 1000, "y_pred": np.repeat(np.arange(1000) / 1000, 2)}),
    ],
    ids=["normal", "diagonal"],
)
def test_logarithmic_roc_reads_as_tpr_at_fpr(
    table: pd.DataFrame, figures: list[Figure], tmp_path: Path
) -> None:
    draw_roc({"0007 vit": table}, tmp_path / "a.png")
    curve = figures[0].axes[1].lines[0]
    assert curve.get_drawstyle() == "steps-post"
    fpr, tpr = curve.get_xydata().T
    assert np.all(np.diff(fpr) >= 0)
    for mark in (1e-3, 5e-3, 1e-2, 0.1):
        shown = tpr[np.searchsorted(fpr, mark, side="right") - 1]
        assert shown == tpr_at_fpr(table["y_pred"], table["target"], mark)
    marks = {line.get_xdata()[0] for line in figures[0].axes[1].lines if len(line.get_xdata()) == 2}
    assert marks == {1e-3, 5e-3, 1e-2}
    auc = f"{roc_auc(table['y_pred'], table['target']):.4f}"
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [f"0007 vit  {auc}"]


def test_scores_of_one_class_have_no_curve(figures: list[Figure], tmp_path: Path) -> None:
    one_class = scores(0).query("target == 1")
    draw_roc({"a": one_class, "b": scores(1)}, tmp_path / "a.png")
    assert len(figures[0].legends[0].get_texts()) == 1
    assert draw_candidate_roc(one_class, tmp_path / "b.png").exists()


def test_a_candidate_looks_the_same_in_all_figures(figures: list[Figure], tmp_path: Path) -> None:
    DRAWN["roc"](7, tmp_path / "a.png", DARK)
    DRAWN["epochs"](7, tmp_path / "b.png", DARK)
    roc, epochs = (list(figure.axes[0].lines)[:5] for figure in figures)
    looks = [[(line.get_color(), line._dash_pattern) for line in lines] for lines in (roc, epochs)]
    assert looks[0] == looks[1]
    assert len({colour for colour, _ in looks[0]}) == 5
    assert len({str(dashes) for _, dashes in looks[0]}) == 5


def test_importance_is_drawn_largest_first(figures: list[Figure], tmp_path: Path) -> None:
    draw_importance({"small": 0.1, "large": 0.7, "middle": 0.2}, tmp_path / "a.png")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small", "middle", "large"]
    assert [text.get_text() for text in axes.texts] == ["10%", "20%", "70%"]


def test_names_are_text_not_formulas(tmp_path: Path) -> None:
    table = leaderboard(1).assign(backbone="cost$_{less$")
    assert draw_pareto(table, tmp_path / "a.png").exists()
    assert draw_roc({"cost$_{less$": scores(0)}, tmp_path / "b.png").exists()
    assert draw_epochs({"cost$_{less$": history(2)}, tmp_path / "c.png").exists()


def searched(trials: int, *, baseline: bool = False) -> optuna.Study:
    """A study in which only the learning rate matters, and few trials came to their end."""
    generator = np.random.default_rng(0)
    study = optuna.create_study(direction="maximize")
    unit = FloatDistribution(0, 1)
    for number in range(trials):
        backbone = ("vit", "resnet")[number % 2]
        rate, noise = generator.uniform(size=2)
        auc = 1 - abs(rate - 0.7)
        study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                params={"backbone": backbone, "learning_rate_position": rate, "noise": noise},
                distributions={
                    "backbone": CategoricalDistribution(["vit", "resnet"]),
                    "learning_rate_position": unit,
                    "noise": unit,
                },
                # What came later tells nothing of the others.
                user_attrs={LOOKS: [[100, 1.0, auc, 9.0], [200, 2.0, 0.5, 10.0]]},
            )
        )
    if baseline:
        looks = [[100, 1.0, 0.01, 9.0]]
        study.add_trial(create_trial(value=0.01, user_attrs={PRESET: BASELINE, LOOKS: looks}))
    return study


def test_importance_finds_the_parameter_that_matters() -> None:
    shares = parameter_importance(searched(60))
    assert set(shares) == {"backbone", "learning_rate_position", "noise"}
    assert shares["learning_rate_position"] > 0.7
    assert sum(shares.values()) == pytest.approx(1)


def test_importance_leaves_the_baseline_out() -> None:
    assert parameter_importance(searched(30, baseline=True)) == pytest.approx(
        parameter_importance(searched(30))
    )


def test_importance_is_unknown_with_few_trials() -> None:
    assert parameter_importance(searched(TRIALS_NEEDED - 1, baseline=True)) == {}
    assert parameter_importance(searched(TRIALS_NEEDED)) != {}
