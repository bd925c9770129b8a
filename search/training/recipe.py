"""A Recipe: all that training one network depends on, frozen and written beside its weights."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from search.data.splits import TrainedOn
from search.errors import UserError
from search.machine.files import first_problem, write_yaml_atomically
from search.pixels.augmentation.additions import Additions
from search.pixels.augmentation.augment import Augmentation
from search.pixels.loading.epochs import BatchOrder
from search.settings.data import Objective

Triple = tuple[float, float, float]
ClassBalance = Literal["none", "sampler", "loss"]
NOT_OF_RECORDED_VIEWS: dict[str, Any] = {
    "compression_quality": 0,
    "degradation_rounds": 0,
    "patch_masking": 0.0,
    "self_blended": 0.0,
    "mixed_with_real": 0.0,
    "batch_order": "random",
}
"""Fields that mean nothing to a student, which sees what its teachers have seen and scored."""

SelectLimit = int | Literal["auto", "all"]
"""How many images of select are scored at each look, see `scoring.images_of_a_look`."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Recipe:
    """Everything that one training run depends on besides the images.

    The same Recipe on the same CPU with the same images gives the same scores.
    """

    # The network.
    backbone: str
    """Name in backbones.yaml: a timm `architecture.tag`, or a declared name."""
    architecture: str
    """Name that timm.create_model builds, without a tag."""
    canvas: int
    """Side of the squares that image files are brought to before anything else, in pixels; see
    `search.pixels.canvas`."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model."""
    mean: Triple = (0.485, 0.456, 0.406)
    """Per-channel mean of RGB in [0, 1] that the weights were trained with."""
    std: Triple = (0.229, 0.224, 0.225)
    """Per-channel standard deviation, likewise."""
    image_size: int = 224
    """Side of the square that the network takes, resampled from the canvas, in pixels."""
    drop_path: float = 0.0
    """Stochastic depth rate; 0 where the architecture has none."""
    weights: Literal["hub", "file", "none"] = "hub"
    """Where the starting weights come from: timm's hub, a local file, or nowhere (from scratch)."""
    weights_file: str | None = None
    """Path of the local file when `weights` is "file"."""

    # The schedule.
    epochs: int | float | None = 4
    """Passes over the images; the last one may end before they have all come. None: not settled
    yet, with a constant schedule alone."""
    batch_size: int = 32
    """Effective batch: images that one optimizer step sees."""
    micro_batch_size: int | None = None
    """Images in one forward pass; gradients add up to `batch_size`. None: all."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    """constant: may be trained for more epochs than was thought, until its decay has begun."""
    learning_rate: float = 3e-4
    weight_decay: float = 0.05
    lowest_layer_scale: float = 1.0
    """Factor on the learning rate of the first layer; those between it and the head lie between
    it and 1, geometrically."""
    warmup_fraction: float = 0.1
    """Share of all steps over which the learning rate rises linearly (cosine schedule)."""
    warmup_images: int = 1_000
    """Images over which it does (constant schedule, whose end may not be known yet)."""
    decay_fraction: float = 0.2
    """Share of all steps, the last ones, in which it falls to 0 (constant schedule)."""
    step_size_epochs: int = 4
    """Epochs between two decays (step schedule)."""
    step_gamma: float = 0.85
    """Factor of one decay (step schedule)."""
    gradient_clip: float | None = 1.0
    """Largest gradient norm; None does not clip."""
    freeze_norm_fraction: float = 0.0
    """Share of all steps, from the first, in which batch-norm layers keep their statistics."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights, per step; 0 keeps none."""
    average_power: float | None = None
    """Keep an average of the weights instead in which step n counts for n to this power, so that it
    forgets in proportion to the length of the training, however long it will be (arXiv:2312.02696);
    0: uniform (arXiv:2110.10832)."""
    average_after_images: int = 0
    """It leaves out the weights before."""

    # The loss.
    label_smoothing: float = 0.0
    class_balance: ClassBalance = "none"
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    # What the network sees.
    augmentation: str = "none"
    """Policy in search.pixels.augmentation.augment.POLICIES."""
    augmentation_strength: float = 0.5
    """From 0, the mildest form of the policy, to 1."""
    compression_quality: int = 0
    """This and the next two: see `search.pixels.augmentation.additions`."""
    degradation_rounds: int = 0
    patch_masking: float = 0.0
    self_blended: float = 0.0
    """Share of the reals that are shown as fakes blended of themselves, beside the given fakes; see
    `search.pixels.augmentation.blending`."""
    mixed_with_real: float = 0.0
    """Share of the fakes that are shown with a real of their group around a part of them, pixel by
    pixel; see the same. Fakes whose group has no real stay as they are."""
    batch_order: BatchOrder = "random"
    """groups: both classes of a group in one batch, see `search.pixels.loading.pairing`."""

    # What it is trained on and judged by.
    trained_on: TrainedOn = "fit"
    """Splits whose images it is trained on. Without select nothing compares its looks: the weights
    at its end are kept."""
    select_limit: SelectLimit = "auto"
    """Images of select that are scored at each look."""
    objective: Objective = "auc"
    """What its looks are compared by."""

    # How it is computed.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """auto: the fastest is measured before a training begins, which sets the next two as well and
    is what is written down, see `search.training.arithmetic`."""
    channels_last: bool = False
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule != "constant" and self.epochs is None:
            raise ValueError(f"epochs must be known to a {self.schedule} schedule, found none")
        if self.schedule == "constant" and self.freeze_norm_fraction not in (0.0, 1.0):
            raise ValueError(
                "freeze_norm_fraction must be 0 or 1 with a constant rate, whose end may not be "
                f"known yet, found {self.freeze_norm_fraction}"
            )
        if self.ema_decay > 0 and self.average_power is not None:
            raise ValueError(
                "one average of the weights must be chosen, found ema_decay "
                f"{self.ema_decay} and average_power {self.average_power:g}"
            )

    @property
    def views(self) -> Augmentation:
        """What the network sees of an image.

        Raises:
            UserError: as `Augmentation` and `Additions`.
        """
        return Augmentation(
            self.augmentation,
            self.augmentation_strength,
            Additions(self.compression_quality, self.degradation_rounds, self.patch_masking),
        )

    def save(self, path: Path) -> None:
        """Writes the recipe as YAML."""
        write_yaml_atomically(path, TypeAdapter(Recipe).dump_python(self, mode="json"))

    @staticmethod
    def load(path: Path) -> Recipe:
        """Reads a recipe that `save` wrote.

        Raises:
            UserError: if the file is absent, is no YAML, or has an unknown or ill-typed key.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            return TypeAdapter(Recipe).validate_python(content)
        except ValidationError as error:
            found = first_problem(error)
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            found = " ".join(str(error).split())
        raise UserError(f"{path} must be a recipe that onefold wrote, found: {found}")
