from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from ensemble.distill.distill import VIEWS, Distillation, run_distill
from ensemble.distill.outputs import Teacher
from ensemble.distill.plan import plan_distillation
from ensemble.distill.recordings import RecordedViews
from ensemble.fuse.fuse import run_fuse
from ensemble.network.model import finish_all_replacing, load_model, merged_models
from ensemble.pool.pool import open_pool
from search.errors import UserError
from search.machine.interruption import Interrupted, Interruption
from search.machine.seconds import SECONDS
from search.pixels.loading.batches import Images, count_images
from search.training.candidate import Candidate
from tests.ensemble.distill.conftest import Run, quick, with_backbone
from tests.stopping import StopAfter


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
        evaluation = pool.evaluate(model, split)
        np.testing.assert_allclose(scores["y_pred"], evaluation.predictions.scores, atol=1e-5)
    metrics = student.metrics
    assert metrics["epochs"] == 2
    assert metrics["params_exact"] == sum(p.numel() for p in model.parameters())
    assert metrics["device"].startswith("cpu")
    assert metrics["precision"] == student.recipe.precision == spec.trunks[0].precision == "fp32"
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


def test_named_teachers_teach_alike(distil: Run) -> None:
    student = distil(teachers="0002, 0001")
    spec = load_model(student.path)[1]
    assert {(teacher.name, teacher.weight) for teacher in spec.teachers} == {
        ("0001", 0.5),
        ("0002", 0.5),
    }
    manifest = json.loads((distil.views / "manifest.json").read_text())
    assert len(manifest["teachers"]) == 2
    assert manifest["canvas"] == 32


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
    assert recorded.feature_size == teacher.feature_size == task.plan.teachers.feature_size
    assert not any("projection" in name for name in load_model(student.path)[0].state_dict())


def assert_same(first: Candidate, second: Candidate) -> None:
    """The same weights, scores and history, to the bit."""
    states = [load_file(candidate.path / "model.safetensors") for candidate in (first, second)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    pd.testing.assert_frame_equal(first.scores, second.scores, check_exact=True)
    timeless = [candidate.history.drop(columns=list(SECONDS)) for candidate in (first, second)]
    pd.testing.assert_frame_equal(*timeless, check_exact=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_weight": 0.5, "augmentation": "strong", "teachers": "0001,0002"},
        {"live_teacher": True, "feature_weight": 0.5, "teachers": "0002,0003"},
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
            broken = distil(StopAfter(generator.randint(2, 5)), **changes)
        except Interrupted:
            assert not distil.folder.exists()
            assert merged_models(distil.pool.run) == ()
    assert pieces > 3
    assert "going on with the training in" in distil.output
    assert_same(unbroken, broken)
    assert not distil.working.exists()


def test_a_batch_that_a_stop_cuts_short_is_as_if_never_begun(distil: Run, tmp_path: Path) -> None:
    """Its teacher is asked within the batch."""
    changes: dict[str, Any] = {
        "live_teacher": True,
        "teachers": "0002,0003",
        "student": "test_resnet.r160_in1k",  # has batch norm
    }
    other = tmp_path / "other"
    shutil.copytree(distil.pool.run, other)
    device, layers = distil.pool.runtime.device, StopAfter(10**9)
    with layers.amid_passes(device, 0.0):
        unbroken = Run(open_pool(other, device="cpu", workers=0))(layers, **changes)
    generator, each = random.Random("live"), (10**9 - layers.left) // 8
    pieces, broken = 0, None
    while broken is None:
        pieces += 1
        stop = StopAfter(generator.randint(1, 3 * each))
        with suppress(Interrupted), stop.amid_passes(device, 0.0):
            broken = distil(stop, **changes)
    assert pieces > 3
    assert_same(unbroken, broken)


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
        distil(StopAfter(7), **settings)
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
    settings = {"epochs": 3, "teachers": "0001,0002"}
    with pytest.raises(Interrupted):
        distil(StopAfter(9), **settings)
    distil(**settings, discard=True)
    assert "discarded" not in distil.output
    assert "going on with the training in" in distil.output
    assert "epoch 1/3" not in distil.output


def test_recorded_views_serve_other_epochs_and_numbers_of_views(
    distil: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    distil(views=2)
    asked: list[int] = []
    original = Teacher.ask

    def counts(teacher: Teacher, images: Images) -> Any:
        asked.append(count_images(images))
        return original(teacher, images)

    monkeypatch.setattr(Teacher, "ask", counts)
    distil(views=2, epochs=1)
    distil(views=1, temperature=3.0)
    assert asked == []
    distil(views=3)
    assert sum(asked) == len(distil.pool.splits.fit)


def test_an_interruption_leaves_the_student_of_before(distil: Run) -> None:
    before = distil(teachers="0001,0002").metrics
    with pytest.raises(Interrupted):
        distil(StopAfter(5), epochs=3, teachers="0001,0002")
    assert Candidate(distil.folder).metrics == before
    assert [candidate.name for candidate in merged_models(distil.pool.run)] == ["distilled"]


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
        Run(pool)(StopAfter(0), student="test_convnext.r160_in1k", teachers="0001")


def test_a_stop_reaches_the_choice_of_teachers(distil: Run) -> None:
    with pytest.raises(Interrupted):
        distil(StopAfter(0))
    assert distil.output == ""  # before anybody was told who teaches


def test_a_full_disk_is_told_before_canvases_are_cached(
    distil: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 100

    filled: list[object] = []
    monkeypatch.setattr("ensemble.distill.distill.fill", lambda *given: filled.append(given))
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: Usage)
    with pytest.raises(UserError, match="the teacher's features need"):
        distil(feature_weight=0.5)
    assert filled == []
    assert not distil.views.exists()


def test_a_terminal_shows_bars(distil: Run) -> None:
    output = StringIO()
    console = Console(file=output, width=120, force_terminal=True)
    run_distill(distil.pool, quick(distil.pool), console, Interruption())
    shown = output.getvalue()
    assert "asking the teachers" in shown
    assert "images/s" in shown


def test_the_fused_network_can_teach(distil: Run) -> None:
    run_fuse(distil.pool, members=["0001", "0002"])
    student = distil(teachers="fused", feature_weight=0.2)
    task = Distillation(
        distil.pool,
        plan_distillation(distil.pool, quick(distil.pool, teachers="fused", feature_weight=0.2)),
    )
    assert task.source.feature_size == task.plan.teachers.feature_size
    spec = load_model(student.path)[1]
    assert {teacher.name for teacher in spec.teachers} == {"fused"}
    assert {teacher.backbone for teacher in spec.teachers} == {
        "test_resnet.r160_in1k",
        "test_vit.r160_in1k",
    }
    assert sum(teacher.weight for teacher in spec.teachers) == pytest.approx(1)
