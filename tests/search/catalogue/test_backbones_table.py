from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from search.catalogue.backbones import load_backbones
from search.catalogue.rules import backbones_table
from search.errors import UserError

CATALOGUE = load_backbones()


def printed(budget: int, pool: str | None, weights: str) -> str:
    console = Console(file=StringIO(), width=240)
    console.print(backbones_table(replace(CATALOGUE, budget=budget), pool, weights))
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue()


def test_every_backbone_has_a_row_with_its_verdict() -> None:
    text = printed(310_000, "demo", "hub")
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith(" test_")}
    assert list(rows) == [backbone.name for backbone in CATALOGUE.pool("demo")]
    assert "0.30M" in rows["test_vit.r160_in1k"]
    sizes = CATALOGUE.get("test_vit.r160_in1k").image_sizes
    assert f" {', '.join(map(str, sizes))} " in rows["test_vit.r160_in1k"]
    assert "ImageNet-1K" in rows["test_vit.r160_in1k"]
    assert "yes" in rows["test_vit.r160_in1k"]
    assert "no: params_thop 0.4M is over the budget of 0.3M" in rows["test_resnet.r160_in1k"]
    assert "At most 0.3M parameters; pretrained on ImageNet-1K alone" in text


def test_all_pools_without_one_named() -> None:
    few = replace(CATALOGUE, backbones=CATALOGUE.backbones[:2] + CATALOGUE.pool("small")[:1])
    table = backbones_table(few, None, "none")
    assert table.row_count == 3


@pytest.mark.parametrize(
    ("pool", "weights", "message"),
    [
        ("smal", "hub", "did you mean 'small'"),
        ("demo", "hubs", "--weights must be one of hub, file, none, found 'hubs'; did you mean"),
    ],
)
def test_wrong_questions(pool: str, weights: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        backbones_table(CATALOGUE, pool, weights)
