"""Label files and image folders -> a table with one row an image, or one line that says what is
wrong with them.

A table has the columns `img_name` (as listed), `path` (absolute), `target` (0 = real, 1 = fake;
absent for an unlabelled list) and `group` (images that must stay together in any split; the
image's own name where no group file says otherwise), and a RangeIndex.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.data.listfile import fail, read_rows
from search.errors import UserError

CLASS_NAMES = ("real (0)", "fake (1)")

_LEAVES_FOLDER = r"^/|^[A-Za-z]:|(?:^|/)\.\.(?:/|$)"
_NOT_NORMAL = r"//|(?:^|/)\.(?:/|$)"
_EXAMPLES = 3


def read_labels(
    labels: Path,
    images: Path,
    groups: Path | None = None,
    *,
    skip_missing: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """The table of a label file.

    Rows that repeat an image with the same target are dropped; the first is kept.

    Args:
        labels: comma- or tab-separated text with the header `img_name,target` or
            `img_path,target`, in either order; targets are 0 (real) and 1 (fake).
        images: the folder that the names are relative to. Names may have folders in front; a
            backslash separates folders as a slash does.
        groups: a file of the same form with the header `img_name,group`; it may name more images
            than the label file does.
        skip_missing: leave out listed images that are absent from the folder.
        tell: given a line on the images that are left out.

    Raises:
        UserError: if a file or the folder is absent or unreadable, the header or a line is wrong,
            a name leaves the folder, an image is listed with two targets or groups, images are
            absent (with `skip_missing`: all of them), or the group file leaves an image out.
    """
    table = read_rows(labels, ("target",))
    wrong = ~table["target"].isin(["0", "1"])
    if wrong.any():
        row = table[wrong].iloc[0]
        fail(labels, row["line"], f"target must be 0 or 1, found '{row['target']}'")
    table["target"] = table["target"].astype(np.int64)
    table = _drop_repeats(_with_keys(table, labels), "target", labels)
    table = _locate(table, images, labels, skip_missing=skip_missing, tell=tell)
    table["group"] = table["img_name"] if groups is None else _groups_of(table, groups)
    return table[["img_name", "path", "target", "group"]].reset_index(drop=True)


def read_list(names: Path, images: Path, *, skip_missing: bool = False) -> pd.DataFrame:
    """The table, without `target`, of a file with the one column `img_name` or `img_path`.

    Of a label file the names are used. Repeated names are dropped; the first is kept.

    Raises:
        UserError: as `read_labels` does.
    """
    table = read_rows(names, (None, "target"))
    table = _drop_repeats(_with_keys(table, names), None, names)
    remedy = "add them, or take them off the list"
    table = _locate(table, images, names, skip_missing=skip_missing, remedy=remedy)
    table["group"] = table["img_name"]
    return table[["img_name", "path", "group"]].reset_index(drop=True)


def check_two_classes(table: pd.DataFrame, what: str) -> None:
    """Checks that a table holds real and fake images.

    Args:
        table: has the column `target`.
        what: how the message calls the table: "the training set".

    Raises:
        UserError: if a class is missing.
    """
    counts = np.bincount(table["target"], minlength=2)
    if counts.min() == 0:
        found = f"only {CLASS_NAMES[counts.argmax()]} ones" if counts.any() else "no image"
        raise UserError(
            f"{what} must hold both real (0) and fake (1) images, found {found} among "
            f"{len(table)}; add images of the missing class, or raise the limit if one is set"
        )


def _with_keys(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Adds `key`, the name in its one spelling: slashes, no `.` and no empty parts."""
    names = table["img_name"]
    empty = names.str.strip() == ""
    if empty.any():
        fail(path, table["line"][empty].iloc[0], "an image must have a name, found none")
    keys = names.str.replace("\\", "/", regex=False)
    # By the letters alone: resolving would condemn data folders that are made of links.
    leaving = keys.str.contains(_LEAVES_FOLDER, regex=True)
    if leaving.any():
        row = table[leaving].iloc[0]
        rule = "names must be relative to the image folder and without '..'"
        fail(path, row["line"], f"{rule}, found '{row['img_name']}'")
    loose = keys.str.contains(_NOT_NORMAL, regex=True)
    return table.assign(key=keys.mask(loose, keys[loose].map(posixpath.normpath)))


def _drop_repeats(table: pd.DataFrame, value: str | None, path: Path) -> pd.DataFrame:
    """The first row of every image; rows of one image must agree in the column `value`."""
    repeated = table.duplicated("key", keep=False)
    if value is not None and repeated.any():
        rows = table[repeated]
        first = rows.groupby("key", sort=False)[[value, "line"]].transform("first")
        conflicts = rows[rows[value] != first[value]]
        if len(conflicts):
            row, earlier = conflicts.iloc[0], first.loc[conflicts.index[0]]
            count = conflicts["key"].nunique()
            fail(
                path,
                row["line"],
                f"an image must have one {value}, found '{row['img_name']}' with {row[value]} "
                f"here and {earlier[value]} on line {earlier['line']} (images in conflict: "
                f"{count}); remove the wrong lines",
            )
    return table.drop_duplicates("key")


def _locate(
    table: pd.DataFrame,
    images: Path,
    listed_in: Path,
    *,
    skip_missing: bool,
    remedy: str = "add them, or leave them out with --skip-missing",
    tell: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """Adds `path`; absent images are an error or, with `skip_missing`, left out."""
    if not images.is_dir():
        found = "a file" if images.exists() else "nothing there"
        raise UserError(f"{images} must be a folder of images, found {found}; check the path")
    root = str(images.absolute())
    present = _are_files(root, table["key"].tolist())
    absent = table["img_name"][~present]
    if not absent.empty and skip_missing and present.any():
        tell(
            f"{len(absent):,} of {len(table):,} images listed in {listed_in.name} are absent and "
            f"left out (--skip-missing): {_examples(absent)}"
        )
    elif not absent.empty:
        told = "check that it is the right folder" if not present.any() else remedy
        raise UserError(
            f"every image listed in {listed_in} must be in {images}, {len(absent)} of "
            f"{len(table)} are absent: {_examples(absent)}; {told}"
        )
    table = table[present]
    return table.assign(path=root + "/" + table["key"])


def _are_files(root: str, keys: list[str]) -> NDArray[np.bool_]:
    """Which of the files exist, shape (N,).

    Every folder is listed once: on a network drive, asking for each of 525,000 files by name
    takes many minutes.
    """
    parts = [key.rpartition("/") for key in keys]
    files = {folder: _files_in(f"{root}/{folder}") for folder in {part[0] for part in parts}}
    return np.fromiter((name in files[folder] for folder, _, name in parts), np.bool_, len(keys))


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder!r} must be a readable folder, found: {error}") from None


def _groups_of(table: pd.DataFrame, path: Path) -> pd.Series[str]:
    groups = read_rows(path, ("group",))
    empty = groups["group"] == ""
    if empty.any():
        fail(path, groups["line"][empty].iloc[0], "an image must have a group, found none")
    groups = _drop_repeats(_with_keys(groups, path), "group", path)
    found = table["key"].map(groups.set_index("key")["group"])
    without = table["img_name"][found.isna()]
    if len(without):
        raise UserError(
            f"{path} must name a group for every listed image, {len(without)} of {len(table)} "
            f"have none: {_examples(without)}; add lines for them"
        )
    return found


def _examples(names: pd.Series[str]) -> str:
    shown = ", ".join(names.iloc[:_EXAMPLES])
    return shown + (", ..." if len(names) > _EXAMPLES else "")
