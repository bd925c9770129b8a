"""Kinds of backbones, and the recipe that is known to be good for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search.catalogue.dimensions import DIMENSIONS, Dimension, Value
from search.errors import UserError
from search.machine.files import check_keys

OF_AN_ENTRY = ("learning_rate", "drop_path")
"""What a kind says for those of its backbones that say nothing themselves."""

SOURCE = "source"


@dataclass(frozen=True)
class Kind:
    """Networks that are trained alike.

    Attributes:
        name: as the file has it.
        entry: `OF_AN_ENTRY`, as an entry of the file may have them.
        centre: values of dimensions, by name, that are known to be good for it.
        source: where that is known from.
    """

    name: str
    entry: Mapping[str, Any]
    centre: Mapping[str, Value]
    source: str


def read_kinds(content: Any, dimensions: Mapping[str, Dimension]) -> dict[str, Kind]:
    """The kinds by name, as the part `kinds` of a backbones file has them.

    Args:
        content: that part.
        dimensions: as the file narrows or widens them: they bound what a kind says.

    Raises:
        UserError: if it is no mapping of kinds, or one of them has no source, an unknown key or a
            value that its dimension has not, neither by itself nor as the file has it.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"'kinds' must map names to recipes, found {content!r}")
    return {
        str(name): _read_kind(str(name), recipe, dimensions) for name, recipe in content.items()
    }


def _read_kind(name: str, content: Any, dimensions: Mapping[str, Dimension]) -> Kind:
    if not isinstance(content, Mapping):
        raise UserError(f"kind '{name}' must be a mapping of settings, found {content!r}")
    check_keys(dict(content), (*OF_AN_ENTRY, *DIMENSIONS, SOURCE), f"kind '{name}'")
    source = content.get(SOURCE)
    if not isinstance(source, str) or not source.strip():
        raise UserError(f"kind '{name}' must say where it is known from in 'source'")
    centre: dict[str, Value] = {}
    for key in (name for name in DIMENSIONS if name in content):
        value = content[key]
        if isinstance(value, list):
            raise UserError(f"'{key}' of kind '{name}' must be one value, found {value!r}")
        plain = DIMENSIONS[key]
        try:
            centre[key] = plain.narrowed(value).centre
        except UserError as error:
            raise UserError(f"kind '{name}': {error}") from error
        if centre[key] not in (plain.nearest(centre[key]), dimensions[key].nearest(centre[key])):
            raise UserError(
                f"'{key}' of kind '{name}' must lie between {plain.low:g} and {plain.high:g}, "
                f"found {value!r}; `space:` can widen that"
            )
    entry = {key: content[key] for key in OF_AN_ENTRY if key in content}
    return Kind(name, entry, centre, source.strip())
