from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ensemble.distill.outputs import Teacher, TeacherOutputs
from ensemble.distill.recordings import ViewManifest
from ensemble.distill.student import DistillationLoss, LossWeights, Student
from ensemble.distill.views import view_loader
from search.errors import UserError
from search.machine.device import Precision, Runtime
from search.pixels.augmentation.augment import Augmentation, render
from search.pixels.canvas import read_canvas
from search.pixels.loading.batches import Batch, Images, Shown, count_images
from search.pixels.loading.epochs import Loader, train_batches, view_seed
from search.pixels.loading.reading import Reader
from search.pixels.quarantine import Quarantine
from search.training.scoring import show
from tests.ensemble.distill.conftest import (
    CPU,
    IMAGES,
    MANIFEST_OF_TEST,
    SEED,
    SIZE,
    VIEWS,
    Recorder,
    make_teacher,
    network,
)

LOSSES = LossWeights(match="bce", temperature=2.0, hard_label=0.3, relation=1.0, feature=0.0)


def loader(
    table: pd.DataFrame,
    manifest: ViewManifest,
    quarantine: Quarantine | None = None,
    *,
    balance: bool = False,
) -> Loader:
    reader = Reader(SIZE, quarantine=quarantine)
    return view_loader(reader, table, manifest, batch_size=4, seed=SEED, balance=balance)


def shown(batch: Batch) -> Shown:
    """At the sizes of the student and of both teachers."""
    return show(batch, [32, SIZE], CPU)


def drawn(batches: Loader, epoch: int) -> list[tuple[int, int]]:
    batches.set_epoch(epoch)
    return [
        pair
        for batch in batches
        for pair in zip(batch.indices.tolist(), batch.seeds.tolist(), strict=True)
    ]


def test_recorded_outputs_do_not_depend_on_what_fits_into_memory(
    recorder: Recorder, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = replace(MANIFEST_OF_TEST, with_features=True)
    expected = recorder(manifest)
    original = Teacher.ask

    def scarce(teacher: Teacher, images: Images) -> TeacherOutputs:
        if count_images(images) > 2:
            raise torch.OutOfMemoryError
        return original(teacher, images)

    monkeypatch.setattr(Teacher, "ask", scarce)
    found = Recorder(tmp_path / "scarce", table)(manifest)
    np.testing.assert_allclose(found.margins, expected.margins, rtol=0, atol=1e-5)
    assert found.features is not None
    assert expected.features is not None
    np.testing.assert_allclose(found.features, expected.features, rtol=0, atol=2e-3)


def test_epochs_go_through_the_recorded_views_in_turn(table: pd.DataFrame) -> None:
    batches = loader(table, MANIFEST_OF_TEST)
    seeds = MANIFEST_OF_TEST.seeds()
    assert seeds.shape == (VIEWS, IMAGES)
    assert len(set(seeds.ravel().tolist())) == VIEWS * IMAGES
    orders = []
    for epoch in range(2 * VIEWS):
        pairs = drawn(batches, epoch)
        assert len(pairs) == 8  # of 10 images; the incomplete batch is dropped
        assert all(seeds[epoch % VIEWS, row] == seed for row, seed in pairs)
        orders.append([row for row, _ in pairs])
    assert orders[0] != orders[VIEWS], "the order of the images must not repeat with the views"


def test_the_first_epochs_are_those_of_train_batches(table: pd.DataFrame) -> None:
    policy = Augmentation("strong", 0.5)
    plain = train_batches(Reader(SIZE), table, policy, batch_size=4, seed=SEED)
    batches = loader(table, MANIFEST_OF_TEST)
    for epoch in range(VIEWS):
        assert drawn(batches, epoch) == drawn(plain, epoch)
        for first, second in zip(batches, plain, strict=True):
            assert torch.equal(first.show([32])[32], second.show([32])[32])
    assert drawn(batches, VIEWS) != drawn(plain, VIEWS)


def test_a_balanced_epoch_repeats_images_in_other_views(table: pd.DataFrame) -> None:
    batches = loader(table, MANIFEST_OF_TEST, balance=True)
    seeds = MANIFEST_OF_TEST.seeds()
    pairs = [pair for epoch in range(8) for pair in drawn(batches, epoch)]
    assert all(seed in seeds[:, row] for row, seed in pairs)
    assert 0.35 < np.mean([row < 3 for row, _ in pairs]) < 0.65
    once = drawn(batches, 0)
    for row in {row for row, _ in once}:
        taken = [seed for other, seed in once if other == row]
        assert len(set(taken)) == min(len(taken), VIEWS)


def test_a_view_can_be_made_again_from_its_seed(table: pd.DataFrame) -> None:
    (batch, *_) = loader(table, MANIFEST_OF_TEST)
    policy = Augmentation("strong", 0.5)
    images = batch.show([32])[32]
    for image, row, seed in zip(images, batch.indices.tolist(), batch.seeds, strict=True):
        assert int(seed) == view_seed(SEED, 0, row)
        prepared = policy.prepare(read_canvas(table["path"][row], SIZE), int(seed))
        assert torch.equal(image, render(prepared[None], seed[None], policy, 32)[0])


@pytest.mark.parametrize("balance", [False, True])
def test_recorded_and_live_teacher_give_the_same_loss(
    recorder: Recorder, table: pd.DataFrame, balance: bool
) -> None:
    recorded = DistillationLoss(recorder(), LOSSES)
    live = DistillationLoss(make_teacher(), LOSSES)
    student = Student(network("test_resnet", 32, 5))
    batches = loader(table, MANIFEST_OF_TEST, balance=balance)
    values = []
    for epoch in range(VIEWS + 1):
        batches.set_epoch(epoch)
        for batch in batches:
            moved = shown(batch)
            values.append((recorded(student, moved).item(), live(student, moved).item()))
    assert len(values) == 2 * (VIEWS + 1)
    np.testing.assert_allclose(*np.transpose(values), rtol=0, atol=1e-5)
    # The views differ, and so must what is said of them.
    assert np.ptp([value for value, _ in values]) > 1e-2


def test_recorded_and_live_teacher_give_the_same_features(
    recorder: Recorder, table: pd.DataFrame
) -> None:
    teacher = make_teacher(with_features=True)
    manifest = replace(MANIFEST_OF_TEST, with_features=True)
    recorded = recorder(manifest)
    for batch in loader(table, manifest):
        moved = shown(batch)
        given, expected = recorded(moved), teacher(moved)
        assert given.features is not None
        assert expected.features is not None
        assert given.features.shape == (4, teacher.feature_size)
        assert recorded.feature_size == teacher.feature_size > 0
        torch.testing.assert_close(given.features, expected.features, atol=4e-3, rtol=1e-3)
        torch.testing.assert_close(given.margins, expected.margins, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to wait for")
def test_nothing_that_was_recorded_makes_a_gpu_wait(
    recorder: Recorder, table: pd.DataFrame
) -> None:
    manifest = replace(MANIFEST_OF_TEST, with_features=True)
    recorded = recorder(manifest)
    (batch, *_) = loader(table, manifest)
    expected, moved = recorded(shown(batch)), show(batch, [32], Runtime(torch.device("cuda")))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = recorded(moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.margins.cpu(), expected.margins)
    assert found.features is not None
    assert expected.features is not None
    assert torch.equal(found.features.cpu(), expected.features)


def test_views_that_were_not_recorded_are_refused(recorder: Recorder, table: pd.DataFrame) -> None:
    recorded = recorder()
    (batch, *_) = loader(table, replace(MANIFEST_OF_TEST, seed=SEED + 1))
    with pytest.raises(ValueError, match="only recorded views"):
        recorded(shown(batch))


def test_broken_images_get_no_outputs_and_are_not_trained_on(
    recorder: Recorder, table: pd.DataFrame
) -> None:
    Path(table["path"][4]).write_bytes(b"broken")
    quarantine = Quarantine(None, limit_fraction=0.2)
    recorded = recorder(reader=Reader(SIZE, quarantine=quarantine))
    assert quarantine.names == {"4.png"}
    assert np.flatnonzero(np.isnan(recorded.margins[0])).tolist() == [4]
    for batch in loader(table, MANIFEST_OF_TEST, quarantine=quarantine):
        assert recorded(shown(batch)).margins.isfinite().all()


@pytest.mark.parametrize("with_features", [False, True])
def test_the_teacher_is_asked_about_a_mended_image_alone(
    recorder: Recorder,
    table: pd.DataFrame,
    tmp_path: Path,
    with_features: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training on it used to end with the advice to record everything anew."""
    manifest = replace(MANIFEST_OF_TEST, with_features=with_features)
    path = Path(table["path"][4])
    whole = path.read_bytes()
    path.write_bytes(b"broken")
    quarantine = Quarantine(None, limit_fraction=0.2)
    recorder(manifest, reader=Reader(SIZE, quarantine=quarantine))
    # Nobody is asked while it is in quarantine, nor if it is broken still.
    for still in (quarantine, Quarantine(None, limit_fraction=0.2)):
        recorder(manifest, reader=Reader(SIZE, quarantine=still))
    assert recorder.teachers == 1
    path.write_bytes(whole)
    recorder(manifest, reader=Reader(SIZE, quarantine=quarantine))
    assert recorder.teachers == 1
    assert quarantine.take_back_mended() == 1
    asked: list[int] = []
    original = Teacher.ask

    def counted(teacher: Teacher, images: Images) -> TeacherOutputs:
        asked.append(count_images(images))
        return original(teacher, images)

    monkeypatch.setattr(Teacher, "ask", counted)
    found = recorder(manifest, reader=Reader(SIZE, quarantine=quarantine))
    # With features, a blank image measures them first.
    assert asked == [1] * with_features + [1] * VIEWS
    expected = Recorder(tmp_path / "whole", table)(manifest)
    np.testing.assert_allclose(found.margins, expected.margins, atol=1e-5)
    if found.features is not None and expected.features is not None:
        np.testing.assert_allclose(found.features, expected.features, rtol=0, atol=2e-3)
    for batch in loader(table, manifest, quarantine=quarantine):
        assert found(shown(batch)).margins.isfinite().all()


@pytest.mark.parametrize(
    ("precision", "told"),
    [
        ("fp32", "0001, 0002 in fp32; choose other --teachers"),
        ("fp16", "0001, 0002 in fp16; use --teacher-precision fp32, or choose other --teachers"),
    ],
)
def test_a_teacher_that_says_no_number_is_named(
    precision: Precision, told: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ensemble.distill.outputs.margin", lambda logits: logits[:, 0] * float("nan")
    )
    with pytest.raises(UserError, match=f"finite numbers, found others among those of {told}"):
        recorder(replace(MANIFEST_OF_TEST, precision=precision))


def test_a_full_disk_is_told_before_anything_is_computed(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr("shutil.disk_usage", lambda _folder: Usage)
    seen: list[int] = []
    with pytest.raises(UserError, match=r"need 0\.0 GiB.*fewer --views"):
        recorder(
            replace(MANIFEST_OF_TEST, with_features=True),
            on_batch=lambda finished, _: seen.append(finished),
        )
    assert seen == []
