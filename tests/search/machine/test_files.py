from __future__ import annotations

from pathlib import Path

import pytest

from search.machine.files import cache_folder, write_atomically


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        ("/somewhere/else", "/xdg", "/somewhere/else"),
        (None, "/xdg", "/xdg/onefold"),
        ("", "/xdg", "/xdg/onefold"),
        (None, None, "/home/someone/.cache/onefold"),
        ("~/mine", None, "/home/someone/mine"),
    ],
)
def test_the_cache_follows_the_environment(
    own: str | None, shared: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for name, value in (("ONEFOLD_CACHE", own), ("XDG_CACHE_HOME", shared)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)
    assert not cache_folder().exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
