from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.errors import UserError
from search.study.decisions.layout import Rules
from search.study.prior import COLUMNS, PROBE, Probe, ordered, read_probes, settled, write_probes

RULES = Rules(first_look=2_000, finalists=1)
HOUR = 3600.0
"""Of which a tenth is there to begin configurations in."""


def probe(backbone: str, auc: float | None, speed: float | None, **more: Any) -> Probe:
    values: dict[str, Any] = {"image_size": 224, "images": 1_000, "folds": 5, "auc_spread": 0.02}
    return Probe(backbone, auc=auc, images_per_second=speed, **{**values, **more})


@pytest.mark.parametrize(
    ("probes", "left"),
    [
        # Slower and worse: 0.2 is more than twice the error of both, 0.019.
        ([probe("good", 0.8, 50), probe("bad", 0.6, 20)], ["good"]),
        # Worse, but faster, or hardly slower.
        ([probe("good", 0.8, 50), probe("fast", 0.6, 80)], ["good", "fast"]),
        ([probe("good", 0.8, 50), probe("even", 0.6, 48)], ["good", "even"]),
        # Slower, but not worse beyond doubt.
        ([probe("good", 0.8, 50), probe("near", 0.77, 20)], ["good", "near"]),
        ([probe("good", 0.8, 50), probe("vague", 0.6, 20, auc_spread=0.3)], ["good", "vague"]),
        # 2,000 images take it 250 s.
        ([probe("good", 0.6, 50), probe("slow", 0.9, 8)], ["good"]),
        ([probe("good", 0.6, 50), probe("in time", 0.9, 12)], ["good", "in time"]),
        # Too slow itself, it beats nobody.
        ([probe("slow", 0.9, 8), probe("slower", 0.6, 5), probe("quick", 0.55, 50)], ["quick"]),
        # All are: the fastest stays.
        ([probe("slow", 0.6, 8), probe("slower", 0.9, 5)], ["slow"]),
        # With those that are hardly slower.
        (
            [probe("fast", 0.6, 8), probe("better", 0.9, 7.6), probe("slow", 0.9, 5)],
            ["fast", "better"],
        ),
        # What is not known costs nothing.
        ([probe("good", 0.8, 50), Probe("unseen", 224)], ["good", "unseen"]),
        ([probe("good", 0.8, 50), probe("too few", None, 20)], ["good", "too few"]),
        ([probe("good", 0.8, 50), probe("no speed", 0.6, None)], ["good", "no speed"]),
    ],
)
def test_what_cannot_win_in_the_time_is_left_out(probes: list[Probe], left: list[str]) -> None:
    found = settled(probes, RULES, HOUR)
    assert [one.backbone for one in found if one.kept] == left
    for one in found:
        assert bool(one.reason) is (not one.kept)
    assert [replace(one, kept=None, reason="") for one in found] == probes


def test_without_a_time_limit_speed_costs_nobody_a_place() -> None:
    probes = [probe("good", 0.8, 50), probe("bad", 0.6, 20), probe("slow", 0.9, 0.01)]
    assert settled(probes, RULES, None) == tuple(replace(one, kept=True) for one in probes)


def test_some_of_those_that_are_worse_stay_to_be_merged() -> None:
    probes = [probe(f"b{rank}", 0.9 - 0.1 * rank, 50 - 10 * rank) for rank in range(4)]
    found = settled(probes, replace(RULES, finalists=3), HOUR)
    assert [one.kept for one in found] == [True, True, True, False]
    assert "slower than b0 (20 against 50 images/s)" in found[-1].reason
    assert "probe 0.600 ± 0.013 against 0.900 ± 0.013" in found[-1].reason


def test_why_is_added_to_what_could_not_be_found_out() -> None:
    slow = probe("slow", None, 1, reason="16 images are too few for the probe")
    _, found = settled([probe("good", 0.8, 50), slow], RULES, HOUR)
    assert found.reason == (
        "16 images are too few for the probe; its first look at 2,000 images would take 2,000 s, "
        "more than half of the 360 s to begin configurations in"
    )


def test_the_best_come_first_and_the_unknown_last() -> None:
    probes = [probe("x", None, 1), probe("a", 0.6, 1), probe("b", 0.7, 1), probe("c", 0.6, 1)]
    probes.append(probe("y", None, 9))
    assert [one.backbone for one in ordered(probes)] == ["b", "a", "c", "x", "y"]


def test_the_error_of_folds_that_share_their_images() -> None:
    assert probe("a", 0.7, 1).auc_error == pytest.approx(0.02 * math.sqrt(0.2 + 0.25))
    assert probe("a", 0.7, 1, folds=1).auc_error is None
    assert Probe("a", 224).auc_error is None


NUMBERS = st.none() | st.floats(0, 1e4, allow_nan=False)
PROBES = st.builds(
    Probe,
    backbone=st.text(st.characters(categories=("L", "N", "P")), min_size=1),
    image_size=st.integers(32, 512),
    images=st.integers(0, 1_000),
    folds=st.integers(0, 5),
    auc=NUMBERS,
    auc_spread=NUMBERS,
    images_per_second=NUMBERS,
    is_estimated=st.booleans(),
    seconds=st.floats(0, 1e4, allow_nan=False),
    kept=st.none() | st.booleans(),
    reason=st.text(st.characters(categories=("L", "N", "P", "Zs"))),
)


@given(st.lists(PROBES, max_size=3))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, probes: list[Probe]
) -> None:
    run = tmp_path_factory.mktemp("run")
    write_probes(probes, run)
    assert read_probes(run) == probes


def test_a_run_without_probes_has_none(tmp_path: Path) -> None:
    assert read_probes(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [
        *("", "backbone,image_size\na,224\n", "nothing", b"\xff\xfe\x00"),
        f"{','.join(COLUMNS)}\na,large{',' * (len(COLUMNS) - 2)}\n",
    ],
)
def test_a_damaged_file_is_told(content: str | bytes, tmp_path: Path) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / PROBE).write_bytes(raw)
    with pytest.raises(UserError, match=r"probe\.csv must (be a table|have the columns)"):
        read_probes(tmp_path)
