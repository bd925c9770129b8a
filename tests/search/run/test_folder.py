from __future__ import annotations

from pathlib import Path

import pytest

from search.errors import UserError
from search.run.folder import LOCK, check_new


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
