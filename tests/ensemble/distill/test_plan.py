from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from ensemble.distill.plan import plan_distillation
from ensemble.fuse.fuse import run_fuse
from ensemble.network.model import load_model
from ensemble.pool.pool import Pool, open_pool
from search.errors import UserError
from search.training.network import build_network
from tests.ensemble.distill.conftest import Run, quick, with_backbone


@pytest.mark.parametrize(
    ("changes", "backbone", "start"),
    [
        ({"student": "test_vit.r160_in1k"}, "test_vit.r160_in1k", "0002"),
        ({"student": "test_vit.r160_in1k", "start": "imagenet"}, "test_vit.r160_in1k", None),
        ({"student": "test_resnet.r160_in1k", "image_size": 64}, "test_resnet.r160_in1k", "any"),
        ({"student": "test_vit.r160_in1k", "image_size": 48}, "test_vit.r160_in1k", None),
        ({"student": "test_convnext.r160_in1k"}, "test_convnext.r160_in1k", None),
    ],
)
def test_the_student_is_the_one_asked_for(
    distil: Run, changes: dict[str, Any], backbone: str, start: str | None
) -> None:
    pool = with_backbone(distil.pool, "test_convnext.r160_in1k", {"image_sizes": [32]})
    plan = plan_distillation(pool, quick(pool, **changes))
    assert plan.recipe.backbone == backbone
    assert plan.recipe.image_size == changes.get("image_size", 32)
    if start == "any":
        assert plan.start is not None
    else:
        assert (plan.start and plan.start.name) == start
    network = build_network(plan.recipe, pretrained=False)
    assert network(torch.zeros(1, 3, 40, 40)).shape == (1, 2)


def test_a_student_that_no_candidate_is_of_comes_all_the_way(distil: Run) -> None:
    pool = with_backbone(distil.pool, "test_convnext.r160_in1k", {"image_sizes": [32]})
    Run(pool)(student="test_convnext.r160_in1k", epochs=1)
    _, spec = load_model(distil.folder)
    assert spec.merged_from == ()


def test_settings_that_single_images_cannot_follow_are_off(distil: Run) -> None:
    plan = plan_distillation(distil.pool, quick(distil.pool, batch_size=6, seed=5))
    recipe = plan.recipe
    assert (recipe.mixup_alpha, recipe.cutmix_alpha, recipe.label_smoothing) == (0, 0, 0)
    assert (recipe.optimizer, recipe.schedule) == ("adamw", "cosine")
    assert (recipe.batch_size, recipe.seed, recipe.precision) == (6, 5, "auto")


def test_a_student_that_is_its_own_only_teacher_is_told(distil: Run) -> None:
    pool = distil.pool
    own = plan_distillation(pool, quick(pool, teachers=pool.best.name))
    assert any("its only teacher" in line for line in own.describe())
    others = ",".join(pool.names[:2])
    assert not any(
        "its only teacher" in line
        for plan in (
            plan_distillation(pool, quick(pool, teachers=others)),
            plan_distillation(pool, quick(pool, teachers=pool.best.name, start="imagenet")),
        )
        for line in plan.describe()
    )


def taint(pool: Pool, *names: str) -> Callable[..., Pool]:
    """Makes candidates look as if pretrained on more than the rule allows."""
    for name in names:
        path = pool.run / "candidates" / name / "metrics.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "pretraining": "ImageNet-22K"}))
    return lambda **arguments: open_pool(pool.run, device="cpu", workers=0, **arguments)


def test_a_tainted_teacher_is_refused(distil: Run) -> None:
    reopen = taint(distil.pool, "0002")
    with pytest.raises(UserError, match=r"0002.*ImageNet-22K.*--allow-tainted"):
        Run(reopen())(teachers="0001,0002")
    assert not distil.folder.exists()


def test_a_tainted_teacher_that_was_allowed_is_recorded(distil: Run) -> None:
    reopen = taint(distil.pool, "0002")
    run = Run(reopen(allow_tainted=True))
    student = run(teachers="0001,0002", allow_tainted=True, epochs=1)
    spec = load_model(student.path)[1]
    assert len(spec.overrides) == 1
    assert "0002 is tainted" in spec.overrides[0]
    assert "0002 is tainted" in run.output
    assert "ImageNet-22K" in student.metrics["pretraining"]


def test_a_tainted_fused_teacher_is_refused_unless_allowed(distil: Run) -> None:
    pool = distil.pool
    fused = run_fuse(pool, members=["0001", "0002"])
    content = yaml.safe_load((fused.path / "model.yaml").read_text())
    content["trunks"][0]["weights"] = "hub"
    content["trunks"][0]["backbone"] = "test_resnet.in22k_ft_in1k"
    (fused.path / "model.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"in22k.*--allow-tainted"):
        distil(teachers="fused")
    plan = plan_distillation(pool, quick(pool, teachers="fused", allow_tainted=True))
    assert len(plan.overrides) == 1
    assert "in22k" in plan.overrides[0]


def test_a_tainted_student_that_was_allowed_is_recorded(distil: Run) -> None:
    reopen = taint(distil.pool, "0002")
    pool = reopen(allow_tainted=True)
    asked = {"student": "test_vit.r160_in1k", "teachers": "0001", "allow_tainted": True}
    (line,) = plan_distillation(pool, quick(pool, **asked)).overrides
    assert "candidate 0002 is tainted" in line


def test_a_students_own_taint_is_recorded_too(distil: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"image_sizes": [32], "pretraining": "ImageNet-22K"}
    pool = with_backbone(distil.pool, "test_convnext.r160_in1k", entry)
    pool = replace(pool, settings=replace(pool.settings, weights="hub"))
    monkeypatch.setattr("ensemble.distill.plan.check_weights", lambda *_, **__: None)
    settings = quick(pool, student="test_convnext.r160_in1k", allow_tainted=True)
    (line,) = plan_distillation(pool, settings).overrides
    assert "student test_convnext.r160_in1k is tainted" in line


REFUSED = [
    ({"teachers": "0009"}, "found '0009'"),
    ({"teachers": " , "}, "must be auto, fused or candidates"),
    ({"teachers": "fused"}, "python -m ensemble fuse"),
    ({"teachers": "0005"}, "paused"),
    ({"student": "resnet50"}, "backbone 'resnet50' must be in the backbones file"),
    ({"student": "test_convnext.r160_in1k", "start": "best"}, "use --start imagenet"),
    (
        {"student": "test_vit.r160_in1k", "start": "best", "image_size": 48},
        "leave it out, or use --start imagenet",
    ),
    ({"augmentation": "flop"}, "did you mean 'flip'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_distilled_is_told_before_anything_is_written(
    distil: Run, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        distil(**changes)
    assert not distil.folder.exists()
    assert not distil.working.exists()


def test_a_student_over_the_budget_is_told_by_how_much(distil: Run) -> None:
    candidate = max(distil.pool.candidates, key=lambda c: c.metrics["params_exact"])
    budget = candidate.metrics["params_exact"] - 1
    pool = with_backbone(
        distil.pool, "test_convnext.r160_in1k", {"image_sizes": [32]}, budget=budget
    )
    with pytest.raises(UserError, match=r"within .* parameters, but .* has 1 more"):
        Run(pool)(student=candidate.recipe.backbone)
    assert not distil.folder.exists()


def test_a_student_that_the_rules_forbid_is_refused(distil: Run) -> None:
    entry = {"image_sizes": [32], "pretraining": "ImageNet-22K"}
    pool = with_backbone(distil.pool, "test_convnext.r160_in1k", entry)
    pool = replace(pool, settings=replace(pool.settings, weights="hub"))
    with pytest.raises(UserError, match=r"must keep the rules.*ImageNet-22K"):
        Run(pool)(student="test_convnext.r160_in1k")
