"""How many submissions the rules still allow today, and the record of those that were made."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from filelock import FileLock

from search.errors import UserError
from search.machine.files import write_text_atomically

Phase = Literal["validation", "test"]

DAILY_LIMITS: dict[str, int] = {"validation": 5, "test": 2}
"""Submissions a calendar day, by phase: the competition's rule."""

LEDGER = "ledger.csv"


@dataclass(frozen=True)
class Entry:
    """One row of ledger.csv."""

    phase: Phase
    time: datetime  # with an offset from UTC
    model: str
    prediction_sha256: str  # of prediction.csv
    forced: bool  # made although the rules of the ledger forbade it
    time_zone: str  # IANA name of the zone whose days were counted

    def is_for(self, phase: str, model: str, prediction_sha256: str) -> bool:
        """Whether it is of these predictions of a model in a phase."""
        wanted = (phase, model, prediction_sha256)
        return (self.phase, self.model, self.prediction_sha256) == wanted


HEADER = tuple(field.name for field in fields(Entry))


@dataclass(frozen=True)
class Quota:
    """What the rules still allow in one phase on one day."""

    phase: Phase
    made: int  # submissions of this day, forced ones too
    limit: int
    next_allowed: datetime  # now if one is left, else the start of a day, in the time zone

    @property
    def is_spent(self) -> bool:
        """Whether the day's submissions are all made."""
        return self.made >= self.limit

    def check(self) -> None:
        """
        Raises:
            UserError: if none is left, with the time when the next one is allowed.
        """
        if self.is_spent:
            raise UserError(
                f"the rules allow {self.limit} submissions a day in the {self.phase} phase, "
                f"{self.made} were made today; the next is allowed from "
                f"{self.next_allowed.isoformat(timespec='minutes')} "
                f"({self.next_allowed.tzinfo}); wait, or record one beyond the rules with --force"
            )


class Ledger:
    """The submissions of a run, kept in ledger.csv; entries are added, never changed or removed.

    A day is a calendar day in the ledger's time zone. An entry that was made while another zone was
    counted in belongs to its day in either, so that changing the zone never starts a new day.
    """

    def __init__(self, path: Path, time_zone: str | None = None) -> None:
        """
        Args:
            path: ledger.csv of a run; made with the first entry.
            time_zone: IANA name of the zone whose midnight ends a day, as the competition counts;
                None takes that of the last entry, or UTC.

        Raises:
            UserError: if the time zone is unknown.
        """
        self.path = path
        self._given = None if time_zone is None else read_time_zone(time_zone)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All submissions, in the order they were made.

        Raises:
            UserError: if the file is damaged: an unreadable ledger must not allow more submissions.
        """
        return tuple(_read(self.path)) if self.path.exists() else ()

    @property
    def zone(self) -> ZoneInfo:
        """Where days are counted."""
        entries = self.entries
        recorded = entries[-1].time_zone if entries else "UTC"
        return read_time_zone(recorded) if self._given is None else self._given

    @property
    def changes_zone(self) -> bool:
        """Whether days were counted in another zone than the one that is given."""
        entries = self.entries
        return (
            self._given is not None and bool(entries) and entries[-1].time_zone != self._given.key
        )

    def check_zone(self) -> None:
        """
        Raises:
            UserError: if days were counted in another zone before, for then a day might be longer.
        """
        if self.changes_zone:
            raise UserError(
                f"--time-zone must stay {self.entries[-1].time_zone}, in which this run's "
                f"submissions are counted, found {self.zone.key}; leave it out, or record the "
                "change with --force"
            )

    def quota(self, phase: Phase, now: datetime) -> Quota:
        """What is left of the day that `now`, a time with an offset, lies in."""
        zone, limit = self.zone, DAILY_LIMITS[phase]
        submissions = [
            (entry.time, {zone, read_time_zone(entry.time_zone)})
            for entry in self.entries
            if entry.phase == phase
        ]

        def made(moment: datetime) -> int:
            return sum(
                any(is_same_day(time, moment, own) for own in zones) for time, zones in submissions
            )

        today, local = made(now), now.astimezone(zone)
        if today < limit:
            return Quota(phase, today, limit, local)
        zones = {zone}.union(*(own for _, own in submissions))
        starts = sorted(next_day(now.astimezone(own)) for own in zones)
        free = next((start for start in starts if made(start) < limit), starts[-1])
        return Quota(phase, today, limit, free.astimezone(zone))

    def find(self, phase: Phase, prediction_sha256: str) -> Entry | None:
        """The last submission of these predictions in a phase; None if there is none."""
        same = (phase, prediction_sha256)
        found = [e for e in self.entries if (e.phase, e.prediction_sha256) == same]
        return found[-1] if found else None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from counting between this one's check and its entry."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            for unfinished in self.path.parent.glob(f".{self.path.name}.*.part"):
                unfinished.unlink()  # of a process that was killed: this one holds the lock
            yield

    def add(self, entry: Entry) -> None:
        """Appends an entry; the file is replaced as a whole, so no reader sees half a line."""
        write_text_atomically(self.path, _to_csv((*self.entries, entry)))


def read_time_zone(name: str) -> ZoneInfo:
    """The time zone of an IANA name such as Asia/Shanghai.

    Raises:
        UserError: if there is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UserError(
            f"--time-zone must be an IANA name such as UTC or Asia/Shanghai, found '{name}'"
        ) from None


def is_same_day(one: datetime, other: datetime, zone: ZoneInfo) -> bool:
    """Whether two moments lie on the same calendar day of a zone."""
    return one.astimezone(zone).date() == other.astimezone(zone).date()


def next_day(local: datetime) -> datetime:
    """The first moment of the day after `local`, in its own time zone."""
    zone = local.tzinfo
    start = datetime.combine(local.date() + timedelta(days=1), datetime.min.time(), tzinfo=zone)
    # Where clocks go forward at midnight, 00:00 does not exist: by way of UTC it becomes 01:00.
    return start.astimezone(UTC).astimezone(zone)


def _to_csv(entries: Sequence[Entry]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for entry in entries:
        phase, time, model, sha256, forced, zone = astuple(entry)
        writer.writerow([phase, time.isoformat(), model, sha256, "yes" if forced else "no", zone])
    return text.getvalue()


def _read(path: Path) -> Iterator[Entry]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, strict=True)
        if tuple(header) != HEADER:
            raise ValueError(f"header {','.join(header)}")
        for line, row in enumerate(rows, 2):
            yield _entry(row, line)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} must be a ledger of submissions with the columns {','.join(HEADER)}, found: "
            f"{error}; restore it: without it nobody knows what the rules still allow"
        ) from None


def _entry(row: list[str], line: int) -> Entry:
    phase, time, model, sha256, forced, zone = row
    if phase not in DAILY_LIMITS or forced not in ("yes", "no"):
        raise ValueError(f"line {line}: {','.join(row)}")
    moment = datetime.fromisoformat(time)
    if moment.tzinfo is None:
        raise ValueError(f"line {line}: the time {time} has no offset from UTC")
    return Entry(phase, moment, model, sha256, forced == "yes", zone)  # type: ignore[arg-type]
