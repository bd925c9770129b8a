"""Canvases kept on disk: decoded once, shared by all trials, workers and commands.

A folder is of all images of some label files, so that another seed, limit or way of dividing them
finds what is there, and adds what it lacks. It holds `canvases.bin`, the canvases one after another
in uint8, with holes where there is none yet; `index.bin`, one ENTRY for each; and `manifest.json`,
which says what they are. An entry is written after its canvas: a kill leaves canvases that are
whole or not there, and the next builder goes on. It holds size and time of the image that the
canvas was made from: of an image changed since, it counts for nothing.

The cache is an optimisation. Whatever is wrong with it, images are decoded as they come, and the
scores are the same.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from joblib import Parallel, cpu_count, delayed
from numpy.typing import NDArray

from search.machine.files import cache_folder, read_json, write_json_atomically
from search.pixels.canvas import DECODER, FILTER, read_canvas
from search.pixels.images import BrokenImage

CANVASES, INDEX, MANIFEST, LOCK = "canvases.bin", "index.bin", "manifest.json", ".lock"

VERSION = 2
"""Of the layout of a folder."""

ENTRY = np.dtype([("state", "<u4"), ("crc", "<u4"), ("size", "<i8"), ("mtime", "<i8")])
"""One canvas: its state, its CRC-32, and its image's size (bytes) and time (ns)."""

THERE, BROKEN = 1, 2
"""States: there is a canvas, or there can be none, because the image cannot be read as it is."""

KEPT_FREE = 0.25
"""Share of the free space that is left to weights and checkpoints."""

CHUNK = 256
"""Images between two looks at whether to go on."""

AUTO, OFF = "auto", "off"

Tell = Callable[[str], None]


@dataclass
class CanvasCache:
    """The canvases of some images; pickled, it opens its files anew.

    Attributes:
        folder: where they lie.
        side: of the canvases, in pixels.
        rows: the row of each image that is read, by its path, in the order in which they are
            wanted.
        images: how many have a row: others may be read by other commands.
    """

    folder: Path
    side: int
    rows: Mapping[str, int]
    images: int
    _opened: _Opened | None = field(default=None, repr=False)

    @property
    def bytes_of_one(self) -> int:
        """Of a canvas."""
        return 3 * self.side * self.side

    def locate(self, paths: Sequence[str]) -> list[int]:
        """The rows of images; -1 for those that have none."""
        return [self.rows.get(path, -1) for path in paths]

    def copy(self, row: int, path: str, into: NDArray[np.uint8]) -> bool:
        """Copies a canvas, if it is there and of the image as it is now.

        Args:
            row: see `locate`.
            path: the image's.
            into: (3, side, side).

        Raises:
            DamagedCacheError: if the files are not as they were written, or are gone.
        """
        try:
            if self._opened is None:
                self._opened = _Opened(self)
            return self._opened.copy(row, path, into)
        except OSError as error:
            raise DamagedCacheError(f"{self.folder} cannot be read: {error}") from error

    def close(self) -> None:
        """Lets go of the files; they are opened anew when they are needed."""
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        # Workers are told of rows, and need no table of all paths.
        return {**self.__dict__, "rows": {}, "_opened": None}


class DamagedCacheError(Exception):
    """A cache that is not as it was written; its text is a line for the user."""


class _Opened:
    """The files of a cache, mapped into memory; another process may be filling it."""

    def __init__(self, cache: CanvasCache) -> None:
        self.file, self.index_file = cache.folder / CANVASES, cache.folder / INDEX
        self.kind = np.dtype((np.uint8, (3, cache.side, cache.side)))
        self.checked = np.zeros(cache.images, np.bool_)
        self._open()

    def _open(self) -> None:
        self.canvases, self.index = _map(self.file, self.kind), _map(self.index_file, ENTRY)

    def _reaches(self, row: int) -> bool:
        """Whether a row is mapped now; a builder may have added it since the last look."""
        if row < min(len(self.canvases), len(self.index)):
            return True
        if row >= min(_count(self.file, self.kind), _count(self.index_file, ENTRY)):
            return False
        self._open()
        return row < min(len(self.canvases), len(self.index))

    def copy(self, row: int, path: str, into: NDArray[np.uint8]) -> bool:
        if row < 0 or not self._reaches(row):
            return False
        entry = self.index[row]
        if entry["state"] != THERE or identity_of_file(path) != (entry["size"], entry["mtime"]):
            return False
        # What lies behind the end of a file that was cut short must not be touched: SIGBUS.
        if self.file.stat().st_size < self.canvases.nbytes:
            raise DamagedCacheError(f"{self.file} was cut short")
        into[...] = self.canvases[row]
        if not self.checked[row]:
            # Once in each process: a CRC takes as long as the copy.
            if zlib.crc32(into.data) != entry["crc"]:
                raise DamagedCacheError(f"{self.file} was changed behind our back")
            self.checked[row] = True
        return True


def _map(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    """What a file holds of one kind of item; nothing, if it is absent."""
    items, base = _count(path, kind), kind.base
    if not items:
        return np.empty((0, *kind.shape), base)
    return np.memmap(path, base, mode="r", shape=(items, *kind.shape))


def _count(path: Path, kind: np.dtype[Any]) -> int:
    """How many items of one kind a file holds."""
    return path.stat().st_size // kind.itemsize if path.exists() else 0


def cache_root(setting: str) -> Path | None:
    """The folder that --cache says: "auto" is `cache_folder()`, "off" is None."""
    if setting == OFF:
        return None
    return cache_folder() if setting == AUTO else Path(setting).expanduser()


def open_cache(
    setting: str, paths: Sequence[str], side: int, tell: Tell, *, among: Iterable[str] = ()
) -> CanvasCache | None:
    """The cache of some images, made if it is absent; None, and told, if it cannot be used.

    Args:
        setting: "auto" is a folder in `cache_folder()`, "off" is none, else the folder to use.
        paths: the images, those that are read most often first.
        side: of the canvases, in pixels.
        tell: given a line on why there is none.
        among: all images that these are drawn from: whoever draws others of them shares the folder.
    """
    root = cache_root(setting)
    if root is None or not paths:
        return None
    wanted = dict.fromkeys(paths)
    images = sorted({*wanted, *among})
    if setting == AUTO:
        root /= "canvases"
    described = {
        "version": VERSION,
        "side": side,
        "filter": FILTER,
        # Another one may decode a JPEG to other levels, and the scores must not tell.
        "decoder": DECODER,
        "images": len(images),
        "paths": hashlib.sha256("\0".join(images).encode()).hexdigest(),
    }
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    folder = root / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists():
            write_json_atomically(folder / MANIFEST, described)
        found = read_json(folder / MANIFEST)
    except (OSError, ValueError) as error:
        tell(f"no cache of canvases: {error}; images are decoded as they come")
        return None
    if found != described:
        tell(
            f"no cache of canvases: {folder} is of another version or another data set; images "
            "are decoded as they come (delete it, and it is made anew)"
        )
        return None
    row_of = {path: row for row, path in enumerate(images)}
    return CanvasCache(folder, side, {path: row_of[path] for path in wanted}, len(images))


def fill_cache(
    cache: CanvasCache,
    tell: Tell,
    on_done: Callable[[int, int], None] = lambda _done, _missing: None,
    threads: int | None = None,
) -> None:
    """Decodes what is missing or was changed, as much as fits.

    Two builders do not get in each other's way: the second uses what the first has made so far.

    Args:
        cache: see `open_cache`.
        tell: given a line on what it takes, and on what is wrong.
        on_done: told how many of how many missing canvases are finished; what it raises ends it,
            and the next time goes on from there.
        threads: that decode; None for one a core.
    """
    try:
        if not _missing(cache):
            return  # it may be one that can only be read
        with FileLock(cache.folder / LOCK, timeout=0):
            _fill(cache, tell, on_done, threads or cpu_count())
    except Timeout:
        tell(f"another process fills {cache.folder}: this one uses what is there already")
    except OSError as error:
        tell(
            f"the cache of canvases cannot be written to ({error}): what it lacks is decoded as "
            "it comes"
        )
    finally:
        cache.close()


def _fill(
    cache: CanvasCache, tell: Tell, on_done: Callable[[int, int], None], threads: int
) -> None:
    """Under the folder's lock."""
    one, folder = cache.bytes_of_one, cache.folder
    with _opened_to_write(folder / CANVASES) as canvases, _opened_to_write(folder / INDEX) as index:
        whole = min(os.fstat(canvases).st_size // one, cache.images)
        missing = _missing(cache)
        free = shutil.disk_usage(folder).free
        # Of what would be free without it: the next command must not take three quarters of what
        # this one leaves. The file has holes: what it takes counts, not its length. Where nothing
        # more fits, an image that was changed is decoded as it comes, too.
        taken = os.fstat(canvases).st_blocks * 512
        room = int((free + taken) * (1 - KEPT_FREE)) - taken
        todo = missing[: max(0, room) // one]
        line = (
            f"caching {len(todo):,} canvases of {cache.side} px in {folder}: "
            f"{len(todo) * one / 1e9:.2f} GB, of {free / 1e9:.1f} GB free"
        )
        if len(todo) < len(missing):
            left = len(missing) - len(todo)
            line += f"; {left:,} more do not fit, and are decoded as they come"
        if missing:
            tell(line)
        if not todo:
            return
        # Entries of canvases that were cut off, before there is something in their place.
        _write(index, bytes((cache.images - whole) * ENTRY.itemsize), whole * ENTRY.itemsize)
        # With holes: it takes no room before it is filled.
        os.ftruncate(canvases, max(whole, max(cache.rows[path] for path in todo) + 1) * one)

        def decode(path: str) -> None:
            row = cache.rows[path]
            size, mtime = identity_of_file(path)
            place = row * ENTRY.itemsize
            try:
                content = read_canvas(path, cache.side).numpy().tobytes()
            except BrokenImage as error:
                # Whoever needs it tells of it. Missing rights and a network's bad moments pass
                # without a change of the file.
                if getattr(error.__cause__, "errno", None) in (None, errno.ENOENT):
                    _write(index, np.array((BROKEN, 0, size, mtime), ENTRY).tobytes(), place)
                return
            # No memory map: on a full disk, writing to one would end the process.
            _write(index, bytes(ENTRY.itemsize), place)
            _write(canvases, content, row * one)
            entry = np.array((THERE, zlib.crc32(content), size, mtime), ENTRY)
            _write(index, entry.tobytes(), place)

        with Parallel(n_jobs=threads, backend="threading") as parallel:
            for start in range(0, len(todo), CHUNK):
                parallel(delayed(decode)(path) for path in todo[start : start + CHUNK])
                on_done(min(start + CHUNK, len(todo)), len(todo))


def _missing(cache: CanvasCache) -> list[str]:
    """Images of which nothing is known, or only of what they were before they were changed."""
    canvases, index = cache.folder / CANVASES, cache.folder / INDEX
    entries = np.zeros(cache.images, ENTRY)
    if canvases.exists() and index.exists():
        # Canvases that were cut off are absent, whatever their entries say.
        whole = canvases.stat().st_size // cache.bytes_of_one
        found = np.fromfile(index, ENTRY)[: min(cache.images, whole)]
        entries[: len(found)] = found
    wanted = entries[list(cache.rows.values())]
    return [
        path
        for path, (state, _, *identity) in zip(cache.rows, wanted.tolist(), strict=True)
        if state not in (THERE, BROKEN) or identity_of_file(path) != tuple(identity)
    ]


def identity_of_file(path: str) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds; of a file that is gone, what none has."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a third of the time, and called for each image
    except OSError:
        return (-1, -1)
    return found.st_size, found.st_mtime_ns


@contextmanager
def _opened_to_write(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield file
    finally:
        os.close(file)


def _write(file: int, content: bytes, place: int) -> None:
    while content:  # a disk that becomes full takes a part, and says so at the next one
        written = os.pwrite(file, content, place)
        content, place = content[written:], place + written
