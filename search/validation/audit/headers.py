"""Image files -> what is known of them without a pixel: header, size, times, the form of the name.

Nothing here identifies an image: a raw name would tell any label by heart, so names become
patterns, quantisation tables a checksum that many files share.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, JpegImagePlugin

from search.pixels.images import BrokenImage, opened_header

NO_ENTRY = "none"
"""Value of a category that a file has nothing of."""


@dataclass(frozen=True)
class Carrier:
    """Something that may carry a label from how files were made to a network, or around it."""

    name: str
    is_seen: bool
    """Whether it leaves traces in pixels, which a network learns instead of forgeries."""
    remedy: str


RECOMPRESSING = (
    "train with `space: {compression_quality: 80}` in the backbones file, which gives both classes "
    "one history of compression, or with `{augmentation: [degrade, strong]}`"
)

FORMAT = Carrier("format", True, f"write both classes in one format; {RECOMPRESSING}")
DIMENSIONS = Carrier(
    "dimensions",
    True,
    "crop or resize both classes alike; train with `space: {augmentation: [degrade, strong]}` in "
    "the backbones file, which resize both down and up",
)
COMPRESSION = Carrier("compression", True, f"{RECOMPRESSING}, or write all files at one quality")
BYTES = Carrier("bytes", True, RECOMPRESSING)
EMBEDDED = Carrier(
    "EXIF and header entries",
    False,
    "no network sees them, but the classes come from different tools: look for what else differs",
)
TIME = Carrier(
    "time",
    False,
    "no network sees it, but the classes were made one after the other: look for what else differs",
)
NAME = Carrier(
    "name",
    False,
    "no network sees it; keep names out of whatever scores images, and give the images of one "
    "source one group (--train-groups)",
)


@dataclass(frozen=True)
class Feature:
    """A column of the table of headers."""

    name: str
    label: str
    carrier: Carrier
    is_category: bool = False


FEATURES = (
    Feature("format", "file format", FORMAT, is_category=True),
    Feature("mode", "colour mode", FORMAT, is_category=True),
    Feature("width", "width", DIMENSIONS),
    Feature("height", "height", DIMENSIONS),
    Feature("pixels", "number of pixels", DIMENSIONS),
    Feature("aspect", "aspect ratio", DIMENSIONS),
    Feature("quality", "JPEG quality", COMPRESSION),
    Feature("tables", "JPEG quantisation tables", COMPRESSION, is_category=True),
    Feature("subsampling", "JPEG chroma subsampling", COMPRESSION, is_category=True),
    Feature("progressive", "progressive or interlaced storage", COMPRESSION, is_category=True),
    Feature("bytes", "file size", BYTES),
    Feature("bytes_per_pixel", "bytes a pixel", BYTES),
    Feature("entries", "kinds of header entries", EMBEDDED, is_category=True),
    Feature("exif_tags", "number of EXIF tags", EMBEDDED),
    Feature("camera", "EXIF camera", EMBEDDED, is_category=True),
    Feature("software", "EXIF software", EMBEDDED, is_category=True),
    Feature("orientation", "EXIF orientation", EMBEDDED, is_category=True),
    Feature("taken", "EXIF date", TIME),
    Feature("modified", "time of last change", TIME),
    Feature("name_length", "length of the name", NAME),
    Feature("name_digits", "share of digits in the name", NAME),
    Feature("name_number", "number in the name", NAME),
    Feature("name_prefix", "beginning of the name", NAME, is_category=True),
    Feature("name_extension", "extension of the name", NAME, is_category=True),
    Feature("name_folder", "folder in the name", NAME, is_category=True),
)
"""The columns of a table of headers, in order."""

# Tags of EXIF: https://exiv2.org/tags.html
_MAKE, _MODEL, _ORIENTATION, _SOFTWARE, _DATE_TIME = 0x010F, 0x0110, 0x0112, 0x0131, 0x0132
_EXIF_FOLDER, _DATE_TIME_ORIGINAL = 0x8769, 0x9003

# The luminance table of the JPEG standard (ITU-T T.81, table K.1), which libjpeg scales.
# fmt: off
_STANDARD = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
])
# fmt: on
_QUALITIES = np.arange(1, 101)
_SCALES = np.where(_QUALITIES < 50, 5000 // _QUALITIES, 200 - 2 * _QUALITIES)
_SUMS = np.clip((_STANDARD * _SCALES[:, None] + 50) // 100, 1, 255).sum(axis=1)

Row = dict[str, Any]


def read_header(path: str, name: str) -> Row:
    """What is known of one image file; a value for each of `FEATURES`, NaN where there is none.

    Args:
        path: of the file.
        name: as listed, relative to its folder.

    Raises:
        BrokenImage: if the header cannot be read.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise BrokenImage(error.strerror or str(error)) from error
    with opened_header(path) as image:
        width, height = image.size
        row: Row = {
            "format": image.format,
            "mode": image.mode,
            "width": width,
            "height": height,
            "pixels": width * height,
            "aspect": width / height,
            "bytes": status.st_size,
            "bytes_per_pixel": status.st_size / (width * height),
            "modified": status.st_mtime,
            **_compression(image),
            **_embedded(image),
        }
    return row | _name_pattern(name)


def read_headers(paths: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """The table of `FEATURES` of the files whose headers can be read, indexed by their places."""
    rows: dict[int, Row] = {}
    for place, (path, name) in enumerate(zip(paths, names, strict=True)):
        with suppress(BrokenImage):
            rows[place] = read_header(path, name)
    return header_table(rows.values(), list(rows))


def header_table(rows: Iterable[Row], index: Sequence[int]) -> pd.DataFrame:
    """Rows of `read_header` as a table: numbers as float64, categories as such."""
    table = pd.DataFrame(list(rows), index=np.array(index, np.int64))
    return _typed(table.reindex(columns=[feature.name for feature in FEATURES]))


def join_headers(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Tables of `header_table` one below the other, numbered anew."""
    # Categories that differ become plain values.
    return _typed(pd.concat(tables, ignore_index=True))


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    kinds = {one.name: "category" if one.is_category else "float64" for one in FEATURES}
    return table.astype(kinds)


def jpeg_quality(table: Sequence[int]) -> int:
    """The quality from 1 to 100 at which libjpeg's luminance table is nearest in its sum."""
    return int(_QUALITIES[np.abs(_SUMS - sum(table)).argmin()])


def _compression(image: Image.Image) -> Row:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        interlaced = bool(image.info.get("interlace"))
        return {
            "quality": np.nan,
            "tables": NO_ENTRY,
            "subsampling": NO_ENTRY,
            "progressive": str(interlaced),
        }
    tables = [tuple(values) for _, values in sorted(image.quantization.items())]
    return {
        "quality": jpeg_quality(tables[0]) if tables else np.nan,
        "tables": f"{zlib.crc32(repr(tables).encode()):08x}",
        "subsampling": str(JpegImagePlugin.get_sampling(image)),
        "progressive": str(bool(image.info.get("progressive"))),
    }


def _embedded(image: Image.Image) -> Row:
    segments = {marker for marker, _ in getattr(image, "applist", ())}
    row: Row = {
        "entries": " ".join(sorted(segments | set(map(str, image.info)))) or NO_ENTRY,
        "exif_tags": 0,
        "camera": NO_ENTRY,
        "software": NO_ENTRY,
        "orientation": NO_ENTRY,
        "taken": np.nan,
    }
    with suppress(Exception):  # damaged EXIF is no damaged image
        exif = image.getexif()
        inner = exif.get_ifd(_EXIF_FOLDER)
        camera = f"{exif.get(_MAKE, '')} {exif.get(_MODEL, '')}".strip()
        row |= {
            "exif_tags": len(exif) + len(inner),
            "camera": camera or NO_ENTRY,
            "software": str(exif.get(_SOFTWARE, NO_ENTRY)),
            "orientation": str(exif.get(_ORIENTATION, NO_ENTRY)),
            "taken": _seconds(inner.get(_DATE_TIME_ORIGINAL) or exif.get(_DATE_TIME)),
        }
    return row


def _seconds(date: object) -> float:
    """An EXIF date as seconds since 1970; NaN for what is none."""
    if not date:
        return np.nan
    with suppress(ValueError, OverflowError):
        found = datetime.strptime(str(date).strip("\0 "), "%Y:%m:%d %H:%M:%S")
        return found.replace(tzinfo=UTC).timestamp()
    return np.nan


def _name_pattern(name: str) -> Row:
    path = PurePosixPath(name.replace("\\", "/"))
    numbers = re.findall(r"[0-9]+", path.stem)
    return {
        "name_length": len(path.stem),
        "name_digits": sum(map(len, numbers)) / max(1, len(path.stem)),
        # More digits than a float64 holds are no count.
        "name_number": float(numbers[-1]) if numbers and len(numbers[-1]) <= 15 else np.nan,
        "name_prefix": re.split(r"[0-9]", path.stem.lower(), maxsplit=1)[0][:12] or NO_ENTRY,
        "name_extension": path.suffix or NO_ENTRY,
        "name_folder": str(path.parent),
    }
