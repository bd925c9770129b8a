from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ensemble.network.admission import BUDGET
from ensemble.network.evidence import describe_rules
from ensemble.network.model import ModelSpec, TeacherOrigin, build_model
from search.training.recipe import Recipe

RESNET = Recipe(
    backbone="test_resnet.r160_in1k",
    architecture="test_resnet",
    image_size=32,
    canvas=32,
    weights="hub",
)
SINGLE = ModelSpec(kind="single", trunks=(RESNET,))


def teacher(**changes: Any) -> TeacherOrigin:
    allowed = TeacherOrigin("0003", "volo_d1_224.sail_in1k", "hub", "ImageNet-1K", 1.0)
    return replace(allowed, **changes)


def rules_of(spec: ModelSpec, **declared: str) -> dict[str, Any]:
    names = {name.replace("__", "."): word for name, word in declared.items()}
    return describe_rules(build_model(spec), 32, spec, budget=BUDGET, declared=names)


@pytest.mark.parametrize(
    ("spec", "broken"),
    [
        (SINGLE, []),
        (replace(SINGLE, teachers=(teacher(),)), []),
        (replace(SINGLE, teachers=(teacher(weights="none", pretraining="none"),)), []),
        (
            replace(SINGLE, teachers=(teacher(backbone="resnet50.fb_swsl_ig1b_ft_in1k"),)),
            ["teacher resnet50.fb_swsl_ig1b_ft_in1k"],
        ),
        (replace(SINGLE, teachers=(teacher(pretraining="unknown"),)), ["recorded as pretrained"]),
        (
            replace(SINGLE, trunks=(replace(RESNET, backbone="resnet50.fb_ssl_yfcc100m_ft_in1k"),)),
            ["trunk resnet50.fb_ssl"],
        ),
        (replace(SINGLE, trunks=(replace(RESNET, backbone="my_own"),)), ["trunk my_own"]),
        (replace(SINGLE, overrides=("candidate 0001 is tainted",)), ["candidate 0001 is tainted"]),
    ],
)
def test_every_breach_is_told(spec: ModelSpec, broken: list[str]) -> None:
    found = rules_of(spec)["broken_rules"]
    assert len(found) == len(broken)
    for text, expected in zip(found, broken, strict=True):
        assert expected in text


def test_what_the_user_declared_is_an_override() -> None:
    own = replace(SINGLE, trunks=(replace(RESNET, backbone="my.own"),))
    rules = rules_of(own, my__own="ImageNet-1K")
    assert rules["broken_rules"] == []
    assert rules["overrides"] == [
        "my.own: pretraining ImageNet-1K is declared in the backbones file"
    ]
    (network,) = rules["pretraining"]["networks"]
    assert network["pretraining"] == "ImageNet-1K (declared)"
    assert rules_of(own, my__own="JFT-300M")["broken_rules"] != []


class Sized(nn.Module):
    """A module of just so many parameters, none of which takes memory."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2, bias=False, device="meta")
        self.rest = nn.Parameter(torch.empty(count - 6, device="meta"))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize(
    ("count", "budget", "allowed"),
    [
        (200_000_000, BUDGET, True),
        (200_000_001, BUDGET, False),
        (200_000_001, 300_000_000, False),
        (1001, 1000, False),
    ],
)
def test_the_budget_holds_to_the_last_parameter(count: int, budget: int, allowed: bool) -> None:
    rules = describe_rules(Sized(count), 32, SINGLE, budget=budget, declared={})
    assert rules["parameters"]["params_exact"] == count
    assert (rules["broken_rules"] == []) == allowed
    assert rules["parameters"]["budget"] == min(budget, BUDGET)
