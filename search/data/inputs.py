"""The images of a run: from its settings to tables, and the proof that they are still the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from search.data.demo import make_demo
from search.data.generated import join
from search.data.labels import read_labels
from search.data.splits import Splits, make_splits
from search.errors import UserError
from search.machine.files import cache_folder, write_yaml_atomically
from search.settings import DataSettings

DATA = "data.yaml"


def read_splits(settings: DataSettings, tell: Callable[[str], None] = lambda _: None) -> Splits:
    """The fit, select and report tables that the settings name, the demo set made if need be.

    Args:
        settings: the label files, folders, groups and limits.
        tell: given a line on what is left out.

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
    train = read_labels(
        settings.train_labels,
        settings.train_images,
        settings.train_groups,
        skip_missing=skip,
        tell=tell,
    )
    val: pd.DataFrame | None = None
    if settings.val_labels is not None and settings.val_images is not None:
        val = read_labels(
            settings.val_labels,
            settings.val_images,
            settings.val_groups,
            skip_missing=skip,
            tell=tell,
        )
    splits = make_splits(
        train,
        val,
        limit_train=settings.limit_train,
        limit_val=settings.limit_val,
        seed=settings.seed,
    )
    if settings.generated is None:
        return splits
    fit, generated = join(splits.fit, settings.generated, tell)
    return replace(splits, fit=fit, generated=generated)


def tables(splits: Splits) -> dict[str, pd.DataFrame]:
    """The three tables by their names."""
    return {"fit": splits.fit, "select": splits.select, "report": splits.report}


def describe_data(splits: Splits) -> dict[str, Any]:
    """Sizes and class counts of the splits, their fingerprint, and what of fit was generated."""
    described: dict[str, Any] = {
        name: {
            "images": len(table),
            "real": int((table["target"] == 0).sum()),
            "fake": int((table["target"] == 1).sum()),
            "groups": int(table["group"].nunique()),
        }
        for name, table in tables(splits).items()
    }
    content = {"fingerprint": splits.fingerprint(), "splits": described}
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
    """Records in a run folder what its study is called and which images it is about.

    Args:
        run: the folder.
        splits: the images.
        study_name: of the Optuna study.
        budget: largest number of parameters that the run allows.
        canvas: see `search.pixels.canvas.describe_canvas`.
        notes: what a reader of its figures should know.
    """
    content = {
        "study": study_name,
        "budget": budget,
        "canvas": dict(canvas),
        **describe_data(splits),
        "notes": list(notes),
    }
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
