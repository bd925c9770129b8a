"""Fakes that are shown mixed with a real of their group: which, with which, and what is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from search.errors import UserError
from search.pixels.augmentation.additions import Additions
from search.pixels.augmentation.augment import Augmentation
from search.pixels.augmentation.blending import mix
from search.pixels.cache import fill_cache, open_cache
from search.pixels.canvas import read_canvas
from search.pixels.loading.batches import Batch
from search.pixels.loading.epochs import train_batches, with_views
from search.pixels.loading.pairing import Partners
from search.pixels.loading.reading import Reader
from search.pixels.quarantine import Quarantine

SIDE = 24
STRONG = Augmentation("strong", 0.5, Additions(compression_quality=80))


def partners(share: float, images: int = 4000) -> tuple[Partners, np.ndarray[Any, Any]]:
    """Of groups of two reals and two fakes each, but in the last half, which has fakes alone; and
    the seed of each image's view."""
    rows = np.arange(images)
    targets = np.where(rows < images // 2, rows % 2, 1)
    return Partners.of(rows // 4, targets, share), with_views(rows, seed=1, epoch=0)[1]


def found_of(chosen: Partners, seeds: np.ndarray[Any, Any]) -> dict[int, int]:
    found = {row: chosen.find(row, seed) for row, seed in enumerate(seeds.tolist())}
    return {row: real for row, real in found.items() if real is not None}


def test_a_share_of_the_fakes_is_mixed_each_with_a_real_of_its_group() -> None:
    chosen, seeds = partners(0.25)
    found = found_of(chosen, seeds)
    # Binomial(1000, 1/4) is within 75 of 250 with probability 1 - 4e-8.
    assert len(found) == pytest.approx(250, abs=75)
    for row, real in found.items():
        assert chosen.targets[row] == 1
        assert chosen.targets[real] == 0
        assert row // 4 == real // 4
    first = sum(real % 4 == 0 for real in found.values())
    assert 0.3 < first / len(found) < 0.7


def test_another_share_changes_neither_the_others_nor_their_partners() -> None:
    few, seeds = partners(0.25)
    more, _ = partners(0.75)
    assert found_of(few, seeds).items() <= found_of(more, seeds).items()
    everyone, _ = partners(1.0)
    assert set(found_of(everyone, seeds)) == set(range(1, 2000, 2))
    none, _ = partners(0.0)
    assert not found_of(none, seeds)
    later = with_views(np.arange(4000), seed=1, epoch=1)[1]
    assert found_of(few, later) != found_of(few, seeds)


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    """Six groups of a dark real and three bright fakes; the last two groups lack the real."""
    generator = np.random.default_rng(0)
    rows = [(group, place) for group in range(6) for place in range(4) if group < 4 or place]
    names = [f"{group}-{place}.png" for group, place in rows]
    for name, (_, place) in zip(names, rows, strict=True):
        low = 0 if place == 0 else 180
        noise = generator.integers(low, low + 70, (SIDE, SIDE + 4, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    return pd.DataFrame(
        {
            "img_name": names,
            "path": [str(tmp_path / name) for name in names],
            "target": [int(place > 0) for _, place in rows],
            "group": [f"group {group}" for group, _ in rows],
        }
    )


def batches_of(
    table: pd.DataFrame,
    *,
    start: int = 0,
    augmentation: Augmentation | None = STRONG,
    reader: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[Batch]:
    with Reader(SIDE, **(reader or {})) as read:
        loader = train_batches(read, table, augmentation, **{"batch_size": 4, "seed": 1, **options})
        return [batch for _, batch in loader.numbered(start)]


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.seeds, b.seeds)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.show([16])[16], b.show([16])[16])


def test_a_fake_is_mixed_before_everything_else(table: pd.DataFrame) -> None:
    chosen = Partners.of(pd.factorize(table["group"])[0], table["target"].to_numpy(), 1.0)
    plain = batches_of(table)
    changed = 0
    for batch, own in zip(batches_of(table, mixed=1.0), plain, strict=True):
        for column in ("indices", "seeds", "targets"):
            assert torch.equal(getattr(batch, column), getattr(own, column))
        for place, (row, seed) in enumerate(
            zip(batch.indices.tolist(), batch.seeds.tolist(), strict=True)
        ):
            canvas, partner = read_canvas(table["path"][row], SIDE), chosen.find(row, seed)
            if partner is not None:
                canvas = mix(canvas, read_canvas(table["path"][partner], SIDE), seed)
            else:
                assert torch.equal(batch.canvases[place], own.canvases[place])
            assert torch.equal(batch.canvases[place], STRONG.prepare(canvas, seed))
            changed += not torch.equal(batch.canvases[place], own.canvases[place])
    assert changed > 3  # of twelve fakes with a real; small blobs leave them as they are


def test_nothing_is_mixed_where_no_group_has_both_classes(table: pd.DataFrame) -> None:
    alone = table.assign(group=table["img_name"])
    assert_same(batches_of(alone, mixed=1.0), batches_of(alone))


def test_views_depend_neither_on_workers_nor_on_the_batch_nor_on_the_start(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    expected = batches_of(table, mixed=0.7, blended=0.3)
    for renders in (False, True):
        assert_same(
            batches_of(table, mixed=0.7, blended=0.3, reader={"workers": 2, "renders": renders}),
            expected,
        )
    cache = open_cache(str(tmp_path / "cache"), table["path"].tolist(), SIDE, print)
    assert cache is not None
    fill_cache(cache, print)
    assert_same(batches_of(table, mixed=0.7, blended=0.3, reader={"cache": cache}), expected)
    assert_same(batches_of(table, mixed=0.7, blended=0.3, start=2), expected[2:])
    views = [
        {
            (int(row), int(seed)): view
            for batch in batches
            for row, seed, view in zip(
                batch.indices, batch.seeds, batch.show([16])[16], strict=True
            )
        }
        for batches in (expected, batches_of(table, mixed=0.7, blended=0.3, batch_size=5))
    ]
    common = views[0].keys() & views[1].keys()
    assert len(common) > 15
    assert all(torch.equal(views[0][key], views[1][key]) for key in common)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fake_whose_real_is_broken_stays_as_it_is(table: pd.DataFrame, workers: int) -> None:
    """Whenever the real is found broken, also by the fake that needs it."""
    own = {
        row: canvas
        for batch in batches_of(table)
        for row, canvas in zip(batch.indices.tolist(), batch.canvases, strict=True)
    }
    Path(table["path"][0]).write_bytes(b"")
    quarantine = Quarantine(None, 1.0)
    options = {"workers": workers, "quarantine": quarantine}
    found = batches_of(table, mixed=1.0, reader=options)
    assert quarantine.names == {"0-0.png"}
    assert_same(batches_of(table, mixed=1.0, reader=options), found)  # known from the start
    same = {
        row: torch.equal(canvas, own[row])
        for batch in found
        for row, canvas in zip(batch.indices.tolist(), batch.canvases, strict=True)
    }
    assert 0 not in same
    assert all(same[row] for row in (1, 2, 3) if row in same)
    assert not all(same.values())


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_what_is_no_share_is_told(table: pd.DataFrame, share: float) -> None:
    with pytest.raises(UserError, match=f"mixed must be from 0 to 1, found {share}"):
        batches_of(table, mixed=share)
