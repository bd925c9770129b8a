"""What must hold of a run on disk after a process of it has died."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from safetensors.torch import load_file

from search.training.candidate import (
    CHECKPOINT,
    HISTORY,
    METRICS,
    RECIPE,
    REPORT_SCORES,
    SCORES,
    WEIGHTS,
    load_state,
)

Kind = Literal["lost", "repeated", "broken"]


@dataclass(frozen=True)
class Problem:
    """A promise that was not kept.

    Attributes:
        kind: a trial was lost, or repeated, or something else is broken.
        text: what was found, in one line.
    """

    kind: Kind
    text: str


def _read_page(path: Path) -> None:
    if not path.read_text("utf-8").rstrip().endswith("</html>"):
        raise ValueError("the page has no end")


def _read_image(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _read_mapping(path: Path) -> None:
    if not isinstance(yaml.safe_load(path.read_text("utf-8")), dict):
        raise ValueError("no mapping")


def _read_table(path: Path) -> None:
    # The C parser takes a row that is too short for one with missing values.
    content = path.read_text("utf-8")
    if not content.endswith("\n"):
        raise ValueError("the last line has no end")
    pd.read_csv(path)


READERS: dict[str, Callable[[Path], Any]] = {
    ".json": _read_json,
    ".yaml": _read_mapping,
    ".csv": _read_table,
    ".safetensors": load_file,
    ".pt": load_state,
    ".png": _read_image,
    ".html": _read_page,
    ".npy": np.load,
}
"""How a whole file of a kind is told from a part of one."""


def half_written(run: Path) -> list[Problem]:
    """Files that have their name and not their content."""
    problems = []
    for path in sorted(run.rglob("*")):
        read = READERS.get(path.suffix)
        name = path.relative_to(run)
        # The names say so themselves.
        is_part = path.name.startswith(".") or any(part.endswith("part") for part in name.parts)
        if read is None or is_part:
            continue
        try:
            read(path)
        except Exception as error:
            found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            problems.append(Problem("broken", f"{name} is half-written: {found}"))
    return problems


def left_over(run: Path, paused: Collection[str] = ()) -> list[Problem]:
    """What no process should leave that came to its end; the folders of paused trainings keep their
    checkpoint."""
    checkpoints = [path for path in run.rglob(CHECKPOINT) if path.parent.name not in paused]
    found = [*run.rglob(".*.part"), *checkpoints, *run.glob("candidates/*.orphan*")]
    return [Problem("broken", f"{path.relative_to(run)} was left over") for path in sorted(found)]


MAY_GO = (WEIGHTS,)
"""Only the best keep them; nobody writes them again."""


class FinishedCandidates:
    """The candidates of a folder that were seen complete: they stay as they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, dict[str, str]] = {}

    @property
    def names(self) -> frozenset[str]:
        """Their folders' names."""
        return frozenset(self._seen)

    def examine(self) -> list[Problem]:
        """Those that are gone, or are others than they were; sees new ones."""
        problems = []
        for name, seen in self._seen.items():
            found = _describe(self.folder / name)
            changed = [
                file
                for file in seen
                if found.get(file) != seen[file] and (file in found or file not in MAY_GO)
            ]
            seen.update({file: found[file] for file in found.keys() - seen.keys()})
            if changed:
                kind: Kind = "repeated" if METRICS in found else "lost"
                text = f"{name} was complete, and its {', '.join(changed)} changed since"
                problems.append(Problem(kind, text))
        for path in self.folder.glob(f"*/{METRICS}"):
            self._seen.setdefault(path.parent.name, _describe(path.parent))
        return problems


def _describe(folder: Path) -> dict[str, str]:
    """A digest of each file that a complete candidate keeps for good, with the time it was written
    where nothing may write it again."""
    described = {}
    for name in (RECIPE, HISTORY, SCORES, REPORT_SCORES):
        path = folder / name
        if path.exists():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            described[name] = f"{digest} {path.stat().st_mtime_ns}"
    try:
        metrics = _read_json(folder / METRICS)
    except (OSError, ValueError):
        return described
    metrics.pop("report", None)
    described[METRICS] = json.dumps(metrics, sort_keys=True)
    if (folder / WEIGHTS).exists():
        described[WEIGHTS] = str((folder / WEIGHTS).stat().st_mtime_ns)
    return described
