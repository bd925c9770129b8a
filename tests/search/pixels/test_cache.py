"""The cache of canvases: the same canvases, whatever becomes of it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from numpy.typing import NDArray

import search.pixels.cache as module
from search.pixels.cache import (
    CANVASES,
    INDEX,
    LOCK,
    MANIFEST,
    CanvasCache,
    fill_cache,
    open_cache,
)
from search.pixels.canvas import read_canvas
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from tests.search.pixels.conftest import IMAGES, ONE, SIDE, Caching, save_noise


@pytest.mark.parametrize("workers", [0, 2])
def test_canvases_are_decoded_once_and_come_back_as_they_are(
    caching: Caching, expected: torch.Tensor, workers: int
) -> None:
    done: list[tuple[int, int]] = []
    caching.fill(on_done=lambda *numbers: done.append(numbers))
    assert done == [(IMAGES, IMAGES)]
    assert len(caching.read) == IMAGES
    (line,) = caching.told
    assert line.startswith(f"caching {IMAGES} canvases of {SIDE} px in {caching.folder}: 0.00 GB")
    assert line.endswith("GB free")
    for _ in range(2):
        assert torch.equal(caching.scored(workers), expected)
    caching.fill()
    assert len(caching.read) == IMAGES
    assert len(caching.told) == 1
    assert {path.name for path in caching.folder.iterdir()} <= {CANVASES, INDEX, MANIFEST, LOCK}


def test_off_is_no_cache_and_auto_lies_in_the_users_folder(caching: Caching, cache: Path) -> None:
    assert caching.open("off") is None
    opened = caching.open("auto")
    assert opened is not None
    assert opened.folder.parent == cache / "canvases"


def test_a_filling_that_was_stopped_goes_on(
    caching: Caching, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)

    def stop(done: int, _missing: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        caching.fill(on_done=stop)
    assert len(caching.read) == 4
    # A kill between a canvas and its entry: zeros, which are no entry.
    assert torch.equal(caching.scored(), expected)
    caching.read.clear()
    caching.fill()
    assert sorted(caching.read) == [f"{number}.png" for number in range(4, IMAGES)]


def fill_until_killed(root: str, paths: list[str]) -> None:
    """The life of a process."""

    def kill(done: int, _missing: int) -> None:
        if done == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    cache = open_cache(root, paths, SIDE, print)
    assert cache is not None
    fill_cache(cache, print, kill)


def test_a_filling_that_was_killed_goes_on(
    caching: Caching, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    arguments = (str(caching.root), caching.table["path"].tolist())
    process = get_context("fork").Process(target=fill_until_killed, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    caching.fill()
    assert sorted(caching.read) == ["6.png", "7.png", "8.png"]
    caching.read.clear()
    assert torch.equal(caching.scored(), expected)
    assert caching.read == []


def test_an_image_that_changed_is_read_anew(caching: Caching, table: pd.DataFrame) -> None:
    caching.fill()
    path = Path(table["path"][3])
    save_noise(path, 99)
    os.utime(path, ns=(1, 1))
    caching.read.clear()
    assert torch.equal(caching.scored()[3], read_canvas(path, SIDE))
    assert caching.read == ["3.png"]
    caching.fill()
    assert caching.read == ["3.png"] * 2
    caching.scored()
    assert caching.read == ["3.png"] * 2


def test_what_does_not_fit_is_decoded_as_it_comes(
    caching: Caching, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 8 * ONE

    monkeypatch.setattr("shutil.disk_usage", lambda _folder: Usage)
    caching.table = caching.table[::-1].reset_index(drop=True)
    caching.fill()
    assert "caching 6 canvases" in caching.told[0]
    assert caching.told[0].endswith("; 3 more do not fit, and are decoded as they come")
    # The first of the list, which are read most often.
    assert sorted(caching.read) == [f"{number}.png" for number in range(3, IMAGES)]
    caching.read.clear()
    assert torch.equal(caching.scored(), expected.flip(0))
    assert caching.read == ["2.png", "1.png", "0.png"]


def test_the_next_command_takes_nothing_of_what_the_first_one_left(
    caching: Caching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_FREE", 0.5)
    usage = SimpleNamespace(free=12 * ONE)
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: usage)
    caching.fill()
    assert len(caching.read) == 6
    usage.free = 6 * ONE
    caching.fill()
    assert len(caching.read) == 6


def test_broken_images_are_left_to_whoever_reads_them(
    caching: Caching, table: pd.DataFrame, expected: torch.Tensor
) -> None:
    broken, absent = Path(table["path"][2]), Path(table["path"][5])
    whole = {path: path.read_bytes() for path in (broken, absent)}
    broken.write_bytes(b"")
    absent.unlink()
    caching.fill()
    assert len(caching.scored()) == IMAGES - 2
    caching.read.clear()
    caching.told.clear()
    caching.fill()
    assert caching.read == caching.told == []
    for path, content in whole.items():
        path.write_bytes(content)
    caching.fill()
    assert sorted(caching.read) == ["2.png", "5.png"]
    assert torch.equal(caching.scored(), expected)
    assert len(caching.read) == 2


def test_an_image_that_broke_since_it_was_cached_is_not_read_at_each_filling(
    caching: Caching, table: pd.DataFrame
) -> None:
    caching.fill()
    Path(table["path"][2]).write_bytes(b"")
    caching.fill()
    assert len(caching.read) == IMAGES + 1
    caching.fill()
    assert len(caching.read) == IMAGES + 1
    assert len(caching.scored()) == IMAGES - 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_what_may_pass_makes_no_image_broken(
    number: int, caching: Caching, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("search.pixels.images.PAUSES_SECONDS", ())
        patch.setattr("search.pixels.images._decode", fail)
        caching.fill()
    caching.read.clear()
    caching.fill()
    assert len(caching.read) == IMAGES


def full_disk(caching: Caching, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_file: int, _content: bytes, _place: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", write)
    caching.fill()


def read_only(caching: Caching, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("search.pixels.cache._opened_to_write", refuse)
    caching.fill()


def not_made(caching: Caching, monkeypatch: pytest.MonkeyPatch) -> None:
    caching.root.write_bytes(b"a file")


def of_another_version(caching: Caching, monkeypatch: pytest.MonkeyPatch) -> None:
    caching.fill()
    caching.told.clear()
    path = caching.folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))


def damaged_manifest(caching: Caching, monkeypatch: pytest.MonkeyPatch) -> None:
    caching.fill()
    caching.told.clear()
    (caching.folder / MANIFEST).write_text("{")


def changed(caching: Caching, monkeypatch: pytest.MonkeyPatch) -> None:
    caching.fill()
    caching.told.clear()
    path = caching.folder / CANVASES
    content = bytearray(path.read_bytes())
    content[ONE + 5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (full_disk, r"cannot be written to .*No space left.* decoded as it comes"),
        (read_only, r"cannot be written to .*Permission denied.* decoded as it comes"),
        (not_made, r"no cache of canvases: .*; images are decoded as they come"),
        (of_another_version, r"of another version .* \(delete it, and it is made anew\)"),
        (damaged_manifest, r"no cache of canvases: .*; images are decoded as they come"),
        (changed, r"was changed behind our back; images are decoded as they come"),
    ],
)
def test_whatever_is_wrong_is_told_in_a_line_and_the_canvases_are_the_same(
    damage: Callable[[Caching, pytest.MonkeyPatch], None],
    told: str,
    workers: int,
    caching: Caching,
    expected: torch.Tensor,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        damage(caching, patch)
    assert torch.equal(caching.scored(workers), expected)
    lines = [line for line in caching.told if not line.startswith("caching")]
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert re.search(told, lines[0])


def test_a_damaged_cache_is_left_alone_by_workers_that_start_again(
    caching: Caching, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(_cache: CanvasCache, _row: int, _path: str, into: NDArray[np.uint8]) -> bool:
        into[...] = 0
        return True

    changed(caching, monkeypatch)
    with Reader(SIDE, workers=1, cache=caching.open(), tell=caching.told.append) as reader:
        loader = eval_batches(reader, caching.table, batch_size=IMAGES)
        (batch,) = loader
        assert "behind our back" in caching.told[-1]
        reader.close()
        monkeypatch.setattr(CanvasCache, "copy", copy)
        (batch,) = loader
        assert torch.equal(batch.canvases, expected)


def test_a_file_that_was_cut_short_is_filled_again(
    caching: Caching, expected: torch.Tensor
) -> None:
    caching.fill()
    os.truncate(caching.folder / CANVASES, 4 * ONE + 7)
    assert torch.equal(caching.scored(), expected)
    caching.read.clear()
    caching.fill()
    assert sorted(caching.read) == [f"{number}.png" for number in range(4, IMAGES)]
    caching.read.clear()
    assert torch.equal(caching.scored(), expected)
    assert caching.read == []


def cut_short(folder: Path) -> None:
    os.truncate(folder / CANVASES, 0)


@pytest.mark.parametrize(
    ("end", "told"), [(cut_short, "was cut short"), (shutil.rmtree, "cannot be read")]
)
def test_a_cache_that_ends_while_it_is_read_ends_nothing(
    end: Callable[[Path], None], told: str, caching: Caching, expected: torch.Tensor
) -> None:
    caching.fill()
    with Reader(SIDE, cache=caching.open(), tell=caching.told.append) as reader:
        batches = iter(eval_batches(reader, caching.table, batch_size=4))
        first = next(batches)
        end(caching.folder)
        found = torch.cat([first.canvases, *(batch.canvases for batch in batches)])
    assert torch.equal(found, expected)
    assert told in caching.told[-1]


def test_a_second_builder_uses_what_the_first_has_made(
    caching: Caching, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    reached, go_on = threading.Event(), threading.Event()

    def wait(done: int, _missing: int) -> None:
        if done == 3:
            reached.set()
            go_on.wait(30)

    builder = threading.Thread(target=lambda: caching.fill(on_done=wait))
    builder.start()
    assert reached.wait(30)
    second = Caching(caching.root, caching.table, [])
    second.fill()
    assert "another process fills" in second.told[0]
    caching.read.clear()
    assert torch.equal(second.scored(), expected)
    assert sorted(caching.read) == [f"{number}.png" for number in range(3, IMAGES)]
    go_on.set()
    builder.join()
    caching.read.clear()
    assert torch.equal(second.scored(), expected)
    assert caching.read == []


def test_what_a_builder_adds_after_the_cache_was_opened_is_found(
    caching: Caching, expected: torch.Tensor
) -> None:
    with Reader(SIDE, cache=caching.open(), tell=caching.told.append) as reader:

        def scored() -> torch.Tensor:
            batches = eval_batches(reader, caching.table, batch_size=4)
            return torch.cat([batch.canvases.clone() for batch in batches])

        for part in (slice(0), slice(3), slice(IMAGES)):  # nothing yet, a part, all
            if part.stop:
                other = open_cache(
                    str(caching.root),
                    caching.table["path"][part].tolist(),
                    SIDE,
                    caching.told.append,
                    among=caching.table["path"],
                )
                assert other is not None
                fill_cache(other, caching.told.append)
            caching.read.clear()
            assert torch.equal(scored(), expected)
            assert len(caching.read) == IMAGES - part.stop


def test_locks_are_not_waited_for(caching: Caching) -> None:
    cache = caching.open()
    assert cache is not None
    with FileLock(cache.folder / LOCK):
        fill_cache(cache, caching.told.append)
    assert "another process" in caching.told[0]
