"""List files (labels, groups, names) -> rows with their line numbers; knows nothing of images."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd

from search.errors import UserError

NAME_COLUMNS = ("img_name", "img_path")


def read_rows(path: Path, values: Sequence[str | None]) -> pd.DataFrame:
    """The rows of a list file, blank lines left out.

    The file is UTF-8 with or without BOM, separated by tabs if its header has one and by commas
    otherwise, with any line ends; fields may be quoted.

    Args:
        path: the file.
        values: names that the column beside `img_name` or `img_path` may have, on either side;
            None stands for no second column.

    Returns:
        `img_name`, `line` (from 1) and the second column, its values without white space around.

    Raises:
        UserError: if the file is absent, unreadable or empty, or its header or a line is wrong.
    """
    text = _read_text(path)
    header_line = text.partition("\n")[0]
    header, rows = _split(path, text, "\t" if "\t" in header_line else ",")
    value = next((value for value in values if _is_header(header, value)), "")
    if value == "":
        columns = [(name, value) for value in values for name in NAME_COLUMNS]
        rule = " or ".join(",".join(filter(None, pair)) for pair in columns)
        fail(path, 1, f"header must be {rule}, found '{header_line.strip()}'")
    lines = [line for line, row in enumerate(rows, 2) if row]  # a blank line is an empty row
    rows = [row for row in rows if row]
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            remedy = "quote a name that contains the separator"
            fail(path, line, f"must have {len(header)} fields, found {len(row)}; {remedy}")
    if not rows:
        raise UserError(f"{path} must list at least one image, found only a header")
    name_at = next(i for i, cell in enumerate(header) if cell in NAME_COLUMNS)
    columns_found: dict[str, object] = {
        "img_name": [row[name_at] for row in rows],
        "line": np.array(lines, np.int64),
    }
    if value is not None:
        columns_found[value] = [row[1 - name_at].strip() for row in rows]
    return pd.DataFrame(columns_found)


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
