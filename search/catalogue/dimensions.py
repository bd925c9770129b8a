"""What a search may vary beside the backbone: names, ranges, and where each is known to be good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from search.errors import UserError
from search.machine.files import check_keys
from search.pixels.augmentation.augment import POLICIES

Value = str | float | None


@dataclass(frozen=True)
class Dimension:
    """One of the things that a search may vary.

    Attributes:
        name: of the field of a Recipe.
        centre: a value known to be good; it is taken where the dimension is not searched.
        choices: to choose from; empty: a range.
        low: end of the range.
        high: the other one.
        log: whether it is searched on a log scale.
        always: searched in every search; else only where trials are many, or the file says so.
        only_pretrained: means nothing to a network that is trained from scratch.
        only_paired: means nothing where no group has both classes.
    """

    name: str
    centre: Value
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    always: bool = False
    only_pretrained: bool = False
    only_paired: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to search."""
        return len(self.choices) == 1 or (not self.choices and self.low == self.high)

    def narrowed(self, value: Any) -> Dimension:
        """What a backbones file makes of it: one value fixes it, a list says what is searched.

        Raises:
            UserError: if that is no such value or list.
        """
        values = value if isinstance(value, list) else [value]
        expected = f"one of {', '.join(map(str, self.choices))}, or a list of some"
        if self.choices:
            if not values or not all(any(_same(v, c) for c in self.choices) for v in values):
                raise UserError(f"'{self.name}' must be {expected}, found {value!r}")
            chosen = tuple(c for c in self.choices if any(_same(v, c) for v in values))
            centre = self.centre if self.centre in chosen else chosen[0]
            return replace(self, choices=chosen, centre=centre, always=True)
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        lowest = 1e-9 if self.log else 0.0
        if (
            len(numbers) != len(values)
            or len(values) != (2 if isinstance(value, list) else 1)
            or not lowest <= min(numbers) <= max(numbers) <= max(self.high, 1.0)
            or numbers[0] > numbers[-1]
        ):
            raise UserError(
                f"'{self.name}' must be a number or [lowest, highest] between {lowest:g} and "
                f"{max(self.high, 1.0):g}, found {value!r}"
            )
        low, high = float(numbers[0]), float(numbers[-1])
        assert isinstance(self.centre, float)
        centre = min(max(self.centre, low), high)
        return replace(self, low=low, high=high, centre=centre, always=True)

    def nearest(self, value: Value) -> Value:
        """A value of some other range, or the nearest that this one has; the centre where that
        means nothing."""
        if self.choices:
            return value if value in self.choices else self.centre
        assert isinstance(value, float)
        return min(max(value, self.low), self.high)

    def at(self, position: float) -> float:
        """The value of a range at a position in [0, 1]."""
        if self.log:
            return math.exp(math.log(self.low) * (1 - position) + math.log(self.high) * position)
        return self.low * (1 - position) + self.high * position

    def position(self, value: float) -> float:
        """The position in [0, 1] of a value of a range."""
        if self.low == self.high:
            return 0.0
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def _same(found: Any, choice: Value) -> bool:
    if isinstance(found, bool):
        return False
    return (type(found) is type(choice) and found == choice) or (
        isinstance(found, int | float) and isinstance(choice, float) and float(found) == choice
    )


SEARCHED_POLICIES = tuple(name for name in POLICIES if name != "baseline")
"""All but the one that belongs to the challenge's own starting point."""

DIMENSIONS: dict[str, Dimension] = {
    dimension.name: dimension
    for dimension in (
        Dimension(
            "lowest_layer_scale",
            0.05,
            low=3e-3,
            high=1.0,
            log=True,
            always=True,
            only_pretrained=True,
        ),
        Dimension("weight_decay", 0.05, low=1e-3, high=0.3, log=True, always=True),
        Dimension("augmentation", "light", SEARCHED_POLICIES, always=True),
        Dimension("augmentation_strength", 0.3, always=True),
        Dimension("label_smoothing", 0.05, high=0.15),
        Dimension("mixup_alpha", 0.0, (0.0, 0.2)),
        Dimension("cutmix_alpha", 0.0, (0.0, 1.0)),
        Dimension("class_balance", "none", ("none", "sampler", "loss")),
        # Against what tells the classes apart in this data set alone; each may do nothing.
        Dimension("compression_quality", 0.0, (0.0, 80.0)),
        Dimension("degradation_rounds", 0.0, (0.0, 2.0)),
        Dimension("patch_masking", 0.0, (0.0, 0.2)),
        Dimension("self_blended", 0.0, (0.0, 0.25)),
        Dimension("mixed_with_real", 0.0, (0.0, 0.25), only_paired=True),
        Dimension("batch_order", "random", ("random", "groups"), only_paired=True),
    )
}
"""By name. The centres are those of a recipe that is known to work on faces, with the learning rate
in the middle of its backbone's range."""


def without_pairs(dimensions: Mapping[str, Dimension]) -> dict[str, Dimension]:
    """The same for images of which no group has both classes: what needs such groups is fixed."""
    return {
        name: replace(one, choices=(one.centre,)) if one.only_paired else one
        for name, one in dimensions.items()
    }


def read_dimensions(content: Any) -> dict[str, Dimension]:
    """All dimensions, as the part `space` of a backbones file narrows or widens them.

    Raises:
        UserError: if it is no mapping, or names what there is not.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"'space' must map names to values or lists, found {content!r}")
    check_keys(dict(content), tuple(DIMENSIONS), "'space'")
    return {
        name: dimension.narrowed(content[name]) if name in content else dimension
        for name, dimension in DIMENSIONS.items()
    }
