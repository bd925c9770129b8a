from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search.study.orphans import set_aside_orphan
from search.training.candidate import CHECKPOINT, WEIGHTS, Candidate, save_progress
from tests.search.study.conftest import RECIPE


def test_a_training_whose_end_was_moved_is_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "candidates" / "0003"
    begun = replace(RECIPE, schedule="constant", epochs=None)
    save_progress(folder, begun, [])
    set_aside_orphan(folder, replace(begun, epochs=1.25, decay_fraction=0.1), pytest.fail)
    assert folder.exists()


def test_a_folder_of_another_training_is_set_aside(tmp_path: Path) -> None:
    told: list[str] = []
    folder = tmp_path / "candidates" / "0003"
    set_aside_orphan(folder, RECIPE, told.append)
    save_progress(folder, RECIPE, [])
    # How it is computed may change.
    set_aside_orphan(folder, replace(RECIPE, precision="bf16", micro_batch_size=4), told.append)
    assert told == []
    for name in (WEIGHTS, CHECKPOINT):
        (folder / name).write_bytes(b"of nobody")
    set_aside_orphan(folder, replace(RECIPE, learning_rate=0.5), told.append)
    assert not folder.exists()
    orphan = Candidate(tmp_path / "orphans" / "0003-1")
    assert orphan.recipe == RECIPE
    assert not orphan.has_weights
    assert not (orphan.path / CHECKPOINT).exists()
    assert len(told) == 1
