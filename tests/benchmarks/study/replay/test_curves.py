"""What is recorded: the configurations, and that each is what it is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import timm
from timm.optim import param_groups_layer_decay

from search.errors import UserError
from search.settings.search import SearchSettings
from search.study.decisions.space import AVERAGE_POWER, Space
from search.training.network import Network
from tests.benchmarks.study.record_curves import Lengths, check_same
from tests.benchmarks.study.replay.curves import Configuration, configurations, recorded_space
from tests.benchmarks.study.replay.earlier_space import lowest_layer_scale

FACES = Path(__file__).parents[4] / "results/published/dfdc-faces/backbones.yaml"
LENGTHS = Lengths(whole=8_000, first_look=1_000, first_fall=2_000)


@pytest.fixture(scope="module")
def space() -> Space:
    settings = SearchSettings(backbones=FACES, pool="local", weights_dir=Path("weights"))
    return recorded_space(settings, image_size=64, canvas=64)


@pytest.fixture(scope="module")
def drawn(space: Space) -> list[Configuration]:
    return configurations(space, 27)


def test_a_table_of_few_is_the_beginning_of_one_of_many(
    space: Space, drawn: list[Configuration]
) -> None:
    assert configurations(space, 12) == drawn[:12]
    kinds = [one.kind for one in drawn]
    assert kinds[:7] == ["hand", *3 * ["preset"], *3 * ["old_preset"]]
    assert kinds[7:12] == kinds[12:17] == ["near", "old", "anywhere", "near", "old"]
    assert len({one.packed for one in drawn}) == len(drawn)


def test_the_recipe_set_by_hand_is_that_of_the_issue(
    space: Space, drawn: list[Configuration]
) -> None:
    found = drawn[0].cosine(space, epochs=8)
    assert (found.architecture, found.optimizer, found.schedule, found.batch_size) == (
        ("mobilenetv2_100", "adamw", "cosine", 32)
    )
    assert (found.augmentation, found.augmentation_strength) == ("light", 0.6)
    assert (found.ema_decay, found.label_smoothing, found.weight_decay) == (0.998, 0.05, 0.05)
    assert found.learning_rate == pytest.approx(9.5e-4)
    assert found.lowest_layer_scale == pytest.approx(0.85**18)


def test_where_several_image_sizes_are_searched_both_spaces_have_them() -> None:
    settings = SearchSettings(backbones=FACES, pool="local", weights_dir=Path("weights"))
    one = recorded_space(settings, image_size=128, canvas=192)
    sizes = (128, 160, 192)
    wide = replace(one, backbones=tuple(replace(b, image_sizes=sizes) for b in one.backbones))
    drawn = configurations(wide, 40)
    assert drawn[0].cosine(wide, epochs=8).image_size == 192
    old = [found.cosine(wide, epochs=2) for found in drawn if found.kind == "old"]
    assert {recipe.image_size for recipe in old} == set(sizes)
    assert all(recipe.canvas == 192 for recipe in old)


@pytest.mark.parametrize("architecture", ["mobilenetv2_100", "test_vit"])
def test_a_decay_of_each_layer_leaves_the_rates_that_timm_gives(architecture: str) -> None:
    trunk = timm.create_model(architecture, num_classes=2)
    network = Network(trunk, 32, 32, (0.5,) * 3, (0.5,) * 3)
    ours = network.parameter_groups(0.05, lowest_layer_scale(architecture, 0.7))
    plain = param_groups_layer_decay(trunk, 0.05, layer_decay=0.7)
    assert [group["lr_scale"] for group in ours] == pytest.approx(
        [group["lr_scale"] for group in plain]
    )


def test_an_old_configuration_is_trained_as_it_was_and_in_the_anytime_way(
    space: Space, drawn: list[Configuration]
) -> None:
    old = [one for one in drawn if one.kind == "old"]
    assert {one.parameters["freeze_norm_fraction"] for one in old} >= {0.3, 1.0}
    for one in old:
        cosine, constant = one.cosine(space, epochs=2), one.constant(space)
        assert (cosine.schedule, constant.schedule) == ("cosine", "constant")
        name = one.backbone
        assert cosine.learning_rate == one.parameters[f"{name}/learning_rate"]
        assert cosine.drop_path == one.parameters.get(f"{name}/drop_path", 0.0)
        for field in ("freeze_norm_fraction", "ema_decay", "mixup_alpha", "class_balance"):
            assert getattr(cosine, field) == one.parameters[field]
            if field in ("mixup_alpha", "class_balance"):
                assert getattr(constant, field) == one.parameters[field]
        frozen = one.parameters["freeze_norm_fraction"] == 1.0
        assert constant.freeze_norm_fraction == (1.0 if frozen else 0.0)
        assert constant.average_power == AVERAGE_POWER
        assert (constant.epochs, constant.ema_decay) == (None, 0.0)


def test_looks_double_up_to_where_the_rate_of_the_whole_training_falls() -> None:
    assert LENGTHS.looks == [1_000, 2_000, 4_000, 6_400]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": "{}"}, "configuration 1 of the table must be the one"),
        ({"image_size": 80}, "at 80 px"),
        ({"images": 14_000}, "must have --length 8000, found 14000 images"),
    ],
)
def test_a_table_of_something_else_is_not_gone_on_with(
    drawn: list[Configuration], change: dict[str, object], message: str
) -> None:
    row = {
        "config": 1,
        "parameters": drawn[1].packed,
        "image_size": 64,
        "arm": "cosine",
        "images": 8_000,
        "auc_select": 0.7,
    }
    check_same(pd.DataFrame([row]), drawn, 64, LENGTHS)
    with pytest.raises(UserError, match=message):
        check_same(pd.DataFrame([row | change]), drawn, 64, LENGTHS)
