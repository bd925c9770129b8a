"""The search space: the one place that turns an Optuna trial into a Recipe."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal, cast, get_args

from optuna import Trial

from search.catalogue.backbones import Backbone
from search.machine.device import Precision
from search.pixels.augmentation.augment import POLICIES
from search.training.recipe import ClassBalance, Recipe, SelectLimit

BASELINE = "baseline"
"""Value of the user attribute `preset` that asks for the challenge's baseline recipe."""

PRESET = "preset"

BASELINE_IMAGE_SIZE = 256
BASELINE_EPOCHS = 2

SEARCHED_POLICIES = tuple(name for name in POLICIES if name != BASELINE)


@dataclass(frozen=True)
class Space:
    """What may be tried, and what every Recipe of the study has in common."""

    backbones: tuple[Backbone, ...]
    baseline: Backbone | None
    weights: Literal["hub", "file", "none"]
    weights_dir: Path | None
    epochs: int
    canvas: int
    batch_size: int
    micro_batch_size: int | None
    select_limit: SelectLimit
    precision: Precision | Literal["auto"]
    channels_last: bool
    compile: bool
    seed: int

    def recipe(self, trial: Trial) -> Recipe:
        """The Recipe that a trial proposes.

        Parameters whose scale depends on the network carry its name ("<backbone>/learning_rate"),
        so that TPE's groups learn them for each backbone apart; the others are shared.
        """
        if trial.user_attrs.get(PRESET) == BASELINE:
            return self.baseline_recipe()
        names = [backbone.name for backbone in self.backbones]
        name = trial.suggest_categorical("backbone", names)
        backbone = self.backbones[names.index(name)]
        image_size = backbone.image_sizes[0]
        if len(backbone.image_sizes) > 1:
            image_size = trial.suggest_categorical(f"{name}/image_size", backbone.image_sizes)
        drop_path = 0.0
        if backbone.drop_path is not None:
            drop_path = trial.suggest_float(f"{name}/drop_path", *backbone.drop_path)
        from_scratch = self.weights == "none"
        return Recipe(
            **self._network(backbone, image_size),
            drop_path=drop_path,
            learning_rate=trial.suggest_float(
                f"{name}/learning_rate", *backbone.learning_rate, log=True
            ),
            # Lower layers of a pretrained network need smaller steps; those of a random one do not.
            layer_decay=1.0 if from_scratch else trial.suggest_float("layer_decay", 0.6, 1.0),
            freeze_norm_fraction=(
                0.0
                if from_scratch
                else trial.suggest_categorical("freeze_norm_fraction", [0.0, 0.3, 1.0])
            ),
            weight_decay=trial.suggest_float("weight_decay", 1e-3, 0.3, log=True),
            ema_decay=trial.suggest_categorical("ema_decay", [0.0, 0.998]),
            label_smoothing=trial.suggest_float("label_smoothing", 0.0, 0.15),
            class_balance=cast(
                ClassBalance, trial.suggest_categorical("class_balance", get_args(ClassBalance))
            ),
            mixup_alpha=trial.suggest_categorical("mixup_alpha", [0.0, 0.2]),
            cutmix_alpha=trial.suggest_categorical("cutmix_alpha", [0.0, 1.0]),
            augmentation=trial.suggest_categorical("augmentation", SEARCHED_POLICIES),
            augmentation_strength=trial.suggest_float("augmentation_strength", 0.0, 1.0),
            batch_size=self.batch_size,
        )

    def default_parameters(self, backbone: Backbone) -> dict[str, Any]:
        """A sensible first trial of a backbone: the middle of its ranges, light augmentation."""
        name = backbone.name
        low, high = backbone.learning_rate
        parameters: dict[str, Any] = {
            "backbone": name,
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
        if self.weights != "none":
            parameters |= {"layer_decay": 0.85, "freeze_norm_fraction": 0.0}
        if len(backbone.image_sizes) > 1:
            parameters[f"{name}/image_size"] = backbone.image_sizes[0]
        if backbone.drop_path is not None:
            parameters[f"{name}/drop_path"] = backbone.drop_path[0]
        return parameters

    def baseline_recipe(self) -> Recipe:
        """The challenge's own starting point: ResNet-18 at 256 px (or the largest size of the
        study, if that is smaller), Adam at 5e-3, a decay of 0.85 every four epochs, two epochs in
        batches of 40, both flips, plain cross entropy.

        Raises:
            ValueError: if the study has no baseline.
        """
        if self.baseline is None:
            raise ValueError("the study has no baseline backbone")
        searched = [size for backbone in self.backbones for size in backbone.image_sizes]
        image_size = min([BASELINE_IMAGE_SIZE, max(searched, default=BASELINE_IMAGE_SIZE)])
        network = self._network(self.baseline, image_size)
        return Recipe(
            **{**network, "epochs": BASELINE_EPOCHS},
            optimizer="adam",
            schedule="step",
            learning_rate=5e-3,
            weight_decay=0.0,
            gradient_clip=None,
            augmentation=BASELINE,
            batch_size=40,
        )

    def _network(self, backbone: Backbone, image_size: int) -> dict[str, Any]:
        """The fields of a Recipe that the study and the backbone fix."""
        file = None
        if self.weights_dir is not None:
            file = str(self.weights_dir / f"{backbone.name}.safetensors")
        return {
            "backbone": backbone.name,
            "architecture": backbone.architecture,
            "model_args": backbone.create_args(image_size),
            "mean": backbone.mean,
            "std": backbone.std,
            "image_size": image_size,
            "canvas": self.canvas,
            "weights": self.weights,
            "weights_file": file,
            "epochs": self.epochs,
            "micro_batch_size": self.micro_batch_size,
            "select_limit": self.select_limit,
            "precision": self.precision,
            "channels_last": self.channels_last,
            "compile": self.compile,
            "seed": self.seed,
        }
