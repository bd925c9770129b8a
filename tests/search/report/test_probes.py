from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import spearmanr

from search.report.course import LOOK_COLUMNS
from search.report.probes import how_right, probed, rank_correlation
from search.study.prior import PROBE, Probe, write_probes

NAMES = "abcdef"


def named(*values: float) -> dict[str, float]:
    return dict(zip(NAMES, values, strict=False))


@pytest.mark.parametrize(
    ("second", "value", "chance"),
    [
        (named(0.7, 0.8, 0.9), 1.0, 1 / 6),
        (named(0.9, 0.8, 0.7), -1.0, 1.0),
        (named(0.7, 0.9, 0.8), 0.5, 3 / 6),
        (named(0.1, 0.2, 0.3, 0.5, 0.4), 0.9, 5 / 120),
    ],
)
def test_orders_are_compared_with_all_that_chance_could_give(
    second: dict[str, float], value: float, chance: float
) -> None:
    first = named(0.5, 0.6, 0.7, 0.8, 0.9)
    found = rank_correlation(first, second)
    assert found is not None
    assert found.value == pytest.approx(value)
    assert found.value == pytest.approx(
        spearmanr([first[name] for name in second], list(second.values())).statistic
    )
    assert found.count == len(second)
    assert found.chance == pytest.approx(chance)


@pytest.mark.parametrize("second", [{}, named(0.5, 0.6), named(0.5, 0.5, 0.5)])
def test_two_backbones_have_no_order_to_speak_of(second: dict[str, float]) -> None:
    assert rank_correlation(named(0.5, 0.6, 0.7), second) is None


def test_the_probe_is_compared_with_first_looks_and_ends() -> None:
    probes = [Probe(name, 32, auc=auc) for name, auc in named(0.9, 0.8, 0.7).items()]
    probes.append(Probe("unseen", 32))
    looks = [
        *[(0, "preset", "a", 100, 1.0, 1.0, 0.6), (1, "preset", "b", 100, 1.0, 2.0, 0.7)],
        *[(2, "preset", "c", 100, 1.0, 3.0, 0.8), (2, "preset", "c", 200, 2.0, 4.0, 0.1)],
        (3, "drawn", "a", 100, 1.0, 5.0, 0.9),
    ]
    rows: list[dict[str, Any]] = [
        {"state": "complete", "is_baseline": False, "backbone": name, "auc": auc}
        for name, auc in (("a", 0.9), ("a", 0.5), ("b", 0.8), ("c", 0.7))
    ]
    rows += [{**rows[0], "backbone": "c", "is_baseline": True, "auc": 0.99}]
    rows += [{**rows[0], "backbone": "c", "state": "paused", "auc": 0.99}]
    told = how_right(probes, rows, pd.DataFrame(looks, columns=list(LOOK_COLUMNS)))
    assert "first look at each preset: -1.00 over 3 backbones (as high in 100% of random" in told
    assert "unequally long: +1.00 over 3 backbones (as high in 17% of random orders)." in told
    few = how_right(probes[:2], rows, pd.DataFrame(looks, columns=list(LOOK_COLUMNS)))
    assert few == "Fewer than 3 backbones can be compared: no rank correlation is told."


def test_a_damaged_file_is_told_and_left_out(tmp_path: Path) -> None:
    lines: list[str] = []
    assert probed(tmp_path, lines.append) == []
    write_probes([Probe("a", 32, auc=0.5), Probe("b", 32, auc=0.6)], tmp_path)
    assert [probe.backbone for probe in probed(tmp_path, lines.append)] == ["b", "a"]
    assert lines == []
    (tmp_path / PROBE).write_text("nothing")
    assert probed(tmp_path, lines.append) == []
    assert "is left out" in lines[0]
