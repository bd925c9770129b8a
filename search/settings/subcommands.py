"""What the sub-commands beside `search run` are told: profile, stress, refit, audit and expand."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from search.errors import UserError
from search.settings.data import AtLeastOne, AtLeastZero, DataSettings, TimeLimit, flag
from search.settings.search import SearchSettings


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """What `search profile` is told; None leaves it to the run, or to the defaults of a search."""

    out: Path | None = None
    """A run folder, whose images and settings are taken."""

    train_labels: Path | None = None
    """Label file of the images, instead of a run. Without both: the demo set."""

    train_images: Path | None = None
    """Folder of the images."""

    backbone: str | None = None
    """What is trained. Default: the first backbone of the pool."""

    augmentation: str = "light"
    """Augmentation policy."""

    limit_train: Annotated[int | None, AtLeastOne] = None
    """Use at most so many training images."""

    image_size: Annotated[int | None, Parameter(validator=Number(gte=32))] = None
    """Image size in pixels. Default: the backbone's first."""

    batch_size: Annotated[int | None, Parameter(validator=Number(gte=2))] = None
    """Images that one optimizer step sees."""

    device: str | None = None
    """auto, cpu, cuda, cuda:1 or mps."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """Of the training; auto measures the fastest."""

    workers: Annotated[int | None, AtLeastZero] = None
    """Processes that decode images."""

    canvas: Annotated[int | None, Parameter(validator=Number(gte=16, lte=1024))] = None
    """Side in pixels that images are decoded to. Default: the run's, or as a search chooses it."""

    cache: Literal["auto", "off"] | None = None
    """off decodes images as they come; auto measures with their canvases kept."""

    seconds: Annotated[float, Parameter(validator=Number(gt=0))] = 3.0
    """Measure each stage for so long."""

    def __post_init__(self) -> None:
        if self.out is not None and self.train_labels is not None:
            raise UserError("--out and --train-labels exclude each other: a run has its own images")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StressSettings:
    """What `search stress` is told."""

    model: Path
    """Folder of a candidate or a merged model: results/NAME/candidates/0007."""

    images: Path | None = None
    """Folder of the images. Default: those of select, of the run that the model lies in."""

    labels: Path | None = None
    """Label file of the images (img_name,target; 1 = fake)."""

    groups: Path | None = None
    """Group file of the images (img_name,group): intervals take those of one group together."""

    limit: Annotated[int | None, Parameter(validator=Number(gte=2))] = None
    """Use at most so many images: stratified, whole groups, the same for every model."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    workers: Annotated[int | None, AtLeastZero] = None
    """Processes that decode and alter images. Default: chosen by the machine."""

    out: Path | None = None
    """Folder for stress.csv and its figures. Default: the model's."""

    def __post_init__(self) -> None:
        if (self.images is None) != (self.labels is None):
            given, missing = ("labels", "images") if self.images is None else ("images", "labels")
            raise UserError(
                f"--images and --labels belong together, but only --{given} was given; add "
                f"--{missing}"
            )
        if self.groups is not None and self.labels is None:
            raise UserError(
                "--groups tells of the images of --labels, but only --groups was given; add "
                "--images and --labels"
            )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RefitSettings:
    """What `search refit` is told; None leaves it to the run or to the candidate."""

    run: Path
    """The run folder."""

    candidate: Annotated[int | None, AtLeastZero] = None
    """Number of the candidate whose recipe is trained. Default: the best on select."""

    on: Literal["fit", "fit+select", "all"] = "fit+select"
    """Splits to train on. A split that was trained on measures nothing afterwards."""

    epochs: Annotated[float | None, Parameter(validator=Number(gt=0))] = None
    """Passes over the images. Default: twice those of the candidate."""

    timeout: TimeLimit = None
    """Instead of --epochs: train for this time, results included (90m, 8h, 1d)."""

    image_size: Annotated[int | None, Parameter(validator=Number(gte=32))] = None
    """Image size in pixels. Default: the candidate's."""

    seed: Annotated[int | None, Parameter(validator=Number(gte=0, lt=2**32))] = None
    """Seed of the training. Default: the candidate's."""

    name: str | None = None
    """Name of the result, below refits/. Default: refit-0007, with --on unless it is fit+select."""

    device: str | None = None
    """auto, cpu, cuda, cuda:1 or mps."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """Of the training; auto measures the fastest."""

    workers: Annotated[int | None, AtLeastZero] = None
    """Processes that decode images."""

    cache: str | None = None
    """Keep decoded images: auto, off, or a folder."""

    checkpoint_minutes: Annotated[float | None, Parameter(validator=Number(gt=0))] = None
    """Save the training's state so often: the longest work that a crash can cost."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.timeout is not None:
            raise UserError(
                f"--epochs and --timeout exclude each other, found --epochs {self.epochs:g} and "
                f"--timeout {self.timeout}; give one"
            )

    def applied(self, search: SearchSettings) -> SearchSettings:
        """A run's settings with what was given of how it is computed; the seed of its splits
        stays."""
        names = ("device", "precision", "workers", "cache", "checkpoint_minutes")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(search, **given)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class AuditSettings(DataSettings):
    """What `search audit` is told."""

    run: Path | None = None
    """A run folder, whose images are looked at, instead of a label file."""

    seed: Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))] = 0
    """Seed of the splits, as a search has it, and of what is drawn here."""

    workers: Annotated[int | None, AtLeastZero] = None
    """Processes that decode images. Default: one a core."""

    out: Path | None = None
    """Folder of audit.json and audit.html. Default: the run folder, as `search run` chooses it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run is not None and self.train_labels is not None:
            raise UserError("--run and --train-labels exclude each other: a run has its own images")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ExpandSettings(DataSettings):
    """What `search expand` is told: of which images samples are made, or the manifest of some that
    are made again."""

    run: Path | None = None
    """A run folder, whose images are taken, divided as there. Without images: the demo set."""

    kinds: str | None = None
    """self-blended, mixed, recompressed, or several: a,b. Default: the first, and mixed if groups
    allow it."""

    count: Annotated[int | None, AtLeastOne] = None
    """Make so many samples, of each kind alike."""

    share: Annotated[float | None, Parameter(validator=Number(gt=0))] = None
    """Make so many to each image of fit, instead of --count. Default: 0.25."""

    seed: Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))] = 0
    """Seed of the samples and, without --run, of the splits."""

    manifest: Annotated[Path | None, Parameter(name="--from")] = None
    """Make the samples of this manifest again, the same bytes, of the same images."""

    workers: Annotated[int | None, AtLeastOne] = None
    """Threads that make them. Default: one a core."""

    out: Path
    """Folder of the samples."""

    def __post_init__(self) -> None:
        if self.run is not None and self.train_images is not None:
            raise UserError("--run and --train-images exclude each other: a run has its own images")
        if self.count is not None and self.share is not None:
            raise UserError("--count and --share exclude each other: both say how many")
        if self.manifest is None:
            super().__post_init__()
            if self.generated is not None:
                raise UserError("samples are made of given images alone: leave --generated out")
            return
        decided = (field.name for field in fields(DataSettings) if field.default is None)
        for name in (*decided, "kinds", "count", "share"):
            if name != "train_images" and getattr(self, name) is not None:
                raise UserError(f"--from says what is made: leave {flag(name)} out")

    def images_settings(self) -> SearchSettings:
        """The settings of a search on these images, without --run."""
        names = (field.name for field in fields(DataSettings))
        return SearchSettings(**{name: getattr(self, name) for name in names})
