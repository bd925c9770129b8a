"""The list of broken images, in memory and on disk."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from search.errors import UserError
from search.pixels.quarantine import MOST_TOLD, BrokenFile, Quarantine


def table(rows: int) -> pd.DataFrame:
    names = [f"{row}.jpg" for row in range(rows)]
    return pd.DataFrame({"img_name": names, "path": [f"/images/{name}" for name in names]})


def test_what_is_added_is_kept_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "run" / "quarantine.csv"
    quarantine = Quarantine(path)
    assert not path.parent.exists()  # nothing is written before something is broken
    quarantine.add("a.jpg", "/images/a.jpg", "the file is empty")
    quarantine.add('b, "c".jpg', "/images/ü.jpg", "image file is\ntruncated " + "x" * 500)
    text = path.read_text("utf-8")
    assert text.startswith("img_name,path,reason\na.jpg,/images/a.jpg,the file is empty\n")
    again = Quarantine(path)
    assert again.names == quarantine.names == {"a.jpg", 'b, "c".jpg'}
    assert again.paths == {"/images/a.jpg", "/images/ü.jpg"}
    reasons = pd.read_csv(path)["reason"].tolist()
    assert reasons[1].startswith("image file is truncated xxx")
    assert len(reasons[1]) == 200
    assert [entry.name for entry in path.parent.iterdir()] == ["quarantine.csv"]


def test_the_first_few_are_told_one_by_one_and_only_once(tmp_path: Path) -> None:
    lines: list[str] = []
    quarantine = Quarantine(tmp_path / "quarantine.csv", tell=lines.append)
    for number in range(MOST_TOLD + 3):
        for _ in range(2):
            quarantine.add(f"{number}.jpg", f"/images/{number}.jpg", "the file is empty")
    assert len(lines) == MOST_TOLD + 1
    assert lines[0] == "set aside 0.jpg: the file is empty"
    assert lines[-1].endswith("quarantine.csv lists them all")
    again = Quarantine(tmp_path / "quarantine.csv", tell=lines.append)
    again.add("0.jpg", "/images/0.jpg", "the file is empty")
    assert len(lines) == MOST_TOLD + 1


def test_adding_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.csv"
    quarantine = Quarantine(path)
    quarantine.add("a.jpg", "/images/a.jpg", "first reason")
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    quarantine.add("a.jpg", "/images/a.jpg", "second reason")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, written)
    quarantine.add("b.jpg", "/images/b.jpg", "another")
    assert path.read_text().splitlines()[1:] == [
        "a.jpg,/images/a.jpg,first reason",
        "b.jpg,/images/b.jpg,another",
    ]


def test_equal_names_in_two_folders_are_two_images(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "quarantine.csv")
    quarantine.add("1.jpg", "/elsewhere/1.jpg", "the file is empty")
    assert quarantine.among(table(3)) == []
    quarantine.add("1.jpg", "/images/1.jpg", "the file is empty")
    assert quarantine.among(table(3)) == [BrokenFile("1.jpg", "/images/1.jpg", "the file is empty")]


def test_what_is_found_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with many broken images must not write the whole list for each of them."""
    path = tmp_path / "quarantine.csv"
    quarantine = Quarantine(path)
    quarantine.add("a.jpg", "/images/a.jpg", "reason")
    file, before = path.stat().st_ino, path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    quarantine.add_all(BrokenFile(name, f"/images/{name}", "reason") for name in ("b", "c"))
    assert path.stat().st_ino == file
    assert path.read_bytes() == before + b"b,/images/b,reason\nc,/images/c,reason\n"


@pytest.mark.parametrize("cut", [0, 5, len("img_name,path,reason\n") - 1])
def test_a_kill_before_the_first_line_leaves_an_empty_list(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "quarantine.csv"
    path.write_text("img_name,path,reason\n"[:cut], "utf-8")
    quarantine = Quarantine(path)
    assert quarantine.names == set()
    quarantine.add("a.jpg", "/images/a.jpg", "reason")
    assert path.read_text("utf-8") == "img_name,path,reason\na.jpg,/images/a.jpg,reason\n"


@pytest.mark.parametrize("bytes_lost", range(1, len("ü.jpg,/images/ü.jpg,reason\n".encode())))
def test_a_torn_last_line_is_dropped_and_cut(bytes_lost: int, tmp_path: Path) -> None:
    path = tmp_path / "quarantine.csv"
    quarantine = Quarantine(path)
    quarantine.add("a.jpg", "/images/a.jpg", "reason")
    whole = path.read_bytes()
    quarantine.add("ü.jpg", "/images/ü.jpg", "reason")
    path.write_bytes(path.read_bytes()[:-bytes_lost])
    again = Quarantine(path)
    assert again.names == {"a.jpg"}
    again.add("b.jpg", "/images/b.jpg", "reason")
    assert path.read_bytes() == whole + b"b.jpg,/images/b.jpg,reason\n"


@pytest.mark.parametrize(
    ("rows", "broken", "passes"),
    [(100, 5, True), (100, 6, False), (20, 1, True), (19, 1, False), (100, 0, True)],
)
def test_five_percent_may_be_broken(rows: int, broken: int, passes: bool) -> None:
    quarantine = Quarantine(None)
    images = table(rows)
    for name, path in images.head(broken).itertuples(index=False):
        quarantine.add(name, path, "the file is empty")
        quarantine.add(name, f"/other{path}", "of another set, which does not count")
    if passes:
        quarantine.check(images)
        return
    expected = (
        f"at most 5% of a set's images may be broken, found {broken} of {rows}, for example "
        "/images/0.jpg (the file is empty)"
    )
    with pytest.raises(UserError, match=re.escape(expected)):
        quarantine.check(images)


def test_the_error_names_the_list(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "quarantine.csv", limit_fraction=0.0)
    quarantine.add("0.jpg", "/images/0.jpg", "the file is empty")
    with pytest.raises(UserError, match=re.escape(f"{quarantine.path} lists them all")):
        quarantine.check(table(3))


@pytest.mark.parametrize(
    "content",
    [b"name", b"name,why\na,b\n", b"img_name,path,reason\na,b\n", b"img_name,path,reason\n\xff\n"],
)
def test_foreign_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "quarantine.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match="must be a quarantine list with the columns") as raised:
        Quarantine(path)
    assert "\n" not in str(raised.value)


def test_mended_images_are_taken_back(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("mended.png", "damaged.png", "gone.png")]
    lines: list[str] = []
    quarantine = Quarantine(tmp_path / "quarantine.csv", tell=lines.append)
    for path in paths:
        quarantine.add(path.name, str(path), "the file is empty")
    assert quarantine.take_back_mended() == 0
    Image.new("RGB", (4, 4)).save(paths[0])
    paths[1].write_bytes(b"no image")
    assert quarantine.take_back_mended() == 1
    assert quarantine.names == Quarantine(quarantine.path).names == {"damaged.png", "gone.png"}
    assert lines[-1] == "taken back 1 images that can be read again"


def test_a_failed_write_of_what_was_mended_leaves_the_old_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, image = tmp_path / "quarantine.csv", tmp_path / "a.png"
    quarantine = Quarantine(path)
    quarantine.add("a.png", str(image), "the file is empty")
    before = path.read_bytes()
    Image.new("RGB", (4, 4)).save(image)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        quarantine.take_back_mended()
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [image, path]
