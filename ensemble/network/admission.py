"""What a model from elsewhere would cost, found out before it gets any memory.

A spec names an architecture and its arguments, and whoever wrote it may have asked for anything.
Its trunks are built on the meta device first, where tensors have shapes and no content, and the
building ends as soon as they are over the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from search.errors import UserError
from search.training.network import build_trunk
from search.training.recipe import Recipe

BUDGET = 200_000_000
"""The competition's limit on parameters; a run's own budget may be lower, never higher."""

LARGEST_NUMBER = 4096
"""Of any argument: a depth or width beyond it makes even a network without content slow or endless
to build."""

LARGEST_IMAGE_SIZE = 1024
"""In pixels, of canvases too: the largest of timm's pretrained networks are at it (timm 1.0.31),
and one image of it fits into memory."""

MOST_ARGUMENTS = 256
"""Of one trunk, with the items of lists and mappings inside them."""

MOST_MODULES = 30_000
"""Of all trunks: Python objects take time and memory too. hrnet_w64 has
1,534 (timm 1.0.31)."""

SLACK = 2
"""Constructors may make parameters that they replace: only more than so many budgets end them."""


class _TooLargeError(Exception):
    """Ends a building from inside timm."""


def admit(trunks: Sequence[Recipe]) -> list[nn.Module]:
    """The trunks of a spec without content, within the budget all together.

    Args:
        trunks: recipes that may come from elsewhere.

    Returns:
        timm models on the meta device.

    Raises:
        UserError: if an argument is out of bounds or not the architecture's, or the trunks have too
            many parameters.
    """
    for recipe in trunks:
        _check_arguments(recipe)
    built = []
    with _bounded():
        for recipe in trunks:
            try:
                with torch.device("meta"):
                    built.append(build_trunk(recipe, pretrained=False))
            except UserError:
                raise
            except _TooLargeError as error:
                raise UserError(
                    f"a model must have at most {BUDGET:,} parameters, but {recipe.architecture} "
                    f"with {_shown(recipe.model_args)} is larger: {error}"
                ) from None
            except Exception as error:  # timm's constructors raise anything for a wrong argument.
                raise UserError(
                    f"model_args must be what timm's {recipe.architecture} takes, found "
                    f"{_shown(recipe.model_args)}: {type(error).__name__} {error}"
                ) from error
    check_count(sum(parameter.numel() for trunk in built for parameter in trunk.parameters()))
    return built


def check_count(parameters: int) -> None:
    """
    Raises:
        UserError: if there are more than the competition allows.
    """
    if parameters > BUDGET:
        raise UserError(
            f"a model must have at most {BUDGET:,} parameters, found {parameters:,}: params_exact "
            f"is over the budget by {parameters - BUDGET:,}"
        )


def _check_arguments(recipe: Recipe) -> None:
    """
    Raises:
        UserError: if a number is too large, or there are too many arguments.
    """
    for name in ("image_size", "canvas"):
        found = getattr(recipe, name)
        if not 1 <= found <= LARGEST_IMAGE_SIZE:
            raise UserError(f"{name} must be in [1, {LARGEST_IMAGE_SIZE}], found {found}")
    for number, value in enumerate(_leaves(recipe.model_args)):
        if number >= MOST_ARGUMENTS:
            raise UserError(f"model_args must have at most {MOST_ARGUMENTS} items, found more")
        if isinstance(value, (int, float)) and not abs(value) <= LARGEST_NUMBER:  # It may be NaN.
            # Python refuses to print integers of more than 4,300 digits.
            found = value if isinstance(value, float) else f"one of {value.bit_length()} bits"
            raise UserError(
                f"numbers in model_args must be at most {LARGEST_NUMBER}, found {found}"
            )


def _leaves(value: Any) -> Iterator[Any]:
    """Every item of nested lists and mappings; lazily, for YAML's references multiply them."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        yield value
        return
    yield None  # Empty ones count as well.
    for item in value:
        yield from _leaves(item)


@contextmanager
def _bounded() -> Iterator[None]:
    """Counts what any module registers meanwhile; raises _TooLargeError beyond the bounds."""
    elements = modules = 0

    def count_tensor(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        nonlocal elements
        elements += 0 if tensor is None else tensor.numel()
        if elements > SLACK * BUDGET:
            raise _TooLargeError(f"over {elements - 1:,} parameters and buffers")

    def count_module(_module: nn.Module, _name: str, _child: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > MOST_MODULES:
            raise _TooLargeError(f"over {MOST_MODULES:,} modules")

    hooks = (
        register_module_parameter_registration_hook(count_tensor),
        register_module_buffer_registration_hook(count_tensor),
        register_module_module_registration_hook(count_module),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _shown(arguments: Mapping[str, Any]) -> str:
    return str(dict(arguments))[:200]
