"""All settings of a search: one source for the flags, their help, and settings.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cyclopts import Parameter
from cyclopts.validators import Number

from search.errors import UserError
from search.machine.files import BACKBONES, write_yaml_atomically

AtLeastOne = Parameter(validator=Number(gte=1))
AtLeastZero = Parameter(validator=Number(gte=0))

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

    image_size: Annotated[int | None, Parameter(validator=Number(gte=32))] = None
    """One image size in pixels for every backbone, instead of those in the backbones file."""

    canvas: Annotated[int | None, Parameter(validator=Number(gte=16, lte=1024))] = None
    """Side in pixels that images are decoded to, for all networks. Default: chosen from both."""

    cache: str = "auto"
    """Keep decoded images: auto (in the user's cache folder), off, or a folder."""

    probe: bool = True
    """Before the first trial, look at frozen features and speeds: where to begin, what to skip."""

    trials: Annotated[int | None, AtLeastOne] = None
    """Begin so many configurations, earlier ones included. Default: 20 or more, or by --timeout."""

    timeout: timedelta | None = None
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

    timeout: timedelta | None = None
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


def flag(name: str) -> str:
    """The command-line flag of a field: train_labels -> --train-labels."""
    return "--" + name.replace("_", "-")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.0f}s"
    return value


SETTINGS = "settings.yaml"

FORMAT = 4
"""Of a run folder. 1 had neither a format nor checkpoints, 2 no canvas, 3 other parameters and one
look an epoch; their trials cannot go on."""

FREE_ON_RESUME = frozenset(
    {"trials", "timeout", "keep", "device", "workers", "micro_batch_size", "skip_missing", "out"}
    | {"checkpoint_minutes", "cache", "disk", "probe"}
)
"""Settings that a resumed run may change without its trials becoming incomparable."""

MOVABLE = frozenset(
    {"train_labels", "train_images", "train_groups", "val_labels", "val_images", "val_groups"}
    | {"weights_dir", "generated"}
)
"""Paths that a resumed run may find elsewhere: the fingerprint of the images tells whether they are
the same."""


def write_settings(settings: SearchSettings, run: Path) -> None:
    """Writes settings.yaml into a run folder."""
    content = {"format": FORMAT, **settings.to_yaml()}
    # A storage URL may hold a password.
    write_yaml_atomically(run / SETTINGS, content, private=settings.storage is not None)


def read_settings(run: Path) -> dict[str, Any] | None:
    """The plain values of a run's settings.yaml without its format; None where there is none yet.

    Raises:
        UserError: if the file is no mapping of known settings, or a run's of another format.
    """
    path = run / SETTINGS
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be readable YAML: {' '.join(str(error).split())}") from None
    known = {field.name for field in fields(SearchSettings)}
    if not isinstance(content, dict):
        found = "an empty file" if content is None else f"{type(content).__name__}"
        raise UserError(f"{path} must hold settings of a search, found {found}")
    found_format = content.pop("format", 1)
    if found_format != FORMAT:
        raise UserError(
            f"{path} must be of a run of format {FORMAT}, found format {found_format}, which "
            "another version of onefold made: open it with that one, or choose another --out"
        )
    if not set(content) <= known:
        unknown = ", ".join(sorted(map(str, set(content) - known)))
        raise UserError(f"{path} must hold settings of a search, found unknown {unknown}")
    return content


def load_settings(run: Path) -> SearchSettings:
    """The settings of an existing run.

    Raises:
        UserError: if the folder holds no run, or a setting is ill-typed.
    """
    # Light to import until a run is opened: the command line reads this module for its --help.
    from pydantic import TypeAdapter, ValidationError

    from search.machine.files import first_problem

    content = read_settings(run)
    if content is None:
        raise UserError(
            f"{run} must be the folder of a search, but it has no {SETTINGS}; start one with "
            f"`python -m search run --out {run}`"
        )
    typed = dict(content)
    if "timeout" in typed:
        # As it is written, seconds with their unit; anything else is left to be refused.
        with suppress(ValueError):
            typed["timeout"] = float(str(typed["timeout"]).removesuffix("s"))
    try:
        settings = TypeAdapter(SearchSettings).validate_python(typed)
    except ValidationError as error:
        raise UserError(f"{run / SETTINGS}: {first_problem(error)}") from None
    return replace(settings.resolved(), out=run.absolute())


def check_resumable(settings: SearchSettings, saved: Mapping[str, Any]) -> None:
    """Refuses changes that would make a run's trials incomparable.

    Raises:
        UserError: naming the first setting that differs.
    """
    wanted = settings.to_yaml()
    # A run that began before there was a setting has what is the default since.
    saved = {**SearchSettings().to_yaml(), **saved}
    for name in wanted.keys() | saved.keys():
        if name in FREE_ON_RESUME or wanted.get(name) == saved.get(name):
            continue
        if name == "backbones" and wanted.get(name) is not None:
            _check_same_backbones(settings)
            continue
        if name in MOVABLE and None not in (wanted.get(name), saved.get(name)):
            continue
        if name == "storage":  # A URL may hold a password.
            raise UserError(
                f"{settings.out} holds a search with another --storage; leave the flag out to "
                "resume, or choose another --out"
            )
        raise UserError(
            f"{settings.out} holds a search with {flag(name)} {saved.get(name)}, found "
            f"{flag(name)} {wanted.get(name)}; leave the flag out to resume, or choose "
            "another --out"
        )


def _check_same_backbones(settings: SearchSettings) -> None:
    """
    Raises:
        UserError: if --backbones is another file than the run's own copy of it.
    """
    assert settings.backbones is not None
    assert settings.out is not None
    copy = settings.out / BACKBONES
    try:
        same = settings.backbones.read_bytes() == copy.read_bytes()
    except OSError as error:
        raise UserError(f"--backbones must be a file that can be read, found: {error}") from None
    if not same:
        raise UserError(
            f"{settings.out} holds a search with its own {BACKBONES}, found another one in "
            f"{settings.backbones}; leave the flag out to resume, or choose another --out"
        )
