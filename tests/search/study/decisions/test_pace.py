from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.study.decisions.pace import MARGIN, Stretch, ended, next_stretch
from search.training.step import decay_start, training_steps
from tests.search.study.conftest import RECIPE


@pytest.mark.parametrize(
    ("done", "speed", "left", "expected"),
    [
        (0, None, 60.0, Stretch(100, False)),  # nothing is known yet
        (500, None, 60.0, Stretch(600, False)),  # on another machine, say
        (100, 0.01, 0.0, Stretch(100, True)),  # it ends where it is
        (1000, 0.01, 2.0, Stretch(1190, True)),  # as much of a fall as the time allows
        # 95% of 20 s are 1900 images more: the fall begins at 1600, three quarters of the way there
        (100, 0.01, 20.0, Stretch(100 + 1125, False)),
        (1500, 0.01, 5.0, Stretch(1975, True)),  # it falls from 1580 on
    ],
)
def test_it_goes_on_until_the_fall_needs_what_is_left(
    done: int, speed: float | None, left: float, expected: Stretch
) -> None:
    found = next_stretch(done, speed, left, decay_fraction=0.2, first_look=100)
    assert found.is_last == expected.is_last
    assert found.images == pytest.approx(expected.images, abs=1)


@given(
    speed=st.floats(1e-4, 1.0),
    seconds=st.floats(1.0, 1e5),
    decay_fraction=st.floats(0.05, 0.5),
)
def test_the_fall_has_its_share_and_fits_into_the_time(
    speed: float, seconds: float, decay_fraction: float
) -> None:
    """At a steady speed, which is known after the first piece."""
    done, left, pieces = 0, seconds, 0
    stretch = Stretch(0, False)
    while not stretch.is_last:
        stretch = next_stretch(
            done,
            speed if done else None,
            left,
            decay_fraction=decay_fraction,
            first_look=100,
        )
        left -= (stretch.images - done) * speed
        before, done, pieces = done, stretch.images, pieces + 1
    assert pieces < 30
    if 100 * speed < seconds:
        assert left >= 0
        assert left <= max(2 * MARGIN * seconds, speed)
    # Where there was time for a fall at all, it begins in the last piece and is as long as usual.
    if (1 - MARGIN) * (1 - decay_fraction) * seconds > 200 * speed:
        assert (1 - decay_fraction) * done >= before - 1


@pytest.mark.parametrize(
    ("images", "done", "end", "falls_at"),
    [(1600, 0, 50, 40), (1600, 1280, 50, 40), (1600, 1440, 50, 45), (10, 0, 1, 1)],
)
def test_an_end_is_moved_and_the_fall_shortened_where_it_has_to_be(
    images: int, done: int, end: int, falls_at: int
) -> None:
    recipe = ended(replace(RECIPE, schedule="constant", epochs=None), images, done, 12)
    assert training_steps(recipe, 12) == end
    assert decay_start(recipe, 12) == falls_at
