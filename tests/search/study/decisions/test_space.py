from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import create_trial

from search.catalogue.backbones import Backbone, load_backbones
from search.catalogue.dimensions import SEARCHED_POLICIES, Dimension, read_dimensions
from search.study.decisions.space import (
    BACKBONE,
    IMAGE_SIZE,
    LEARNING_RATE,
    SPREAD,
    Parameters,
    Space,
)
from search.training.recipe import NOT_OF_RECORDED_VIEWS

CATALOGUE = load_backbones()
SMALL = CATALOGUE.pool("small")
SPACE = Space(
    backbones=SMALL,
    baseline=CATALOGUE.get("resnet18.a1_in1k"),
    dimensions=CATALOGUE.dimensions,
    weights="hub",
    weights_dir=None,
    epochs=4,
    schedule="constant",
    canvas=192,
    batch_size=32,
    micro_batch_size=None,
    objective="auc",
    select_limit="all",
    precision="fp32",
    channels_last=True,
    compile=False,
    seed=3,
)


def near(parameters: Parameters, other: Parameters) -> float:
    """Share of the parameters that are the same, or nearly."""
    same = 0
    for name, value in parameters.items():
        if isinstance(value, float):
            dimension = SPACE.dimensions.get(name, Dimension(name, 0.5))
            distance = abs(dimension.position(value) - dimension.position(other[name]))
            same += distance < 2.5 * SPREAD
        else:
            same += value == other[name]
    return same / len(parameters)


@pytest.mark.parametrize("weights", ["hub", "none"])
@pytest.mark.parametrize("backbone", SMALL, ids=lambda backbone: backbone.name)
def test_the_centre_of_a_backbone_is_the_recipe_that_works(
    backbone: Backbone, weights: Any
) -> None:
    space = replace(SPACE, weights=weights)
    parameters = space.centre(backbone)
    create_trial(params=parameters, distributions=space.distributions, value=0.0)
    recipe = space.recipe(parameters)
    assert recipe.backbone == backbone.name
    assert recipe.image_size == backbone.image_sizes[0]
    low, high = backbone.learning_rate
    assert recipe.learning_rate == pytest.approx((low * high) ** 0.5)
    assert (recipe.epochs, recipe.batch_size, recipe.seed) == (4, 32, 3)
    assert (recipe.augmentation, recipe.augmentation_strength) == ("light", 0.3)
    assert (recipe.weight_decay, recipe.label_smoothing) == (0.05, 0.05)
    assert backbone.kind is not None
    lowest = {"small-convnext": 0.28, "small-hybrid": 0.086, "vit": 0.12}.get(backbone.kind, 0.05)
    assert recipe.lowest_layer_scale == (1.0 if weights == "none" else lowest)
    assert (recipe.schedule, recipe.average_power) == ("constant", 7.0)


def test_few_dimensions_are_searched_unless_trials_are_many() -> None:
    matter = {"lowest_layer_scale", "weight_decay", "augmentation", "augmentation_strength"}
    assert set(SPACE.distributions) == {BACKBONE, IMAGE_SIZE, LEARNING_RATE, *matter}
    scratch = replace(SPACE, weights="none")
    assert "lowest_layer_scale" not in scratch.distributions
    many = replace(SPACE, with_many_trials=True)
    against_bias = {"compression_quality", "degradation_rounds", "patch_masking"}
    against_bias |= {"self_blended", "mixed_with_real", "batch_order"}
    assert {"mixup_alpha", "class_balance"} | against_bias <= set(many.distributions)
    recipe = many.recipe(many.centre(SMALL[0]))
    assert recipe == replace(recipe, **NOT_OF_RECORDED_VIEWS)  # off until they are drawn
    one = replace(SPACE, backbones=(replace(SMALL[0], image_sizes=(64,)),))
    assert IMAGE_SIZE not in one.distributions


def test_draws_are_around_the_centre_and_from_everywhere() -> None:
    space = replace(SPACE, with_many_trials=True)
    generator = np.random.default_rng(0)
    drawn = [space.near_centre(generator) for _ in range(400)]
    for parameters in drawn:
        create_trial(params=parameters, distributions=space.distributions, value=0.0)
        recipe = space.recipe(parameters)
        backbone = CATALOGUE.get(recipe.backbone)
        assert backbone.learning_rate[0] <= recipe.learning_rate <= backbone.learning_rate[1]
        assert recipe.image_size in backbone.image_sizes
        assert recipe.augmentation in SEARCHED_POLICIES
        assert recipe.views.policy == recipe.augmentation
    centres = [space.centre(CATALOGUE.get(one[BACKBONE])) for one in drawn]
    shares = [near(one, centre) for one, centre in zip(drawn, centres, strict=True)]
    assert 0.75 < np.mean(shares) < 0.95
    assert min(shares) < 0.75
    assert len({one[BACKBONE] for one in drawn}) == len(SMALL)
    assert {one["augmentation"] for one in drawn} == set(SEARCHED_POLICIES)


def test_the_file_narrows_and_widens_what_is_searched() -> None:
    narrowed = read_dimensions(
        {"weight_decay": 0.01, "augmentation": ["strong", "erase"], "label_smoothing": [0.1, 0.2]}
    )
    space = replace(SPACE, dimensions=narrowed)
    assert "weight_decay" not in space.distributions
    assert "label_smoothing" in space.distributions
    recipe = space.recipe(space.centre(SMALL[0]))
    assert (recipe.weight_decay, recipe.augmentation) == (0.01, "erase")
    assert recipe.label_smoothing == pytest.approx(0.1)


def test_parameters_of_another_space_are_completed() -> None:
    narrow = {BACKBONE: SMALL[1].name, LEARNING_RATE: 0.25}
    found = SPACE.completed(narrow)
    assert found == {**SPACE.centre(SMALL[1]), LEARNING_RATE: 0.25}
    assert SPACE.completed({BACKBONE: "gone"}) is None
    assert SPACE.recipe(narrow).learning_rate < SPACE.recipe(SPACE.centre(SMALL[1])).learning_rate


def test_cosine_keeps_an_exponential_average() -> None:
    recipe = replace(SPACE, schedule="cosine").recipe(SPACE.centre(SMALL[0]))
    assert (recipe.schedule, recipe.ema_decay, recipe.average_power) == ("cosine", 0.998, None)


def test_the_baseline_is_the_challenges() -> None:
    recipe = SPACE.baseline_recipe()
    assert recipe.image_size == 256
    assert (recipe.optimizer, recipe.learning_rate, recipe.epochs) == ("adam", 5e-3, 2)


def test_the_baseline_is_no_larger_than_what_is_searched() -> None:
    small = replace(SMALL[0], image_sizes=(64, 96))
    assert replace(SPACE, backbones=(small,)).baseline_recipe().image_size == 96
    with pytest.raises(ValueError, match="no baseline"):
        replace(SPACE, baseline=None).baseline_recipe()


def test_local_weights_are_named_after_the_backbone() -> None:
    space = replace(SPACE, weights="file", weights_dir=Path("weights"))
    recipe = space.recipe({BACKBONE: "mobilenetv2_100.tf_in1k"})
    assert recipe.weights == "file"
    assert recipe.weights_file == str(Path("weights") / "mobilenetv2_100.tf_in1k.safetensors")
    assert recipe.model_args == {"pad_type": "same"}
