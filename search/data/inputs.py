"""The images of a run: from its settings to tables, and the proof that they are still the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from search.data.assignment import SPLITS
from search.data.demo import make_demo
from search.data.generated import join, sample_paths
from search.data.labels import NO_METHOD, read_labels
from search.data.splits import Splits, check_apart, make_splits, splits_of
from search.data.unseen import (
    DIVISION_COLUMNS,
    LEFT_OUT,
    TRAIN,
    VAL,
    Division,
    Found,
    divide_by_method,
    problem_of,
)
from search.errors import UserError
from search.machine.files import cache_folder, write_atomically, write_yaml_atomically
from search.settings.data import DataSettings
from search.settings.saved import SETTINGS
from search.settings.search import SearchSettings

DATA = "data.yaml"

DIVISION = "split.csv"
"""Of a run whose forgeries are held out by method: which split each image is in."""

FindMethods = Callable[[pd.DataFrame], Found]
"""Label table -> the methods of its fakes, by what they look like."""


def read_splits(
    settings: DataSettings,
    tell: Callable[[str], None] = lambda _: None,
    find: FindMethods | None = None,
    check: Callable[[], None] = lambda: None,
) -> Splits:
    """The fit, select and report tables that the settings name, the demo set made if need be.

    How forgeries were held out by method is read from the run folder, once there is a run.

    Args:
        settings: the label files, folders, groups, limits and the kind of split.
        tell: given a line on what is left out, and on the methods that are held out.
        find: finds the methods of a new run whose files name none; None divides such by group.
        check: called before each file and folder is read; what it raises ends the reading.

    Raises:
        UserError: for label files, images or groups that break a rule.
    """
    if settings.is_demo:
        demo = make_demo(cache_folder() / "demo")
        settings = replace(
            settings,
            train_labels=demo.train_labels,
            train_images=demo.train_images,
            train_groups=demo.train_groups,
            val_labels=demo.val_labels,
            val_images=demo.val_images,
            val_groups=demo.val_groups,
        )
    assert settings.train_labels is not None
    assert settings.train_images is not None
    skip = settings.skip_missing
    check()
    train = read_labels(
        settings.train_labels,
        settings.train_images,
        settings.train_groups,
        skip_missing=skip,
        tell=tell,
    )
    val: pd.DataFrame | None = None
    if settings.val_labels is not None and settings.val_images is not None:
        check()
        val = read_labels(
            settings.val_labels,
            settings.val_images,
            settings.val_groups,
            skip_missing=skip,
            tell=tell,
        )
    check()
    splits = _divided(settings, train, val, tell, find)
    check()
    images = [path for table in (train, val) if table is not None for path in table["path"]]
    if settings.generated is None:
        return replace(splits, images=tuple(images))
    fit, generated = join(splits.fit, settings.generated, tell)
    images += sample_paths(settings.generated)
    return replace(splits, fit=fit, generated=generated, images=tuple(images))


def _divided(
    settings: DataSettings,
    train: pd.DataFrame,
    val: pd.DataFrame | None,
    tell: Callable[[str], None],
    find: FindMethods | None,
) -> Splits:
    """The splits, as --split and the run say."""
    limit_train, limit_val, seed = settings.limit_train, settings.limit_val, settings.seed
    run = settings.out if isinstance(settings, SearchSettings) else None
    is_run = run is not None and (run / SETTINGS).exists()
    saved = run / DIVISION if run is not None and is_run else settings.division
    kind = settings.split
    if kind == "unseen" and not (saved or find or _names_methods(train, val)):
        tell(
            "no group file names a forgery method, and `search run` alone finds some: divided by "
            "group, as --split group would"
        )
        kind = "group"
    if kind != "unseen":
        return make_splits(
            train,
            val,
            limit_train=limit_train,
            limit_val=limit_val,
            seed=seed,
            kind=kind,
        )
    if saved is not None:
        division = _read_division(saved)
        if not is_run:
            _check_division(saved, division, train, val)
    else:
        division = _divide(train, val, seed, find)
    # A resumed run writes its notes anew.
    tell(describe_division(division))
    return splits_of(division, train, val, limit_train=limit_train, limit_val=limit_val, seed=seed)


def _divide(
    train: pd.DataFrame, val: pd.DataFrame | None, seed: int, find: FindMethods | None
) -> Division:
    """A new division by forgery method."""
    if val is not None:
        check_apart(train, val)
    rows = train
    if val is not None:
        # Without group files each image is its own, by a name that both sets may have.
        apart = [t.assign(group=f"{s} " + t["group"]) for s, t in ((TRAIN, train), (VAL, val))]
        rows = pd.concat(apart, ignore_index=True)
    found = find(rows) if find is not None and not _names_methods(train, val) else None
    return divide_by_method(train, val, seed=seed, found=found)


def _names_methods(train: pd.DataFrame, val: pd.DataFrame | None) -> bool:
    return any((table["method"] != NO_METHOD).any() for table in (train, val) if table is not None)


def describe_division(division: Division) -> str:
    """Which methods each split has for its own, in a line."""
    rows = division.rows
    kept = rows[rows["split"] != LEFT_OUT]
    owners, told = division.methods, []
    for split in SPLITS:
        own = kept[(kept["split"] == split) & (kept["target"] == 1)]
        counts = own["method"].value_counts(sort=False).sort_index()
        is_own = [owners[str(method)] == split for method in counts.index]
        listed = ", ".join(f"{method} {count:,}" for method, count in counts[is_own].items())
        seen = int(counts[[not own for own in is_own]].sum())
        told.append(f"{split} {listed}" + (f" (and {seen:,} fakes of fit's)" if seen else ""))
    source = "named in files" if division.by is None else f"found by {division.by}"
    left = "no image is left out"
    if division.left_out:
        left = (
            f"{division.left_out:,} of {len(rows):,} images are left out, fakes whose group lies "
            "in one split and whose method belongs to another"
        )
        unread = int(((rows["target"] == 1) & (rows["method"] == NO_METHOD)).sum())
        if unread:
            left += f", or, {unread:,} of them, that cannot be read"
    return f"Forgeries held out by method, {source}: {'; '.join(told)}; {left}."


def _read_division(path: Path) -> Division:
    """A division, with what its methods were found by if the data.yaml beside it says so.

    Raises:
        UserError: if it is missing or damaged.
    """
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        rows["target"] = rows["target"].astype(int)
        beside = _read_data(path.parent) if (path.parent / DATA).exists() else {}
        found = beside.get("division", {}).get("found_by")
        return Division(rows[list(DIVISION_COLUMNS)], found)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} must say which split each image of the run is in, found: "
            f"{' '.join(str(error).split())}; restore it from a copy"
        ) from None


def _check_division(
    path: Path, division: Division, train: pd.DataFrame, val: pd.DataFrame | None
) -> None:
    """Whether a division from elsewhere is of these images, and holds methods out.

    Raises:
        UserError: if it does not.
    """
    sets = {name: table for name, table in ((TRAIN, train), (VAL, val)) if table is not None}
    if problem := problem_of(division, sets):
        raise UserError(
            f"--division {path} must divide these images by forgery method, but {problem}; use the "
            f"{DIVISION} of a run on the same label and group files"
        )


def _write_division(run: Path, division: Division) -> None:
    write_atomically(
        run / DIVISION,
        lambda temporary: division.rows.to_csv(temporary, index=False, lineterminator="\n"),
    )


def tables(splits: Splits) -> dict[str, pd.DataFrame]:
    """The three tables by their names."""
    return {"fit": splits.fit, "select": splits.select, "report": splits.report}


def describe_data(splits: Splits) -> dict[str, Any]:
    """Sizes and class counts of the splits, their fingerprint, how they were divided, and what of
    fit was generated."""
    described: dict[str, Any] = {
        name: {
            "images": len(table),
            "real": int((table["target"] == 0).sum()),
            "fake": int((table["target"] == 1).sum()),
            "groups": int(table["group"].nunique()),
        }
        for name, table in tables(splits).items()
    }
    division: dict[str, Any] = {"kind": splits.kind}
    if splits.division is not None:
        of_methods: dict[str, list[str]] = {name: [] for name in SPLITS}
        for method, split in splits.division.methods.items():
            of_methods[split].append(method)
        division |= {
            "methods": of_methods,
            "found_by": splits.division.by,
            "left_out": splits.division.left_out,
        }
    content: dict[str, Any] = {
        "fingerprint": splits.fingerprint(),
        "splits": described,
        "division": division,
    }
    if splits.generated is not None:
        content["generated"] = splits.generated.to_dict()
    return content


def write_data(
    run: Path,
    splits: Splits,
    study_name: str,
    budget: int,
    canvas: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> None:
    """Records in a run folder what its study is called and which images it is about; of forgeries
    that are held out by method, which image is in which split.

    Args:
        run: the folder.
        splits: the images.
        study_name: of the Optuna study.
        budget: largest number of parameters that the run allows.
        canvas: see `search.pixels.canvas.describe_canvas`.
        notes: what a reader of its figures should know.
    """
    content: dict[str, Any] = {
        "study": study_name,
        "budget": budget,
        "canvas": dict(canvas),
        **describe_data(splits),
        "notes": list(notes),
    }
    if splits.division is not None:
        _write_division(run, splits.division)
    write_yaml_atomically(run / DATA, content)


def study_name(run: Path) -> str:
    """What the study of an existing run is called: its folder may have been renamed since.

    Raises:
        UserError: if the folder holds no search.
    """
    return str(_read_data(run).get("study", run.name))


def canvas_of(run: Path) -> int:
    """The side of an existing run's canvas, in pixels.

    Raises:
        UserError: if the folder holds no search.
    """
    return int(_read_data(run)["canvas"]["side"])


def check_data(run: Path, splits: Splits | None = None) -> dict[str, Any]:
    """What data.yaml records of a run's images.

    Args:
        run: the folder.
        splits: images that must be the same; None compares nothing.

    Raises:
        UserError: if the folder holds no search, or these are not the images that its candidates
            were trained on.
    """
    saved = _read_data(run)
    if splits is not None and saved["fingerprint"] != splits.fingerprint():
        sizes = {name: split["images"] for name, split in saved["splits"].items()}
        found = {name: len(table) for name, table in tables(splits).items()}
        raise UserError(
            f"{run} holds a search on another data set (images {sizes}, found {found}, or other "
            "names, labels or groups); restore the label files, or choose another --out"
        )
    return saved


def _read_data(run: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = yaml.safe_load((run / DATA).read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{run} must be the folder of a search, but it has no {DATA}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"{run / DATA} must be YAML that onefold wrote: {problem}") from None
    if not isinstance(saved, dict) or not {"fingerprint", "splits", "canvas"} <= saved.keys():
        raise UserError(
            f"{run / DATA} must hold the fingerprint, the splits and the canvas of a search's "
            "images, but it lacks them; restore it from a copy"
        )
    return saved
