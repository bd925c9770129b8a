"""What `search run` is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from search.errors import UserError
from search.settings.data import AtLeastOne, AtLeastZero, DataSettings, Objective, TimeLimit


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SearchSettings(DataSettings):
    """What `search run` is told; None stands for a default that depends on the data."""

    select_limit: int | Literal["auto", "all"] = "auto"
    """Compare candidates on so many images of select at most; auto: for a tenth of the time."""

    objective: Objective = "auc"
    """What is chosen by, on select: all fakes, unseen methods, altered images, or their mean."""

    backbones: Path | None = None
    """File of the allowed backbones and the budget. Default: the backbones.yaml of onefold."""

    pool: str | None = None
    """Backbones to search: demo, small, strong, your own pool, or names: a,b. Default: small."""

    weights: Literal["hub", "none"] | None = None
    """Start from the pinned ImageNet weights of timm's hub, or from scratch. Default: hub."""

    weights_dir: Path | None = None
    """Start from files in this folder instead, each named <backbone>.safetensors."""

    image_size: Annotated[int | None, Parameter(validator=Number(gte=32, lte=1024))] = None
    """One image size in pixels for every backbone, instead of those in the backbones file."""

    canvas: Annotated[int | None, Parameter(validator=Number(gte=16, lte=1024))] = None
    """Side in pixels that images are decoded to, for all networks. Default: chosen from both."""

    cache: str = "auto"
    """Keep decoded and described images: auto (in the user's cache folder), off, or a folder."""

    probe: bool = True
    """Before the first trial, look at frozen features and speeds: where to begin, what to skip."""

    trials: Annotated[int | None, AtLeastOne] = None
    """Begin so many configurations, earlier ones included. Default: 20 or more, or by --timeout."""

    timeout: TimeLimit = None
    """End the whole command after this time, results included: 90m, 8h, 1d. Enough by itself."""

    epochs: Annotated[int | None, AtLeastOne] = None
    """Epochs of a candidate that is finished, at most. Default: 4, or by --timeout."""

    batch_size: Annotated[int | None, Parameter(validator=Number(gte=2))] = None
    """Images that one optimizer step sees. Default: 32."""

    micro_batch_size: Annotated[int | None, AtLeastOne] = None
    """Images in one forward pass; gradients are accumulated. Halved when memory runs out."""

    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate: constant until a candidate is finished, or falling from the start."""

    disk: Annotated[float | None, Parameter(validator=Number(gt=0))] = None
    """Gigabytes that states of paused candidates may take. Default: half of what is free."""

    keep: Annotated[int, AtLeastOne] = 10
    """Keep the weights of so many best candidates."""

    checkpoint_minutes: Annotated[float, Parameter(validator=Number(gt=0))] = 10.0
    """Save a training's state so often: the longest work that a crash can cost."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the training; auto measures the fastest. Kept weights are always scored in fp32."""

    compile: bool = False
    """Use torch.compile: slower to start, faster in long trainings; with auto, if it is faster."""

    workers: Annotated[int | None, AtLeastZero] = None
    """Processes that decode images. Default: chosen by the machine."""

    storage: str | None = None
    """Optuna storage URL. Default: one journal file in the run folder."""

    out: Path | None = None
    """The run folder. Default: results/demo, or results/<folder of the label file>."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.select_limit, int) and self.select_limit < 2:
            raise UserError(
                "--select-limit must be auto, all or at least 2, an image of each class, found "
                f"{self.select_limit}"
            )
        if self.weights is not None and self.weights_dir is not None:
            raise UserError(
                f"--weights and --weights-dir exclude each other, found --weights {self.weights} "
                f"and --weights-dir {self.weights_dir}; give one"
            )

    @property
    def weights_source(self) -> Literal["hub", "file", "none"]:
        """Where starting weights come from, in the Recipe's words."""
        if self.weights_dir is not None:
            return "file"
        return self.weights or "hub"

    def resolved(self) -> SearchSettings:
        """The same settings with every data-dependent default filled in and paths absolute."""
        defaults: dict[str, Any] = DEMO_DEFAULTS if self.is_demo else DATA_DEFAULTS
        chosen: dict[str, Any] = {
            name: value for name, value in defaults.items() if getattr(self, name) is None
        }
        if self.weights_dir is not None:
            chosen.pop("weights", None)
        if self.timeout is not None:
            # The time says how many are begun, and how far they go.
            for name in ("trials", "epochs"):
                chosen.pop(name, None)
        if self.out is None:
            chosen["out"] = self.default_out
        for name, value in {**vars(self), **chosen}.items():
            if isinstance(value, Path):
                chosen[name] = value.expanduser().absolute()
        return replace(self, **chosen)

    def to_yaml(self) -> dict[str, Any]:
        """Plain values for settings.yaml, unset ones left out."""
        return {name: _plain(value) for name, value in asdict(self).items() if value is not None}


DATA_DEFAULTS: dict[str, Any] = {
    "pool": "small",
    "weights": "hub",
    "epochs": 4,
    "batch_size": 32,
}

# From scratch, because a fresh machine may have no network; small enough for two CPU cores.
DEMO_DEFAULTS: dict[str, Any] = {
    "pool": "demo",
    "weights": "none",
    "trials": 12,
    "epochs": 8,
    "batch_size": 32,
}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.3f}".rstrip("0").rstrip(".") + "s"
    return value
