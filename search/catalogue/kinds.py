"""Kinds of backbones, and the recipe that is known to be good for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError

from search.catalogue.dimensions import DIMENSIONS, Dimension, Value
from search.errors import UserError
from search.machine.files import check_keys, first_problem

SOURCE = "source"

Range = tuple[float, float]

LEARNING_RATE: Range = (1e-5, 1e-3)
"""Of a backbone for which neither its entry nor its kind says another."""


def _check_learning_rate(value: Range) -> Range:
    low, high = value
    if not 0 < low <= high:
        raise ValueError(f"must be 0 < low <= high, found (low={low:g}, high={high:g})")
    return value


def _check_drop_path(value: Range) -> Range:
    low, high = value
    if not 0 <= low <= high < 1:
        raise ValueError(f"must be 0 <= low <= high < 1, found (low={low:g}, high={high:g})")
    return value


LearningRate = Annotated[Range, AfterValidator(_check_learning_rate)]
"""Lowest and highest, searched on a log scale."""

DropPath = Annotated[Range, AfterValidator(_check_drop_path)]
"""Lowest and highest stochastic depth rate."""


@dataclass(frozen=True)
class _Entry:
    """What a kind says for those of its backbones that say nothing themselves."""

    learning_rate: LearningRate = LEARNING_RATE
    drop_path: DropPath | None = None


OF_AN_ENTRY = tuple(field.name for field in fields(_Entry))
"""Its keys."""


@dataclass(frozen=True)
class BackboneKind:
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


def read_kinds(content: Any, dimensions: Mapping[str, Dimension]) -> dict[str, BackboneKind]:
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


def _read_kind(name: str, content: Any, dimensions: Mapping[str, Dimension]) -> BackboneKind:
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
    try:
        TypeAdapter(_Entry).validate_python(entry)
    except ValidationError as error:
        raise UserError(f"kind '{name}': {first_problem(error)}") from error
    return BackboneKind(name, entry, centre, source.strip())
