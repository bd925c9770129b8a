"""List files (labels, groups, names) -> tables of images that lie in their folder."""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.errors import UserError

CLASS_NAMES = ("real (0)", "fake (1)")

_LEAVES_FOLDER = r"^/|^[A-Za-z]:|(?:^|/)\.\.(?:/|$)"
_NOT_NORMAL = r"//|(?:^|/)\.(?:/|$)"
_EXAMPLES = 3

NO_METHOD = ""
"""Value of `method` for a real image, and for a fake whose forgery method no file names."""

_REAL = "real"
"""What a group file may call the method of a real image instead of leaving it empty."""


def read_labels(
    labels: Path,
    images: Path,
    groups: Path | None = None,
    *,
    skip_missing: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """The table of a label file.

    Rows that repeat an image with the same target are dropped, and told; the first is kept.

    Args:
        labels: comma- or tab-separated text with the header `img_name,target` or
            `img_path,target`, in either order; targets are 0 (real) and 1 (fake).
        images: the folder that the names are relative to. Names may have folders in front; a
            backslash separates folders as a slash does.
        groups: a file of the same form with the header `img_name,group`; it may name more images
            than the label file does. A third column `method` names how each fake was forged; for a
            real image it is empty or `real`.
        skip_missing: leave out listed images that are absent from the folder.
        tell: given a line on the images that are left out.

    Raises:
        UserError: if a file or the folder is absent or unreadable, the header or a line is wrong,
            a name leaves the folder, an image is listed with two targets, groups or methods, images
            are absent (with `skip_missing`: all of them), or the group file leaves an image out, or
            names the method of a real image.
    """
    table = read_rows(labels, ("target",))
    wrong = ~table["target"].isin(["0", "1"])
    if wrong.any():
        row = table[wrong].iloc[0]
        fail(labels, row["line"], f"target must be 0 or 1, found '{row['target']}'")
    table["target"] = table["target"].astype(np.int64)
    table = _drop_repeats(_with_keys(table, labels), "target", labels, tell)
    table = _locate(table, images, labels, skip_missing=skip_missing, tell=tell)
    if groups is None:
        table = table.assign(group=table["img_name"], method=NO_METHOD)
    else:
        table = _with_groups(table, groups)
    return table[["img_name", "path", "target", "group", "method"]].reset_index(drop=True)


def read_list(
    names: Path,
    images: Path,
    *,
    skip_missing: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """The table, without `target`, of a file with the one column `img_name` or `img_path`.

    Of a label file the names are used. Repeated names are dropped, and told; the first is kept.

    Args:
        names: the file.
        images: the folder that its names are relative to.
        skip_missing: leave out listed images that are absent from the folder.
        tell: given a line on the images that are left out.

    Raises:
        UserError: as `read_labels` does.
    """
    table = read_rows(names, (None, "target"))
    table = _drop_repeats(_with_keys(table, names), None, names, tell)
    remedy = "add them, or take them off the list"
    table = _locate(table, images, names, skip_missing=skip_missing, remedy=remedy, tell=tell)
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


def leaves_folder(name: str) -> bool:
    """Whether a name would lead out of the folder that it is relative to."""
    return re.search(_LEAVES_FOLDER, name.replace("\\", "/")) is not None


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


def _drop_repeats(
    table: pd.DataFrame,
    value: str | None,
    path: Path,
    tell: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
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
    once = table.drop_duplicates("key")
    if len(once) < len(table):
        again = table["img_name"][table.duplicated("key")]
        tell(
            f"{len(again):,} of {len(table):,} lines of {path.name} name an image once more and "
            f"are left out: {_examples(again)}"
        )
    return once


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


def _with_groups(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Adds `group` and `method`, joined by name."""
    groups = read_rows(path, ("group",), optional="method")
    empty = groups["group"] == ""
    if empty.any():
        fail(path, groups["line"][empty].iloc[0], "an image must have a group, found none")
    groups = _with_keys(groups, path)
    if "method" in groups:
        _drop_repeats(groups, "method", path)
    else:
        groups["method"] = NO_METHOD
    of_image = _drop_repeats(groups, "group", path).set_index("key")
    joined = table.join(of_image[["group", "method"]], on="key")
    without = table["img_name"][joined["group"].isna()]
    if len(without):
        raise UserError(
            f"{path} must name a group for every listed image, {len(without)} of {len(table)} "
            f"have none: {_examples(without)}; add lines for them"
        )
    is_real = joined["method"].str.lower() == _REAL
    joined["method"] = joined["method"].mask(is_real, NO_METHOD)
    wrong = (joined["target"] == 0) & (joined["method"] != NO_METHOD)
    wrong |= (joined["target"] == 1) & is_real
    if wrong.any():
        row = joined[wrong].iloc[0]
        rule = (
            "a fake must not have the method 'real'"
            if row["target"]
            else "a real image must have no method, or 'real'"
        )
        line = of_image.loc[row["key"], ["line", "method"]]
        fail(path, line["line"], f"{rule}, found '{row['img_name']}' with '{line['method']}'")
    return joined


def _examples(names: pd.Series[str]) -> str:
    shown = ", ".join(names.iloc[:_EXAMPLES])
    return shown + (", ..." if len(names) > _EXAMPLES else "")


NAME_COLUMNS = ("img_name", "img_path")


def read_rows(
    path: Path, values: Sequence[str | None], *, optional: str | None = None
) -> pd.DataFrame:
    """The rows of a list file, blank lines left out.

    The file is UTF-8 with or without BOM, separated by tabs if its header has one and by commas
    otherwise, with any line ends; fields may be quoted.

    Args:
        path: the file.
        values: names that the column beside `img_name` or `img_path` may have, on either side;
            None stands for no second column.
        optional: a further column that the file may have.

    Returns:
        `img_name`, `line` (from 1) and the other columns, their values without white space around.

    Raises:
        UserError: if the file is absent, unreadable or empty, or its header or a line is wrong.
    """
    text = _read_text(path)
    header_line = text.partition("\n")[0]
    header, rows = _split(path, text, "\t" if "\t" in header_line else ",")
    required = [column for column in header if column != optional]
    if not any(_is_header(required, value) for value in values) or header.count(optional or "") > 1:
        columns = [(name, value) for value in values for name in NAME_COLUMNS]
        rule = " or ".join(",".join(filter(None, pair)) for pair in columns)
        allowed = "" if optional is None else f", and may have {optional}"
        fail(path, 1, f"header must be {rule}{allowed}, found '{header_line.strip()}'")
    lines = [line for line, row in enumerate(rows, 2) if row]  # a blank line is an empty row
    rows = [row for row in rows if row]
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            remedy = "quote a name that contains the separator"
            fail(path, line, f"must have {len(header)} fields, found {len(row)}; {remedy}")
    if not rows:
        raise UserError(f"{path} must list at least one image, found only a header")
    columns_found: dict[str, object] = {}
    for column, cells in zip(header, zip(*rows, strict=True), strict=True):
        if column in NAME_COLUMNS:
            columns_found["img_name"] = list(cells)
        else:
            columns_found[column] = [cell.strip() for cell in cells]
    return pd.DataFrame({**columns_found, "line": np.array(lines, np.int64)})


def fail(path: Path, line: int, problem: str) -> NoReturn:
    """Raises the UserError that names a line of a list file."""
    raise UserError(f"{path} line {line}: {problem}")


def _read_text(path: Path) -> str:
    """The file's text, without BOM and with plain line feeds."""
    if path.is_dir():
        raise UserError(f"{path} must be a file, found a folder; check the path")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} must be a file, found nothing there; check the path") from None
    except OSError as error:
        raise UserError(f"{path} must be a readable file, found: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        fail(path, line, f"text must be UTF-8, found byte 0x{byte:02x}; save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _split(path: Path, text: str, delimiter: str) -> tuple[list[str], list[list[str]]]:
    """The header's cells, and one row for every further line."""
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        rows.extend(reader)
    except csv.Error as error:
        fail(path, reader.line_num, f"fields must be plain or quoted in full, found: {error}")
    if reader.line_num != len(rows):  # line numbers would be wrong from here on
        line = next(i for i, row in enumerate(rows, 1) if any("\n" in cell for cell in row))
        fail(path, line, "a field must end on its own line, found a line break inside quotes")
    header = [cell.strip() for cell in rows[0]] if rows else []
    return header, rows[1:]


def _is_header(header: list[str], value: str | None) -> bool:
    wanted = [[name] if value is None else sorted((name, value)) for name in NAME_COLUMNS]
    return sorted(header) in wanted
