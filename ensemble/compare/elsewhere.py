"""A labelled set from elsewhere: every model is scored on it, and nothing is ever chosen by it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from ensemble.network.model import load_model
from ensemble.pool.alignment import align_scores
from ensemble.pool.pool import Pool
from ensemble.settings import CompareSettings
from search.data.inputs import DATA, tables
from search.data.labels import check_two_classes, read_labels
from search.errors import UserError
from search.machine.files import (
    CANDIDATES,
    COMPARISON,
    ELSEWHERE,
    MERGED,
    QUARANTINE,
    REFITS,
    file_sha256,
    load_yaml,
    write_atomically,
    write_yaml_atomically,
)
from search.machine.progress import tell_line
from search.pixels.loading.epochs import eval_batches
from search.pixels.opening import fill, open_quarantine, open_reader_of
from search.training.candidate import Candidate, load_table, score_table
from search.training.scoring import SCORING_BATCH, predict

FIGURES = ("auc", "auc_low", "auc_high")
"""What a comparison shows of a set from elsewhere."""

NO_AUC = -1.0
"""Stands for a figure that there is none of, where rows are told apart by it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEAD_BYTES = 4096
_CHECKSUM_BYTES = 16


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """A set from elsewhere, opened."""

    name: str
    folder: Path  # RUN/elsewhere/NAME
    table: pd.DataFrame  # label table
    known: Mapping[str, int]  # by split, how many of its images lie there, too


def open_elsewhere(pool: Pool, settings: CompareSettings, console: Console) -> Elsewhere | None:
    """The set that `compare` is told of; None if it is told of none.

    Its folder is made. A set that comes once more goes on with the scores that are there; another
    one takes its name only with `--overwrite`.

    Args:
        pool: of the run.
        settings: name, label file, images and groups.
        console: is warned of images that the run knows.

    Raises:
        UserError: if only part of it is told, the name is no plain file name or another set's, or
            labels or images break a rule.
    """
    name, labels, images = settings.name, settings.labels, settings.images
    if name is None or labels is None or images is None:
        given = {
            "--name": name,
            "--labels": labels,
            "--images": images,
            "--groups": settings.groups,
        }
        missing = [flag for flag in ("--name", "--labels", "--images") if given[flag] is None]
        if any(value is not None for value in given.values()):
            raise UserError(
                "a set from elsewhere must have --name, --labels and --images, found no "
                f"{' and no '.join(missing)}; add {' and '.join(missing)}"
            )
        return None
    if not _NAME.fullmatch(name):
        raise UserError(
            "--name must be a plain file name of at most 64 letters, digits, dots, hyphens and "
            f"underscores, not beginning with one of the last three, found '{name}'"
        )

    def tell(line: str) -> None:
        tell_line(console, line)

    table = read_labels(
        labels, images, settings.groups, skip_missing=settings.skip_missing, tell=tell
    )
    check_two_classes(table, f"the set {name}")
    folder = pool.run / ELSEWHERE / name
    stamps = [_stamp(path) for path in table["path"]]
    columns = [table[column].tolist() for column in ("img_name", "target", "group")]
    fingerprint = hashlib.sha256(json.dumps([*columns, stamps]).encode()).hexdigest()
    if _recorded(folder) != fingerprint:
        if (folder / DATA).exists() and not settings.overwrite:
            raise UserError(
                f"{folder} must be of the same files, unchanged, with the same names, labels and "
                "groups, found another set of that name; choose another --name, or add "
                "--overwrite, which deletes it"
            )
        # Scores may be left of a set whose folder was deleted.
        _forget(pool.run, name)
    with console.status("looking for images of the run"):
        known = known_images(table["path"].tolist(), pool)
    for split, count in known.items():
        if count:
            tell(
                f"{count} of {len(table)} images of {name} are in {split}, too: not from elsewhere"
            )
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {
        "fingerprint": fingerprint,
        "images": len(table),
        "real": int((table["target"] == 0).sum()),
        "fake": int((table["target"] == 1).sum()),
        "groups": int(table["group"].nunique()),
        "images_of_the_run": known,
    }
    write_yaml_atomically(folder / DATA, described)
    return Elsewhere(name, folder, table, known)


def score_elsewhere(
    pool: Pool,
    source: Elsewhere,
    models: Sequence[Candidate],
    console: Console,
    check: Callable[[], None],
) -> pd.DataFrame:
    """Scores models on a set, in fp32, and keeps the scores in their folders, so that they go with
    the model when another one takes its place.

    Args:
        pool: of the run: its canvas, its device and its setting of the cache.
        source: the set.
        models: candidates and merged models; one that comes twice is scored once.
        console: is told what is scored, and of broken images.
        check: called after every batch; what it raises ends it, and whole scores are kept.

    Returns:
        img_name, target, group, and a column of probabilities for each model by its folder,
        relative to the run: a refit may have any name.

    Raises:
        UserError: if too many images are broken, or models differ in those they could read.
    """
    pool.reader.close()  # its workers would wait beside those of this set
    quarantine = open_quarantine(source.folder, console)
    files = {model.path: _scores_file(model.path, source.name) for model in models}
    missing = [path for path, file in files.items() if not file.exists()]
    with open_reader_of(
        source.table["path"].tolist(),
        pool.reader.side,
        cache=pool.settings.cache,
        runtime=pool.runtime,
        quarantine=quarantine,
        console=console,
    ) as reader:
        if missing:
            fill(reader, console, check)
        loader = eval_batches(reader, source.table, batch_size=SCORING_BATCH)
        for path in missing:
            tell_line(console, f"scoring {path.name} on {source.name}")
            network, _ = load_model(path)
            found = score_table(source.table, predict(network, loader, pool.runtime, check))
            write_atomically(files[path], partial(found.to_csv, index=False))
    return align_scores(
        {path.relative_to(pool.run).as_posix(): load_table(file) for path, file in files.items()},
        source.table,
        {broken.img_name for broken in quarantine.among(source.table)},
        limit_fraction=quarantine.limit_fraction,
        tell=lambda line: tell_line(console, line),
    )


def read_elsewhere(run: Path, comparison: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What is known of a comparison's models on sets from elsewhere.

    Args:
        run: the run folder.
        comparison: with the columns model, path and auc_select, which tell a model, by the scores
            in its folder, from one that had its name before.

    Returns:
        By the set's name, FIGURES in the comparison's order, NaN where a model was not scored; sets
        that no model was scored on are left out, as are tables that cannot be read.
    """
    sets = {}
    key = ["model", "path", "auc_select", "scores_sha256"]
    for file in sorted((run / ELSEWHERE).glob(f"*/{COMPARISON}")):
        try:
            # As Python reads numbers, which is exact; text stays what it is, as an empty path.
            table = pd.read_csv(file, dtype=str, keep_default_na=False)
            # A model that was trained on select has no figure on it, and NaN equals nothing.
            table["auc_select"] = table["auc_select"].map(lambda text: float(text or NO_AUC))
            known = table.set_index(key)[list(FIGURES)].replace("", "nan").astype("float64")
            digests = [digest_scores(run, path, file.parent.name) for path in comparison["path"]]
            wanted = comparison.assign(scores_sha256=digests)[key].fillna({"auc_select": NO_AUC})
            found = known.reindex(pd.MultiIndex.from_frame(wanted))
        except (OSError, ValueError, KeyError):
            continue
        if found["auc"].notna().any():
            sets[file.parent.name] = found.reset_index(drop=True)
    return sets


def digest_scores(run: Path, path: str, name: str) -> str:
    """SHA-256 of a model's scores on a set; empty where it has none, as an ensemble.

    Args:
        run: the run folder.
        path: the model's folder, relative to the run; empty for the teacher ensemble.
        name: of the set.
    """
    file = _scores_file(run / path, name)
    return file_sha256(file) if path and file.exists() else ""


def _scores_file(folder: Path, name: str) -> Path:
    return folder / f"{ELSEWHERE}-{name}.csv"


def known_images(paths: Sequence[str], pool: Pool) -> dict[str, int]:
    """How many of some files lie, byte for byte, in each split of a run."""
    own: dict[tuple[int, bytes], list[str]] = {}
    for path in paths:
        own.setdefault((_size(path), _head(path)), []).append(path)
    sizes = {size for size, _ in own}
    counts = {}
    for split, table in tables(pool.splits).items():
        alike: dict[tuple[int, bytes], list[str]] = {}
        for path in table["path"]:
            # Most files are told apart by their length, and the others by how they begin: a whole
            # data set is not read.
            if (size := _size(path)) in sizes and (key := (size, _head(path))) in own:
                alike.setdefault(key, []).append(path)
        there = {key: set(map(_digest, files)) for key, files in alike.items()}
        counts[split] = sum(_digest(path) in there[key] for key in there for path in own[key])
    return counts


def _size(path: str) -> int:
    return _stamp(path)[0]


def _stamp(path: str) -> tuple[int, int]:
    """Size and time of change."""
    try:
        found = os.stat(path)  # noqa: PTH116 - of 525,000 files, Path takes twice as long
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _head(path: str) -> bytes:
    """A checksum of a file's beginning: half a million beginnings would take 2 GB."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - likewise
            head = file.read(_HEAD_BYTES)
    except OSError:
        head = b""
    return hashlib.blake2b(head, digest_size=_CHECKSUM_BYTES).digest()


def _digest(path: str) -> str:
    try:
        return file_sha256(Path(path))
    except OSError:
        return path  # like no other file


def _recorded(folder: Path) -> str | None:
    """The fingerprint of the set that a folder is of; None of none."""
    path = folder / DATA
    found = load_yaml(path) if path.exists() else None
    return found.get("fingerprint") if isinstance(found, dict) else None


def _forget(run: Path, name: str) -> None:
    """Deletes what is known of a set, what tells its images last."""
    for parent in (CANDIDATES, MERGED, REFITS):
        for path in (run / parent).glob(f"*/{ELSEWHERE}-{name}.csv"):
            path.unlink(missing_ok=True)
    for file in (COMPARISON, QUARANTINE, DATA):
        (run / ELSEWHERE / name / file).unlink(missing_ok=True)
