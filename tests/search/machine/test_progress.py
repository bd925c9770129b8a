"""Bars and the plain lines in their place."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from search.machine.progress import Bars


def lines(total: int, steps: list[int], **options: int) -> list[str]:
    stream = io.StringIO()
    with Bars(Console(file=stream, width=40), **options) as bars:  # type: ignore[arg-type]
        bar = bars.add("scoring [x]", total, unit="images", plain="scored [x]")
        for step in steps:
            bar.update(step)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(
    ("total", "steps", "options", "numbers"),
    [
        (1000, list(range(1, 1001)), {}, list(range(100, 1001, 100))),
        (1000, list(range(1, 1001)), {"plain_lines": 4}, [250, 500, 750, 1000]),
        (3, [1, 2, 3], {}, [1, 2, 3]),
        (3, [1, 1, 1], {}, [1]),
        (100, [64, 100], {}, [64, 100]),
        (100, [], {}, []),
        # Once more from the start, as the epochs of a training.
        (2, [1, 2, 1, 2], {}, [1, 2, 1, 2]),
    ],
)
def test_without_a_terminal_a_few_lines_tell(
    total: int, steps: list[int], options: dict[str, int], numbers: list[int]
) -> None:
    assert lines(total, steps, **options) == [
        f"scored [x] {number:,} of {total:,} images" for number in numbers
    ]


def test_a_bar_without_plain_lines_or_total_is_silent_elsewhere() -> None:
    stream = io.StringIO()
    with Bars(Console(file=stream)) as bars:
        bars.add("epoch", 5).update(3, info="fast")
        bars.add("epoch", plain="trained").update(3)
    assert stream.getvalue() == ""


def test_a_terminal_shows_count_unit_and_info() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    with Bars(console, time_left=True) as bars:
        bar = bars.add("scoring", 7, unit="images", plain="scored")
        bars.add("hidden", 1, visible=False)
        bar.update(3, info="12 images/s, [x]")
        assert bars.live is not None
        bars.live.refresh()
    text = stream.getvalue()
    for expected in ("scoring", "3/7", "images", "left", "12 images/s, [x]"):
        assert expected in text
    assert "hidden" not in text
    assert "scored" not in text


def test_a_bar_learns_its_total_later_and_can_be_hidden() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    with Bars(console) as bars:
        bar = bars.add("epoch", visible=False)
        bar.update(1, 4, description="epoch 1/2")
        assert bars.live is not None
        (task,) = bars.live.tasks
        assert (task.completed, task.total, task.visible) == (1, 4, True)
        bar.hide()
        assert not task.visible


def test_bytes_are_shown_as_such() -> None:
    stream = io.StringIO()
    with Bars(Console(file=stream, force_terminal=True, width=120), of_bytes=True) as bars:
        bars.add("weights", 3_000_000).update(1_500_000)
    assert "1.5/3.0 MB" in stream.getvalue()
    assert "1500000/" not in stream.getvalue()
