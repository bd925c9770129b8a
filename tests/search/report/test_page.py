"""The report of every kind of run: that it needs no other file, hides nothing, trusts no text."""

from __future__ import annotations

import io
import json
import shutil
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import search.drawing.figure
from search.report.leaderboard import COLUMNS, rows_from_study
from search.report.page import (
    auc_text,
    baseline_trials,
    number_text,
    summarise,
    write_report,
)
from search.report.recorded import MISSING
from search.report.terminal import Problems
from search.study.prior import Probe, write_probes
from search.training.candidate import Candidate
from tests.search.report.conftest import HandMadeRun

HOSTILE = "<script>alert('a & b')</script>"
FACTS = {
    "fit images": "2,000 (1,100 fake)",
    "starting weights": "none: trained from scratch",
    "versions": f"torch 2.15 {HOSTILE}",
    "device": "cpu AVX2 (0000)\ncuda NVIDIA H200 (0001)",
    "notes": f"Pretraining declared: {HOSTILE}",
}
FIGURES = ("pareto", "search", "history", "roc", "epochs", "importance")


class Page(HTMLParser):
    """What a page shows and refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def table(self, *heads: str) -> list[dict[str, str]]:
        """Rows of the table whose first column heads are these, by head."""
        start = next(i for i, row in enumerate(self.rows) if tuple(row[: len(heads)]) == heads)
        names, *rows = self.rows[start:]
        bodies = takewhile(lambda row: len(row) == len(names) and row[0] != heads[0], rows)
        return [dict(zip(names, row, strict=True)) for row in bodies]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attributes)
        self.links += [
            value
            for name in ("src", "href", "srcset", "action", "data")
            if (value := values.get(name))
        ]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["style"], ["script"]):
            self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


@pytest.fixture(autouse=True, scope="module")
def coarse() -> Iterator[None]:
    """Small figures, which are drawn fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.drawing.figure, "DPI", 50)
        yield


@pytest.fixture(autouse=True)
def quick(blank_figures: None) -> None:
    """But for `mixed`, which is made before."""


@pytest.fixture
def run(make_run: Callable[[str], HandMadeRun]) -> HandMadeRun:
    return make_run("night-1")


@dataclass(frozen=True)
class Written:
    """A run with one trial of each kind, the second the baseline, and its report."""

    run: Path
    paths: list[Path]
    page: Page


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Written:
    run = HandMadeRun(tmp_path_factory.mktemp("page") / "mixed")
    run.add("complete", 1.5)
    run.add("complete", 0.5, preset="baseline")
    run.add("pruned", 1.0, reason="its checkpoint was deleted: --disk")
    run.add("failed", reason=f"the loss must be finite {HOSTILE}")
    run.add("rejected", reason="pretraining must be ImageNet-1K alone, found ImageNet-12K")
    paths = report(run)
    return Written(run.folder, paths, Page(paths[0]))


def report(run: HandMadeRun, facts: dict[str, str] | None = None) -> list[Path]:
    """Writes the report of a run in which nothing is wrong."""
    stream = io.StringIO()
    problems = Problems(run.folder, Console(file=stream))
    leaderboard = rows_from_study(run.study, run.folder, problems.tell)
    paths = write_report(
        run.folder, run.study, leaderboard, FACTS if facts is None else facts, problems
    )
    assert stream.getvalue() == ""
    return paths


def test_the_page_needs_no_other_file(mixed: Written) -> None:
    assert mixed.paths[0] == mixed.run / "report.html"
    assert len(mixed.page.links) == 2 * len(FIGURES) + 1
    assert all(link.startswith("data:") for link in mixed.page.links)
    source = mixed.paths[0].read_text(encoding="utf-8")
    assert "url(" not in source
    assert "@import" not in source
    assert "default-src 'none'" in source


def test_the_page_holds_the_very_plots_in_both_themes(mixed: Written) -> None:
    names = [f"{name}{theme}.png" for name in FIGURES for theme in ("", "-dark")]
    assert mixed.paths[1:] == [mixed.run / "plots" / name for name in names]
    prefix = "data:image/png;base64,"
    embedded = [
        b64decode(link.removeprefix(prefix)) for link in mixed.page.links if link.startswith(prefix)
    ]
    pairs = zip(mixed.paths[2::2], mixed.paths[1::2], strict=True)
    assert embedded == [path.read_bytes() for dark_first in pairs for path in dark_first]


def test_texts_are_escaped(mixed: Written) -> None:
    assert mixed.page.tags.count("script") == 1, "more than the page's own script"
    # Of the facts, the notes, and the reason in both tables.
    assert mixed.page.text.count(HOSTILE) == 4


def test_every_trial_is_shown_with_all_columns(mixed: Written) -> None:
    rows = mixed.page.table("trial", "rank")
    columns = [name for name in COLUMNS if name != "trial"]
    assert all(list(row) == ["trial", *columns] for row in rows)
    assert [row["trial"] for row in rows] == ["0000", "0001", "0002", "0003", "0004"]
    assert [row["rank"] for row in rows] == ["1", "2", MISSING, MISSING, MISSING]
    assert rows[0]["params_exact"] == "371,778"


def test_trials_that_are_not_complete_tell_their_reason(mixed: Written) -> None:
    rows = mixed.page.table("trial", "state")
    assert [(row["trial"], row["state"], row["reason"]) for row in rows] == [
        ("0002", "pruned", "its checkpoint was deleted: --disk"),
        ("0003", "failed", f"the loss must be finite {HOSTILE}"),
        ("0004", "rejected", "pretraining must be ImageNet-1K alone, found ImageNet-12K"),
    ]


def test_the_top_table_shows_select_and_report_and_marks_the_baseline(mixed: Written) -> None:
    best, baseline = mixed.page.table("rank", "backbone")
    figures = json.loads((mixed.run / "candidates" / "0000" / "metrics.json").read_text("utf-8"))
    assert best["AUC on select [95%]"] == auc_text(figures)
    assert best["AUC on report [95%]"] == auc_text(figures["report"])
    assert best["trainingtime"] == "1 min 15 s"
    assert best["backbone"] == "test_vit.r160_in1k"
    assert baseline["backbone"] == "test_vit.r160_in1kbaseline"


def test_facts_are_shown_and_notes_stand_out(mixed: Written) -> None:
    source = mixed.paths[0].read_text(encoding="utf-8")
    assert source.count('<p class="highlight">') == 1
    assert source.index("notes:") < source.index("fit images")
    assert "none: trained from scratch" in source
    assert "cpu AVX2 (0000)\ncuda NVIDIA H200 (0001)</dd>" in source
    assert "dd { margin: 0; white-space: pre-line; }" in source


def test_a_baseline_below_the_top_is_shown_too(run: HandMadeRun) -> None:
    run.add("complete", 0.1, preset="baseline")
    for quality in np.linspace(2, 4, 12):
        run.add("complete", quality)
    report(run)
    rows = Page(run.folder / "report.html").table("rank", "backbone")
    assert [row["rank"] for row in rows] == [*map(str, range(1, 11)), "13"]


@pytest.mark.parametrize("is_stale", [False, True])
def test_merged_models_are_shown_if_they_are_those_of_the_run(
    is_stale: bool, run: HandMadeRun
) -> None:
    run.add("complete", 0.9)
    auc = Candidate(run.folder / "candidates" / "0000").metrics["auc"]
    row = {"auc": 0.91, "auc_low": 0.9, "auc_high": 0.92, "params_exact": 2e6, "difference": 0.02}
    row |= {"images_per_second_32": 40.0, "auc@celeb": 0.7, "auc_low@celeb": 0.6}
    row |= {"auc_high@celeb": 0.8}
    comparison = pd.DataFrame(
        [
            row | {"model": "teachers", "path": None, "auc_select": 0.95, "recommended": False},
            row
            | {
                "model": "NA",
                "path": "candidates/0000",
                "auc_select": 0.5 if is_stale else auc,
                "recommended": True,
                "reason": "highest <AUC>",
            },
        ]
    )
    comparison.to_csv(run.folder / "comparison.csv", index=False)
    page = report(run)[0].read_text("utf-8")
    assert ("<h2>Merged models</h2>" in page) is not is_stale
    assert (">NA<span" in page) is not is_stale
    assert ("highest &lt;AUC&gt;" in page) is not is_stale
    assert ("AUC elsewhere,<br>celeb [95%]" in page) is not is_stale
    assert ("0.7000 [0.6000, 0.8000]" in page) is not is_stale


@pytest.mark.parametrize("states", [(), ("failed", "rejected"), ("paused", "pruned")], ids=str)
def test_a_run_without_a_complete_trial_has_a_report(
    run: HandMadeRun, states: tuple[str, ...]
) -> None:
    for state in states:
        run.add(state, quality=1.0 if state in ("paused", "pruned") else 0)
    paths = report(run, facts={"seed": "0"})
    assert all(path.stat().st_size for path in paths)
    assert '<p class="highlight">' not in paths[0].read_text(encoding="utf-8")
    page = Page(run.folder / "report.html")
    assert "No trial is complete yet." in page.text
    assert ("All trials" in page.text) == bool(states)


def test_a_candidate_that_was_deleted_is_left_out_of_the_curves(run: HandMadeRun) -> None:
    run.add("complete", 1.5)
    shutil.rmtree(run.folder / "candidates" / "0000")
    report(run)
    (row,) = Page(run.folder / "report.html").table("rank", "backbone")
    assert row["candidate"] == MISSING
    assert row["AUC on report [95%]"] == MISSING


def test_a_paused_trial_tells_why_and_what_it_has_reached(run: HandMadeRun) -> None:
    run.add("complete", 1.5)
    run.add("paused", 1.0, reason="the time limit was reached")
    report(run)
    page = Page(run.folder / "report.html")
    (row,) = page.table("trial", "state")
    assert (row["trial"], row["state"]) == ("0001", "paused")
    assert row["reason"] == "the time limit was reached"
    in_all = page.table("trial", "rank")[1]
    reached = run.study.trials[1].user_attrs["row"]["auc"]
    assert in_all["objective"].startswith(f"{reached:.4f}")  # in the last cell of the page
    assert in_all["auc"] == MISSING
    assert "2 trials: 1 complete, 1 paused." in page.text


def told(run: HandMadeRun) -> list[str]:
    """Writes a report and returns what was told of it."""
    stream = io.StringIO()
    problems = Problems(run.folder, Console(file=stream))
    write_report(
        run.folder,
        run.study,
        rows_from_study(run.study, run.folder, problems.tell),
        FACTS,
        problems,
    )
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("name", ["scores.csv", "history.csv", "metrics.json"])
@pytest.mark.parametrize("content", ["", "epoch,train_loss,select_auc\n1,high,0.5\n"])
def test_a_damaged_file_is_told_once_and_costs_no_other(
    name: str, content: str, run: HandMadeRun
) -> None:
    run.add("complete", 1.5)
    run.add("complete", 1.0)
    (run.folder / "candidates" / "0000" / name).write_text(content, encoding="utf-8")
    (line,) = told(run)
    assert str(Path("0000") / name) in line
    page = Page(run.folder / "report.html")
    assert [row["candidate"] for row in page.table("rank", "backbone")] == ["0000", "0001"]
    assert len(page.links) == 2 * len(FIGURES) + 1


def test_a_figure_that_cannot_be_drawn_is_one_line_and_costs_no_other(
    run: HandMadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.add("complete", 1.5)

    def fail(*_: object) -> Path:
        raise RuntimeError("no\nfont")

    monkeypatch.setattr("search.report.page.draw_history", fail)
    (line,) = told(run)
    assert line.startswith("plots/history.png could not be made: RuntimeError: no font; `python -m")
    page = Page(run.folder / "report.html")
    assert "This figure could not be drawn" in page.text
    assert len(page.links) == 2 * (len(FIGURES) - 1) + 1


def test_ctrl_c_while_drawing_is_ctrl_c(run: HandMadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.report.page.draw_pareto", press)
    with pytest.raises(KeyboardInterrupt):
        told(run)


BEST = {"candidate": "0007", "backbone": "vit", "auc": 0.9, "auc_low": 0.85, "auc_high": 0.93}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "No trial has ended yet."),
        ([{"state": "failed"}], "1 trial: 1 failed."),
        (
            [
                {**BEST, "state": "complete", "is_baseline": False, "report": {"auc": 0.88}},
                {**BEST, "state": "complete", "is_baseline": True, "report": {}},
                {"state": "pruned"},
            ],
            "3 trials: 2 complete, 1 pruned. The best, candidate 0007 (vit), has AUC 0.9000 "
            "[0.8500, 0.9300] on select and 0.8800 on report. The challenge's baseline has AUC "
            "0.9000 [0.8500, 0.9300] on select.",
        ),
        (
            [{**BEST, "state": "complete", "is_baseline": True, "report": {}}],
            "1 trial: 1 complete. The best, candidate 0007 (vit), has AUC 0.9000 [0.8500, 0.9300] "
            "on select; it is the challenge's baseline.",
        ),
    ],
)
def test_the_summary_says_how_it_ended(rows: list[dict[str, Any]], expected: str) -> None:
    assert summarise(rows) == expected


def test_the_study_tells_presets_from_what_was_drawn(run: HandMadeRun) -> None:
    run.add("complete", 1.0, preset="baseline")
    # Images, own seconds, AUC, seconds of all: it was gone on with after the drawn one.
    looks = [[1_000, 60.0, 0.6, 60.0], [2_000, 120.0, 0.7, 180.0]]
    run.add("complete", 1.5, preset="default:test_vit.r160_in1k", looks=looks)
    run.add("complete", 2.5, looks=[[1_000, 60.0, 0.65, 120.0]])
    report(run)
    page = Page(run.folder / "report.html")
    assert "The search brought +0.0500 over the best preset at the same time" in page.text
    assert "the best drawn configuration, candidate 0002, is 0." in page.text
    (row,) = page.table("trial", "kind")
    assert (row["trial"], row["kind"]) == ("0001", "preset")
    assert row["trained in minutesof all trainings"] == "0.0 to 1.0, 2.0 to 3.0"


def test_defaults_that_were_not_begun_are_named(run: HandMadeRun) -> None:
    """Little time is not enough for all of a large pool."""
    run.add("complete", 1.0, preset="default:one")
    run.study.enqueue_trial({}, user_attrs={"preset": "default:two"})
    run.study.enqueue_trial({}, user_attrs={"preset": "baseline"})
    report(run)
    assert "The defaults of two were not begun." in Page(run.folder / "report.html").text


def test_the_probe_is_shown_from_its_file_alone(run: HandMadeRun, mixed: Written) -> None:
    assert "Probe of the backbones" not in mixed.page.text
    kept = Probe("fast", 224, 1_000, 5, 0.71, 0.02, 54.0, seconds=21, kept=True)
    slow = Probe("slow", 384, images_per_second=0.5, is_estimated=True, kept=False, reason=HOSTILE)
    write_probes([slow, kept], run.folder)
    report(run)
    page = Page(run.folder / "report.html")
    best, last = page.table("backbone", "image(px)")
    assert list(best.values()) == [
        *("fast", "224", "0.710 ± 0.020", "1,000", "54", "21 s", "yes", MISSING)
    ]
    *values, why = list(last.values())[2:]
    assert values == [f"{MISSING} ± {MISSING}", "0", "about 0.5", "0 s", "no"]
    assert why.startswith(HOSTILE)  # the last cell of a table holds what follows it as well
    assert "no rank correlation is told" in page.text


@pytest.mark.parametrize(
    ("value", "form", "scale", "expected"),
    [
        (3.2e-4, ".1e", 1, "3.2e-4"),
        (12_345_678, ".1f", 1e-6, "12.3"),
        (12_345_678, ",", 1, "12,345,678"),
        (0.0, ".4f", 1, "0.0000"),
        (None, ".4f", 1, MISSING),
        (float("nan"), ".4f", 1, MISSING),
        (pd.NA, "d", 1, MISSING),
    ],
)
def test_numbers_are_readable(value: Any, form: str, scale: float, expected: str) -> None:
    assert number_text(value, form, scale) == expected


def test_the_baseline_is_known_with_and_without_the_study(run: HandMadeRun) -> None:
    run.add("complete", 1.5)
    run.add("complete", 0.5, preset="baseline")
    table = rows_from_study(run.study, run.folder).assign(
        augmentation=["light:0.30", "baseline:1.00"]
    )
    assert table["trial"].tolist() == [0, 1]
    assert baseline_trials(run.study, table) == {1}
    assert baseline_trials(None, table) == {1}


@pytest.fixture
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.mark.browser
def test_the_page_in_a_browser(mixed: Written, browser: Any) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    for scheme, file in (("light", "pareto.png"), ("dark", "pareto-dark.png")):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(mixed.paths[0].as_uri())
        shown = browser.execute_script("return document.querySelector('img').currentSrc")
        assert b64decode(shown.partition(",")[2]) == (mixed.run / "plots" / file).read_bytes()
        background = browser.execute_script(
            "return getComputedStyle(document.body).backgroundColor"
        )
        assert (sum(map(int, background[4:-1].split(","))) > 380) == (scheme == "light")
        # A page that is too wide scrolls, or is laid out wider than the phone and shrunk.
        assert browser.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth]"
        ) == [390, 390]
    firsts = "return [...document.querySelectorAll('.sortable tbody th')].map(e => e.textContent)"
    click = "document.querySelectorAll('.sortable thead button')[{}].click()"
    objective = [head for head in COLUMNS if head != "trial"].index("objective") + 1
    browser.execute_script(click.format(objective))
    # By rising objective, trials without one last.
    assert browser.execute_script(firsts) == ["0001", "0002", "0000", "0003", "0004"]
    browser.execute_script(click.format(objective))
    assert browser.execute_script(firsts) == ["0000", "0002", "0001", "0003", "0004"]
    assert browser.get_log("browser") == []
