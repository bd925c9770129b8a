from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from search.data.splits import Splits
from search.errors import UserError
from search.machine.device import Runtime, describe_device
from search.machine.interruption import Interruption
from search.run.refit_plan import Refit, _within_the_time
from search.settings.search import SearchSettings
from search.training.candidate import Candidate
from search.training.recipe import Recipe

CPU = torch.device("cpu")
SECONDS = 1000.0
RECIPE = Recipe(
    backbone="b", architecture="b", canvas=64, image_size=32, schedule="cosine", batch_size=10
)
VERDICT: Any = None


def table(images: int) -> pd.DataFrame:
    return pd.DataFrame({"img_name": range(images)})


@pytest.fixture
def refit(tmp_path: Path) -> Refit:
    """Of a candidate that was trained at 100 images/s, and scored at 10, on another machine."""
    speeds = {"images_per_second": 100.0, "scoring_images_per_second": 10.0, "device": "a GPU"}
    folder = tmp_path / "0001"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(speeds), encoding="utf-8")
    RECIPE.save(folder / "recipe.yaml")
    return Refit(
        Candidate(folder),
        tmp_path / "refit",
        RECIPE,
        VERDICT,
        Splits(table(3000), table(500), table(400)),
        Runtime(CPU),
        SearchSettings(),
    )


@pytest.mark.parametrize(
    ("changes", "seconds_of_training", "speed"),
    [
        # Of 1000 s, 10 s are kept for the results, and what scoring takes: 40 s, and 250 s for
        # select as it is and four times altered.
        ({}, 700.0, 100.0),
        ({"trained_on": "fit+select"}, 950.0, 100.0),
        ({"trained_on": "all"}, 990.0, 100.0),
        # An image four times as large takes four times as long, in scoring, too.
        ({"trained_on": "fit+select", "image_size": 64}, 830.0, 25.0),
    ],
)
def test_what_must_know_its_end_ends_when_the_time_is_up(
    changes: dict[str, Any], seconds_of_training: float, speed: float, refit: Refit
) -> None:
    interruption = Interruption(SECONDS)
    found = _within_the_time(
        replace(refit, recipe=replace(RECIPE, epochs=4, **changes)), interruption
    )
    assert found.recipe.epochs is not None
    images = found.recipe.epochs * found.steps * 10
    assert images == pytest.approx(0.95 * seconds_of_training * speed, rel=0.01)
    seen_select = changes.get("trained_on", "fit") != "fit"
    assert found.scoring_seconds == (0.0 if seen_select else 250.0)


def test_results_never_take_more_than_their_share_of_the_time(refit: Refit) -> None:
    interruption = Interruption(15.0)
    _within_the_time(refit, interruption)
    assert interruption.reserved_seconds == pytest.approx(5.0, abs=0.1)


def test_too_little_time_is_told_before_anything_is_begun(refit: Refit) -> None:
    path = refit.candidate.path / "metrics.json"
    metrics = refit.candidate.metrics | {"device": describe_device(CPU)}
    path.write_text(json.dumps(metrics), encoding="utf-8")
    short = replace(refit, recipe=replace(RECIPE, trained_on="all"))
    with pytest.raises(UserError, match=r"--timeout must leave 20\.0 s for a first look at"):
        _within_the_time(short, Interruption(15.0))
    # What was begun goes on, however little is left of it.
    short.folder.mkdir()
    short.recipe.save(short.folder / "recipe.yaml")
    assert _within_the_time(short, Interruption(15.0)).recipe == short.recipe


def test_the_speed_of_another_machine_refuses_nothing(refit: Refit) -> None:
    constant = replace(refit, recipe=replace(RECIPE, schedule="constant", epochs=None))
    assert _within_the_time(constant, Interruption(1.0)).recipe.epochs is None
