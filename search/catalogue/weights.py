"""Where starting weights come from, and whether they are there and fit, before anything trains."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import nn

from search.catalogue.backbones import Backbone, WeightsSource
from search.catalogue.downloads import fetch_weights
from search.catalogue.timm_models import build_on_meta
from search.errors import UserError

Shapes = dict[str, tuple[int, ...]]
"""Name of a tensor in a state dict -> its shape."""


def weights_file(backbone: Backbone, weights_dir: Path) -> Path:
    """Where a backbone's weights are expected in a folder of one's own."""
    return weights_dir / f"{backbone.name}.safetensors"


def locate_weights(
    backbone: Backbone, *, weights: WeightsSource, weights_dir: Path | None
) -> Path | None:
    """The file that a backbone's weights are loaded from; None for the hub and for no weights.

    Raises:
        UserError: if weights come from files and this one is absent.
    """
    if weights != "file":
        return None
    path = weights_file(backbone, _checked_folder(weights_dir))
    if not path.is_file():
        raise UserError(f"{weights_dir} must hold the starting weights, but misses {path.name}")
    return path


def _checked_folder(weights_dir: Path | None) -> Path:
    """
    Raises:
        UserError: if there is no such folder.
    """
    if weights_dir is None or not weights_dir.is_dir():
        raise UserError(
            f"--weights-dir must be a folder, found {weights_dir}; if it was moved, `python -m "
            "search run --out RUN --weights-dir DIR` tells the run"
        )
    return weights_dir


def check_weights(
    backbones: Sequence[Backbone],
    *,
    weights: WeightsSource,
    weights_dir: Path | None,
    console: Console | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Makes sure that every backbone's starting weights can be loaded; those of the hub that are
    not cached are fetched.

    Args:
        backbones: whose weights are wanted.
        weights: where they come from.
        weights_dir: the folder of one's own.
        console: shows the progress of downloads; default: quiet.
        on_progress: called as bytes arrive; what it raises ends the download.

    Raises:
        UserError: naming every file that is missing and where to put it; if a file does not fit its
            architecture; or if weights are neither in the hub's cache nor can be fetched.
    """
    if weights == "file":
        _check_files(backbones, weights_dir)
    elif weights == "hub":
        fetch_weights([backbone.name for backbone in backbones], console, on_progress)


def _check_files(backbones: Sequence[Backbone], weights_dir: Path | None) -> None:
    folder = _checked_folder(weights_dir)
    paths = [weights_file(backbone, folder) for backbone in backbones]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"{weights_dir} must hold the starting weights of each backbone, but misses "
            f"{', '.join(missing)}; put them there, or list fewer backbones in a file of your own "
            "(--backbones)"
        )
    for backbone, path in zip(backbones, paths, strict=True):
        check_weights_fit(path, backbone)


def check_weights_fit(path: Path, backbone: Backbone) -> None:
    """Compares names and shapes in a safetensors file with the architecture; reads its header only.

    The classifier may have any number of classes or be absent: it is replaced anyway. A file in
    another layout is accepted if timm's own conversion for that architecture makes it fit.

    Raises:
        UserError: if the file is no safetensors file, or does not fit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} must be a safetensors file: {error}") from error
    model = build_on_meta(backbone.architecture, backbone.model_args)
    expected = _body(_shapes(model), model)
    if _body(found, model) == expected:
        return
    converted = _converted(found, model)
    if converted is not None and _body(converted, model) == expected:
        return
    found = _body(found, model)
    names = [name for name in expected if name not in found]
    names += [name for name in found if name not in expected]
    if names:
        missing = names[0] in expected
        detail = f"{len(names)} names differ, first {names[0]} ({'absent' if missing else 'extra'})"
    else:
        name = next(name for name in expected if found[name] != expected[name])
        detail = f"{name} must have the shape {expected[name]}, found {found[name]}"
    raise UserError(
        f"{path} must hold the weights of {backbone.architecture}, but {detail}; "
        "is it another network's file?"
    )


def fits_image_size(backbone: Backbone, image_size: int) -> bool:
    """Whether the weights can be loaded into a network that works at this size in pixels.

    timm resamples position embeddings for most architectures; VOLO, Hiera, CaiT, GCViT and
    EfficientFormerV2 build at any size, and fail only when weights are loaded (timm 1.0.31).
    """
    if backbone.fixed_size is None or image_size == backbone.fixed_size:
        return True
    native = build_on_meta(backbone.architecture, backbone.create_args(backbone.fixed_size))
    model = build_on_meta(backbone.architecture, backbone.create_args(image_size))
    expected = _body(_shapes(model), model)
    converted = _converted(_shapes(native), model)
    return converted is not None and _body(converted, model) == expected


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _body(shapes: Shapes, model: nn.Module) -> Shapes:
    """Without the classifier, and without batch counters, which loading fills in when absent."""
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    prefixes = tuple(f"{name}." for name in names)
    return {
        name: shape
        for name, shape in shapes.items()
        if not name.startswith(prefixes) and not name.endswith(".num_batches_tracked")
    }


def _converted(shapes: Shapes, model: nn.Module) -> Shapes | None:
    """What timm's conversion for this architecture makes of a state dict; None if it fails.

    By timm's convention it is the function `checkpoint_filter_fn` of the network's module. It runs
    on tensors without content.
    """
    convert: Any = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return shapes
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        result = convert(state, model)
    except Exception:  # It expects a layout that it knows; anything else may break it anywhere.
        return None
    return {name: tuple(tensor.shape) for name, tensor in result.items()}
