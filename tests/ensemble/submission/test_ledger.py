from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ensemble.submission.ledger import DAILY_LIMITS, Entry, Ledger, Phase, next_day, read_time_zone
from search.errors import UserError

NOON = datetime(2025, 3, 4, 12, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "run" / "ledger.csv")


def add(ledger: Ledger, phase: Phase, time: datetime, *, forced: bool = False) -> None:
    with ledger.lock():
        ledger.add(Entry(phase, time, "merged/fused", "ab" * 32, forced, ledger.zone.key))


@pytest.mark.parametrize(("phase", "limit"), [("validation", 5), ("test", 2)])
def test_the_one_over_the_limit_is_refused_until_the_next_day(
    phase: Phase, limit: int, ledger: Ledger
) -> None:
    for number in range(limit):
        quota = ledger.quota(phase, NOON)
        quota.check()
        assert (quota.made, quota.limit) == (number, limit)
        add(ledger, phase, NOON + timedelta(minutes=number))
    spent = ledger.quota(phase, NOON + timedelta(hours=11))
    with pytest.raises(UserError, match=rf"allow {limit} .*2025-03-05T00:00\+00:00 \(UTC\)"):
        spent.check()
    assert spent.next_allowed == datetime(2025, 3, 5, tzinfo=UTC)
    ledger.quota(phase, spent.next_allowed).check()


def test_phases_are_counted_apart(ledger: Ledger) -> None:
    for _ in range(DAILY_LIMITS["test"]):
        add(ledger, "test", NOON)
    assert ledger.quota("test", NOON).is_spent
    assert ledger.quota("validation", NOON).made == 0


def test_forced_entries_count_and_say_so(ledger: Ledger) -> None:
    for forced in (False, False, True):
        add(ledger, "test", NOON, forced=forced)
    assert [entry.forced for entry in ledger.entries] == [False, False, True]
    assert ledger.quota("test", NOON).made == 3


def test_entries_come_back_as_they_were_written(ledger: Ledger) -> None:
    time = datetime(2025, 3, 4, 12, 0, 0, 123456, tzinfo=read_time_zone("Asia/Shanghai"))
    add(ledger, "test", time)
    before = ledger.path.read_text(encoding="utf-8")
    add(ledger, "validation", NOON)
    first, second = ledger.entries
    assert first == Entry("test", time, "merged/fused", "ab" * 32, False, "UTC")
    assert second.time == NOON
    assert ledger.path.read_text(encoding="utf-8").startswith(before)


@pytest.mark.parametrize(
    ("zone", "made_at", "now", "same_day"),
    [
        ("UTC", "2025-03-04T23:59:59+00:00", "2025-03-05T00:00:00+00:00", False),
        ("Asia/Shanghai", "2025-03-04T23:59:59+00:00", "2025-03-05T00:00:00+00:00", True),
        ("Asia/Shanghai", "2025-03-04T15:59:59+00:00", "2025-03-04T16:00:00+00:00", False),
        ("America/New_York", "2025-03-04T04:00:00+00:00", "2025-03-04T06:00:00+00:00", False),
        ("UTC", "2025-03-05T01:00:00+08:00", "2025-03-04T12:00:00+00:00", True),
    ],
)
def test_a_day_ends_at_midnight_of_the_time_zone(
    zone: str, made_at: str, now: str, same_day: bool, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger.csv", zone)
    add(ledger, "test", datetime.fromisoformat(made_at))
    assert ledger.quota("test", datetime.fromisoformat(now)).made == int(same_day)


@pytest.mark.parametrize(
    ("zone", "now", "expected"),
    [
        ("Asia/Shanghai", "2025-12-31T20:00:00+08:00", "2026-01-01T00:00:00+08:00"),
        # The clocks go forward: the day has 23 hours, and the offset changes.
        ("Europe/Berlin", "2025-03-29T12:00:00+01:00", "2025-03-30T00:00:00+01:00"),
        ("Europe/Berlin", "2025-03-30T12:00:00+02:00", "2025-03-31T00:00:00+02:00"),
        # They go forward at midnight, which therefore does not exist.
        ("Africa/Cairo", "2025-04-24T12:00:00+02:00", "2025-04-25T01:00:00+03:00"),
    ],
)
def test_the_next_day_starts_where_the_clocks_say(zone: str, now: str, expected: str) -> None:
    local = datetime.fromisoformat(now).astimezone(read_time_zone(zone))
    assert next_day(local).isoformat() == expected


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../UTC", "/etc/passwd", "Asia"])
def test_an_unknown_time_zone_is_a_user_error(zone: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--time-zone"):
        Ledger(tmp_path / "ledger.csv", zone)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "phase,time\n",
        "phase,time,model,prediction_sha256,forced,time_zone\ntest,2025-03-04T12:00:00,m,ab,no,UTC\n",
        "phase,time,model,prediction_sha256,forced,time_zone\ntest,yesterday,m,ab,no,UTC\n",
        "phase,time,model,prediction_sha256,forced,time_zone\nfinal,2025-03-04T12:00:00+00:00,m,ab,no,UTC\n",
        "phase,time,model,prediction_sha256,forced,time_zone\ntest,2025-03-04T12:00:00+00:00,m,ab,2,UTC\n",
        "phase,time,model,prediction_sha256,forced,time_zone\ntest,2025-03-04T12:00:00+00:00\n",
    ],
)
def test_a_damaged_ledger_allows_nothing(content: str, ledger: Ledger) -> None:
    ledger.path.parent.mkdir()
    ledger.path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="ledger"):
        ledger.quota("test", NOON)


def test_the_zone_of_a_run_stays(tmp_path: Path) -> None:
    """Two zones would make a day of more than 24 hours."""
    path = tmp_path / "ledger.csv"
    first = Ledger(path, "Asia/Shanghai")
    first.check_zone()
    add(first, "test", NOON)
    assert Ledger(path).zone.key == "Asia/Shanghai"
    Ledger(path, "Asia/Shanghai").check_zone()
    with pytest.raises(UserError, match=r"must stay Asia/Shanghai.* found UTC; .* --force"):
        Ledger(path, "UTC").check_zone()


@pytest.mark.parametrize(
    ("made_at", "now", "next_allowed"),
    [
        # 04:00 to 12:00 in UTC: the same day there, two days in Kiritimati (UTC+14).
        ("2025-03-04T04:00+00:00", "2025-03-04T12:00+00:00", "2025-03-05T14:00+14:00"),
        # 23:00 to 01:00 in UTC: two days there, one in Kiritimati.
        ("2025-03-03T23:00+00:00", "2025-03-04T01:00+00:00", "2025-03-05T00:00+14:00"),
    ],
)
def test_a_change_of_zone_starts_no_new_day(
    made_at: str, now: str, next_allowed: str, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.csv"
    for _ in range(DAILY_LIMITS["test"]):
        add(Ledger(path, "UTC"), "test", datetime.fromisoformat(made_at))
    moved = Ledger(path, "Pacific/Kiritimati")
    assert moved.changes_zone
    quota = moved.quota("test", datetime.fromisoformat(now))
    assert quota.is_spent
    assert quota.next_allowed.isoformat(timespec="minutes") == next_allowed
    assert moved.quota("test", quota.next_allowed).made == 0
    assert moved.quota("test", quota.next_allowed - timedelta(seconds=1)).is_spent


def test_going_back_and_forth_between_zones_gains_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    for zone in ("UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"):
        add(Ledger(path, zone), "test", NOON)
    for zone in ("UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Asia/Shanghai"):
        assert Ledger(path, zone).quota("test", NOON).made == 3
        # 13 hours later it is the next day in UTC, but not yet at Pago Pago (UTC-11).
        assert Ledger(path, zone).quota("test", NOON + timedelta(hours=13)).made >= 1


def test_submissions_made_at_once_are_all_recorded(ledger: Ledger) -> None:
    threads = [threading.Thread(target=add, args=(ledger, "test", NOON)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.entries) == 8
