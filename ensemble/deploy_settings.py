"""What `submit` and `predict` are told; light to import, so that --help is instant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from ensemble.run_settings import RunSettings
from search.settings import AtLeastOne, AtLeastZero

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
    """auto, the one that comparison.csv recommends; or a candidate, a merged model, a folder."""

    time_zone: str | None = None
    """IANA name (Asia/Shanghai) of the zone whose midnight ends a day. Default: as before (UTC)."""

    force: bool = False
    """Submit although the ledger forbids it; recorded there."""

    broken_score: Annotated[float | None, Parameter(validator=Number(gte=0, lte=1))] = None
    """Score of listed images that cannot be read; recorded. Default: refuse to submit."""

    batch_size: Annotated[int, AtLeastOne] = 32
    """Images in one forward pass."""


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

    workers: Annotated[int | None, AtLeastZero] = None
    """Processes that decode images. Default: chosen by the machine."""

    export: Literal["onnx"] | None = None
    """Write the model as ONNX, preprocessing included, and compare its scores with torch's."""

    export_file: Path | None = None
    """Where to write it. Default: <name of the model's folder>.onnx in the current folder."""
