"""How far a training goes in the time that it is given: a pure function of what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from search.training.recipe import Recipe

MARGIN = 0.05
"""Share of the time left that is not planned with, because speeds vary."""

BEFORE_MEASURING_ANEW = 0.75
"""Share of the way to the fall of the rate that is gone before the speed is looked at again."""


@dataclass(frozen=True)
class Stretch:
    """A piece of a training."""

    images: int  # that it has seen by the end of the piece
    is_last: bool  # whether its rate falls in it, and the training ends


def next_stretch(
    done: int,
    seconds_per_image: float | None,
    left: float,
    *,
    decay_fraction: float,
    first_look: int,
) -> Stretch:
    """The next piece of a training whose end the time shall settle.

    It goes on at its constant rate, in a few pieces after each of which its speed is known better,
    until what is left of the time is what the fall of the rate needs.

    Args:
        done: images that it has seen.
        seconds_per_image: as measured so far; None before anything was.
        left: seconds for training.
        decay_fraction: share of the whole training in which the rate falls.
        first_look: images of the shortest piece before the last one.
    """
    if done == 0 or not seconds_per_image:
        return Stretch(done + first_look, is_last=False)
    affordable = done + max(0, math.floor((1 - MARGIN) * left / seconds_per_image))
    to_fall = math.floor((1 - decay_fraction) * affordable) - done
    if to_fall < first_look:
        return Stretch(affordable, is_last=True)
    return Stretch(
        done + max(first_look, round(BEFORE_MEASURING_ANEW * to_fall)),
        is_last=False,
    )


def ended(recipe: Recipe, images: int, done: int, steps_per_epoch: int) -> Recipe:
    """A recipe whose training ends after so many images; its rate falls over its usual share of
    them, or over those that are left.

    Args:
        recipe: with a constant schedule, or one that was not begun.
        images: of the whole training.
        done: those that it has seen.
        steps_per_epoch: optimizer steps.
    """
    end = max(1, round(images / recipe.batch_size))
    left = max(0, end - round(done / recipe.batch_size))
    epochs = end / steps_per_epoch
    return replace(
        recipe,
        epochs=int(epochs) if epochs.is_integer() else epochs,
        decay_fraction=min(recipe.decay_fraction, left / end),
    )
