"""What every command on a run folder is told; light to import, so that --help is instant."""

# Without `from __future__ import annotations`: those of inherited fields would be resolved in the
# module of the class that inherits them.
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from search.settings import AtLeastZero


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
class MergeSettings(RunSettings):
    """What every way of merging is told besides."""

    allow_tainted: bool = False
    """Accept candidates whose pretraining breaks the rule; recorded, and the result is tainted."""

    timeout: timedelta | None = None
    """Stop after this time (90m, 8h, 1d), as Ctrl-C would; the same command goes on."""
