"""Descriptions of images, kept in the cache part by part: a kill costs the part under way, and a
search on the same images describes none again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.machine.files import write_atomically
from search.pixels.cache import identity_of_file
from search.validation.forgeries.describing import Together

PART = 4_096
"""Images."""

VERSION = 1
"""Of what is computed of an image."""

Describe = Callable[[pd.DataFrame], NDArray[np.float64]]
"""Maps a label table of N images to (N, D)."""


def described_in_parts(
    table: pd.DataFrame,
    describe: Describe,
    descriptor: str,
    folder: Path | None,
    on_part: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float64]:
    """Descriptions of a table's images, (N, D).

    Args:
        table: label table.
        describe: describes a part of it.
        descriptor: what `fingerprint` says of it.
        folder: keeps each part; None keeps nothing. A part counts for images that have not changed,
            described alike; where it cannot be read or written, images are described as they come.
        on_part: given how many images are described, after every part.
    """
    parts = []
    for start in range(0, len(table), PART):
        part = table.iloc[start : start + PART].reset_index(drop=True)
        path = None if folder is None else folder / f"{_key(part, descriptor)}.npy"
        found = None if path is None else _read(path, len(part))
        if found is None:
            found = describe(part)
            if path is not None:
                _write(path, found)
        parts.append(found)
        on_part(min(start + PART, len(table)))
    return np.concatenate(parts)


def fingerprint(descriptor: Together, side: int) -> str:
    """Of what a description depends on beside the image: weights, code, and the side in pixels of
    the squares that are described."""
    digest = hashlib.sha256(f"{VERSION} {side} {descriptor.name}".encode())
    for name, values in descriptor.state_dict().items():
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _key(part: pd.DataFrame, descriptor: str) -> str:
    digest = hashlib.sha256(descriptor.encode())
    for path in part["path"]:
        digest.update(f"{path}\0{identity_of_file(path)}\n".encode())
    return digest.hexdigest()


def _read(path: Path, rows: int) -> NDArray[np.float64] | None:
    try:
        found: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found.astype(np.float64) if found.ndim == 2 and len(found) == rows else None


def _write(path: Path, found: NDArray[np.float64]) -> None:
    # They were computed in 32 bits.
    small = found.astype(np.float32)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, small, allow_pickle=False)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError:
        return  # a full disk, or a folder that may only be read
