from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search.errors import UserError
from search.training.recipe import Recipe

RECIPE = Recipe(backbone="test_resnet.r160_in1k", architecture="test_resnet", canvas=224)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, model_args={"pad_type": "same", "img_size": 96}, mean=(0.5, 0.5, 0.5)),
        replace(RECIPE, learning_rate=1.2345678901234e-5, gradient_clip=None, micro_batch_size=4),
    ],
)
def test_a_recipe_survives_the_disk(recipe: Recipe, tmp_path: Path) -> None:
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    "text",
    [
        "backbone: x\narchitecture: y\nlearning_rat: 1\n",
        "backbone: x\narchitecture: y\nepochs: many\n",
        "backbone: x\n",
        "[1, 2]",
        "a: [",
    ],
)
def test_a_damaged_recipe_is_one_user_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="must be a recipe"):
        Recipe.load(path)


def test_an_absent_recipe_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        Recipe.load(tmp_path / "recipe.yaml")
