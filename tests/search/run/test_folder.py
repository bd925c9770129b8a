from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from search.errors import UserError
from search.run.folder import LOCK, alone, check_new


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["audit.json", "audit.html"],
        [".gitkeep", "lost+found"],
        [LOCK, "data.yaml"],
        ["backbones.yaml"],
        ["night.log"],
    ],
)
def test_a_search_may_begin_in_a_folder_that_is_new_or_its_own(
    names: list[str], tmp_path: Path
) -> None:
    """A search that was killed early has left its lock."""
    for name in names:
        (tmp_path / name).touch()
    check_new(tmp_path)
    check_new(tmp_path / "absent")


def test_a_search_does_not_begin_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "pyproject.toml").touch()
    with pytest.raises(UserError, match=r"found notes\.txt in .*; choose another"):
        check_new(tmp_path)


def test_what_goes_wrong_under_the_lock_is_told_as_what_it_is(tmp_path: Path) -> None:
    """A file that was not found was told as a full disk."""
    with pytest.raises(FileNotFoundError, match="gone"), alone(tmp_path):
        raise FileNotFoundError("gone")
    with (
        alone(tmp_path),
        pytest.raises(UserError, match="by one process at a time"),
        alone(tmp_path),
    ):
        raise AssertionError("two are at it")


def test_a_folder_that_cannot_be_locked_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_lock: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with (
        pytest.raises(UserError, match=r"that a search can write to, found: .*denied"),
        alone(tmp_path),
    ):
        raise AssertionError("it is not alone")
