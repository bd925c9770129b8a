from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from search.catalogue.backbones import Backbone, load_backbones
from search.catalogue.dimensions import DIMENSIONS, read_dimensions
from search.catalogue.kinds import read_kinds
from search.catalogue.rules import backbones_table
from search.errors import UserError
from tests.search.study.decisions.test_space import SPACE

FILE = """
budget: 200_000_000
pretraining: ImageNet-1K alone
kinds:
  slow:
    learning_rate: [1.0e-5, 1.0e-3]
    drop_path: [0.1, 0.2]
    lowest_layer_scale: 0.01
    augmentation: strong
    mixup_alpha: 0.2
    source: a paper
pools:
  p:
    resnet18.a1_in1k: {image_sizes: [64], learning_rate: [1.0e-4, 1.0e-2]}
    convnextv2_atto.fcmae_ft_in1k: {image_sizes: [64], kind: slow}
    convnextv2_pico.fcmae_ft_in1k:
      {image_sizes: [64], kind: slow, learning_rate: [2.0e-5, 2.0e-4]}
"""


@pytest.fixture
def backbones(tmp_path: Path) -> tuple[Backbone, ...]:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return load_backbones(path).backbones


def test_a_kind_says_what_an_entry_leaves_out(backbones: tuple[Backbone, ...]) -> None:
    plain, slow, own = backbones
    assert (plain.kind, plain.centre, plain.recipe_source) == (None, {}, None)
    assert (slow.learning_rate, slow.drop_path) == ((1e-5, 1e-3), (0.1, 0.2))
    assert slow.recipe_source == "a paper"
    assert own.learning_rate == (2e-5, 2e-4)
    assert own.centre == slow.centre


def test_a_backbone_is_tried_first_as_its_kind_is_known_to_learn(
    backbones: tuple[Backbone, ...],
) -> None:
    space = replace(SPACE, backbones=backbones)
    plain, slow = (space.recipe(space.centre(backbone)) for backbone in backbones[:2])
    assert (plain.lowest_layer_scale, plain.augmentation, plain.mixup_alpha) == (0.05, "light", 0.0)
    # Mixup is not searched, and is as the kind has it all the same.
    assert "mixup_alpha" not in space.distributions
    assert (slow.lowest_layer_scale, slow.augmentation, slow.mixup_alpha) == (0.01, "strong", 0.2)
    assert slow.learning_rate == pytest.approx(1e-4)
    assert slow.weight_decay == plain.weight_decay


def test_what_the_file_allows_bounds_what_a_kind_says(backbones: tuple[Backbone, ...]) -> None:
    narrow = {"augmentation": ["light", "erase"], "mixup_alpha": 0.0}
    dimensions = read_dimensions({**narrow, "lowest_layer_scale": [0.02, 0.5]})
    space = replace(SPACE, backbones=backbones, dimensions=dimensions)
    recipe = space.recipe(space.centre(backbones[1]))
    assert (recipe.augmentation, recipe.mixup_alpha) == ("light", 0.0)
    assert recipe.lowest_layer_scale == pytest.approx(0.02)


def test_the_table_says_where_recipes_are_from(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    assert backbones_table(load_backbones(path), None, "none").caption == "slow: a paper"


def test_every_shipped_backbone_has_a_kind_that_is_known_from_somewhere() -> None:
    for backbone in load_backbones().backbones:
        if backbone.pool != "demo":
            assert backbone.recipe_source, backbone.name
            assert backbone.centre.keys() <= DIMENSIONS.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "'kinds' must map names"),
        ({"a": 3}, "kind 'a' must be a mapping of settings, found 3"),
        ({"a": {"weight_decay": 0.1}}, "kind 'a' must say where it is known from in 'source'"),
        ({"a": {"weight_deca": 0.1}}, "unknown key 'weight_deca' in kind 'a'; did you mean"),
        ({"a": {"weight_decay": [0, 1], "source": "x"}}, "'weight_decay' of kind 'a' must be one"),
        ({"a": {"weight_decay": 0.5, "source": "x"}}, "must lie between 0.001 and 0.3, found 0.5"),
        ({"a": {"augmentation": "lihgt", "source": "x"}}, "kind 'a': 'augmentation' must be one"),
        (
            {"a": {"learning_rate": [1, 0], "source": "x"}},
            "kind 'a': learning_rate must be 0",
        ),
        ({"a": {"drop_path": "often", "source": "x"}}, "kind 'a': drop_path"),
    ],
)
def test_what_is_no_kind_is_told(content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_kinds(content, DIMENSIONS)


@pytest.mark.parametrize(("kind", "found"), [("slwo", "'slwo'; did"), ("[slow]", r"'\['slow'\]'")])
def test_an_unknown_kind_is_told(kind: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE.replace("kind: slow}", f"kind: {kind}}}"))
    with pytest.raises(UserError, match=rf"one of the file's kinds \(slow\), found {found}"):
        load_backbones(path)


def test_the_space_may_widen_what_a_kind_says() -> None:
    content = {"a": {"weight_decay": 0.5, "source": "x"}}
    found = read_kinds(content, read_dimensions({"weight_decay": [0.1, 0.9]}))
    assert found["a"].centre == {"weight_decay": 0.5}


def test_draws_lie_around_what_a_kind_says(backbones: tuple[Backbone, ...]) -> None:
    space = replace(SPACE, backbones=backbones[1:2])
    generator = np.random.default_rng(0)
    drawn = [space.near_centre(generator)["lowest_layer_scale"] for _ in range(400)]
    assert 0.008 < np.median(drawn) < 0.015  # of all: 0.05
