from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console

from ensemble.distill import views
from ensemble.distill.outputs import Teacher, TeacherOutputs, ensemble_margin
from ensemble.distill.recordings import (
    MANIFEST,
    RecordedViews,
    other_views,
    record_views,
)
from ensemble.distill.student import DistillationLoss, LossWeights, Student
from ensemble.distill.views import ViewManifest, view_loader
from ensemble.network.training import settle
from ensemble.teachers import TeacherEntry
from search.data.augment import train_transform
from search.data.batches import Batch, Loader, read_image, train_loader, view, view_seed
from search.data.quarantine import Quarantine
from search.errors import UserError
from search.interruption import Interrupted
from search.training.device import Runtime
from search.training.network import Network, build_network
from search.training.recipe import Recipe
from search.training.scoring import to_device

CPU = Runtime(torch.device("cpu"))
IMAGES, VIEWS, SIZE, SEED = 10, 3, 48, 7
MANIFEST_OF_TEST = ViewManifest(
    teachers=(TeacherEntry("0001", 0.75, "aa"), TeacherEntry("0002", 0.25, "bb")),
    split_fingerprint="0" * 64,
    images=IMAGES,
    views=VIEWS,
    seed=SEED,
    augmentation="strong",
    augmentation_strength=0.5,
    image_size=SIZE,
    with_features=False,
)
LOSSES = LossWeights(match="bce", temperature=2.0, hard_label=0.3, relation=1.0, feature=0.0)


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = []
    for number in range(IMAGES):
        path = tmp_path / f"{number}.png"
        Image.fromarray(generator.integers(0, 256, (64, 56, 3)).astype(np.uint8)).save(path)
        rows.append((path.name, str(path), int(number < 3), path.name))
    return pd.DataFrame(rows, columns=["img_name", "path", "target", "group"])


def network(architecture: str, image_size: int, seed: int) -> Network:
    recipe = Recipe(
        backbone=architecture,
        architecture=architecture,
        image_size=image_size,
        weights="none",
        seed=seed,
    )
    return build_network(recipe)


def make_teacher(*, with_features: bool = False) -> Teacher:
    networks = [network("test_resnet", 32, 1), network("test_vit", SIZE, 2)]
    for each in networks:
        # Fresh heads say nearly the same of every image.
        for parameter in each.trunk.get_classifier().parameters():
            parameter.data.mul_(30)
    return Teacher(networks, [0.75, 0.25], CPU, with_features=with_features)


class Recorder:
    """Records views and remembers how often a teacher was made and what was said."""

    def __init__(self, folder: Path, table: pd.DataFrame) -> None:
        self.folder, self.table = folder, table
        self.teachers = 0
        self.output = StringIO()

    def __call__(self, manifest: ViewManifest = MANIFEST_OF_TEST, **changes: Any) -> RecordedViews:
        def teacher() -> Teacher:
            self.teachers += 1
            return make_teacher(with_features=manifest.with_features)

        arguments: dict[str, Any] = {
            "batch_size": 4,
            "runtime": CPU,
            "quarantine": None,
            "console": Console(file=self.output, width=200),
        }
        return record_views(self.folder, manifest, teacher, self.table, **(arguments | changes))


@pytest.fixture
def recorder(tmp_path: Path, table: pd.DataFrame) -> Recorder:
    return Recorder(tmp_path / "views", table)


def loader(table: pd.DataFrame, manifest: ViewManifest, **changes: Any) -> Loader:
    return view_loader(table, manifest, batch_size=4, seed=SEED, **changes)


def drawn(batches: Loader, epoch: int) -> list[tuple[int, int]]:
    batches.set_epoch(epoch)
    return [
        pair
        for batch in batches
        for pair in zip(batch.indices.tolist(), batch.seeds.tolist(), strict=True)
    ]


def batch_of(images: torch.Tensor) -> Batch:
    numbers = torch.arange(len(images))
    return Batch(images, numbers % 2, numbers, numbers)


def test_the_ensemble_margin_is_the_log_odds_of_the_mean_probability() -> None:
    margins = torch.tensor([[0.5, -3.0, 8.0], [2.0, 1.0, -8.0]], dtype=torch.float64)
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    mean = (weights[:, None] * margins.sigmoid()).sum(dim=0)
    torch.testing.assert_close(ensemble_margin(margins, weights.log()), torch.logit(mean))


def test_the_ensemble_margin_stays_finite_and_exact_where_probabilities_round() -> None:
    margins = torch.tensor([[120.0, -90.0], [120.0, -90.0]])
    result = ensemble_margin(margins, torch.tensor([0.5, 0.5]).log())
    torch.testing.assert_close(result, torch.tensor([120.0, -90.0]))


def test_a_teacher_is_the_mean_of_its_networks_on_the_images_it_gets() -> None:
    teacher = make_teacher()
    assert teacher.image_size == SIZE
    batch = batch_of(torch.rand(5, 3, SIZE, SIZE))
    with torch.inference_mode():
        first, second = (each(batch.images).softmax(dim=1)[:, 1] for each in teacher.networks)
    outputs = teacher(batch)
    torch.testing.assert_close(outputs.margins.sigmoid(), 0.75 * first + 0.25 * second)
    assert outputs.features is None
    assert not outputs.margins.requires_grad


def test_recorded_outputs_do_not_depend_on_what_fits_into_memory(
    recorder: Recorder, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = replace(MANIFEST_OF_TEST, with_features=True)
    expected = recorder(manifest)
    original = Teacher.ask

    def scarce(teacher: Teacher, images: torch.Tensor) -> TeacherOutputs:
        if len(images) > 2:
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


def test_the_first_epochs_are_those_of_the_train_loader(table: pd.DataFrame) -> None:
    plain = train_loader(table, train_transform("strong", 0.5, SIZE), batch_size=4, seed=SEED)
    batches = loader(table, MANIFEST_OF_TEST)
    for epoch in range(VIEWS):
        assert drawn(batches, epoch) == drawn(plain, epoch)
        for first, second in zip(batches, plain, strict=True):
            assert torch.equal(first.images, second.images)
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
    transform = train_transform("strong", 0.5, SIZE)
    for image, row, seed in zip(batch.images, batch.indices.tolist(), batch.seeds, strict=True):
        assert int(seed) == view_seed(SEED, 0, row)
        assert torch.equal(image, view(read_image(table["path"][row]), transform, int(seed)))


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
            moved = to_device(batch, CPU)
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
        moved = to_device(batch, CPU)
        given, expected = recorded(moved), teacher(moved)
        assert given.features is not None
        assert expected.features is not None
        assert given.features.shape == (4, teacher.feature_size)
        assert recorded.feature_size == teacher.feature_size > 0
        torch.testing.assert_close(given.features, expected.features, atol=4e-3, rtol=1e-3)
        torch.testing.assert_close(given.margins, expected.margins, atol=1e-5, rtol=1e-5)


def test_a_recording_that_is_complete_asks_no_teacher(recorder: Recorder) -> None:
    first = recorder()
    again = recorder()
    assert recorder.teachers == 1
    np.testing.assert_array_equal(first.margins, again.margins)
    assert recorder.output.getvalue() == ""


class KilledError(Exception):
    """Like a kill, it leaves no time to save."""


@pytest.mark.parametrize("with_features", [False, True])
@pytest.mark.parametrize("after", range(1, 10))
@pytest.mark.parametrize("stop", [Interrupted, KilledError])
def test_a_broken_recording_goes_on_and_ends_as_if_it_had_never_stopped(
    recorder: Recorder,
    tmp_path: Path,
    table: pd.DataFrame,
    with_features: bool,
    after: int,
    stop: type[Exception],
) -> None:
    manifest = replace(MANIFEST_OF_TEST, with_features=with_features)

    def stop_there(finished: int, batches: int) -> None:
        assert batches == 3 * VIEWS
        if finished == after:
            raise stop

    with pytest.raises(stop):
        recorder(manifest, on_batch=stop_there)
    seen: list[int] = []
    resumed = recorder(manifest, on_batch=lambda finished, _: seen.append(finished))
    # A kill repeats the round that was begun; three batches are one.
    first = after + 1 if stop is Interrupted else (after - 1) // 3 * 3 + 1
    assert seen == list(range(first, 10))
    whole = Recorder(tmp_path / "whole", table)(manifest)
    np.testing.assert_array_equal(resumed.margins, whole.margins)
    if with_features:
        assert resumed.features is not None
        assert whole.features is not None
        np.testing.assert_array_equal(resumed.features, whole.features)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in recorder.folder.iterdir()} == names


def test_a_recording_is_saved_when_it_is_due(recorder: Recorder) -> None:
    def kill(finished: int, _: int) -> None:
        if finished == 3:
            raise KilledError

    with pytest.raises(KilledError):
        recorder(on_batch=kill, checkpoint_minutes=1e-9)
    seen: list[int] = []
    recorder(on_batch=lambda finished, _: seen.append(finished))
    assert seen[0] == 3


def test_what_a_kill_left_beside_whole_rounds_goes(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise KilledError

    def stop(finished: int, _: int) -> None:
        if finished == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        recorder(on_batch=stop)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", kill)  # the round is whole by then
        with pytest.raises(KilledError):
            recorder()
    (recorder.folder / ".margins_0001.npy.123.part").write_bytes(b"half")
    assert [path.name for path in recorder.folder.glob(".begun*")] == [".begun_0000.npz"]
    recorder()
    assert list(recorder.folder.glob(".*")) == []


@pytest.mark.parametrize("damage", ["features", "begun", "batches"])
def test_a_begun_round_that_cannot_be_gone_on_with_is_recorded_anew(
    damage: str, recorder: Recorder, tmp_path: Path, table: pd.DataFrame
) -> None:
    manifest = replace(MANIFEST_OF_TEST, with_features=True)

    def stop(finished: int, _: int) -> None:
        if finished == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        recorder(manifest, on_batch=stop)
    changes = {"batch_size": 3} if damage == "batches" else {}
    if damage == "features":
        (recorder.folder / ".features_0000.npy.begun").unlink()
    elif damage == "begun":
        (recorder.folder / ".begun_0000.npz").write_bytes(b"PK")
    found = recorder(manifest, **changes)
    whole = Recorder(tmp_path / "whole", table)(manifest)
    np.testing.assert_allclose(found.margins, whole.margins, atol=1e-5)


def test_more_views_record_only_the_missing_rounds(
    recorder: Recorder, tmp_path: Path, table: pd.DataFrame
) -> None:
    recorder(replace(MANIFEST_OF_TEST, views=1))
    seen: list[int] = []
    more = recorder(on_batch=lambda finished, _: seen.append(finished))
    assert seen == [4, 5, 6, 7, 8, 9]
    whole = Recorder(tmp_path / "whole", table)()
    np.testing.assert_array_equal(more.margins, whole.margins)
    np.testing.assert_array_equal(more.seeds, whole.seeds)


def test_fewer_views_are_the_first_of_those_recorded(recorder: Recorder) -> None:
    whole = recorder()
    fewer = recorder(replace(MANIFEST_OF_TEST, views=2))
    assert recorder.teachers == 1
    np.testing.assert_array_equal(fewer.margins, whole.margins[:2])
    np.testing.assert_array_equal(fewer.seeds, whole.seeds[:2])
    assert recorder().margins.shape == whole.margins.shape
    assert recorder.teachers == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 8}, "whose seed must stay as they were, found seed 8 instead of 7"),
        ({"augmentation": "flip"}, "found augmentation flip instead of strong"),
        ({"teachers": MANIFEST_OF_TEST.teachers[:1]}, "whose teachers must stay as they were"),
        ({"split_fingerprint": "1" * 64}, "whose split_fingerprint must stay as they were"),
        ({"image_size": 64, "seed": 8}, "whose seed, image_size must stay"),
        ({"with_features": True}, "found with_features True instead of False"),
    ],
)
def test_recorded_views_of_other_settings_are_told_and_stay(
    recorder: Recorder, change: dict[str, Any], told: str
) -> None:
    recorder()
    changed = replace(MANIFEST_OF_TEST, **change)
    leftover = other_views(recorder.folder, changed)
    assert leftover is not None
    assert told in leftover.describe()
    assert other_views(recorder.folder, MANIFEST_OF_TEST) is None
    recorder()
    assert recorder.teachers == 1


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ({}, None),
        ({"timm": "1.0.32"}, None),
        ({"timm": "1.1.0"}, "whose timm must stay as they were, found timm 1.1 instead of 1.0"),
        ({"torch": "2.16.0+cpu"}, "found torch 2.16 instead of 2.15"),
    ],
)
def test_a_librarys_patch_keeps_recorded_views(
    installed: dict[str, str],
    told: str | None,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {"torch": "2.15.0", "timm": "1.0.31"}
    versions = dict(before)
    monkeypatch.setattr(views, "version", lambda name: versions.get(name, "1.2.3"))
    recorder()
    versions |= installed
    leftover = other_views(recorder.folder, MANIFEST_OF_TEST)
    if told is not None:
        assert leftover is not None
        assert told in leftover.describe()
        return
    assert leftover is None
    recorder()
    assert recorder.teachers == 1
    lines = recorder.output.getvalue().splitlines()
    assert len(lines) == len(installed)
    assert all("made with timm 1.0.31, another patch" in line for line in lines)


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"seed": 7}', None])
def test_views_whose_manifest_cannot_be_read_are_told_and_stay(
    recorder: Recorder, damage: str | None
) -> None:
    """They used to be deleted unasked: hours of the teachers' work."""
    recorder()
    manifest = recorder.folder / MANIFEST
    if damage is None:
        manifest.unlink()
    else:
        manifest.write_text(damage)
    leftover = other_views(recorder.folder, MANIFEST_OF_TEST)
    assert leftover is not None
    console = Console(file=recorder.output, width=200)
    with pytest.raises(UserError, match=r"manifest.json cannot be read; add --discard") as error:
        settle([leftover], discard=False, console=console)
    assert "settings of before" not in str(error.value)
    assert len(list(recorder.folder.glob("margins_*.npy"))) == VIEWS
    settle([leftover], discard=True, console=console)
    assert "discarded" in recorder.output.getvalue()
    recorder()
    assert recorder.teachers == 2


def test_a_folder_in_which_nothing_was_recorded_is_in_nobodys_way(recorder: Recorder) -> None:
    recorder.folder.mkdir()
    assert other_views(recorder.folder, MANIFEST_OF_TEST) is None
    recorder()
    assert recorder.teachers == 1


def test_views_that_were_not_recorded_are_refused(recorder: Recorder, table: pd.DataFrame) -> None:
    recorded = recorder()
    (batch, *_) = loader(table, replace(MANIFEST_OF_TEST, seed=SEED + 1))
    with pytest.raises(ValueError, match="only recorded views"):
        recorded(to_device(batch, CPU))


def test_broken_images_get_no_outputs_and_are_not_trained_on(
    recorder: Recorder, table: pd.DataFrame
) -> None:
    Path(table["path"][4]).write_bytes(b"broken")
    quarantine = Quarantine(None, limit_fraction=0.2)
    recorded = recorder(quarantine=quarantine)
    assert quarantine.names == {"4.png"}
    assert np.flatnonzero(np.isnan(recorded.margins[0])).tolist() == [4]
    for batch in loader(table, MANIFEST_OF_TEST, quarantine=quarantine):
        assert recorded(to_device(batch, CPU)).margins.isfinite().all()


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
    recorder(manifest, quarantine=quarantine)
    # Nobody is asked while it is in quarantine, nor if it is broken still.
    for still in (quarantine, Quarantine(None, limit_fraction=0.2)):
        recorder(manifest, quarantine=still)
    assert recorder.teachers == 1
    path.write_bytes(whole)
    recorder(manifest, quarantine=quarantine)
    assert recorder.teachers == 1
    assert quarantine.take_back_mended() == 1
    asked: list[int] = []
    original = Teacher.ask

    def counted(teacher: Teacher, images: torch.Tensor) -> TeacherOutputs:
        asked.append(len(images))
        return original(teacher, images)

    monkeypatch.setattr(Teacher, "ask", counted)
    found = recorder(manifest, quarantine=quarantine)
    # With features, a blank image measures them first.
    assert asked == [1] * with_features + [1] * VIEWS
    expected = Recorder(tmp_path / "whole", table)(manifest)
    np.testing.assert_allclose(found.margins, expected.margins, atol=1e-5)
    if found.features is not None and expected.features is not None:
        np.testing.assert_allclose(found.features, expected.features, rtol=0, atol=2e-3)
    for batch in loader(table, manifest, quarantine=quarantine):
        assert found(to_device(batch, CPU)).margins.isfinite().all()


def test_a_teacher_that_says_no_number_is_named(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ensemble.distill.outputs.margin", lambda logits: logits[:, 0] * float("nan")
    )
    with pytest.raises(UserError, match="finite numbers, found others among those of 0001, 0002"):
        recorder()


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
