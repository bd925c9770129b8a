"""`predict`: one image, a folder or a list -> scores as CSV or JSON lines; or the model as ONNX."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
from rich.console import Console

from ensemble.deploy.export import check_installed, export_onnx
from ensemble.deploy.journal import Journal, open_journal
from ensemble.deploy.prediction_file import COLUMNS, examples
from ensemble.deploy.scoring import open_runtime, score_images
from ensemble.network.model import load_model
from ensemble.settings import PredictSettings
from search.data.labels import read_list
from search.errors import UserError
from search.machine.device import resolve_precision
from search.machine.progress import tell_line

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"}
)
"""What is taken for an image in a folder; a single image may be called anything."""

LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv"})


def run_predict(settings: PredictSettings, console: Console) -> None:
    """Scores images, or exports the model, or both. Scores that go to a file are kept in a journal
    beside it as they come: if the process is killed, the same command goes on.

    Args:
        settings: see there.
        console: where progress and broken images are told; standard error, as the scores may go
            to standard output.

    Raises:
        UserError: for bad input; and, after all others were scored and written, if an image could
            not be read, so that the exit status tells.
    """
    if settings.path is None and settings.export is None:
        raise UserError("predict needs an image, a folder or a list to score, or --export onnx")
    for flag, path in (("--output", settings.output), ("--export-file", settings.export_file)):
        _check_target(flag, path)
    table = None
    if settings.path is not None:
        table = find_images(settings.path, settings.images, partial(tell_line, console))
    runtime = open_runtime(settings.device, settings.workers)
    if settings.export is not None:
        check_installed()
    model, spec = load_model(settings.model)
    if settings.export is not None:
        path = settings.export_file or Path(f"{settings.model.resolve().name}.onnx")
        difference = export_onnx(model, path)
        tell_line(
            console,
            f"wrote {path}: scores under onnxruntime and torch differ by at most {difference:.1e}",
        )
    if table is None:
        return
    how: dict[str, Any] = {
        "runtime": runtime,
        "batch_size": settings.batch_size,
        "flip": settings.flip,
        "precision": resolve_precision(settings.precision, runtime.device),
    }
    journal: Journal | None = None
    output = settings.output
    if output is not None and _can_be_replaced(output):
        path = output.with_name(f".{output.name}.journal")
        journal = open_journal(path, settings.model, spec, table, **how)
    scored = score_images(model, table, console=console, journal=journal, **how)
    with _opened(output) as file:
        write_scores(scored.table, file, settings.format)
    if journal is not None:
        journal.delete()
    for broken in scored.broken:
        tell_line(console, f"{broken.path}: {broken.reason}")
    if scored.broken:
        raise UserError(
            f"{len(scored.broken)} of {len(table)} images could not be read and have no score "
            f"(the others do): {examples([broken.img_name for broken in scored.broken])}"
        )


def find_images(
    path: Path, images: Path | None = None, tell: Callable[[str], None] = lambda _: None
) -> pd.DataFrame:
    """The images that a path stands for: img_name and path, one row each.

    Args:
        path: an image; a folder, whose images are found in all its sub-folders, names being
            relative to it, hidden files and other suffixes left out; or a list file
            (.txt, .csv, .tsv) with the header img_name.
        images: the folder that the names of a list are relative to; default: the list's own.
        tell: given a line on names that a list repeats.

    Raises:
        UserError: if there is nothing at the path, the folder holds no image, or the list breaks a
            rule.
    """
    if path.is_dir():
        names = sorted(_walk(path))
        if not names:
            raise UserError(
                f"{path} must hold images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none"
            )
        return _table(names, [path.absolute() / name for name in names])
    if path.suffix.lower() in LIST_SUFFIXES:
        return read_list(path, images or path.parent, tell=tell)
    if not path.is_file():
        raise UserError(f"{path} must be an image, a folder or a list, found nothing there")
    return _table([path.name], [path.absolute()])


def write_scores(table: pd.DataFrame, file: TextIO, form: str) -> None:
    """Writes img_name and y_pred of every row, as "csv" with a header or as "jsonl"."""
    rows = zip(table["img_name"].tolist(), table["y_pred"].tolist(), strict=True)
    if form == "csv":
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((name, repr(score)) for name, score in rows)
        return
    for row in rows:
        line = json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False)
        file.write(line + "\n")


def _walk(folder: Path) -> Iterator[str]:
    """Names of the images below a folder, slashes between their parts."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield (Path(parent) / name).relative_to(folder).as_posix()


def _table(names: list[str], paths: list[Path]) -> pd.DataFrame:
    return pd.DataFrame({"img_name": names, "path": [str(path) for path in paths]}, dtype=str)


def _check_target(flag: str, path: Path | None) -> None:
    """Before anything is computed for a file that could not be written."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{flag} must be a file, found the folder {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} must lie in a folder that can be made, found: {error}") from None
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag} must lie in a folder that can be written to, found {path.parent}")


def _can_be_replaced(output: Path) -> bool:
    """A device, a pipe or what a link points to is written to, never replaced."""
    return not output.is_symlink() and (output.is_file() or not output.exists())


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """The output file, complete or not there at all; standard output if none is given."""
    if output is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    if not _can_be_replaced(output):
        with output.open("w", encoding="utf-8", newline="") as file:
            yield file
        return
    temporary = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            yield file
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
