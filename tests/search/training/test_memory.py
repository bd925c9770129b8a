from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from search.training.device import keep_freed_memory


class Library(SimpleNamespace):
    """A C library whose mallopt records what it is told."""


def test_both_thresholds_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(sys, "platform", "linux")

    def load(_: Any) -> Library:
        return Library(mallopt=lambda name, value: told.append((name, value)) or 1)  # type: ignore[func-returns-value]

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert keep_freed_memory()
    assert told == [(-3, 2**30), (-1, -1)]


@pytest.mark.parametrize(
    ("platform", "library"),
    [
        ("darwin", Library(mallopt=lambda *_: 1)),
        ("linux", Library()),  # musl
        ("linux", Library(mallopt=lambda *_: 0)),
    ],
)
def test_where_it_cannot_be_set_it_says_so(
    platform: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert not keep_freed_memory()
