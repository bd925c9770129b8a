from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ensemble.submission.manifest import MANIFEST, find_changes, read_manifest, write_manifest
from search.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"a" * 1000)
    (folder / "inner" / "b c.txt").write_text("b", encoding="utf-8")
    return folder


def test_every_file_is_in_it_by_its_hash(folder: Path) -> None:
    own = write_manifest(folder)
    assert read_manifest(folder) == {
        "a.txt": hashlib.sha256(b"a" * 1000).hexdigest(),
        "inner/b c.txt": hashlib.sha256(b"b").hexdigest(),
    }
    assert own == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert find_changes(folder) == []


def flip_bit(folder: Path) -> None:
    content = bytearray((folder / "a.txt").read_bytes())
    content[500] ^= 1
    (folder / "a.txt").write_bytes(content)


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (flip_bit, "a.txt has changed"),
        (lambda folder: (folder / "a.txt").unlink(), "a.txt is absent"),
        (lambda folder: (folder / "inner" / "x").touch(), "inner/x is not in the manifest"),
        (lambda folder: (folder / ".hidden").touch(), ".hidden is not in the manifest"),
    ],
)
def test_each_change_is_told(tamper: Callable[[Path], None], expected: str, folder: Path) -> None:
    write_manifest(folder)
    tamper(folder)
    assert find_changes(folder) == [expected]


@pytest.mark.parametrize("target", ["../outside.txt", "inner"])
def test_links_are_refused(target: str, folder: Path) -> None:
    (folder.parent / "outside.txt").write_text("secret", encoding="utf-8")
    write_manifest(folder)
    (folder / "link").symlink_to(target)
    with pytest.raises(UserError, match="link"):
        find_changes(folder)


def test_names_that_leave_the_folder_are_never_opened(folder: Path) -> None:
    outside = folder.parent / "outside.txt"
    outside.write_text("secret", encoding="utf-8")
    write_manifest(folder)
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    content["files"]["../outside.txt"] = hashlib.sha256(b"secret").hexdigest()
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    assert find_changes(folder) == ["../outside.txt is absent"]


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[]",
        "{}",
        '{"algorithm": "md5", "files": {}}',
        '{"algorithm": "sha256", "files": {"a.txt": 1}}',
        '{"algorithm": "sha256", "files": 3}',
    ],
)
def test_what_is_no_manifest_is_a_user_error(content: str | None, folder: Path) -> None:
    if content is not None:
        (folder / MANIFEST).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=MANIFEST):
        read_manifest(folder)
