"""Configurations whose trainings are recorded, and the table that they are recorded in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Literal

import numpy as np
import optuna
from optuna.samplers import RandomSampler

from search.catalogue.backbones import Backbone
from search.catalogue.dimensions import DIMENSIONS
from search.settings.search import SearchSettings
from search.study.decisions.space import (
    AVERAGE_POWER,
    BACKBONE,
    IMAGE_SIZE,
    LEARNING_RATE,
    Parameters,
    Space,
)
from search.training.recipe import Recipe
from tests.benchmarks.opening import space_of
from tests.benchmarks.study.replay import earlier_space

Kind = Literal["hand", "preset", "old_preset", "near", "anywhere", "old"]
"""Where a configuration comes from: set by hand; the centre of the space, or the default of the
search of 70bbfd5, for a backbone; drawn around the centre of the space, from all of it, or from the
space of 70bbfd5."""

DRAWN: tuple[Kind, ...] = ("near", "old", "anywhere", "near", "old")
"""The kinds that are drawn, in turn."""

OLD = ("old_preset", "old")
"""Kinds whose parameters are those of 70bbfd5; the others' are the space's."""

COLUMNS = [
    "config",
    "kind",
    "backbone",
    "image_size",
    "parameters",  # JSON
    "arm",  # cosine, constant, or fall@IMAGES: the rate falls from there on
    "images",  # seen, those before the fall included
    "seconds",  # of training, up to there
    "score_seconds",  # of the looks at select that the arm has taken by then
    "auc_select",  # empty: the training failed here
    "auc_report",
]

COSINE, CONSTANT, FALL = "cosine", "constant", "fall@"

BY_HAND = "mobilenetv2_100"
"""The architecture of the recipe set by hand."""

HAND_LEARNING_RATE, HAND_LAYER_DECAY, HAND_SIZE, HAND_STRENGTH = 9.5e-4, 0.85, 192, 0.6

STRENGTH = "augmentation_strength"


@dataclass(frozen=True)
class Configuration:
    """One of those that are recorded."""

    number: int
    kind: Kind
    parameters: Parameters

    @property
    def backbone(self) -> str:
        """Its name."""
        return str(self.parameters[BACKBONE])

    @property
    def packed(self) -> str:
        """The parameters as JSON."""
        return json.dumps(self.parameters, sort_keys=True)

    def cosine(self, space: Space, epochs: float) -> Recipe:
        """Its recipe for so many epochs, as the search that it comes from would train it."""
        space = replace(space, schedule="cosine", epochs=epochs)
        if self.kind not in OLD:
            return space.recipe(self.parameters)
        backbone = next(one for one in space.backbones if one.name == self.backbone)
        choice = earlier_space.image_size_choice(self.parameters, backbone)
        plain = space.recipe({BACKBONE: self.backbone, IMAGE_SIZE: choice})
        fields = earlier_space.recipe_fields(self.parameters, plain.architecture)
        return replace(plain, **fields)

    def constant(self, space: Space) -> Recipe:
        """Its recipe in the anytime way, whose end is not settled; batch norm that were to learn
        after a share of all steps learns at once."""
        recipe = self.cosine(space, epochs=1)
        return replace(
            recipe,
            schedule="constant",
            epochs=None,
            ema_decay=0.0,
            average_power=AVERAGE_POWER,
            freeze_norm_fraction=float(recipe.freeze_norm_fraction == 1.0),
        )


def recorded_space(settings: SearchSettings, image_size: int, canvas: int) -> Space:
    """The space as it was when the curves were recorded: a series of configurations goes on only
    with the same centre; arguments as for `space_of`."""
    then = {STRENGTH: replace(DIMENSIONS[STRENGTH], centre=0.6)}
    return replace(space_of(settings, image_size, canvas), dimensions=DIMENSIONS | then)


def configurations(space: Space, count: int) -> list[Configuration]:
    """The first `count` of a series that never ends: by hand, the presets, then drawn ones; the
    space's seed decides the draws, of each number apart."""
    pretrained = space.weights != "none"
    first: list[tuple[Kind, Parameters]] = [("hand", by_hand(space))]
    first += [("preset", space.centre(backbone)) for backbone in space.backbones]
    first += [
        ("old_preset", earlier_space.default_parameters(backbone, pretrained=pretrained))
        for backbone in space.backbones
    ]
    found = [Configuration(number, *one) for number, one in enumerate(first)]
    found += [
        Configuration(number, kind, _draw(space, kind, number))
        for number, kind in _numbered_kinds(len(first), count)
    ]
    return found[:count]


def _numbered_kinds(start: int, end: int) -> Iterator[tuple[int, Kind]]:
    for number in range(start, end):
        yield number, DRAWN[(number - start) % len(DRAWN)]


def _draw(space: Space, kind: Kind, number: int) -> Parameters:
    generator = np.random.default_rng((space.seed, number))
    if kind == "near":
        return space.near_centre(generator)
    sampler = RandomSampler(seed=int(generator.integers(2**32)))
    study = optuna.create_study(sampler=sampler)
    if kind == "anywhere":
        return dict(study.ask(space.distributions).params)
    return earlier_space.suggest(study.ask(), space.backbones, pretrained=space.weights != "none")


def by_hand(space: Space) -> Parameters:
    """The recipe that was set by hand, as parameters of the space: mobilenetv2_100 at 192 px, or at
    what is nearest to that in its list, a learning rate of 9.5e-4, lowered by 0.85 a layer, `light`
    at 0.6; weight decay 0.05 and label smoothing 0.05 are the centre of the space, and 0.998 is the
    average that goes with cosine."""
    backbone = _hand_backbone(space.backbones)
    low, high = backbone.learning_rate
    position = log(HAND_LEARNING_RATE / low) / log(high / low) if low < high else 0.0
    parameters = space.centre(backbone) | {LEARNING_RATE: min(max(position, 0.0), 1.0)}
    if STRENGTH in parameters:
        parameters[STRENGTH] = HAND_STRENGTH
    if IMAGE_SIZE in parameters:
        sizes = backbone.image_sizes
        parameters[IMAGE_SIZE] = sizes.index(min(sizes, key=lambda size: abs(size - HAND_SIZE)))
    if "lowest_layer_scale" in parameters:
        scale = earlier_space.lowest_layer_scale(backbone.architecture, HAND_LAYER_DECAY)
        parameters["lowest_layer_scale"] = scale
    return parameters


def _hand_backbone(backbones: Sequence[Backbone]) -> Backbone:
    fitting = (backbone for backbone in backbones if backbone.architecture == BY_HAND)
    return next(fitting, backbones[0])
