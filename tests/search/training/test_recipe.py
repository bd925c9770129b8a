from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.errors import UserError
from search.training.recipe import Recipe

RECIPE = Recipe(backbone="test_resnet.r160_in1k", architecture="test_resnet", canvas=224)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, model_args={"pad_type": "same", "img_size": 96}, mean=(0.5, 0.5, 0.5)),
        replace(RECIPE, schedule="constant", epochs=None, average_power=7.0),
        replace(RECIPE, learning_rate=1.2345678901234e-5, gradient_clip=None, micro_batch_size=4),
    ],
)
def test_a_recipe_survives_the_disk(recipe: Recipe, tmp_path: Path) -> None:
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    "content",
    [
        b"backbone: x\narchitecture: y\nlearning_rat: 1\n",
        b"backbone: x\narchitecture: y\nepochs: many\n",
        b"backbone: x\n",
        b"[1, 2]",
        b"a: [",
        b"backbone: \xff\xfe",
        b"",
    ],
)
def test_a_damaged_recipe_is_told_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="must be a recipe that onefold wrote, found: ") as error:
        Recipe.load(path)
    assert "\n" not in str(error.value)
    assert "pydantic" not in str(error.value)


def test_an_absent_recipe_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        Recipe.load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schedule": "constant", "freeze_norm_fraction": 0.3}, "freeze_norm_fraction must be 0"),
        ({"ema_decay": 0.9, "average_power": 0.0}, "one average of the weights"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(RECIPE, **changes)
