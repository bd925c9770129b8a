"""Which images a command is about, and what all settings share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from search.errors import UserError

AtLeastOne = Parameter(validator=Number(gte=1))
AtLeastZero = Parameter(validator=Number(gte=0))


def _check_time_limit(_type: object, value: timedelta | None) -> None:
    if value is not None and value <= timedelta(0):
        raise ValueError("it must be above 0")


TimeLimit = Annotated[timedelta | None, Parameter(validator=_check_time_limit)]

Objective = Literal["auc", "auc_unseen", "auc_stress", "mean"]
"""What candidates are compared by, see `search.training.objective`."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images a command is about; without a label file, those of the demo set."""

    train_labels: Path | None = None
    """Label file of the training images (img_name,target; 1 = fake). Without it: the demo set."""

    train_images: Path | None = None
    """Folder of the training images."""

    train_groups: Path | None = None
    """Group file (img_name,group[,method]): images of one group stay together."""

    val_labels: Path | None = None
    """Label file of the validation images. Without it: a part of the training images."""

    val_images: Path | None = None
    """Folder of the validation images."""

    val_groups: Path | None = None
    """Group file of the validation images."""

    skip_missing: bool = False
    """Go on without the listed images that are absent."""

    split: Literal["random", "group", "unseen"] = "group"
    """Keep groups whole, ignore them (random), or hold out forgery methods besides (unseen)."""

    clusters: Annotated[int, Parameter(validator=Number(gte=3))] = 20
    """Kinds of forgery that --split unseen tells apart where no group file names a method."""

    division: Path | None = None
    """Hold out what this file says, with --split unseen: the split.csv of a run on these images."""

    limit_train: Annotated[int | None, AtLeastOne] = None
    """Use at most so many training images: stratified, whole groups, drawn with the seed."""

    limit_val: Annotated[int | None, AtLeastOne] = None
    """Use at most so many images for select and report together."""

    generated: Path | None = None
    """Train on the samples in this folder as well, which `search expand` made of fit."""

    seed: Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))] = 0
    """Seed of the splits, the search and every training."""

    def __post_init__(self) -> None:
        pairs = (
            ("train", self.train_labels, self.train_images),
            ("val", self.val_labels, self.val_images),
        )
        for split, labels, images in pairs:
            if (labels is None) != (images is None):
                given, missing = ("labels", "images") if images is None else ("images", "labels")
                raise UserError(
                    f"--{split}-labels and --{split}-images belong together, but only "
                    f"--{split}-{given} was given; add --{split}-{missing}"
                )
        if self.train_labels is None:
            for name in ("val_labels", "train_groups", "val_groups"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"{flag(name)} needs training images too; add --train-labels and "
                        "--train-images"
                    )
        if self.division is not None and self.split != "unseen":
            raise UserError(
                f"--division says which methods are held out, but --split is {self.split}; add "
                "--split unseen"
            )
        if self.val_groups is not None and self.val_labels is None:
            raise UserError("--val-groups needs --val-labels and --val-images")

    @property
    def is_demo(self) -> bool:
        """Whether it is the embedded demo set."""
        return self.train_labels is None

    @property
    def default_out(self) -> Path:
        """Where a command writes that was given no --out."""
        name = "demo" if self.train_labels is None else self.train_labels.resolve().parent.name
        return Path("results") / (name or "run")


def flag(name: str) -> str:
    """The command-line flag of a field: train_labels -> --train-labels."""
    return "--" + name.replace("_", "-")
