"""What was recorded comes back, whatever the names of the images."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.data.generated import Head, Sample, Source
from search.expand.journal import SampleJournal

HEAD = Head("1.0", {"kinds.py": "0" * 64}, {"pillow": "1.0"}, 0, "1" * 64)


def sample(name: str, group: str, number: int) -> Sample:
    source = Source(name, 0, "2" * 64)
    return Sample(f"{number}.bmp", "self-blended", 1, group, (source,), {}, "3" * 64)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c", "\n", " "])
def test_names_may_hold_any_separator_of_lines(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "unfinished.jsonl"
    recorded = [
        sample(f"a{separator}b.jpg", "g", 0),
        sample("c.jpg", f"g{separator}", 1),
    ]
    with SampleJournal(path) as journal:
        journal.begin(HEAD, ())
        for one in recorded:
            journal.add(one)
    with SampleJournal(path) as journal:
        assert journal.head == HEAD
        assert list(journal.samples.values()) == recorded


def test_a_line_that_a_kill_left_unfinished_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "unfinished.jsonl"
    with SampleJournal(path) as journal:
        journal.begin(HEAD, ())
        journal.add(sample("a.jpg", "g", 0))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"img_name": "half')
    with SampleJournal(path) as journal:
        journal.begin(HEAD, journal.samples)
        journal.add(sample("b.jpg", "g", 1))
    assert list(SampleJournal(path).samples) == ["0.bmp", "1.bmp"]
    assert path.read_bytes().startswith(whole)
