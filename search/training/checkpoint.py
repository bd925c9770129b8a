"""Weights and training states on disk: written atomically, read strictly, never unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from search.data.atomic import write_atomically
from search.errors import UserError


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state dict as contiguous copies on the CPU."""
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in module.state_dict().items()
    }


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Writes a state dict as safetensors."""
    write_atomically(path, lambda temporary: save_file(dict(state), temporary))


def load_weights(path: Path, module: nn.Module) -> None:
    """Loads safetensors into a module; every key and shape must agree.

    Raises:
        UserError: if the file is absent or damaged, or does not fit the module.
    """
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} must hold the weights of this very network: {reason}") from error


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a training state (tensors, numbers, lists and dicts of them)."""
    write_atomically(path, lambda temporary: torch.save(dict(state), temporary))


def load_state(path: Path) -> dict[str, Any]:
    """Reads a training state that `save_state` wrote, onto the CPU.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} must be a training state that onefold wrote, but it cannot be read "
            f"({type(error).__name__}); delete it to start this training anew"
        ) from error
    return state
