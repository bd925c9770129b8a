"""Descriptions of images, kept in the cache part by part: a kill costs the part under way, and a
search on the same images describes none again."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from search.machine.files import write_atomically
from search.pixels.cache import identity_of_file
from search.pixels.canvas import DECODER, FILTER
from search.validation.forgeries.describing import Together

PART = 4_096
"""Images; the last part may have half as many more."""

VERSION = 1
"""Of what is computed of an image."""

DESCRIBED, CHECKSUM = "described", "crc32"
"""A part's tensor (N, D), float32, and the entry of its metadata that holds it to be whole."""

Describe = Callable[[pd.DataFrame], NDArray[np.float64]]
"""Maps a label table of N images to (N, D); NaN for images that cannot be read."""


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
        folder: keeps each part of which every image could be read; None keeps nothing. A part
            counts for images that have not changed, described alike; where it cannot be read or
            written, images are described as they come.
        on_part: given how many images are described, after every part.
    """
    starts = list(range(0, max(1, len(table) - PART // 2), PART))
    parts = []
    for start, end in zip(starts, [*starts[1:], len(table)], strict=True):
        part = table.iloc[start:end].reset_index(drop=True)
        path = None if folder is None else folder / f"{_key(part, descriptor)}.safetensors"
        found = None if path is None else _read(path, len(part))
        if found is None:
            found = describe(part)
            # What could not be read may be readable the next time.
            if path is not None and np.isfinite(found).all():
                _write(path, found)
        parts.append(found)
        on_part(end)
    return np.concatenate(parts)


def fingerprint(descriptor: Together, side: int) -> str:
    """Of what a description depends on beside the image: weights, layers, code, and how an image
    becomes a square of so many pixels."""
    digest = hashlib.sha256(f"{VERSION} {side} {DECODER} {FILTER} {descriptor}".encode())
    for name, values in (*descriptor.named_parameters(), *descriptor.named_buffers()):
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _key(part: pd.DataFrame, descriptor: str) -> str:
    digest = hashlib.sha256(descriptor.encode())
    for path in part["path"]:
        digest.update(os.fsencode(path) + f"\0{identity_of_file(path)}\n".encode())
    return digest.hexdigest()


def _read(path: Path, rows: int) -> NDArray[np.float64] | None:
    try:
        with safe_open(path, "numpy") as file:
            found, checksum = file.get_tensor(DESCRIBED), (file.metadata() or {}).get(CHECKSUM)
    except (OSError, SafetensorError):
        return None
    if found.ndim != 2 or len(found) != rows or checksum != _checksum(found):
        return None
    whole: NDArray[np.float64] = found.astype(np.float64)
    return whole


def _write(path: Path, found: NDArray[np.float64]) -> None:
    # They were computed in 32 bits.
    small = {DESCRIBED: found.astype(np.float32)}
    about = {CHECKSUM: _checksum(small[DESCRIBED])}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: save_file(small, temporary, about))
    except (OSError, SafetensorError):
        return  # a full disk, or a folder that may only be read


def _checksum(values: NDArray[np.float32]) -> str:
    return f"{zlib.crc32(values.tobytes()):08x}"
