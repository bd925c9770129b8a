from __future__ import annotations

import numpy as np
import pytest

from search.validation.audit import outliers
from search.validation.audit.contents import STATISTICS, Contents
from search.validation.audit.headers import header_table


def test_each_is_held_against_the_median_of_what_it_is_far_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many there are, a median is taken once."""
    generator = np.random.default_rng(0)
    count, odd = 300, 20
    sides = generator.integers(60, 70, (count, 2)).astype(float)
    sides[:odd, 0], sides[odd : 2 * odd, 1] = 900.0, 900.0
    rows = [{"width": w, "height": h, "bytes_per_pixel": 1.0} for w, h in sides]
    contents = Contents(
        places=np.arange(count),
        headers=header_table(rows, range(count)),
        checksums=np.zeros((count, 16), np.uint8),
        hashes=np.zeros((count, 32), np.uint8),
        thumbs=generator.integers(0, 256, (count, 256), dtype=np.uint8),
        statistics=generator.uniform(90.0, 110.0, (count, len(STATISTICS))),
        broken={},
    )
    taken: list[int] = []
    median = np.median

    def counted(values: np.ndarray, axis: int | None = None) -> np.ndarray:
        taken.append(values.size)
        return median(values, axis=axis)

    monkeypatch.setattr(outliers.np, "median", counted)
    found = outliers.find_outliers(contents)
    assert {one.row: one.what for one in found} == {
        row: "width" if row < odd else "height" for row in range(2 * odd)
    }
    medians = dict(zip(("width", "height"), median(sides, axis=0), strict=True))
    assert all(one.median == medians[one.what] for one in found)
    assert len(taken) == 2
