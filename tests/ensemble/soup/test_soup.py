from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from ensemble.network.model import load_model, merged_folder
from ensemble.pool.pool import Pool
from ensemble.soup import soup
from ensemble.soup.soup import check_compatible, find_group, run_soup, start_of
from search.errors import UserError
from search.machine.interruption import Interrupted, Interruption
from search.training.candidate import Candidate
from search.training.metrics import roc_auc
from search.training.recipe import Recipe

HUB = Recipe(
    backbone="test_resnet.r160_in1k", architecture="test_resnet", canvas=224, weights="hub"
)


def stored(folder: Path, *recipes: Recipe) -> list[Candidate]:
    """Candidates that have nothing but a recipe, named 0000, 0001..."""
    for number, recipe in enumerate(recipes):
        path = folder / f"{number:04d}"
        path.mkdir(parents=True)
        recipe.save(path / "recipe.yaml")
    return [Candidate(path) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "test_vit"}, "one architecture, .* test_resnet and .* test_vit"),
        ({"model_args": {"drop_rate": 0.1}}, "one set of arguments"),
        ({"backbone": "test_resnet.other_in1k"}, r"one start, .* test_resnet\.other"),
        ({"weights": "none"}, "one start, .* from scratch with seed 0"),
        ({"weights": "file", "weights_file": "/w/a.safetensors"}, "one start"),
        ({"image_size": 160}, "one image size, .* 224 and candidate 0001 has 160; leave 0001 out"),
        ({"mean": (0.5, 0.5, 0.5)}, "one normalisation"),
    ],
)
def test_what_has_no_meaningful_mean_is_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_compatible(stored(tmp_path, HUB, replace(HUB, **change)))
    assert "\n" not in str(error.value)


def test_networks_from_scratch_share_a_start_only_by_their_seed() -> None:
    scratch = replace(HUB, weights="none")
    assert start_of(scratch) == start_of(replace(scratch, learning_rate=1.0))
    assert start_of(scratch) != start_of(replace(scratch, seed=1))
    assert start_of(HUB) == start_of(replace(HUB, seed=1))


def test_weights_files_that_were_moved_are_still_one_start() -> None:
    first = replace(HUB, weights="file", weights_file="/old/a.safetensors")
    assert start_of(first) == start_of(replace(first, weights_file="/new/b/a.safetensors"))
    assert start_of(first) != start_of(replace(first, weights_file="/old/b.safetensors"))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([64, 96, 96], ("0001", "0002")),
        ([64, 96, 64, 96], ("0000", "0002")),
        ([96, 64, 96, 64, 64], ("0001", "0003", "0004")),
    ],
)
def test_the_largest_group_is_found_and_of_equals_the_best(
    sizes: list[int], expected: tuple[str, ...], tmp_path: Path
) -> None:
    candidates = stored(tmp_path, *(replace(HUB, image_size=size) for size in sizes))
    assert tuple(c.name for c in find_group(candidates)) == expected


def test_a_pool_without_two_of_a_kind_has_no_soup(tmp_path: Path) -> None:
    candidates = stored(tmp_path, HUB, replace(HUB, image_size=64))
    with pytest.raises(UserError, match="found none among 0000, 0001"):
        find_group(candidates)


def test_a_uniform_soup_is_the_mean_of_the_weights(pool: Pool) -> None:
    candidate = run_soup(pool, "uniform")
    assert candidate.path == merged_folder(pool.run, "soup-uniform")
    model, spec = load_model(candidate.path)
    assert set(spec.merged_from) == {"0000", "0001"}
    members = [pool.get(name).load().state_dict() for name in spec.merged_from]
    for name, tensor in model.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(tensor, (members[0][name] + members[1][name]) / 2)
    # The statistics are of the averaged weights, so they are not the mean of the members'.
    name = "trunk.layer1.0.bn1.running_mean"
    mean = (members[0][name] + members[1][name]) / 2
    assert not torch.allclose(model.state_dict()[name], mean)
    assert "one random start" in spec.notes[0]


@pytest.mark.parametrize("method", ["uniform", "greedy"])
def test_a_soup_is_kept_whole(method: soup.SoupMethod, pool: Pool) -> None:
    candidate = run_soup(pool, method)
    model, spec = load_model(candidate.path)
    assert spec.method == f"soup-{method}"
    for split, table in (("select", candidate.scores), ("report", candidate.report_scores)):
        found = pool.evaluate(model, split).predictions.scores
        assert table is not None
        assert table["y_pred"].tolist() == pytest.approx(found.tolist(), abs=1e-6)
    metrics = candidate.metrics
    assert metrics["auc"] == roc_auc(candidate.scores["y_pred"], candidate.scores["target"])
    assert metrics["params_exact"] == pool.get("0000").metrics["params_exact"]
    assert metrics["params_thop"] == pool.get("0000").metrics["params_thop"]
    assert metrics["pretraining"] == "none (from scratch)"
    assert candidate.report_scores is not None
    report = candidate.report_scores
    assert metrics["report"]["auc"] == roc_auc(report["y_pred"], report["target"])


def test_a_greedy_soup_is_never_worse_than_its_best_member(pool: Pool) -> None:
    console = Console(record=True, width=200)
    candidate = run_soup(pool, "greedy", console=console)
    best = max(pool.get(name).metrics["auc"] for name in ("0000", "0001"))
    assert candidate.metrics["best_member"] == pytest.approx(best, abs=1e-6)
    assert candidate.metrics["auc"] >= candidate.metrics["best_member"]
    assert "on select after" in console.export_text()


def test_a_member_that_hurts_is_left_out(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    group = find_group(pool.candidates)
    spoiled = group[1].load
    # Noise in place of the second member's weights: their mean must be worse than the first.
    network = spoiled()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 30)
    original = Candidate.load
    monkeypatch.setattr(
        Candidate, "load", lambda self: network if self.name == group[1].name else original(self)
    )
    monkeypatch.setattr(soup._Cooking, "_value", _falling([0.9, 0.5]))
    candidate = run_soup(pool, "greedy")
    model, spec = load_model(candidate.path)
    assert spec.merged_from == (group[0].name,)
    assert "alone" in spec.notes[-1]
    assert candidate.metrics["tried"] == [c.name for c in group]
    expected = original(group[0]).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_an_equally_good_member_is_added(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soup._Cooking, "_value", _falling([0.9, 0.9]))
    assert len(load_model(run_soup(pool, "greedy").path)[1].merged_from) == 2


def _falling(values: list[float]) -> Any:
    remaining = iter(values)
    return lambda _self: next(remaining)


def test_named_members_are_checked_before_anything_is_written(pool: Pool) -> None:
    with pytest.raises(UserError, match="one architecture"):
        run_soup(pool, "uniform", members=["0000", "0002"])
    with pytest.raises(UserError, match="one image size"):
        run_soup(pool, "uniform", members=["0000", "0003"])
    assert not (pool.run / "merged").exists()


def test_an_unknown_method_is_refused(pool: Pool) -> None:
    with pytest.raises(UserError, match="greedy or uniform, found 'salty'"):
        run_soup(pool, "salty")  # type: ignore[arg-type]


def test_an_interrupted_soup_writes_nothing(pool: Pool) -> None:
    interruption = Interruption()
    interruption.requested = True
    with pytest.raises(Interrupted):
        run_soup(pool, interruption=interruption)
    assert not (pool.run / "merged").exists()
