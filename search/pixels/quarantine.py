"""Images that turned out to be broken: set aside, and told in quarantine.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import pandas as pd

from search.errors import UserError
from search.machine.files import append_lines, whole_lines, write_text_atomically
from search.pixels.images import BrokenImage, read_image

_LONGEST_REASON = 200

MOST_TOLD = 5
"""Broken images that are told one by one; the file lists them all."""


@dataclass(frozen=True)
class BrokenFile:
    """One row of quarantine.csv."""

    img_name: str
    path: str
    reason: str


HEADER = tuple(field.name for field in fields(BrokenFile))


class Quarantine:
    """The broken images of a run, kept in quarantine.csv between its processes.

    Images that were mended are taken back when a search goes on, see `take_back_mended`.
    """

    def __init__(
        self,
        path: Path | None,
        limit_fraction: float = 0.05,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Takes up the file if it is there; nothing is written before an image is set aside.

        Args:
            path: quarantine.csv of a run; None keeps the list in memory only.
            limit_fraction: largest share of a table's images that may be broken, in [0, 1].
            tell: given a line for each of the first images that are set aside.

        Raises:
            UserError: if the file is not one that a quarantine wrote.
        """
        self.path = path
        self.limit_fraction = limit_fraction
        self._tell, self._told = tell, 0
        self._broken: dict[str, BrokenFile] = {}  # by path: a name may occur in two folders
        if path is not None and path.exists():
            self._broken = {broken.path: broken for broken in _read(path)}

    @property
    def names(self) -> set[str]:
        """Names of the broken images, as their lists spell them."""
        return {broken.img_name for broken in self._broken.values()}

    @property
    def paths(self) -> set[str]:
        """Paths of the broken images."""
        return set(self._broken)

    def add(self, img_name: str, path: str, reason: str) -> None:
        """Sets one image aside; the first reason that is given for it stays."""
        self.add_all([BrokenFile(img_name, path, reason)])

    def add_all(self, found: Iterable[BrokenFile]) -> None:
        """Sets images aside and appends those that are new to the file."""
        new = []
        for broken in found:
            if broken.path in self._broken:
                continue
            # A decoder's message may span lines or quote the whole file.
            reason = " ".join(broken.reason.split())[:_LONGEST_REASON]
            new.append(BrokenFile(broken.img_name, broken.path, reason))
            self._broken[broken.path] = new[-1]
            self._tell_of(new[-1])
        if new and self.path is not None:
            append_lines(self.path, _to_csv(astuple(row) for row in new), _to_csv([HEADER]))

    def take_back_mended(self) -> int:
        """Reads the broken images once more and takes back those that are whole; returns how
        many."""
        mended = [path for path in self._broken if _is_whole(path)]
        for path in mended:
            del self._broken[path]
        if mended and self.path is not None:
            rows = (astuple(row) for row in self._broken.values())
            write_text_atomically(self.path, _to_csv([HEADER, *rows]))
            self._tell(f"taken back {len(mended)} images that can be read again")
        return len(mended)

    def _tell_of(self, broken: BrokenFile) -> None:
        self._told += 1
        if self._told <= MOST_TOLD:
            self._tell(f"set aside {broken.img_name}: {broken.reason}")
        elif self._told == MOST_TOLD + 1 and self.path is not None:
            self._tell(f"set aside further broken images; {self.path.name} lists them all")

    def among(self, table: pd.DataFrame) -> list[BrokenFile]:
        """The broken images of a table."""
        if not self._broken:
            return []
        paths = table["path"][table["path"].isin(self.paths)]
        return [self._broken[path] for path in paths]

    def check(self, table: pd.DataFrame) -> None:
        """Checks that few enough of a table's images are broken.

        Raises:
            UserError: if more than `limit_fraction` of them are.
        """
        allowed = self.limit_fraction * len(table)
        if len(self._broken) <= allowed:
            return
        broken = self.among(table)
        if len(broken) > allowed:
            told = "" if self.path is None else f"; {self.path} lists them all"
            raise UserError(
                f"at most {self.limit_fraction:.0%} of a set's images may be broken, found "
                f"{len(broken)} of {len(table)}, for example {broken[0].path} "
                f"({broken[0].reason}); mend them or take them off the list{told}"
            )


def _is_whole(path: str) -> bool:
    try:
        read_image(path)
    except BrokenImage:
        return False
    return True


def _read(path: Path) -> list[BrokenFile]:
    try:
        content = path.read_bytes()
        lines = whole_lines(content)
        if not lines and _to_csv([HEADER]).encode().startswith(content):
            return []  # killed when it was about to be made
        header, *rows = csv.reader(io.StringIO(lines.decode("utf-8"), newline=""), strict=True)
        if tuple(header) != HEADER:
            raise ValueError(f"header {','.join(header)}")
        return [BrokenFile(*row) for row in rows]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path} must be a quarantine list with the columns {','.join(HEADER)}, found: "
            f"{error}; delete it, and broken images will be found again"
        ) from error


def _to_csv(rows: Iterable[tuple[str, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
