"""Scores on disk as they come: a scoring that was killed goes on from its last batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from ensemble.network.model import ModelSpec
from search.machine.device import Precision, Runtime, describe_device, library_versions
from search.machine.files import file_sha256, whole_lines
from search.pixels.cache import identity_of_file
from search.training.candidate import WEIGHTS

TOLD = ("precision", "flip", "batch_size", "device")
"""What scores depend on that is told as it was and is; of the rest, that it is not the same."""


class Journal:
    """The scores of one model on one list so far.

    Its first line says what they depend on; a journal of anything else is told, not used, and
    replaced.
    Every further line is a batch: its rows, their scores, and size and time of their images before
    any was read, so that an image which has changed since is scored again. Lines are only ever
    appended; a last one that a kill tore is cut off.
    """

    def __init__(self, path: Path, made_by: dict[str, Any], table: pd.DataFrame) -> None:
        """
        Args:
            path: of the file; its folder must be there.
            made_by: all that the scores depend on besides the images, as plain values.
            table: the list; has the column path.
        """
        self.path = path
        # After scoring, an image may be another than the one that was scored.
        self._stamps = [list(identity_of_file(image)) for image in table["path"]]
        self._made_by, self._header = made_by, json.dumps(made_by, sort_keys=True)
        self._begun = False

    def take_up(self, tell: Callable[[str], None] = lambda _: None) -> dict[int, float]:
        """Rows that are scored already, with their scores; none, and told, if they were scored in
        another way."""
        try:
            content = whole_lines(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        header, *lines = content.decode("utf-8", errors="replace").split("\n")
        if header != self._header:
            if any(lines):
                tell(
                    f"{self.path.name} holds scores that are not used: "
                    f"{self._differences(header)}; all images are scored anew"
                )
            return {}
        found: dict[int, float] = {}
        for line in lines:
            if line:
                found |= self._scores_of(line)
        with self.path.open("r+b") as file:
            file.truncate(len(content))
        self._begun = True
        return found

    def add(self, rows: Sequence[int], scores: Sequence[float]) -> None:
        """Appends a batch."""
        line = {"rows": rows, "scores": scores, "files": [self._stamps[row] for row in rows]}
        if not self._begun:
            # Another file: whoever still appends to the one before does not reach this one.
            self.path.unlink(missing_ok=True)
            self._append(self._header)
            self._begun = True
        self._append(json.dumps(line))

    def delete(self) -> None:
        """Once the scores are where they were to go."""
        self.path.unlink(missing_ok=True)

    def _differences(self, header: str) -> str:
        """What scores depend on that was otherwise where a header was written."""
        try:
            found = json.loads(header)
            names = [name for name, now in self._made_by.items() if found.get(name) != now]
        except (ValueError, AttributeError):
            names = []
        told = [
            f"{name} was {found.get(name)}, is {self._made_by[name]}"
            if name in TOLD
            else f"{name} not the same"
            for name in names
        ]
        return ", ".join(told) or "the file is damaged"

    def _append(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _scores_of(self, line: str) -> dict[int, float]:
        try:
            batch = json.loads(line)
            rows, scores, files = (batch[name] for name in ("rows", "scores", "files"))
            return {
                row: float(score)
                for row, score, file in zip(rows, scores, files, strict=True)
                if file == self._stamps[row]
            }
        except (ValueError, KeyError, TypeError, IndexError):
            return {}  # Damaged: its images are scored again.


def open_journal(
    path: Path,
    folder: Path,
    spec: ModelSpec,
    table: pd.DataFrame,
    *,
    runtime: Runtime,
    batch_size: int,
    precision: Precision,
    flip: bool = False,
) -> Journal:
    """The journal of a model's scores of a table.

    Args:
        path: where it lies.
        folder: of the model.
        spec: what rebuilds it.
        table: has the columns img_name and path.
        runtime, batch_size, precision, flip: as `score_images` is told.
    """
    listed = json.dumps([table[column].tolist() for column in ("img_name", "path")])
    made_by = {
        "model": file_sha256(folder / WEIGHTS),
        "spec": _sha256(json.dumps(asdict(spec), sort_keys=True, default=str)),
        "list": _sha256(listed),
        "precision": precision,
        "flip": flip,
        "batch_size": batch_size,
        "device": describe_device(runtime.device),
        "versions": library_versions(),
    }
    return Journal(path, made_by, table)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
