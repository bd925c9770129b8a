"""The search space: what may be varied, and the one place that turns that into a Recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search.catalogue.backbones import Backbone
from search.catalogue.dimensions import Dimension
from search.machine.device import Precision
from search.settings.data import Objective
from search.training.recipe import Recipe, SelectLimit

BASELINE = "baseline"
"""Value of the user attribute `preset` that asks for the challenge's baseline recipe."""

PRESET = "preset"

BASELINE_IMAGE_SIZE = 256
BASELINE_EPOCHS = 2

AVERAGE_POWER = 7.0
"""Of those that `bench_anytime.py` compares the best on select of the demo set: a uniform average
of a network that is trained for a few epochs lags behind."""

MANY_TRIALS = 60
"""With so many, more is searched than what is known to matter."""

BACKBONE, IMAGE_SIZE, LEARNING_RATE = "backbone", "image_size_choice", "learning_rate_position"
"""Parameters that mean something else for each backbone: its name, the place of the image size in
its list, and the position in its range of learning rates, from 0 to 1 on a log scale. So whatever
is learned of one backbone tells something of the others."""

CENTRE_POSITION = 0.5
"""Of the learning rate."""

NEAR = 0.75
"""Share of the parameters of a draw around the centre that stay near it."""

SPREAD = 0.15
"""Standard deviation of those, in parts of the range."""

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """What may be tried, and what every Recipe of the study has in common."""

    backbones: tuple[Backbone, ...]
    baseline: Backbone | None
    dimensions: Mapping[str, Dimension]
    weights: Literal["hub", "file", "none"]
    weights_dir: Path | None
    epochs: float | None
    schedule: Literal["constant", "cosine"]
    canvas: int
    batch_size: int
    micro_batch_size: int | None
    select_limit: SelectLimit
    objective: Objective
    precision: Precision | Literal["auto"]
    channels_last: bool
    compile: bool
    seed: int
    with_many_trials: bool = False
    """Whether more is searched than what is known to matter."""

    @property
    def searched(self) -> tuple[Dimension, ...]:
        """The dimensions that are searched, beside backbone, image size and learning rate."""
        return tuple(
            dimension
            for dimension in self.dimensions.values()
            if not dimension.is_fixed
            and (dimension.always or self.with_many_trials)
            and not (dimension.only_pretrained and self.weights == "none")
        )

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Of all parameters: each has a meaning for each backbone."""
        found: dict[str, BaseDistribution] = {
            BACKBONE: CategoricalDistribution([b.name for b in self.backbones])
        }
        most = max(len(backbone.image_sizes) for backbone in self.backbones)
        if most > 1:
            found[IMAGE_SIZE] = IntDistribution(0, most - 1)
        found[LEARNING_RATE] = FloatDistribution(0.0, 1.0)
        for one in self.searched:
            if one.choices:
                found[one.name] = CategoricalDistribution(one.choices)
            else:
                found[one.name] = FloatDistribution(one.low, one.high, log=one.log)
        return found

    def centre(self, backbone: Backbone) -> Parameters:
        """Parameters that are known to be good: the first ones of a backbone that are tried."""
        special = {BACKBONE: backbone.name, IMAGE_SIZE: 0, LEARNING_RATE: CENTRE_POSITION}
        return {
            name: special[name] if name in special else self._centre_of(backbone, name)
            for name in self.distributions
        }

    def near_centre(self, generator: np.random.Generator) -> Parameters:
        """Parameters drawn around the centre of some backbone."""
        return self.near(
            self.centre(self.backbones[generator.integers(len(self.backbones))]), generator
        )

    def near(self, middle: Parameters, generator: np.random.Generator) -> Parameters:
        """Parameters drawn around others, with their backbone: most of them stay near those, the
        others come from anywhere."""
        drawn = dict(middle)
        for name, distribution in self.distributions.items():
            if name == BACKBONE:
                continue
            is_near = generator.random() < NEAR
            if isinstance(distribution, CategoricalDistribution):
                if not is_near:
                    drawn[name] = distribution.choices[
                        generator.integers(len(distribution.choices))
                    ]
            elif isinstance(distribution, IntDistribution):
                if not is_near:
                    drawn[name] = int(generator.integers(distribution.high + 1))
            else:
                one = self.dimensions.get(name) or Dimension(name, CENTRE_POSITION)
                position = generator.random()
                if is_near:
                    position = one.position(drawn[name]) + SPREAD * generator.standard_normal()
                drawn[name] = one.at(min(max(position, 0.0), 1.0))
        return drawn

    def completed(self, parameters: Mapping[str, Any]) -> Parameters | None:
        """Parameters of a search that varied other things, with the centre for those that it did
        not; None for a backbone that is not in the space."""
        backbone = self._backbone(parameters.get(BACKBONE))
        if backbone is None:
            return None
        full = {**self.centre(backbone), **parameters}
        return {name: full[name] for name in self.distributions}

    def recipe(self, parameters: Mapping[str, Any]) -> Recipe:
        """The Recipe that parameters stand for; those that are absent are at their centre."""
        backbone = self._backbone(parameters[BACKBONE])
        if backbone is None:
            raise KeyError(parameters[BACKBONE])
        sizes = backbone.image_sizes
        image_size = sizes[min(int(parameters.get(IMAGE_SIZE, 0)), len(sizes) - 1)]
        low, high = backbone.learning_rate
        position = float(parameters.get(LEARNING_RATE, CENTRE_POSITION))
        varied = {
            name: parameters.get(name, self._centre_of(backbone, name))
            for name, dimension in self.dimensions.items()
            if not (dimension.only_pretrained and self.weights == "none")
        }
        constant = self.schedule == "constant"
        return Recipe(
            **self._network(backbone, image_size),
            drop_path=0.0 if backbone.drop_path is None else backbone.drop_path[0],
            learning_rate=low ** (1 - position) * high**position,
            schedule=self.schedule,
            average_power=AVERAGE_POWER if constant else None,
            ema_decay=0.0 if constant else 0.998,
            batch_size=self.batch_size,
            **varied,
        )

    @property
    def baseline_image_size(self) -> int:
        """256 px, or the largest size that is searched, if that is smaller."""
        searched = [size for backbone in self.backbones for size in backbone.image_sizes]
        return min(BASELINE_IMAGE_SIZE, max(searched, default=BASELINE_IMAGE_SIZE))

    def baseline_recipe(self) -> Recipe:
        """The challenge's own starting point: ResNet-18 at `baseline_image_size`, Adam at 5e-3, a
        decay of 0.85 every four epochs, two epochs in batches of 40, both flips, plain cross
        entropy.

        Raises:
            ValueError: if the study has no baseline.
        """
        if self.baseline is None:
            raise ValueError("the study has no baseline backbone")
        network = self._network(self.baseline, self.baseline_image_size)
        return Recipe(
            **{**network, "epochs": BASELINE_EPOCHS},
            optimizer="adam",
            schedule="step",
            learning_rate=5e-3,
            weight_decay=0.0,
            gradient_clip=None,
            augmentation=BASELINE,
            batch_size=40,
        )

    def _centre_of(self, backbone: Backbone, name: str) -> Any:
        """Of a dimension: what is known of the backbone's kind, as far as the file allows it."""
        dimension = self.dimensions[name]
        if name not in backbone.centre:
            return dimension.centre
        return dimension.nearest(backbone.centre[name])

    def _backbone(self, name: object) -> Backbone | None:
        return next((backbone for backbone in self.backbones if backbone.name == name), None)

    def _network(self, backbone: Backbone, image_size: int) -> dict[str, Any]:
        """The fields of a Recipe that the study and the backbone fix."""
        file = None
        if self.weights_dir is not None:
            file = str(self.weights_dir / f"{backbone.name}.safetensors")
        return {
            **backbone.network_fields(image_size),
            "canvas": self.canvas,
            "weights": self.weights,
            "weights_file": file,
            "epochs": self.epochs,
            "micro_batch_size": self.micro_batch_size,
            "select_limit": self.select_limit,
            "objective": self.objective,
            "precision": self.precision,
            "channels_last": self.channels_last,
            "compile": self.compile,
            "seed": self.seed,
        }
