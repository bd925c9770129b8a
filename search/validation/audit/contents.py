"""Image files -> what is compared of them: checksum, perceptual hash, thumbnail, plain statistics.

The hash is ImageHash's pHash of 256 bits, because 64 do not tell aligned faces apart. Measured on
the 1,500 validation images of dfdc-faces: JPEG down to quality 30, WebP, halving, doubling and
halving with JPEG 50 change at most 18 bits, 20% more brightness 24, while no two images of
different sources differ in less than 50.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import imagehash
import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from search.pixels.images import BrokenImage, read_image
from search.validation.audit.headers import Row, header_table, join_headers, read_header

LOOKED_AT = 128
"""Pixels in both directions that an image is decoded to at least, for everything here."""

HASH_SIDE, THUMB_SIDE = 16, 16
HASH_BYTES, THUMB_BYTES = HASH_SIDE**2 // 8, THUMB_SIDE**2
CHECKSUM_BYTES = 16

STATISTICS = ("brightness", "contrast", "saturation", "detail")
"""Means over an image, in levels of 255: of its grey values, of their deviation, of its saturation,
and of the difference of a pixel to the one beside it."""

CHUNK = 128
"""Images that a process is given at a time: what it sends back is about 100 kB."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Contents:
    """What was found of N images, those that can be read, in the order of their places."""

    places: NDArray[np.int64]  # (N,), among all that were asked for
    headers: pd.DataFrame  # (N, F), see `search.validation.audit.headers`
    checksums: Bytes  # (N, 16), of the files
    hashes: Bytes  # (N, 32), packed bits
    thumbs: Bytes  # (N, 256), grey
    statistics: NDArray[np.float64]  # (N, 4), see STATISTICS
    broken: dict[int, str]  # why the others cannot be read, by place

    def only(self, chosen: NDArray[np.bool_]) -> Contents:
        """Those of the images that are chosen, (N,)."""
        return Contents(
            self.places[chosen],
            self.headers[chosen].reset_index(drop=True),
            self.checksums[chosen],
            self.hashes[chosen],
            self.thumbs[chosen],
            self.statistics[chosen],
            self.broken,
        )


@dataclass(frozen=True)
class _Look:
    """What a process says of one image."""

    header: Row
    checksum: bytes
    hash: bytes
    thumb: bytes
    statistics: tuple[float, ...]


def look_at(
    paths: Sequence[str], names: Sequence[str], workers: int, seen: Callable[[int], None]
) -> Contents:
    """Reads every image once, in several processes.

    Args:
        paths: of the files.
        names: as listed.
        workers: processes; 0 and 1 read in this one.
        seen: told how many are done.
    """
    chunks = [slice(start, start + CHUNK) for start in range(0, len(paths), CHUNK)]
    parallel = joblib.Parallel(n_jobs=max(1, workers), return_as="generator")
    calls = (joblib.delayed(_look_at_chunk)(paths[one], names[one]) for one in chunks)
    parts: list[Contents] = []
    done = 0
    for looks in parallel(calls):
        # As arrays an image takes 0.9 kB, as Python's objects it took 2.1 kB.
        parts.append(_contents(looks, done))
        done += len(looks)
        seen(done)
    return Contents(
        places=np.concatenate([part.places for part in parts]),
        headers=join_headers(part.headers for part in parts),
        checksums=np.concatenate([part.checksums for part in parts]),
        hashes=np.concatenate([part.hashes for part in parts]),
        thumbs=np.concatenate([part.thumbs for part in parts]),
        statistics=np.concatenate([part.statistics for part in parts]),
        broken={place: reason for part in parts for place, reason in part.broken.items()},
    )


def _contents(looks: Sequence[_Look | str], first: int) -> Contents:
    """What was found of images that follow each other from a place on."""
    broken = {place: look for place, look in enumerate(looks, first) if isinstance(look, str)}
    places = [place for place in range(first, first + len(looks)) if place not in broken]
    whole = [look for look in looks if not isinstance(look, str)]

    def joined(parts: list[bytes], width: int) -> Bytes:
        return np.frombuffer(b"".join(parts), np.uint8).reshape(len(parts), width)

    return Contents(
        places=np.array(places, np.int64),
        headers=header_table((look.header for look in whole), range(len(whole))),
        checksums=joined([look.checksum for look in whole], CHECKSUM_BYTES),
        hashes=joined([look.hash for look in whole], HASH_BYTES),
        thumbs=joined([look.thumb for look in whole], THUMB_BYTES),
        statistics=np.array([look.statistics for look in whole]).reshape(-1, len(STATISTICS)),
        broken=broken,
    )


def _look_at_chunk(paths: Sequence[str], names: Sequence[str]) -> list[_Look | str]:
    """For each image what it is like, or why it cannot be read."""
    found: list[_Look | str] = []
    for path, name in zip(paths, names, strict=True):
        try:
            found.append(_look_at(path, name))
        except BrokenImage as error:
            found.append(str(error))
    return found


def _look_at(path: str, name: str) -> _Look:
    header = read_header(path, name)
    image = read_image(path, at_least=LOOKED_AT)
    small = image.resize((LOOKED_AT, LOOKED_AT), Image.Resampling.BILINEAR, reducing_gap=2.0)
    grey = small.convert("L")
    values = np.asarray(grey, np.float64)
    saturation = np.asarray(small.convert("HSV").getchannel("S"))
    return _Look(
        header=header,
        checksum=checksum(path),
        hash=np.packbits(imagehash.phash(grey, hash_size=HASH_SIDE).hash).tobytes(),
        thumb=grey.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX).tobytes(),
        statistics=(
            float(values.mean()),
            float(values.std()),
            float(saturation.mean()),
            float(np.abs(np.diff(values, axis=1)).mean()),
        ),
    )


def checksum(path: str) -> bytes:
    """Of a file's bytes; equal for equal files alone.

    Raises:
        BrokenImage: if it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=CHECKSUM_BYTES))
    except OSError as error:
        raise BrokenImage(error.strerror or str(error)) from error
    return digest.digest()
