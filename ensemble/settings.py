"""What the commands are told; light to import, so that --help is instant."""

from __future__ import annotations

# Without `from __future__ import annotations`: those of inherited fields would be resolved in the
# module of the class that inherits them.
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from search.settings.data import AtLeastOne, AtLeastZero, TimeLimit, flag

Share = Parameter(validator=Number(gte=0, lte=1))
Weight = Parameter(validator=Number(gte=0))
Positive = Parameter(validator=Number(gt=0))
ScoringPrecision = Literal["auto", "fp32", "bf16", "fp16"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Which run, and on what machine."""

    run: Path
    """The run folder."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    workers: Annotated[int | None, AtLeastZero] = None
    """Processes that decode images. Default: chosen by the machine."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CompareSettings(RunSettings):
    """What `compare` is told: with a set from elsewhere, every model is scored on it, too."""

    name: str | None = None
    """What to call the set: its column, and its folder in RUN/elsewhere."""

    labels: Path | None = None
    """Label file of the set (header img_name,target or img_path,target)."""

    images: Path | None = None
    """Folder of its images."""

    groups: Path | None = None
    """Group file of the set (header img_name,group). Default: each image is its own group."""

    skip_missing: bool = False
    """Leave out listed images that are absent."""

    overwrite: bool = False
    """Replace a set of this name that has other images."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MergeSettings(RunSettings):
    """What every way of merging is told besides."""

    cache: str | None = None
    """Keep decoded images: auto, off, or a folder. Default: as the search did."""

    allow_tainted: bool = False
    """Accept candidates whose pretraining breaks the rule; recorded, and the result is tainted."""

    timeout: TimeLimit = None
    """Stop after this time (90m, 8h, 1d), as Ctrl-C would; the same command goes on."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainedMergeSettings(MergeSettings):
    """What the ways of merging that train are told besides."""

    checkpoint_minutes: Annotated[float, Positive] = 10.0
    """Save the state so often: the longest work that a crash can cost."""

    discard: bool = False
    """Delete an unfinished training and recorded views of other settings or models."""


TOLERANCE = 1e-5
"""Largest difference between a submission's recorded scores and those that `verify` recomputes."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SubmitSettings(RunSettings):
    """What `submit` is told."""

    images: Path
    """Folder of the images to score."""

    names: Annotated[Path, Parameter(name="--list")]
    """List of the images to score (header img_name); prediction.csv follows its order."""

    phase: Literal["validation", "test"]
    """What is scored: the rules allow 5 submissions a day for validation, 2 for test."""

    model: str = "auto"
    """auto, the one that comparison.csv recommends; a candidate, a merged model, or a folder."""

    time_zone: str | None = None
    """IANA name (Asia/Shanghai) of the zone whose midnight ends a day. Default: as before (UTC)."""

    force: bool = False
    """Submit although the ledger forbids it; recorded there."""

    broken_score: Annotated[float | None, Parameter(validator=Number(gte=0, lte=1))] = None
    """Score of listed images that cannot be read; recorded. Default: refuse to submit."""

    batch_size: Annotated[int, AtLeastOne] = 32
    """Images in one forward pass."""

    precision: ScoringPrecision = "fp32"
    """Precision of the forward passes; recorded, and used again by verify."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """What `predict` is told."""

    model: Path
    """Folder of a candidate, a merged model or a submission."""

    path: Annotated[Path | None, Parameter(parse=False)] = None
    """An image, a folder, or a list (.txt, .csv or .tsv with the header img_name)."""

    images: Path | None = None
    """Folder that the names of a list are relative to. Default: the list's own."""

    output: Path | None = None
    """File to write the scores to. Default: standard output."""

    format: Literal["csv", "jsonl"] = "csv"
    """A table img_name,y_pred, or one JSON object a line."""

    flip: bool = False
    """Average each image's log-odds with those of its mirror image."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    batch_size: Annotated[int, AtLeastOne] = 32
    """Images in one forward pass."""

    precision: ScoringPrecision = "fp32"
    """Precision of the forward passes."""

    workers: Annotated[int | None, AtLeastZero] = None
    """Processes that decode images. Default: chosen by the machine."""

    export: Literal["onnx"] | None = None
    """Write the model as ONNX, preprocessing included, and compare its scores with torch's."""

    export_file: Path | None = None
    """Where to write it. Default: <name of the model's folder>.onnx in the current folder."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DistillSettings(TrainedMergeSettings):
    """What `distill` is told; None stands for a default that depends on the run."""

    student: str | None = None
    """Backbone of the student, from the run's backbones file. Default: the best candidate's."""

    teachers: str = "auto"
    """auto: the ensemble chosen on select; fused: the fused network; or candidates: 0003,0007."""

    start: Literal["best", "imagenet"] | None = None
    """Start from the backbone's best candidate, or as the search started. Default: best, if any."""

    epochs: Annotated[int | None, AtLeastOne] = None
    """Epochs; the views are seen in turn. Default: 30, on the demo set 12."""

    views: Annotated[int, AtLeastOne] = 8
    """Recorded views of each image; the teacher is asked once about each, and kept for later."""

    live_teacher: bool = False
    """Ask the teacher in every step instead: new views in every epoch, at the teacher's cost."""

    match: Literal["bce", "mse"] = "bce"
    """How the teacher's log-odds are matched: cross entropy (at the temperature), squared error."""

    temperature: Annotated[float, Positive] = 2.0
    """Temperature of the cross entropy; the higher, the more sure answers count."""

    hard_label_weight: Annotated[float, Share] = 0.1
    """Share of the true label, the teacher has the rest."""

    relation_weight: Annotated[float, Weight] = 0.5
    """Weight of the relation loss: the teacher's order and spacing of a batch."""

    feature_weight: Annotated[float, Weight] = 0.0
    """Weight of the feature loss. Above 0 the teacher's features are recorded too."""

    learning_rate: Annotated[float | None, Positive] = None
    """Peak learning rate. Default: that of its candidate, or the middle of its backbone's range."""

    augmentation: str | None = None
    """Augmentation policy of the views. Default: the best candidate's."""

    augmentation_strength: Annotated[float | None, Share] = None
    """Its strength. Default: the best candidate's."""

    image_size: Annotated[int | None, Parameter(validator=Number(gte=32))] = None
    """Image size of the student in pixels. Default: its candidate's, or its backbone's first."""

    batch_size: Annotated[int | None, Parameter(validator=Number(gte=2))] = None
    """Images that one optimizer step sees. Default: the best candidate's."""

    micro_batch_size: Annotated[int | None, AtLeastOne] = None
    """Images in one forward pass; halved when memory runs out."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the student's training; auto measures the fastest. Its scores are computed in fp32."""

    teacher_precision: ScoringPrecision = "fp32"
    """Precision of the teachers' forward passes; recorded views of another are not used."""

    seed: int | None = None
    """Seed of the views and the training. Default: the search's."""

    def resolved_epochs(self, *, is_demo: bool) -> int:
        """The epochs to train for."""
        if self.epochs is not None:
            return self.epochs
        return DEMO_EPOCHS if is_demo else DATA_EPOCHS

    def flags(self) -> list[str]:
        """The flags that differ from the defaults and bear on the result, for reproduction."""
        given = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in MACHINE_SETTINGS or value == field.default:
                continue
            given += [flag(field.name)] if value is True else [flag(field.name), str(value)]
        return given


DATA_EPOCHS = 30
"""Patience is most of what distillation gains by (arXiv:2106.05237)."""

DEMO_EPOCHS = 12
"""Fits into three minutes on two cores, the teacher's views included."""

MACHINE_SETTINGS = frozenset(
    {"run", "device", "workers", "timeout", "micro_batch_size", "checkpoint_minutes", "discard"}
    | {"cache"}
)
"""Settings that say where and how a distillation runs, not what it learns."""
