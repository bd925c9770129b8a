from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from search.errors import UserError
from search.settings.saved import (
    SETTINGS,
    check_resumable,
    load_settings,
    read_settings,
    write_settings,
)
from search.settings.search import SearchSettings

DATA = {"train_labels": Path("set/train.txt"), "train_images": Path("set/train")}


def test_settings_survive_the_disk(tmp_path: Path) -> None:
    settings = SearchSettings(
        **DATA,
        timeout=timedelta(hours=8),
        limit_train=7,
        select_limit=300,
        weights_dir=Path("w"),
        out=tmp_path,
    ).resolved()
    write_settings(settings, tmp_path)
    assert load_settings(tmp_path) == settings
    check_resumable(settings, read_settings(tmp_path) or {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 9}, "with --epochs 4, found --epochs 9"),
        ({"limit_train": 5}, "with --limit-train None, found --limit-train 5"),
        ({"seed": 1}, "--seed 0"),
        ({"select_limit": "all"}, "with --select-limit auto, found --select-limit all"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = SearchSettings(**DATA, out=tmp_path).resolved()
    write_settings(settings, tmp_path)
    with pytest.raises(UserError, match=message):
        check_resumable(replace(settings, **changes), read_settings(tmp_path) or {})


def test_a_setting_that_was_mistyped_by_hand_is_one_line(tmp_path: Path) -> None:
    write_settings(SearchSettings(out=tmp_path).resolved(), tmp_path)
    path = tmp_path / SETTINGS
    path.write_text(path.read_text() + "timeout: 8h\n")
    with pytest.raises(UserError, match=r"timeout: .*found '8h'"):
        load_settings(tmp_path)


def test_settings_that_may_hold_a_password_are_private(tmp_path: Path) -> None:
    settings = SearchSettings(out=tmp_path, storage="postgresql://u:p@h/d").resolved()
    write_settings(settings, tmp_path)
    assert (tmp_path / SETTINGS).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "changes", [{"trials": 40}, {"timeout": timedelta(1)}, {"keep": 2}, {"precision": "bf16"}]
)
def test_a_run_may_go_on_for_longer(changes: dict[str, Any], tmp_path: Path) -> None:
    settings = SearchSettings(**DATA, out=tmp_path).resolved()
    write_settings(settings, tmp_path)
    check_resumable(replace(settings, **changes), read_settings(tmp_path) or {})


@pytest.mark.parametrize("text", ["trails: 3\n", "- 1\n", "a: [\n"])
def test_damaged_settings_are_one_user_error(text: str, tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(UserError, match=r"settings\.yaml"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    "timeout",
    [timedelta(seconds=0.4), timedelta(minutes=90), timedelta(days=12), timedelta(days=40)],
)
def test_any_time_limit_survives_the_disk(timeout: timedelta, tmp_path: Path) -> None:
    settings = SearchSettings(out=tmp_path, timeout=timeout).resolved()
    write_settings(settings, tmp_path)
    assert load_settings(tmp_path) == settings
    saved = read_settings(tmp_path)
    assert saved is not None
    assert "e" not in saved["timeout"]  # as the command line reads it


@pytest.mark.parametrize("found", [None, 1, 2, 3, 5, "4"])
def test_a_run_of_another_format_is_refused(found: object, tmp_path: Path) -> None:
    write_settings(SearchSettings(out=tmp_path).resolved(), tmp_path)
    path = tmp_path / SETTINGS
    lines = [line for line in path.read_text().splitlines() if not line.startswith("format")]
    path.write_text("\n".join([*lines, *([] if found is None else [f"format: {found!r}"]), ""]))
    with pytest.raises(UserError, match="format 4, found format"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("name", "path"), [("train_images", "elsewhere"), ("train_labels", "elsewhere/train.txt")]
)
def test_images_may_move(name: str, path: str, tmp_path: Path) -> None:
    settings = SearchSettings(**DATA, out=tmp_path).resolved()
    write_settings(settings, tmp_path)
    moved = replace(settings, **{name: Path(path).absolute()})
    check_resumable(moved, read_settings(tmp_path) or {})
    other = replace(settings, train_groups=Path("groups.csv"))
    with pytest.raises(UserError, match="--train-groups None"):
        check_resumable(other, read_settings(tmp_path) or {})


def test_a_folder_without_a_run_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="python -m search run --out"):
        load_settings(tmp_path)


def test_a_storage_password_is_never_repeated(tmp_path: Path) -> None:
    settings = SearchSettings(storage="postgresql://me:secret@host/db", out=tmp_path).resolved()
    write_settings(settings, tmp_path)
    assert (tmp_path / SETTINGS).stat().st_mode & 0o077 == 0
    other = replace(settings, storage="postgresql://me:geheim@host/db")
    with pytest.raises(UserError, match="another --storage") as error:
        check_resumable(other, read_settings(tmp_path) or {})
    assert "secret" not in str(error.value)
    assert "geheim" not in str(error.value)


def test_a_run_from_before_a_setting_has_its_default() -> None:
    settings = SearchSettings(**DATA)
    saved = settings.to_yaml()
    del saved["split"]
    check_resumable(settings, saved)
    with pytest.raises(UserError, match="holds a search with --split group, found --split unseen"):
        check_resumable(replace(settings, split="unseen"), saved)
