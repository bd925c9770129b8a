from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ensemble.network.model import (
    FusedNetwork,
    HeadSpec,
    ModelSpec,
    TeacherOrigin,
    build_model,
    check_budget,
    finish_all_replacing,
    fuse_networks,
    keep_merged,
    load_model,
    merged_folder,
    merged_models,
    summarise,
)
from ensemble.pool.pool import Pool
from search.catalogue.rules import count_parameters
from search.errors import UserError
from search.machine.interruption import Interrupted
from search.training.candidate import copy_state
from search.training.network import build_network
from search.training.recipe import Recipe

BUDGET = 200_000_000

FUSED = ModelSpec(
    kind="fused",
    trunks=tuple(
        Recipe(backbone=f"{name}.in1k", architecture=name, image_size=32, canvas=32, weights="none")
        for name in ("test_resnet", "test_efficientnet")
    ),
    head=HeadSpec("mlp", 64),
    method="fused",
)


def spec_of(pool: Pool, name: str) -> ModelSpec:
    return ModelSpec(kind="single", trunks=(pool.get(name).recipe,), merged_from=(name,))


@pytest.mark.parametrize("total", [BUDGET, BUDGET + 1])
def test_one_parameter_too_many_is_refused(total: int) -> None:
    with torch.device("meta"):
        model = build_model(FUSED)
        missing = total - sum(parameter.numel() for parameter in model.parameters())
        model.head.filler = nn.Parameter(torch.empty(missing))  # type: ignore[union-attr]
    if total == BUDGET:
        assert check_budget(model, BUDGET, "the model").params_exact == BUDGET
    else:
        with pytest.raises(UserError, match=r"found 200,000,001 exactly .*: 1 too many"):
            check_budget(model, BUDGET, "the model")


def test_the_count_by_thop_alone_can_break_the_budget() -> None:
    recipe = Recipe(
        backbone="test_resnet.r160_in1k",
        architecture="test_resnet",
        image_size=32,
        canvas=32,
        weights="none",
    )
    # thop counts a module with two parents twice.
    first, second = build_network(recipe), build_network(recipe)
    second.trunk = first.trunk
    shared = fuse_networks([first, second], HeadSpec("mean"))
    counts = count_parameters(shared, 32)
    assert counts.params_thop == 2 * counts.params_exact
    check_budget(shared, counts.params_thop, "the model")
    excess = counts.params_thop - counts.params_exact
    with pytest.raises(UserError, match=f"by thop: {excess:,} too many"):
        check_budget(shared, counts.params_exact, "the model")


def test_a_merged_model_is_a_candidate_with_a_spec(pool: Pool) -> None:
    origin = TeacherOrigin("0003", "resnet18.a1_in1k", "hub", "ImageNet-1K", 1.0)
    spec = replace(
        spec_of(pool, "0002"),
        method="distilled",
        teachers=(origin,),
        overrides=("an override",),
        notes=("a note",),
    )
    model, source = pool.get("0002").load(), pool.get("0002")
    kept = keep_merged(pool, "distilled", model, spec, source.recipe, figures={"views": 8})
    assert {path.name for path in kept.path.iterdir()} == {
        "model.safetensors",
        "model.yaml",
        "recipe.yaml",
        "metrics.json",
        "history.csv",
        "scores.csv",
        "scores_report.csv",
    }
    metrics = kept.metrics
    assert metrics["auc"] == pytest.approx(source.metrics["auc"])
    assert metrics["report"]["auc"] == pytest.approx(source.metrics["report"]["auc"])
    assert metrics["pretraining"] == "none (from scratch); ImageNet-1K"
    assert (metrics["views"], metrics["method"]) == (8, "distilled")
    assert metrics["overrides"] == ["an override"]
    assert metrics["notes"] == ["a note"]
    assert metrics["device"].startswith("cpu")
    assert metrics["precision"] == "fp32"
    assert metrics["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert [found.name for found in merged_models(pool.run)] == ["distilled"]
    assert "AUC" in summarise(kept)
    assert "report" not in summarise(kept)


def test_a_model_over_the_runs_budget_is_not_kept(pool: Pool) -> None:
    small = replace(pool, catalogue=replace(pool.catalogue, budget=300_000))
    with pytest.raises(UserError, match="at most 300,000 parameters, found 300,226 exactly"):
        keep_merged(
            small, "fused", pool.get("0002").load(), spec_of(pool, "0002"), pool.best.recipe
        )
    assert not merged_folder(pool.run, "fused").exists()


def test_an_interrupted_save_leaves_the_old_model(pool: Pool) -> None:
    keep_merged(pool, "fused", pool.get("0002").load(), spec_of(pool, "0002"), pool.best.recipe)

    def stop() -> None:
        raise Interrupted("interrupted by the user")

    with pytest.raises(Interrupted):
        keep_merged(
            pool,
            "fused",
            pool.get("0000").load(),
            spec_of(pool, "0000"),
            pool.best.recipe,
            on_batch=stop,
        )
    (kept,) = merged_models(pool.run)
    assert load_model(kept.path)[1].merged_from == ("0002",)
    assert kept.report_scores is not None


def keep(pool: Pool, name: str) -> None:
    """Keeps a candidate as the fused model."""
    keep_merged(pool, "fused", pool.get(name).load(), spec_of(pool, name), pool.best.recipe)


def kept_name(pool: Pool) -> str:
    """Which candidate the whole fused model is."""
    (kept,) = merged_models(pool.run)
    assert kept.report_scores is not None
    (name,) = load_model(kept.path)[1].merged_from
    expected, found = pool.get(name).load().state_dict(), load_model(kept.path)[0].state_dict()
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    return name


def test_a_half_written_model_leaves_the_one_before(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(pool, "0002")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("search.training.candidate.save_weights", fail)
        with pytest.raises(OSError, match="no space"):
            keep(pool, "0000")
    assert kept_name(pool) == "0002"
    finish_all_replacing(pool.run)
    assert kept_name(pool) == "0002"
    keep(pool, "0000")
    assert kept_name(pool) == "0000"
    assert [path.name for path in (pool.run / "merged").iterdir()] == ["fused"]


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_a_kill_while_a_model_takes_its_place_loses_neither(
    moves: int, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the old one moves away, before the new one comes, and before the old one is
    deleted; in the last case it was not."""
    keep(pool, "0002")
    (pool.run / "comparison.csv").write_text("of before")
    done = 0

    def step(original: Callable[..., Any]) -> Callable[..., Any]:
        def killed(*arguments: Any) -> Any:
            nonlocal done
            # Only folders: files are replaced by renaming, too.
            if Path(arguments[0]).is_dir():
                if done == moves:
                    raise KeyboardInterrupt
                done += 1
            return original(*arguments)

        return killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", step(Path.rename))
        patch.setattr("shutil.rmtree", step(shutil.rmtree))
        if moves < 3:
            with pytest.raises(KeyboardInterrupt):
                keep(pool, "0000")
        else:
            keep(pool, "0000")
    finish_all_replacing(pool.run)
    assert kept_name(pool) == "0000"
    assert not (pool.run / "comparison.csv").exists()
    assert [path.name for path in (pool.run / "merged").iterdir()] == ["fused"]


def test_a_run_without_merged_models_has_none(tmp_path: Path) -> None:
    assert merged_models(tmp_path) == ()


def test_the_networks_of_a_fused_model_are_shared_not_copied(tiny_pool: Pool) -> None:
    networks = [tiny_pool.get(name).load() for name in ("0000", "0002")]
    model = fuse_networks(networks, HeadSpec("weights"))
    assert isinstance(model, FusedNetwork)
    assert model.networks[1] is networks[1]
    assert set(copy_state(model)) >= {"head.raw", "trunks.1.trunk.head.weight"}
