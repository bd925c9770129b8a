from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from cyclopts import App
from rich.console import Console
from safetensors.torch import load_file

from ensemble.distill.distill import VIEWS, Distillation, run_distill
from ensemble.distill.outputs import Teacher
from ensemble.distill.plan import plan_distillation
from ensemble.distill.recordings import RecordedViews
from ensemble.fuse.fuse import run_fuse
from ensemble.network.model import finish_all_replacing, load_model, merged_models
from ensemble.pool.pool import Pool, open_pool
from ensemble.settings import DATA_EPOCHS, DEMO_EPOCHS, DistillSettings
from search.errors import UserError
from search.interruption import Interrupted, Interruption
from search.training.candidate import Candidate


class Run:
    """Distils with quick settings and remembers what was printed."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.folder = pool.run / "merged" / "distilled"
        self.working = pool.run / "merged" / ".distilled"
        self.views = pool.run / "merged" / VIEWS
        self.output = ""

    def __call__(self, interruption: Interruption | None = None, **changes: Any) -> Candidate:
        output = StringIO()
        console = Console(file=output, width=300)
        settings = quick(self.pool, **changes)
        try:
            return run_distill(self.pool, settings, console, interruption or Interruption())
        finally:
            self.output = output.getvalue()


def quick(pool: Pool, **changes: Any) -> DistillSettings:
    return DistillSettings(**{"run": pool.run, "epochs": 2, "views": 2, **changes})


@pytest.fixture
def distil(pool: Pool) -> Run:
    return Run(pool)


class StopAfter(Interruption):
    """Asks for the end once it was asked so many times."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self.checks = checks

    def check(self) -> None:
        self.checks -= 1
        self.requested = self.checks <= 0
        super().check()


def test_distill_leaves_a_whole_candidate(distil: Run) -> None:
    pool = distil.pool
    student = distil()
    assert student.path == distil.folder
    assert {path.name for path in student.path.iterdir()} == {
        *("model.safetensors", "model.yaml", "recipe.yaml", "history.csv", "metrics.json"),
        *("scores.csv", "scores_report.csv"),
    }
    assert {path.name for path in student.path.parent.iterdir()} == {"distilled", VIEWS}
    model, spec = load_model(student.path)
    best = pool.best
    assert (spec.kind, spec.method, spec.merged_from) == ("single", "distilled", (best.name,))
    assert spec.trunks[0].architecture == best.recipe.architecture
    assert len(student.history) == 2
    for split, scores in (("select", student.scores), ("report", student.report_scores)):
        assert scores is not None
        evaluation = pool.evaluate(model, split, model.image_size)
        np.testing.assert_allclose(scores["y_pred"], evaluation.predictions.scores, atol=1e-5)
    metrics = student.metrics
    assert metrics["epochs"] == 2
    assert metrics["params_exact"] == sum(p.numel() for p in model.parameters())
    assert metrics["device"].startswith("cpu")
    assert metrics["precision"] == "fp32"
    assert metrics["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert metrics["best_epoch"] in (1, 2)
    assert metrics["train_seconds"] > 0
    assert metrics["distillation"]["losses"]["temperature"] == 2.0
    assert metrics["distillation"]["flags"] == ["--epochs", "2", "--views", "2"]
    assert [entry["name"] for entry in metrics["distillation"]["teachers"]] == [
        teacher.name for teacher in spec.teachers
    ]
    assert "not submittable" in distil.output
    assert f"started from candidate {best.name}: 2 epochs with 2 recorded views" in distil.output
    assert "epoch 2/2" in distil.output


def test_the_start_is_the_best_candidate_and_training_moves_it(distil: Run) -> None:
    before = distil.pool.best.load().state_dict()
    slow, _ = load_model(distil(learning_rate=1e-9).path)
    fast, _ = load_model(distil().path)
    name = "trunk.conv1.weight" if "trunk.conv1.weight" in before else next(iter(before))
    torch.testing.assert_close(slow.state_dict()[name], before[name], atol=1e-5, rtol=0)
    assert (fast.state_dict()[name] - before[name]).abs().max() > 1e-4


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
    Run(pool)(**changes, epochs=1)
    model, spec = load_model(distil.folder)
    assert spec.merged_from == ((plan.start.name,) if plan.start else ())
    assert model(torch.zeros(1, 3, 40, 40)).shape == (1, 2)


def with_backbone(pool: Pool, name: str, entry: dict[str, Any], **top: Any) -> Pool:
    """The pool with one more backbone in its file."""
    path = pool.run / "backbones.yaml"
    content = yaml.safe_load(path.read_text()) | top
    content["pools"]["test"][name] = entry
    path.write_text(yaml.safe_dump(content))
    return open_pool(pool.run, device="cpu", workers=0)


def test_settings_that_single_images_cannot_follow_are_off(distil: Run) -> None:
    plan = plan_distillation(distil.pool, quick(distil.pool, batch_size=6, seed=5))
    recipe = plan.recipe
    assert (recipe.mixup_alpha, recipe.cutmix_alpha, recipe.label_smoothing) == (0, 0, 0)
    assert (recipe.optimizer, recipe.schedule) == ("adamw", "cosine")
    assert (recipe.batch_size, recipe.seed, recipe.precision) == (6, 5, "fp32")


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


@pytest.mark.parametrize(
    ("epochs", "is_demo", "expected"),
    [(None, False, DATA_EPOCHS), (None, True, DEMO_EPOCHS), (7, True, 7), (7, False, 7)],
)
def test_the_demo_set_gets_fewer_epochs(epochs: int | None, is_demo: bool, expected: int) -> None:
    settings = DistillSettings(run=Path("run"), epochs=epochs)
    assert settings.resolved_epochs(is_demo=is_demo) == expected


def test_the_flags_reproduce_the_settings() -> None:
    settings = DistillSettings(
        run=Path("run"),
        teachers="0001,0002",
        live_teacher=True,
        feature_weight=0.5,
        device="cpu",
        seed=0,
    )
    app = App()

    @app.default
    def read(*, settings: DistillSettings) -> DistillSettings:
        return settings

    flags = settings.flags()
    again = app(["--run", "run", "--device", "cpu", *flags], result_action="return_value")
    assert again == settings
    assert "--device" not in flags


def test_named_teachers_teach_alike(distil: Run) -> None:
    student = distil(teachers="0002, 0001")
    spec = load_model(student.path)[1]
    assert {(teacher.name, teacher.weight) for teacher in spec.teachers} == {
        ("0001", 0.5),
        ("0002", 0.5),
    }
    manifest = json.loads((distil.views / "manifest.json").read_text())
    assert len(manifest["teachers"]) == 2
    assert manifest["image_size"] == 32


def test_views_are_made_at_the_largest_size(distil: Run) -> None:
    distil(teachers="0003", student="test_vit.r160_in1k", epochs=1)
    manifest = json.loads((distil.views / "manifest.json").read_text())
    assert manifest["image_size"] == 48


def test_live_and_recorded_teachers_train_the_same_student(distil: Run) -> None:
    # Two epochs of two recorded views are the two views that a live teacher sees.
    recorded = distil(feature_weight=0.5)
    history = recorded.history
    live = distil(feature_weight=0.5, live_teacher=True)
    np.testing.assert_allclose(live.history["train_loss"], history["train_loss"], rtol=1e-3)
    assert live.metrics["distillation"]["views"] is None
    assert "a live teacher" in distil.output


def test_features_are_recorded_and_the_projection_is_left_behind(distil: Run) -> None:
    student = distil(feature_weight=0.5, teachers="0001,0002")
    task = Distillation(
        distil.pool,
        plan_distillation(
            distil.pool, quick(distil.pool, feature_weight=0.5, teachers="0001,0002")
        ),
    )
    recorded = task.source
    assert isinstance(recorded, RecordedViews)
    networks = [Candidate(distil.pool.run / "candidates" / n).load() for n in ("0001", "0002")]
    teacher = Teacher(networks, [0.5, 0.5], distil.pool.runtime, with_features=True)
    assert recorded.feature_size == teacher.feature_size
    assert not any("projection" in name for name in load_model(student.path)[0].state_dict())


def assert_same(first: Candidate, second: Candidate) -> None:
    """The same weights, scores and history, to the bit."""
    states = [load_file(candidate.path / "model.safetensors") for candidate in (first, second)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    pd.testing.assert_frame_equal(first.scores, second.scores, check_exact=True)
    timeless = [candidate.history.drop(columns="seconds") for candidate in (first, second)]
    pd.testing.assert_frame_equal(*timeless, check_exact=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 3},
        {"epochs": 3, "feature_weight": 0.5, "augmentation": "strong"},
        {"epochs": 2, "live_teacher": True},
        {"epochs": 2, "live_teacher": True, "feature_weight": 0.5, "teachers": "0002,0003"},
    ],
)
def test_going_on_from_any_batch_equals_never_having_stopped(
    distil: Run, tmp_path: Path, changes: dict[str, Any]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(distil.pool.run, other)
    unbroken = Run(open_pool(other, device="cpu", workers=0))(**changes)
    generator = random.Random(str(changes))
    pieces, broken = 0, None
    while broken is None:
        pieces += 1
        try:
            broken = distil(StopAfter(generator.randint(3, 8)), **changes)
        except Interrupted:
            assert not distil.folder.exists()
            assert merged_models(distil.pool.run) == ()
    assert pieces > 3
    assert "going on with the training in" in distil.output
    assert_same(unbroken, broken)
    assert not distil.working.exists()


def test_a_kill_while_the_student_is_kept_repeats_no_training(
    distil: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ensemble.distill.distill.keep_merged", killed)
        with pytest.raises(KeyboardInterrupt):
            distil()
    assert Candidate(distil.working).is_complete
    with pytest.raises(UserError, match="whose epochs must stay as they were"):
        distil(epochs=3)
    distil()
    assert "epoch" not in distil.output.replace("2 epochs with", "")
    assert not distil.working.exists()


def test_a_kill_while_the_training_is_cleared_leaves_no_part_of_it(
    distil: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part would be taken for a training that is to begin, and nobody would delete it."""

    def killed(folder: Path, *_: Any, **__: Any) -> None:
        (folder / "metrics.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            distil()
    assert not distil.working.exists()
    assert Candidate(distil.folder).is_complete
    finish_all_replacing(distil.pool.run)
    left = {path.name for path in (distil.pool.run / "merged").iterdir()}
    assert left == {"distilled", "views"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": 4}, "whose epochs must stay as they were, found epochs 4 instead of 3"),
        ({"views": 3}, "whose views must stay as they were, found views 3 instead of 2"),
        ({"temperature": 3.0}, "whose losses must stay"),
        ({"teachers": "0001"}, "whose teachers must stay .*recorded views, whose teachers must"),
        ({"seed": 4}, "found seed 4 instead of 0, and .*recorded views, .* seed 4 instead of 0"),
    ],
)
def test_what_an_interruption_left_is_deleted_only_with_discard(
    distil: Run, changes: dict[str, Any], told: str
) -> None:
    settings = {"epochs": 3, "teachers": "0001,0002"}
    with pytest.raises(Interrupted):
        distil(StopAfter(8), **settings)
    before = {
        path: path.read_bytes()
        for folder in (distil.working, distil.views)
        for path in folder.iterdir()
    }
    with pytest.raises(UserError, match=told) as error:
        distil(**(settings | changes))
    assert "\n" not in str(error.value)
    assert "go on with the settings of before, or add --discard" in str(error.value)
    assert all(path.read_bytes() == content for path, content in before.items())
    distil(**(settings | changes), discard=True)
    assert f"discarded {distil.working}: other " in distil.output
    assert (f"discarded {distil.views}: " in distil.output) == ("recorded views" in told)
    assert "epoch 1/" in distil.output


def test_discard_keeps_what_can_be_gone_on_with(distil: Run) -> None:
    with pytest.raises(Interrupted):
        distil(StopAfter(10), epochs=3)
    distil(epochs=3, discard=True)
    assert "discarded" not in distil.output
    assert "going on with the training in" in distil.output
    assert "epoch 1/3" not in distil.output


def test_recorded_views_serve_other_epochs_and_numbers_of_views(
    distil: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    distil(views=2)
    asked: list[int] = []
    original = Teacher.ask

    def counts(teacher: Teacher, images: torch.Tensor) -> Any:
        asked.append(len(images))
        return original(teacher, images)

    monkeypatch.setattr(Teacher, "ask", counts)
    distil(views=2, epochs=1)
    distil(views=1, temperature=3.0)
    assert asked == []
    distil(views=3)
    assert sum(asked) == len(distil.pool.splits.fit)


def test_an_interruption_leaves_the_student_of_before(distil: Run) -> None:
    before = distil().metrics
    with pytest.raises(Interrupted):
        distil(StopAfter(6), epochs=3)
    assert Candidate(distil.folder).metrics == before
    assert [candidate.name for candidate in merged_models(distil.pool.run)] == ["distilled"]


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


def test_a_stop_reaches_the_download_of_a_students_weights(
    distil: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = with_backbone(distil.pool, "test_convnext.r160_in1k", {"image_sizes": [32]})
    pool = replace(pool, settings=replace(pool.settings, weights="hub"))

    def fetch(names: list[str], _: Console | None, on_progress: Callable[[], None]) -> None:
        assert names == ["test_convnext.r160_in1k"]
        on_progress()
        raise AssertionError("nobody was asked")

    monkeypatch.setattr("search.catalogue.weights.fetch_weights", fetch)
    with pytest.raises(Interrupted):
        Run(pool)(StopAfter(1), student="test_convnext.r160_in1k")


def test_a_terminal_shows_bars(distil: Run) -> None:
    output = StringIO()
    console = Console(file=output, width=120, force_terminal=True)
    run_distill(distil.pool, quick(distil.pool), console, Interruption())
    shown = output.getvalue()
    assert "asking the teachers" in shown
    assert "images/s" in shown


REFUSED = [
    ({"teachers": "0009"}, "found '0009'"),
    ({"teachers": " , "}, "must be auto, fused or candidates"),
    ({"teachers": "fused"}, "python -m ensemble fuse"),
    ({"teachers": "0005"}, "pruned"),
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


def test_the_fused_network_can_teach(distil: Run) -> None:
    run_fuse(distil.pool, members=["0001", "0002"])
    student = distil(teachers="fused", feature_weight=0.2)
    spec = load_model(student.path)[1]
    assert {teacher.name for teacher in spec.teachers} == {"fused"}
    assert {teacher.backbone for teacher in spec.teachers} == {
        "test_resnet.r160_in1k",
        "test_vit.r160_in1k",
    }
    assert sum(teacher.weight for teacher in spec.teachers) == pytest.approx(1)
