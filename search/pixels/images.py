"""Image files -> RGB images."""

from __future__ import annotations

import errno
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""What is read, whatever the file is called. Not all that Pillow could: its EPS reader, for
example, starts Ghostscript on the file."""

PAUSES_SECONDS = (0.5, 2.0)
PASSING_ERRORS = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN})
"""What a network's file system says in a bad moment: read again after each pause, before an image
is set aside for good."""

MACHINE_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class BrokenImage(ValueError):  # noqa: N818 - the field says broken image
    """A file that no image can be read from; its text is the reason, without the path."""


def read_image(path: str | Path, at_least: int | None = None) -> Image.Image:
    """An image as it should be seen: RGB, EXIF rotation applied.

    Transparency is laid over black, 16-bit grey is scaled to 8 bits, and of several frames the
    first is taken.

    Args:
        path: the file.
        at_least: a smaller image of so many pixels in both directions will do: JPEG decodes to a
            half, a quarter or an eighth in less time, and is read to its end all the same. None
            decodes every pixel, as canvases are made.

    Raises:
        BrokenImage: if the file is absent, empty, cut short, damaged, of another format, of float
            pixels, or larger than Pillow's `Image.MAX_IMAGE_PIXELS` (a decompression bomb).
        OSError: if the machine has no file descriptor left, which says nothing of the file.
    """
    pauses = iter(PAUSES_SECONDS)
    while True:
        try:
            return _decode(path, at_least)
        except OSError as error:
            if error.errno in MACHINE_ERRORS:
                raise
            pause = next(pauses, None) if error.errno in PASSING_ERRORS else None
            if pause is None:
                raise BrokenImage(error.strerror or str(error)) from error
        time.sleep(pause)


class _Quiet:
    """Silences Pillow, of whose warnings only that of decompression bombs is an error.

    Filters of warnings are the whole process's: the first of several threads sets them, and the
    last one puts them back.
    """

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                # odd EXIF, odd palettes: nothing a user could act on
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.filters.__exit__(None, None, None)


_QUIET = _Quiet()


def _decode(path: str | Path, at_least: int | None) -> Image.Image:
    """As `read_image`, but an OSError that Pillow does not account for stays one."""
    with _opened(path) as image:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
        # Damaged EXIF is no reason to lose the picture.
        with suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


@contextmanager
def opened_header(path: str | Path) -> Iterator[Image.Image]:
    """An image file of which only the header is read.

    Raises:
        BrokenImage: as `read_image`, and for what goes wrong inside.
    """
    try:
        with _opened(path) as image:
            yield image
    except OSError as error:
        if error.errno in MACHINE_ERRORS:
            raise
        raise BrokenImage(error.strerror or str(error)) from error


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """A file opened by Pillow; what its readers raise, here and inside, is a BrokenImage but for
    errors of the machine."""
    try:
        with _QUIET, Image.open(path, formats=FORMATS) as image:
            yield image
    except MemoryError:
        raise  # says something of the machine, not of the file
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise BrokenImage(f"more than {limit:,} pixels (a decompression bomb?)") from None
    except UnidentifiedImageError:
        empty = Path(path).stat().st_size == 0
        raise BrokenImage(
            "the file is empty" if empty else f"none of the formats {', '.join(FORMATS)}"
        ) from None
    except (OSError, BrokenImage):
        raise
    except Exception as error:  # Pillow's readers raise most kinds on damaged files
        raise BrokenImage(f"{type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        # Pillow would clip them to 255, and what is white differs from file to file.
        raise BrokenImage("float pixels, whose range is unknown")
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values to 255 instead of scaling them.
        values = np.clip(np.asarray(image), 0, 65535) >> 8
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        black = Image.new("RGBA", opaque.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, opaque).convert("RGB")
    return image.convert("RGB")
