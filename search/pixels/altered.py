"""Some images of select once more, altered as images are on their way through the world: what
`auc_stress` is measured on.

They are made once and kept as PNG files of the canvas, so that every training, and every merged
model, scores the same ones as it scores any image.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed
from PIL import Image

from search.data.splits import draw_part
from search.errors import UserError
from search.machine.files import cache_folder, write_atomically
from search.pixels.altering import SUBSET
from search.pixels.cache import AUTO, CHUNK, OFF
from search.pixels.canvas import DECODER, FILTER
from search.pixels.images import BrokenImage, read_image

ALTERED_IMAGES = 500
"""Of select, each altered in every way of SUBSET. The AUC of 250 real and 250 fake ones has a
standard error of 0.013 at 0.9."""

FOLDER = "altered"
"""In the cache folder."""

VERSION = 1
"""Of what an alteration does to an image; files of another one are not used."""


def altered_part(
    select: pd.DataFrame,
    side: int,
    *,
    cache: str,
    seed: int,
    on_done: Callable[[int, int], None] = lambda _done, _missing: None,
) -> pd.DataFrame:
    """Images of select, altered: the rows of each, one after another for each alteration.

    Args:
        select: label table.
        side: of the canvases, in pixels.
        cache: where they are kept, as canvases are: "auto" is a folder in `cache_folder()`, "off"
            one that is gone with this process, else the folder.
        seed: of the images that are drawn.
        on_done: told how many of how many missing images are finished; what it raises ends it, and
            the next time goes on from there.

    Returns:
        The table's columns, with the path of the altered image, and `alteration`, its number in
        SUBSET. Images that cannot be read are left out.

    Raises:
        UserError: if they cannot be written.
    """
    part = draw_part(select, ALTERED_IMAGES, seed).reset_index(drop=True)
    folder = _folder(part, side, cache)
    rows = [
        part.assign(
            path=[str(folder / f"{row:04d}-{number}.png") for row in range(len(part))],
            alteration=number,
        )
        for number in range(len(SUBSET))
    ]
    table = pd.concat(rows, ignore_index=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _make(part, folder, side, on_done)
    except OSError as error:
        raise UserError(
            f"altered images of select must be kept in {folder}, found: {error}; make room, or use "
            "another --cache"
        ) from error
    is_there = [Path(path).exists() for path in table["path"]]
    return table[is_there].reset_index(drop=True)


def _make(part: pd.DataFrame, folder: Path, side: int, on_done: Callable[[int, int], None]) -> None:
    """Writes what is missing."""

    def make(row: int, path: str, name: str) -> None:
        try:
            image = read_image(path)
        except BrokenImage:
            return  # whoever scores it as it is tells of it
        for number, alteration in enumerate(SUBSET):
            altered = alteration.apply(image, name)
            square = altered.resize((side, side), Image.Resampling.BILINEAR)
            save = partial(square.save, format="PNG", compress_level=1)
            write_atomically(folder / f"{row:04d}-{number}.png", save)

    last = len(SUBSET) - 1
    todo = [
        (row, path, name)
        for row, (path, name) in enumerate(zip(part["path"], part["img_name"], strict=True))
        if not (folder / f"{row:04d}-{last}.png").exists()
    ]
    step = max(1, CHUNK // len(SUBSET))
    with Parallel(n_jobs=cpu_count(), backend="threading") as parallel:
        for start in range(0, len(todo), step):
            parallel(delayed(make)(*one) for one in todo[start : start + step])
            on_done(min(start + step, len(todo)), len(todo))


def _folder(part: pd.DataFrame, side: int, cache: str) -> Path:
    """Where the altered images of these files lie: one changed file, and it is another folder."""
    if cache == OFF:
        folder = Path(tempfile.mkdtemp(prefix="onefold-altered-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder
    root = cache_folder() if cache == AUTO else Path(cache).expanduser()
    identities = []
    for name, path in zip(part["img_name"], part["path"], strict=True):
        try:
            found = os.stat(path)  # noqa: PTH116 - a third of the time
        except OSError:
            continue
        identities.append((name, path, found.st_size, found.st_mtime_ns))
    described = [VERSION, side, FILTER, DECODER, np.__version__, list(map(str, SUBSET)), identities]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    return root / FOLDER / key
