"""Some images of select once more, altered as images are on their way through the world: what
`auc_stress` is measured on.

They are made once and kept in the run folder as PNG files of the canvas, so that every training,
and every merged model, scores the same ones as it scores any image.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed
from PIL import Image

from search.data.splits import draw_part
from search.errors import UserError
from search.machine.files import read_json, write_atomically, write_json_atomically
from search.pixels.altering import SUBSET
from search.pixels.cache import CHUNK
from search.pixels.canvas import DECODER, FILTER
from search.pixels.images import BrokenImage, read_image

ALTERED_IMAGES = 500
"""Of select, each altered in every way of SUBSET. The AUC of 250 real and 250 fake ones has a
standard error of 0.013 at 0.9."""

FOLDER = "altered"
"""In the run folder. It shows images of the data set: it stays there."""

MANIFEST = "manifest.json"

VERSION = 1
"""Of what an alteration does to an image; files of another one are made anew."""


def altered_part(
    select: pd.DataFrame,
    side: int,
    folder: Path,
    *,
    seed: int,
    on_done: Callable[[int, int], None] = lambda _done, _missing: None,
) -> pd.DataFrame:
    """Images of select, altered: all of them under the first alteration, then under the next.

    Args:
        select: label table.
        side: of the canvases, in pixels.
        folder: where they are kept; of other images, or as they were before, they are made anew.
        seed: of the images that are drawn.
        on_done: told how many of how many missing images are finished; what it raises ends it, and
            the next time goes on from there.

    Returns:
        The table's columns, with the path of the altered image, and `alteration`, its number in
        SUBSET. Images that cannot be read are left out.

    Raises:
        UserError: if they cannot be written.
    """
    part = drawn_part(select, ALTERED_IMAGES, seed)
    rows = [
        part.assign(
            path=[str(folder / f"{row:04d}-{number}.png") for row in range(len(part))],
            alteration=number,
        )
        for number in range(len(SUBSET))
    ]
    table = pd.concat(rows, ignore_index=True)
    try:
        _clear_others(folder, _describe(part, side))
        _make(part, folder, side, on_done)
    except OSError as error:
        raise UserError(
            f"altered images of select must be kept in {folder}, found: {error}; make room, and "
            "the same command goes on"
        ) from error
    is_there = [Path(path).exists() for path in table["path"]]
    return table[is_there].reset_index(drop=True)


def drawn_part(table: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """A part of a table by whole groups, the share of fakes kept; image by image where groups are
    too large for that to leave both classes."""
    part = draw_part(table, most, seed)
    if part["target"].nunique() < table["target"].nunique():
        alone = table.assign(group=np.arange(len(table)))
        part = table.loc[draw_part(alone, max(most, 2), seed).index]
    return part.reset_index(drop=True)


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


def _describe(part: pd.DataFrame, side: int) -> dict[str, object]:
    """What the files of a folder are made of: one image that was changed, and they are others."""
    identities: list[object] = []
    for name, path in zip(part["img_name"], part["path"], strict=True):
        try:
            found = os.stat(path)  # noqa: PTH116 - a third of the time
        except OSError:
            continue
        identities.append((name, found.st_size, found.st_mtime_ns))
    return {
        "version": VERSION,
        "side": side,
        "filter": FILTER,
        "decoder": DECODER,
        "alterations": list(map(str, SUBSET)),
        "images": hashlib.sha256(json.dumps(identities).encode()).hexdigest(),
    }


def _clear_others(folder: Path, described: dict[str, object]) -> None:
    """Makes a folder ready for these files: what is there of others is deleted."""
    try:
        found = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        found = {}
    if found == described:
        return
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_json_atomically(folder / MANIFEST, described)
