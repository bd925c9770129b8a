from __future__ import annotations

import io

import pytest
from rich.console import Console

from search.report.terminal import StudyProgress, format_seconds
from search.training.candidate import EpochRecord
from search.training.loop import StepRecord
from search.training.recipe import Recipe

RECIPE = Recipe(backbone="test_resnet.r160_in1k", architecture="test_resnet", epochs=2)


def play(*, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    with StudyProgress(console, 5, finished=1, seconds_left=lambda: 100.0) as progress:
        progress.trial_started("0001", RECIPE)
        progress.step(StepRecord(0, 1, 2, None, 10.0))
        progress.step(StepRecord(0, 2, 2, 0.693, 12.0))
        if progress.bars:
            progress.bars.refresh()
        progress.epoch(EpochRecord(1, 0.693, 1e-3, 0.75, 0.6, 2.0))
        progress.trial_finished("complete", 0.75)
        progress.trial_started("0002", RECIPE)
        progress.trial_finished("failed", None, "the loss [x] must be finite")
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_course_of_a_study_is_told(terminal: bool) -> None:
    text = play(terminal=terminal)
    for expected in ("0001", "test_resnet.r160_in1k", "AUC 0.7500", "best AUC 0.7500", "[x] must"):
        assert expected in text


def test_without_a_terminal_there_are_only_lines() -> None:
    text = play(terminal=False)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "2 of 5 trials" in text


def test_a_terminal_shows_speed_and_loss() -> None:
    assert "12 images/s, loss 0.693" in play(terminal=True)


def test_a_resumed_study_knows_its_past_and_an_interrupted_trial_does_not_count() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=200)
    with StudyProgress(console, 3, finished=1, best=0.8, durations=[60.0]) as progress:
        progress.trial_started("0001", RECIPE)
        progress.trial_interrupted("interrupted by the user")
    told = "interrupted by the user | 1 of 3 trials, best AUC 0.8000, about 2 min 0 s left"
    assert told in stream.getvalue()


def test_failures_do_not_shorten_the_estimate() -> None:
    stream = io.StringIO()
    with StudyProgress(Console(file=stream, width=200), 3, durations=[60.0]) as progress:
        progress.trial_started("0000", RECIPE)
        progress.trial_finished("failed", None, "no paper")
    assert "about 2 min 0 s left" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (90, "1 min 30 s"), (4000, "1 h 6 min")],
)
def test_seconds_are_readable(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
