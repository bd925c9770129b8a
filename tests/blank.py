"""Figures that nobody looks at: one pixel each, written where they would be."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

_stream = io.BytesIO()
Image.new("RGB", (1, 1)).save(_stream, "PNG")

PIXEL = _stream.getvalue()
"""A PNG file."""


def blank(put: Callable[[Any, str, Any], object]) -> None:
    """Puts one pixel in the place of every figure: to lay one out takes a twentieth of a second, to
    draw it a fifth.

    Args:
        put: sets an attribute, as a MonkeyPatch does.
    """
    # Not on import: who only shares the tests out needs no torch.
    from matplotlib.figure import Figure

    from search.report import dashboard, page

    def save(_figure: Figure, path: Path, **_options: object) -> None:
        path.write_bytes(PIXEL)

    def draw(_shown: object, path: Path, *_more: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PIXEL)
        return path

    put(Figure, "savefig", save)
    for room in (page, dashboard):
        for name in [name for name in vars(room) if name.startswith("draw_")]:
            put(room, name, draw)
