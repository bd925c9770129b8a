from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from ensemble.compare import speed as speed_module
from ensemble.compare.compare import COLUMNS, Contestant, compare, gather, run_compare
from ensemble.compare.on_report import with_all_models
from ensemble.compare.recommended import choose_model
from ensemble.compare.speed import LONG_PASS, measure_speed
from ensemble.fuse.fuse import run_fuse
from ensemble.pool.pool import Pool
from ensemble.soup.soup import run_soup
from search.errors import UserError
from search.machine.interruption import Interrupted, Interruption
from search.training.metrics import delong_test, measure, roc_auc
from search.training.network import build_network
from tests.ensemble.conftest import RESNET, VIT

TARGETS = np.array([0, 1] * 100)


def contestant(name: str, noise: float, breaches: tuple[str, ...] = ()) -> Contestant:
    """Scores that tell the classes apart the worse, the more noise there is."""
    generator = np.random.default_rng(len(name))
    scores = 1 / (1 + np.exp(-(TARGETS - 0.5 + noise * generator.normal(size=200))))
    metrics = measure(scores, TARGETS)
    return Contestant(
        model=name,
        kind="reference" if name == "teachers" else "single",
        path="" if name == "teachers" else f"merged/{name}",
        scores=scores,
        metrics=metrics,
        auc_select=metrics.auc,
        objective=metrics.auc,
        auc_stress=math.nan,
        breaches=breaches,
        costs={"params_thop": 1, "params_exact": 2, "gmacs": 0.5},
    )


def by_select(auc: float) -> dict[str, Any]:
    """Of a model that is so good on select, in a search that went by that."""
    return {"auc_select": auc, "objective": auc}


def test_the_best_model_that_keeps_the_rules_is_recommended() -> None:
    contestants = [
        contestant("single", 1.0),
        contestant("teachers", 0.3, ("several models",)),
        contestant("tainted", 0.2, ("in22k",)),
        contestant("fused", 0.5),
    ]
    table = compare(contestants, TARGETS, {1: {"merged/single": 10.0}, 32: {}})
    assert tuple(table.columns) == COLUMNS
    assert set(table["objective_name"]) == {"auc"}
    assert table["auc_select"].is_monotonic_decreasing
    (chosen,) = table[table["recommended"]].to_dict("records")
    assert chosen["model"] == "fused"
    assert chosen["p_value"] < 0.05
    assert "above the best single (paired DeLong test over groups: p" in chosen["reason"]
    assert "below the teacher ensemble" in chosen["reason"]
    rows = table.set_index("model")
    assert rows.loc["tainted", "reason"] == "in22k"
    assert np.isnan(rows.loc["single", "p_value"])
    assert rows.loc["single", "images_per_second_1"] == 10.0
    test = delong_test(contestants[3].scores, contestants[0].scores, TARGETS)
    assert rows.loc["fused", "difference"] == pytest.approx(test.difference)


def test_a_difference_that_may_be_chance_is_called_so() -> None:
    single = contestant("single", 0.8)
    scores = single.scores.copy()
    scores[1] = 1.0  # one fake image more is ranked above all others
    metrics = measure(scores, TARGETS)
    better = replace(
        single,
        model="fused",
        scores=scores,
        metrics=metrics,
        auc_select=metrics.auc,
        objective=metrics.auc,
    )
    teachers = contestant("teachers", 2.0, ("several",))
    table = compare([single, teachers, better], TARGETS, {})
    (chosen,) = table[table["recommended"]].to_dict("records")
    assert chosen["model"] == "fused"
    assert "chance can explain" in chosen["reason"]
    assert "above the teacher ensemble" in chosen["reason"]


def test_a_test_that_cannot_say_is_not_told() -> None:
    single = replace(
        contestant("single", 1.0), scores=np.full(200, 0.5), auc_select=0.5, objective=0.5
    )
    perfect = replace(
        contestant("fused", 1.0), scores=TARGETS.astype(float), auc_select=1.0, objective=1.0
    )
    teachers = contestant("teachers", 0.3, ("several models",))
    table = compare([single, teachers, perfect], TARGETS, {})
    (chosen,) = table[table["recommended"]].to_dict("records")
    assert math.isnan(chosen["p_value"])
    assert "above the best single; " in chosen["reason"]


def test_the_only_model_that_keeps_the_rules_is_called_so() -> None:
    teachers = contestant("teachers", 0.3, ("several models",))
    table = compare([contestant("single", 1.0), teachers], TARGETS, {})
    (chosen,) = table[table["recommended"]].to_dict("records")
    assert chosen["reason"].startswith("the only one that keeps the rules")


def test_report_chooses_nothing() -> None:
    single, better = contestant("single", 1.0), contestant("fused", 0.5)
    teachers = contestant("teachers", 0.3, ("several models",))
    table = compare([replace(single, **by_select(0.99)), teachers, better], TARGETS, {})
    (chosen,) = table[table["recommended"]].to_dict("records")
    assert chosen["model"] == "single"
    assert chosen["auc"] < table["auc"].max()


def test_nothing_is_recommended_when_all_break_a_rule() -> None:
    contestants = [contestant("single", 1.0, ("x",)), contestant("teachers", 0.5, ("y",))]
    assert not compare(contestants, TARGETS, {})["recommended"].any()


def test_a_run_is_compared_and_its_winner_can_be_chosen(pool: Pool) -> None:
    run_soup(pool, "greedy")
    run_fuse(pool)
    table = run_compare(pool, Console(quiet=True))
    on_disk = pd.read_csv(pool.run / "comparison.csv")
    assert set(on_disk["model"]) == {"best single", "teacher ensemble", "soup-greedy", "fused"}
    # The speeds of all that could be handed in are measured; several models are no contestant.
    measured = on_disk[["images_per_second_1", "images_per_second_32"]].notna().all(axis=1)
    assert (measured == (on_disk["model"] != "teacher ensemble")).all()
    assert not on_disk.set_index("model").loc["teacher ensemble", "allowed"]
    for name in ("comparison.png", "comparison-dark.png"):
        assert (pool.run / name).stat().st_size > 1000
    winner = table[table["recommended"]].iloc[0]
    choice = choose_model(pool.run, "auto")
    assert choice.name == winner["path"]
    metrics = choice.folder / "metrics.json"
    content = metrics.read_text(encoding="utf-8")
    metrics.write_text(json.dumps(json.loads(content) | {"auc": 0.123}), encoding="utf-8")
    with pytest.raises(UserError, match="as it was before, found another model"):
        choose_model(pool.run, "auto")
    metrics.write_text(content, encoding="utf-8")
    run_soup(pool, "uniform", members=["0000", "0001"])
    with pytest.raises(UserError, match="which is absent"):
        choose_model(pool.run, "auto")  # it recommended what may have been replaced
    single = on_disk.set_index("model").loc["best single"]
    expected = roc_auc(pool.report[pool.best.name].to_numpy(), pool.report["target"].to_numpy())
    assert single["auc"] == pytest.approx(expected)


def test_an_image_that_a_model_could_not_read_is_left_out_for_all(
    pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was broken when the soup was scored, and mended since."""
    soup = run_soup(pool, "greedy")
    path = soup.path / "scores_report.csv"
    scores = pd.read_csv(path)
    scores.iloc[1:].to_csv(path, index=False)
    table = run_compare(pool, Console(width=200)).set_index("model")
    told = (
        f"1 of 24 images have no score by merged/soup-greedy, for example {scores['img_name'][0]}"
    )
    assert f"{told}: left out for all" in capsys.readouterr().out
    kept = pool.report.iloc[1:]
    for name, own in (("best single", pool.best), ("soup-greedy", soup)):
        found = own.report_scores.set_index("img_name")["y_pred"][kept["img_name"]]
        assert table.loc[name, "auc"] == roc_auc(found, kept["target"])


def test_a_model_scored_on_too_few_images_is_refused(pool: Pool) -> None:
    path = run_soup(pool, "greedy").path / "scores_report.csv"
    pd.read_csv(path).iloc[2:].to_csv(path, index=False)
    with pytest.raises(UserError, match=r"merged/soup-greedy has .* 2 fewer.* move its folder"):
        with_all_models(pool, Console(quiet=True))
    path.unlink()
    with pytest.raises(UserError, match=r"scores_report.csv is gone; make this model anew"):
        with_all_models(pool, Console(quiet=True))


def test_speed_is_told_for_every_model() -> None:
    models = {"resnet": build_network(RESNET), "vit": build_network(VIT)}
    speeds = measure_speed(models, torch.device("cpu"), 2, Interruption())
    assert speeds.keys() == models.keys()
    assert min(speeds.values()) > 0


def test_a_model_too_large_for_the_batch_has_no_speed() -> None:
    class Greedy(nn.Module):
        canvas = 16

        def forward(self, _: Tensor) -> Tensor:
            raise torch.OutOfMemoryError

    speeds = measure_speed(
        {"small": build_network(RESNET), "large": Greedy()}, torch.device("cpu"), 2, Interruption()
    )
    assert speeds["small"] > 0
    assert math.isnan(speeds["large"])


def test_a_long_pass_is_measured_once_and_stops_at_a_layer() -> None:
    interruption, passes = Interruption(), list[int]()

    class Slow(nn.Sequential):
        canvas = 16

        def forward(self, images: Tensor) -> Tensor:
            passes.append(len(images))
            time.sleep(LONG_PASS)
            output: Tensor = super().forward(images)
            return output

    model = Slow(nn.Flatten(), nn.Identity())
    speed = measure_speed({"slow": model}, torch.device("cpu"), 2, interruption)["slow"]
    assert 0 < speed < 2 / LONG_PASS
    measured = len(passes)
    assert measured == 2 * speed_module.ROUNDS
    model[0].register_forward_pre_hook(lambda *_: setattr(interruption, "requested", True))
    with pytest.raises(Interrupted):
        measure_speed({"slow": model}, torch.device("cpu"), 2, interruption)
    assert len(passes) == measured + 1


def test_the_single_candidate_comes_first(tiny_pool: Pool, tmp_path: Path) -> None:
    first, reference = gather(with_all_models(tiny_pool, Console(quiet=True)))[:2]
    assert first.path == f"candidates/{tiny_pool.best.name}"
    assert reference.kind == "reference"
    assert reference.network is None
