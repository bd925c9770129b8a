"""The space of fourteen dimensions that the search of 70bbfd5 drew from, with its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import log, sqrt
from typing import Any

import timm
from optuna import Trial
from timm.optim import param_groups_layer_decay

from search.catalogue.backbones import Backbone
from search.catalogue.dimensions import SEARCHED_POLICIES
from search.study.decisions.space import BACKBONE, Parameters

EPOCHS = 4
"""Of a training, with a look after each."""

SHARED = (
    "weight_decay",
    "ema_decay",
    "label_smoothing",
    "class_balance",
    "mixup_alpha",
    "cutmix_alpha",
    "augmentation",
    "augmentation_strength",
)
"""Parameters that are fields of a Recipe, under the same name for every backbone."""


def suggest(trial: Trial, backbones: tuple[Backbone, ...], *, pretrained: bool) -> Parameters:
    """What a trial proposes; a parameter whose scale depends on the network carries its name.

    Args:
        trial: a new one, or one that is enqueued.
        backbones: of the pool.
        pretrained: a network that starts from scratch has two dimensions less.
    """
    names = [backbone.name for backbone in backbones]
    name = trial.suggest_categorical(BACKBONE, names)
    backbone = backbones[names.index(name)]
    if len(backbone.image_sizes) > 1:
        trial.suggest_categorical(f"{name}/image_size", backbone.image_sizes)
    if backbone.drop_path is not None:
        trial.suggest_float(f"{name}/drop_path", *backbone.drop_path)
    trial.suggest_float(f"{name}/learning_rate", *backbone.learning_rate, log=True)
    if pretrained:
        trial.suggest_float("layer_decay", 0.6, 1.0)
        trial.suggest_categorical("freeze_norm_fraction", [0.0, 0.3, 1.0])
    trial.suggest_float("weight_decay", 1e-3, 0.3, log=True)
    trial.suggest_categorical("ema_decay", [0.0, 0.998])
    trial.suggest_float("label_smoothing", 0.0, 0.15)
    trial.suggest_categorical("class_balance", ["none", "sampler", "loss"])
    trial.suggest_categorical("mixup_alpha", [0.0, 0.2])
    trial.suggest_categorical("cutmix_alpha", [0.0, 1.0])
    trial.suggest_categorical("augmentation", SEARCHED_POLICIES)
    trial.suggest_float("augmentation_strength", 0.0, 1.0)
    return dict(trial.params)


def default_parameters(backbone: Backbone, *, pretrained: bool) -> Parameters:
    """The preset of a backbone: the middle of its ranges, light augmentation."""
    name = backbone.name
    low, high = backbone.learning_rate
    parameters: Parameters = {
        BACKBONE: name,
        f"{name}/learning_rate": sqrt(low * high),
        "weight_decay": 0.05,
        "ema_decay": 0.0,
        "label_smoothing": 0.0,
        "class_balance": "none",
        "mixup_alpha": 0.0,
        "cutmix_alpha": 0.0,
        "augmentation": "light",
        "augmentation_strength": 0.3,
    }
    if pretrained:
        parameters |= {"layer_decay": 0.85, "freeze_norm_fraction": 0.0}
    if backbone.drop_path is not None:
        parameters[f"{name}/drop_path"] = backbone.drop_path[0]
    return parameters


def image_size_choice(parameters: Mapping[str, Any], backbone: Backbone) -> int:
    """The place of the image size in its backbone's list."""
    size = parameters.get(f"{backbone.name}/image_size", backbone.image_sizes[0])
    return backbone.image_sizes.index(size)


def recipe_fields(parameters: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """The fields of a Recipe that parameters stand for, its rate falling with a cosine."""
    name = parameters[BACKBONE]
    return {
        "drop_path": parameters.get(f"{name}/drop_path", 0.0),
        "learning_rate": parameters[f"{name}/learning_rate"],
        "lowest_layer_scale": lowest_layer_scale(architecture, parameters.get("layer_decay", 1.0)),
        "freeze_norm_fraction": parameters.get("freeze_norm_fraction", 0.0),
        **{name: parameters[name] for name in SHARED},
    }


def lowest_layer_scale(architecture: str, layer_decay: float) -> float:
    """What timm's decay, a factor for each layer, leaves of the learning rate at the lowest."""
    return float(layer_decay ** _layers_below_head(architecture))


@cache
def _layers_below_head(architecture: str) -> int:
    groups = param_groups_layer_decay(timm.create_model(architecture), layer_decay=0.5)
    return round(-log(min(group["lr_scale"] for group in groups), 2))
