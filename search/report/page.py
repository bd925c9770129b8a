"""plots/*.png and report.html: what a run found, for people."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Template

from search.drawing.figure import DARK, LIGHT, Theme
from search.drawing.template import embedded, load_template
from search.errors import UserError
from search.machine.files import CANDIDATES, COMPARISON, write_text_atomically
from search.machine.seconds import SECONDS
from search.report.course import (
    continued,
    finished_against_presets,
    gain_at_the_same_time,
    never_begun,
    search_looks,
)
from search.report.leaderboard import COLUMNS, STATES, TEXTS
from search.report.plots import (
    TRIALS_NEEDED,
    draw_epochs,
    draw_history,
    draw_importance,
    draw_pareto,
    draw_roc,
    draw_search,
    parameter_importance,
)
from search.report.probes import how_right, probed
from search.report.recorded import (
    LOOK_COLUMNS,
    MISSING,
    SCORE_COLUMNS,
    Tell,
    read_metrics,
    read_table,
    report_figures_of,
)
from search.report.terminal import Problems, format_seconds
from search.study.decisions.space import BASELINE, PRESET
from search.study.opening import DEFAULT
from search.study.trials import RESTING
from search.training.candidate import HISTORY, REFIT_OF, SCORES, complete_refits
from search.training.objective import NAMES

if TYPE_CHECKING:
    import optuna

REPORT = "report.html"
"""Left by merging."""

HIGHLIGHTED = ("notes",)
"""Facts that stand out on the page: with them, figures mean something else than without."""

MORE_FIGURES = {"auc_seen": "seen methods", "auc_unseen": "unseen methods", "auc_stress": "stress"}
"""AUCs of a leaderboard that are shown where they were measured, and what they are of."""

ON = "auc@"
"""How the columns of comparison.csv begin that tell of sets from elsewhere, by their names."""

TOP_ROWS, TOP_CURVES = 10, 5

UNFINISHED = ("paused", "pruned", "failed", "rejected")
"""States of trials whose reason is shown."""

FORMATS = {
    **dict.fromkeys(
        ("auc", "auc_low", "auc_high", "auc_report", *MORE_FIGURES, "objective"), ".4f"
    ),
    **dict.fromkeys(("accuracy", "log_loss"), ".4f"),
    **dict.fromkeys(("tpr_at_fpr_1e-2", "tpr_at_fpr_5e-3", "tpr_at_fpr_1e-3"), ".4f"),
    **dict.fromkeys(("params_thop", "params_exact"), ","),
    **dict.fromkeys(("gmacs", "epochs"), ".3g"),
    **dict.fromkeys((*SECONDS, "images_per_second", "peak_memory_mb"), ",.1f"),
    **dict.fromkeys(("learning_rate", "weight_decay"), ".1e"),
}
"""Of numbers in the table of all trials."""


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the page."""

    name: str  # of its files, without suffix
    title: str
    caption: str
    draw: Callable[[Path, Theme], Path]


def write_report(
    run: Path,
    study: optuna.Study | None,
    leaderboard: pd.DataFrame,
    facts: Mapping[str, str],
    problems: Problems,
) -> list[Path]:
    """Draws the plots of a run and writes its report, one page that needs no other file.

    A figure that cannot be drawn is told, on the page too, and costs no other.

    Args:
        run: the run folder; plots/ and report.html are written, candidates/ is read.
        study: tells which trial is the baseline, and what its parameters mattered; None where it
            is not at hand.
        leaderboard: from `search.report.leaderboard`.
        facts: what the figures depend on (images, pool, weights, seed, versions...) by name. Those
            in `HIGHLIGHTED` stand out.
        problems: told of damaged files and of figures that cannot be drawn.

    Returns:
        The paths written, report.html first.

    Raises:
        OSError: if the page itself cannot be written.
    """
    baseline = baseline_trials(study, leaderboard)
    figures, plots = [], []
    compared_by = facts.get("objective", NAMES["auc"])
    for figure in report_figures(run, study, leaderboard, baseline, problems, compared_by):
        content = {"title": figure.title, "caption": figure.caption}
        with problems.forgiven(f"plots/{figure.name}.png"):
            light = figure.draw(run / "plots" / f"{figure.name}.png", LIGHT)
            dark = figure.draw(run / "plots" / f"{figure.name}-dark.png", DARK)
            content |= {"light": embedded(light), "dark": embedded(dark)}
            plots += [light, dark]
        figures.append(content)
    rows: list[dict[str, Any]] = leaderboard.to_dict("records")  # type: ignore[assignment]
    presets = preset_trials(study)
    for row in rows:
        row["is_baseline"] = row["trial"] in baseline
        row["is_preset"] = None if presets is None else row["trial"] in presets
        row["report"] = _report_metrics(run, row["candidate"], problems.tell)
    complete = [row for row in rows if row["state"] == "complete"]
    looks, probes = search_looks(study), probed(run, problems.tell)
    merged = _merged(run)
    page = _template().render(
        title=run.name,
        summary=summarise(rows, looks, compared_by, never_begun(study)),
        highlighted={name: facts[name] for name in HIGHLIGHTED if name in facts},
        facts={name: text for name, text in facts.items() if name not in HIGHLIGHTED},
        figures=figures,
        top=complete[:TOP_ROWS] + [row for row in complete[TOP_ROWS:] if row["is_baseline"]],
        # How many wait while others are trained is told in the summary.
        unfinished=[row for row in rows if row["state"] in UNFINISHED and row["reason"] != RESTING],
        rows=rows,
        columns=[name for name in COLUMNS if name != "trial"],
        merged=merged,
        elsewhere=[name.removeprefix(ON) for name in next(iter(merged), {}) if name.startswith(ON)],
        refits=_refits(run, problems.tell),
        continued=continued(looks),
        probes=probes,
        probes_were_right=how_right(probes, rows, looks),
        more={name: head for name, head in MORE_FIGURES.items() if leaderboard[name].notna().any()},
        objective=compared_by,
        seconds=SECONDS,
        texts=TEXTS,
        formats=FORMATS,
    )
    write_text_atomically(run / REPORT, page)
    return [run / REPORT, *plots]


def report_figures(
    run: Path,
    study: optuna.Study | None,
    leaderboard: pd.DataFrame,
    baseline: Collection[int],
    problems: Problems,
    compared_by: str,
) -> list[ReportFigure]:
    """What is drawn of a run, in the page's order."""
    complete = leaderboard[leaderboard["state"] == "complete"].head(TOP_CURVES)
    # Whose folder was deleted since has no candidate.
    rows = [row for row in complete.to_dict("records") if row["candidate"]]

    def tables(file: str, columns: Sequence[str]) -> dict[str, pd.DataFrame]:
        """A table of each of the best that has it whole, by the candidate's name."""
        found = {
            f"{row['candidate']} {short_name(row['backbone'])}": read_table(
                run / CANDIDATES / row["candidate"] / file, columns, problems.tell
            )
            for row in rows
        }
        return {name: table for name, table in found.items() if table is not None}

    importance = cache(lambda: {} if study is None else parameter_importance(study))
    not_known = (
        "Not known: the study was not at hand\nwhen this page was made."
        if study is None
        else f"Not known before {TRIALS_NEEDED} trials were looked at\nbeside the baseline."
    )
    no_looks = not_known if study is None else "No candidate was looked at yet."
    return [
        ReportFigure(
            "pareto",
            "AUC against parameters",
            "Complete trials. No smaller candidate beats one of the Pareto front.",
            lambda path, theme: draw_pareto(leaderboard, path, theme, baseline),
        ),
        ReportFigure(
            "search",
            f"{compared_by} against time",
            "Every look at every candidate, on the images of a look. Points of one candidate are "
            "joined, by dots where it waited while others were trained; then it was gone on with "
            "from its checkpoint.",
            lambda path, theme: draw_search(
                search_looks(study), path, theme, no_looks, compared_by
            ),
        ),
        ReportFigure(
            "history",
            "Search history",
            "Every trial in the order it was begun. A paused trial was not trained to its end and "
            "can go on; a pruned one cannot, since its checkpoint was deleted.",
            lambda path, theme: draw_history(leaderboard, path, theme, compared_by),
        ),
        ReportFigure(
            "roc",
            "ROC of the best five",
            "On select. Dotted lines mark the false positive rates whose true positive rate "
            "breaks ties in the challenge.",
            lambda path, theme: draw_roc(tables(SCORES, SCORE_COLUMNS), path, theme),
        ),
        ReportFigure(
            "epochs",
            "Loss and AUC by epoch of the best five",
            "Points are looks, which come as the images seen double. A candidate keeps the weights "
            f"of the look with its best {compared_by} on select.",
            lambda path, theme: draw_epochs(tables(HISTORY, LOOK_COLUMNS), path, theme),
        ),
        ReportFigure(
            "importance",
            "Parameter importance",
            "What told the best trials from the others at their first look (PED-ANOVA). With few "
            "trials, a hint at most.",
            lambda path, theme: draw_importance(importance(), path, theme, not_known),
        ),
    ]


def baseline_trials(study: optuna.Study | None, leaderboard: pd.DataFrame) -> set[int]:
    """Numbers of the trials that are the challenge's own starting point.

    Without the study they are known by their augmentation, which no other trial has.
    """
    if study is None:
        policies = leaderboard["augmentation"].str.partition(":")[0]
        return set(leaderboard["trial"][policies == BASELINE])
    trials = study.get_trials(deepcopy=False)
    return {trial.number for trial in trials if trial.user_attrs.get(PRESET) == BASELINE}


def preset_trials(study: optuna.Study | None) -> set[int] | None:
    """Numbers of the trials that a search begins with, each backbone's default; None without the
    study, since nothing else tells them from what was drawn."""
    if study is None:
        return None
    trials = study.get_trials(deepcopy=False)
    return {t.number for t in trials if str(t.user_attrs.get(PRESET)).startswith(f"{DEFAULT}:")}


def short_name(backbone: str) -> str:
    """A timm tag without what follows the architecture."""
    return backbone.partition(".")[0]


def summarise(
    rows: list[dict[str, Any]],
    looks: pd.DataFrame | None = None,
    compared_by: str = NAMES["auc"],
    waiting: Sequence[str] = (),
) -> str:
    """How the trials ended, and what the best and the baseline are worth, in sentences; with the
    looks of `search_looks`, which are compared by what is named, what the search brought over its
    presets as well, and the backbones whose default was not begun."""
    counts = {state: sum(row["state"] == state for row in rows) for state in STATES}
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    total = f"{len(rows)} trial{'' if len(rows) == 1 else 's'}"
    sentences = [f"{total}: {', '.join(parts)}." if parts else "No trial has ended yet."]
    complete = [row for row in rows if row["state"] == "complete"]
    baseline = [row for row in complete if row["is_baseline"]]
    if complete:
        best = complete[0]
        name = f"candidate {best['candidate']} ({best['backbone']})"
        # The folder of a trial may have been deleted since.
        text = f"The best, {name if best['candidate'] else best['backbone']}, has {_worth(best)}"
        sentences.append(text + ("; it is the challenge's baseline." if best in baseline else "."))
    if baseline and baseline[0] is not complete[0]:
        sentences.append(f"The challenge's baseline has {_worth(baseline[0])}.")
    if looks is not None:
        sentences += gain_at_the_same_time(looks, compared_by)
    sentences += finished_against_presets(complete)
    if waiting:
        sentences.append(f"The defaults of {', '.join(waiting)} were not begun.")
    return " ".join(sentences)


def _worth(row: Mapping[str, Any]) -> str:
    text = f"AUC {auc_text(row)} on select"
    return text + (f" and {auc_text(row['report'])} on report" if row["report"] else "")


def auc_text(figures: Mapping[str, Any], elsewhere: str | None = None) -> str:
    """AUC with its interval where there is one: 0.9345 [0.9121, 0.9511].

    Args:
        figures: a row of a table.
        elsewhere: the name of a set from elsewhere, see `ensemble compare --name`.
    """
    end = "" if elsewhere is None else f"@{elsewhere}"
    auc, low, high = (figures.get(f"{name}{end}") for name in ("auc", "auc_low", "auc_high"))
    text = number_text(auc, ".4f")
    if MISSING in (ends := [number_text(end, ".4f") for end in (low, high)]):
        return text
    return f"{text} [{', '.join(ends)}]"


def number_text(value: Any, form: str, scale: float = 1) -> str:
    """A number times a scale, as a format string says; a dash where it is unknown."""
    if value is None or pd.isna(value):
        return MISSING
    # 3.2e-4 rather than 3.2e-04.
    return f"{value * scale if scale != 1 else value:{form}}".replace("e-0", "e-").replace(
        "e+0", "e+"
    )


def _report_metrics(run: Path, candidate: str, tell: Tell) -> dict[str, float]:
    """A candidate's figures on report; none before the study has ended."""
    if not candidate:
        return {}
    return report_figures_of(read_metrics(run / CANDIDATES / candidate, tell))


def _merged(run: Path) -> list[dict[str, Any]]:
    """Rows of the run's comparison; none if there is no comparison, or it is of other models than
    those that lie in the run now."""
    try:
        # Else a refit that is called NA would have no name.
        table = pd.read_csv(run / COMPARISON, keep_default_na=False, na_values=[""])
        rows: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
        models = [row for row in rows if not pd.isna(row["path"])]
        known = [read_metrics(run / row["path"], lambda _: None).get("auc") for row in models]
        told = [None if pd.isna(row["auc_select"]) else row["auc_select"] for row in models]
    except (OSError, ValueError, KeyError):
        return []
    return rows if known == told else []


def _refits(run: Path, tell: Tell) -> list[dict[str, Any]]:
    """Rows of the refits that are complete, by name; no figure on a split that one has seen."""
    rows = []
    for refit in complete_refits(run):
        metrics = read_metrics(refit.path, tell)
        try:
            recipe = refit.recipe
        except UserError as error:
            tell(f"{error}; this refit is left out")
            continue
        figures = {"select": metrics, "report": report_figures_of(metrics)}
        rows.append(
            {
                **{name: metrics.get(name) for name in ("params_exact", *SECONDS)},
                "name": refit.name,
                "refit_of": metrics.get(REFIT_OF, ""),
                "recipe": recipe,
                **{
                    split: {} if refit.has_seen(split) else found
                    for split, found in figures.items()
                },
            }
        )
    return rows


def _template() -> Template:
    return load_template(
        "search.report",
        f"{REPORT}.jinja",
        {
            "auc": auc_text,
            "number": number_text,
            "text": lambda value: MISSING if pd.isna(value) else value,
            "seconds": lambda value: MISSING if pd.isna(value) else format_seconds(value),
        },
    )
