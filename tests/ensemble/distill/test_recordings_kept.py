from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from ensemble.distill import views
from ensemble.distill.recordings import (
    MANIFEST,
    other_views,
)
from ensemble.network.training import settle
from search.errors import UserError
from search.machine.interruption import Interrupted
from tests.ensemble.distill.conftest import (
    MANIFEST_OF_TEST,
    VIEWS,
    KilledError,
    Recorder,
)
from tests.stopping import StopAfter


def test_views_of_another_precision_are_not_used(recorder: Recorder) -> None:
    recorder()
    cheaper = replace(MANIFEST_OF_TEST, precision="bf16")
    found = other_views(recorder.folder, cheaper)
    assert found is not None
    assert found.changed == ("precision",)
    assert other_views(recorder.folder, MANIFEST_OF_TEST) is None


def test_a_recording_that_is_complete_asks_no_teacher(recorder: Recorder) -> None:
    first = recorder()
    again = recorder()
    assert recorder.teachers == 1
    np.testing.assert_array_equal(first.margins, again.margins)
    assert recorder.output.getvalue() == ""


@pytest.mark.parametrize(
    ("after", "with_features"), [(1, True), (2, False), (3, True), (5, True), (9, False)]
)
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


def test_a_stop_while_the_teacher_looks_costs_that_batch_alone(
    recorder: Recorder, tmp_path: Path, table: pd.DataFrame
) -> None:
    stop = StopAfter(10**9)

    def soon(finished: int, _: int) -> None:
        if finished == 4:
            stop.left = 5

    with pytest.raises(Interrupted), stop.amid_passes(torch.device("cpu"), 0.0):
        recorder(on_batch=soon)
    seen: list[int] = []
    resumed = recorder(on_batch=lambda finished, _: seen.append(finished))
    assert seen == list(range(5, 10))
    whole = Recorder(tmp_path / "whole", table)()
    np.testing.assert_array_equal(resumed.margins, whole.margins)


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
        ({"canvas": 64, "seed": 8}, "whose seed, canvas must stay"),
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
