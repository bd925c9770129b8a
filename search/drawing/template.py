"""What every page has in common: its look, strict templates, images inside it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

STYLE = "style.css"


def load_template(
    package: str, name: str, filters: Mapping[str, Callable[..., Any]] | None = None
) -> Template:
    """A template of a room, to which `style` is the look of all pages.

    Args:
        package: the room: "search.report".
        name: of the template's file in it.
        filters: beside Jinja's own.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= dict(filters or {})
    style = files("search.drawing").joinpath(STYLE).read_text(encoding="utf-8")
    environment.globals["style"] = Markup(style)  # noqa: S704 - it is our own file
    return environment.from_string(files(package).joinpath(name).read_text(encoding="utf-8"))


def embedded(path: Path) -> str:
    """A file's bytes in base64, for the page to hold."""
    return b64encode(path.read_bytes()).decode()
