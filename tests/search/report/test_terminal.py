from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from search.errors import UserError
from search.report.terminal import (
    Problems,
    StudyProgress,
    describe_rules,
    format_seconds,
    introduce,
    print_top,
)
from search.study.decisions.layout import Rules
from search.training.candidate import Look
from search.training.loop import StepRecord
from search.training.recipe import Recipe

RECIPE = Recipe(backbone="test_resnet.r160_in1k", architecture="test_resnet", canvas=224, epochs=2)


def play(*, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    with StudyProgress(console, 5, begun=["0000"], seconds_ahead=lambda: 100.0) as progress:
        progress.trial_started("0001", RECIPE)
        progress.step(StepRecord(0, 1, 2, None, 10.0))
        progress.step(StepRecord(0, 2, 2, 0.693, 12.0))
        if progress.bars.live:
            progress.bars.live.refresh()
        progress.look(Look(64, 1.0, 0.693, 1e-3, 0.75, 0.6, 2.0))
        progress.trial_finished("complete", 0.75)
        progress.trial_started("0002", RECIPE)
        progress.trial_finished("failed", None, "the loss [x] must be finite")
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_course_of_a_study_is_told(terminal: bool) -> None:
    text = play(terminal=terminal)
    for expected in (
        "0001",
        "test_resnet.r160_in1k",
        "AUC 0.7500",
        "best complete AUC 0.7500",
        "[x] must",
    ):
        assert expected in text


def test_without_a_terminal_there_are_only_lines() -> None:
    text = play(terminal=False)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "2 of 5 begun" in text


def test_a_terminal_shows_speed_and_loss() -> None:
    assert "12 images/s, loss 0.693" in play(terminal=True)


def test_a_resumed_study_knows_its_past_and_what_goes_on_is_not_begun_again() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=200)
    with StudyProgress(
        console, 3, begun=["0000", "0001"], best=0.8, seconds_ahead=lambda: 120.0
    ) as progress:
        progress.trial_started("0001", RECIPE, until=4_000, goes_on=True)
        progress.trial_paused("interrupted by the user")
        progress.trial_started("0002", RECIPE, until=2_000)
        progress.trial_paused()
    assert stream.getvalue().splitlines() == [
        "trial 0001 goes on to 4,000 images",
        "  paused: interrupted by the user, goes on from its batch | "
        "2 of 3 begun, best complete AUC 0.8000, about 2 min 0 s left",
        "trial 0002 to 2,000 images: test_resnet.r160_in1k at 224 px, learning rate 0.0003, "
        "augmentation none 0.50",
        "  paused | 3 of 3 begun, best complete AUC 0.8000, about 2 min 0 s left",
    ]


def test_one_whose_checkpoint_was_lost_is_not_counted_twice() -> None:
    stream = io.StringIO()
    with StudyProgress(Console(file=stream, width=200), 2, begun=["0000", "0001"]) as progress:
        progress.trial_started("0001", RECIPE)
        progress.trial_paused()
    assert stream.getvalue().splitlines()[-1] == "  paused | 2 of 2 begun"


def test_how_many_are_begun_may_be_open() -> None:
    stream = io.StringIO()
    with StudyProgress(Console(file=stream, width=200), None) as progress:
        progress.trial_started("0000", RECIPE)
        progress.trial_finished("complete", 0.9)
    assert stream.getvalue().splitlines()[-1] == (
        "  complete, AUC 0.9000 | 1 begun, best complete AUC 0.9000"
    )


@pytest.mark.parametrize(
    ("rules", "left", "told"),
    [
        (Rules(2_000, trials=20, longest=28_000), None, "20 configurations are trained on 2,000"),
        (Rules(2_000), 28_800.0, "in 8 h 0 min: about 20 configurations, for 2 min 24 s each"),
        (Rules(2_000, trials=7), 28_800.0, "about 7 configurations, for 6 min 51 s each"),
    ],
)
def test_how_the_search_is_laid_out_is_told(rules: Rules, left: float | None, told: str) -> None:
    assert told in describe_rules(rules, left)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (90, "1 min 30 s"), (4000, "1 h 6 min")],
)
def test_seconds_are_readable(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def problems(run: Path = Path("results/x")) -> tuple[Problems, io.StringIO]:
    stream = io.StringIO()
    return Problems(run, Console(file=stream, width=40)), stream


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("a label must be 0 or 1,\nfound 2"), "a label must be 0 or 1, found 2"),
        (PermissionError(13, "Permission denied", "plots/roc.png"), "Permission denied: plots/"),
        (ValueError("of two\n  lines [x]"), "ValueError: of two lines [x]"),
        (RuntimeError("long" * 1000), "RuntimeError: longlong"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_forgiven_failure_is_one_line_that_says_how_to_mend_it(
    error: Exception, told: str
) -> None:
    forgiving, stream = problems()
    with forgiving.forgiven("report.html"):
        raise error
    (line,) = stream.getvalue().splitlines()
    assert line.startswith(f"report.html could not be made: {told}")
    assert line.endswith("; `python -m search report --out results/x` makes it again")
    assert len(line) < 400


def test_ctrl_c_is_not_forgiven() -> None:
    forgiving, stream = problems()
    with pytest.raises(KeyboardInterrupt), forgiving.forgiven("report.html"):
        raise KeyboardInterrupt
    assert stream.getvalue() == ""


def test_a_problem_is_told_once() -> None:
    forgiving, stream = problems()
    for line in ("first", "second", "first"):
        forgiving.tell(line)
    assert stream.getvalue() == "first\nsecond\n"


NO_ROWS = pd.DataFrame({"state": ["failed"], "candidate": [""]})


def plan_of(trials: int, notes: tuple[str, ...] = ()) -> Any:
    table = pd.DataFrame({"target": [0, 1]})
    recipe = SimpleNamespace(backbone="resnet18.a1_in1k", image_size=224, epochs=2)
    return SimpleNamespace(
        settings=SimpleNamespace(pool="small", trials=trials, objective="mean"),
        splits=SimpleNamespace(fit=table, select=table, report=table),
        space=SimpleNamespace(
            backbones=("a", "b"),
            baseline="resnet18.a1_in1k",
            baseline_recipe=lambda: recipe,
            precision="fp32",
            canvas=256,
        ),
        runtime=SimpleNamespace(device="cpu"),
        images_of_a_look=1,
        rejected=(),
        rules=Rules(2_000, trials=trials, longest=28_000),
        notes=notes,
    )


def introduction(of: Any) -> str:
    stream = io.StringIO()
    introduce(of, Path("results/x"), Console(file=stream, width=40))
    return stream.getvalue()


def test_the_baseline_and_its_own_epochs_are_named() -> None:
    text = introduction(plan_of(9))
    assert "2 backbones of pool 'small'" in text
    assert "baseline (resnet18.a1_in1k at 224 px, always 2 epochs)" in text


def test_what_candidates_are_compared_on_is_told() -> None:
    told = introduction(plan_of(9))
    assert "compared on 1 of 2 images of select (--select-limit) by mean AUC (--objective)" in told


def test_a_note_stays_on_its_line_when_it_is_not_a_terminal() -> None:
    note = "one [note] that is much longer than forty columns are"
    assert note in introduction(plan_of(9, (note,))).splitlines()


@pytest.mark.parametrize(("trials", "told"), [(2, True), (3, True), (4, False)])
def test_too_few_trials_to_search_are_told(trials: int, told: bool) -> None:
    assert ("ends before anything is searched" in introduction(plan_of(trials))) is told


def test_without_a_complete_candidate_there_is_no_table() -> None:
    stream = io.StringIO()
    print_top(NO_ROWS, Console(file=stream))
    assert stream.getvalue() == "no candidate is complete yet\n"
