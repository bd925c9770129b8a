"""Where starting weights come from, and whether they are there and fit, before anything trains."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn

from search.catalogue.backbones import Backbone, WeightsSource
from search.catalogue.timm_models import build_on_meta
from search.errors import UserError

Shapes = dict[str, tuple[int, ...]]
"""Name of a tensor in a state dict -> its shape."""

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm looks for in a repository of the hub, in this order."""

HUB_TIMEOUT_SECONDS = 5.0


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
    if weights_dir is None or not weights_dir.is_dir():
        raise UserError(f"--weights-dir must be a folder, found {weights_dir}")
    path = weights_file(backbone, weights_dir)
    if not path.is_file():
        raise UserError(f"{weights_dir} must hold the starting weights, but misses {path.name}")
    return path


def check_weights(
    backbones: Sequence[Backbone], *, weights: WeightsSource, weights_dir: Path | None
) -> None:
    """Makes sure that every backbone's starting weights can be loaded.

    Raises:
        UserError: naming every file that is missing and where to put it; if a file does not fit its
            architecture; or if weights are neither in the hub's cache nor the hub reachable.
    """
    if weights == "file":
        _check_files(backbones, weights_dir)
    elif weights == "hub":
        _check_hub(backbones)


def _check_files(backbones: Sequence[Backbone], weights_dir: Path | None) -> None:
    if weights_dir is None or not weights_dir.is_dir():
        raise UserError(f"--weights-dir must be a folder, found {weights_dir}")
    paths = [weights_file(backbone, weights_dir) for backbone in backbones]
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


def _check_hub(backbones: Sequence[Backbone]) -> None:
    absent = [backbone for backbone in backbones if not _is_cached(backbone.name)]
    if not absent or _hub_answers(absent[0].name):
        return
    files = ", ".join(f"{backbone.name}.safetensors" for backbone in absent)
    state = "is switched off (HF_HUB_OFFLINE)" if HF_HUB_OFFLINE else "does not answer"
    raise UserError(
        f"starting weights must come from timm's hub, but it {state} and {len(absent)} of "
        f"{len(backbones)} are not in its cache; use --weights none, or --weights-dir DIR with "
        f"{files}"
    )


def _is_cached(name: str) -> bool:
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return False
    if config.hf_hub_id:
        files = (config.hf_hub_filename,) if config.hf_hub_filename else HUB_FILES
        return any(
            isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files
        )
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return bool(config.url) and (folder / str(config.url).rpartition("/")[2]).is_file()


def _hub_answers(name: str) -> bool:
    """Whether the hub can be asked for a weight; tried once and briefly."""
    config = timm.get_pretrained_cfg(name)
    if HF_HUB_OFFLINE or config is None:
        return False
    if not config.hf_hub_id:
        return True  # The few on other servers: their download tells.
    try:
        url = hf_hub_url(config.hf_hub_id, HUB_FILES[0])
        get_hf_file_metadata(url, timeout=HUB_TIMEOUT_SECONDS)
    except EntryNotFoundError:  # An answer: the weights lie there under their other name.
        return True
    except Exception:  # Connection errors come from an HTTP library that the hub's client chooses.
        return False
    return True
