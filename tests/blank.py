"""Figures that nobody looks at: one pixel each, written where they would be."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from search.report import dashboard, page


def blank(put: Callable[[Any, str, Any], object]) -> None:
    """Puts one pixel in the place of every figure: to lay one out takes a twentieth of a second, to
    draw it a fifth.

    Args:
        put: sets an attribute, as a MonkeyPatch does.
    """
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "PNG")

    def save(_figure: Figure, path: Path, **_options: object) -> None:
        path.write_bytes(stream.getvalue())

    def draw(_shown: object, path: Path, *_more: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
        return path

    put(Figure, "savefig", save)
    for room in (page, dashboard):
        for name in [name for name in vars(room) if name.startswith("draw_")]:
            put(room, name, draw)
