from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from search.catalogue.backbones import Backbone, load_backbones
from search.pixels.augmentation.augment import Augmentation
from search.study.space import BASELINE, PRESET, SEARCHED_POLICIES, Space

CATALOGUE = load_backbones()
SMALL = CATALOGUE.pool("small")
SPACE = Space(
    backbones=SMALL,
    baseline=CATALOGUE.get("resnet18.a1_in1k"),
    weights="hub",
    weights_dir=None,
    epochs=4,
    canvas=192,
    batch_size=32,
    micro_batch_size=None,
    select_limit="all",
    precision="fp32",
    channels_last=True,
    compile=False,
    seed=3,
)


def ask(space: Space, parameters: dict[str, object], **attributes: str) -> optuna.Trial:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(parameters, user_attrs=attributes)
    return study.ask()


@pytest.mark.parametrize("weights", ["hub", "none"])
@pytest.mark.parametrize("backbone", SMALL, ids=lambda backbone: backbone.name)
def test_the_default_of_a_backbone_lies_in_the_space(backbone: Backbone, weights: str) -> None:
    space = replace(SPACE, weights=weights)
    parameters = space.default_parameters(backbone)
    trial = ask(space, parameters)
    recipe = space.recipe(trial)
    assert trial.params == pytest.approx(parameters)
    assert recipe.backbone == backbone.name
    assert recipe.image_size == backbone.image_sizes[0]
    low, high = backbone.learning_rate
    assert low < recipe.learning_rate < high
    assert (recipe.epochs, recipe.batch_size, recipe.seed) == (4, 32, 3)


def test_random_trials_are_recipes_within_the_ranges() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(60):
        recipe = SPACE.recipe(study.ask())
        backbone = CATALOGUE.get(recipe.backbone)
        assert backbone.learning_rate[0] <= recipe.learning_rate <= backbone.learning_rate[1]
        assert recipe.image_size in backbone.image_sizes
        assert recipe.augmentation in SEARCHED_POLICIES
        assert 0 < recipe.layer_decay <= 1
        assert recipe.canvas == 192
        Augmentation(recipe.augmentation, recipe.augmentation_strength)


def test_training_from_scratch_searches_nothing_that_only_fine_tuning_has() -> None:
    trial = ask(SPACE, {})
    space = replace(SPACE, weights="none")
    recipe = space.recipe(trial)
    assert recipe.layer_decay == 1.0
    assert "layer_decay" not in trial.params


def test_the_baseline_suggests_nothing() -> None:
    trial = ask(SPACE, {}, **{PRESET: BASELINE})
    recipe = SPACE.recipe(trial)
    assert trial.params == {}
    assert recipe == SPACE.baseline_recipe()
    assert recipe.image_size == 256
    assert (recipe.optimizer, recipe.learning_rate, recipe.epochs) == ("adam", 5e-3, 2)


def test_the_baseline_is_no_larger_than_what_is_searched() -> None:
    small = replace(SMALL[0], image_sizes=(64, 96))
    assert replace(SPACE, backbones=(small,)).baseline_recipe().image_size == 96
    with pytest.raises(ValueError, match="no baseline"):
        replace(SPACE, baseline=None).baseline_recipe()


def test_local_weights_are_named_after_the_backbone() -> None:
    space = replace(SPACE, weights="file", weights_dir=Path("weights"))
    recipe = space.recipe(ask(space, {"backbone": "mobilenetv2_100.tf_in1k"}))
    assert recipe.weights == "file"
    assert recipe.weights_file == str(Path("weights") / "mobilenetv2_100.tf_in1k.safetensors")
    assert recipe.model_args == {"pad_type": "same"}
