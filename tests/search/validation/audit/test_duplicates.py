from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from search.validation.audit import duplicates
from search.validation.audit.duplicates import NEAR_BITS, NEAR_CORRELATION, find_copies, near_links

Bytes = NDArray[np.uint8]


def drawn(seed: int, sets: int, most: int) -> tuple[Bytes, Bytes]:
    """Hashes and thumbnails of pictures and of up to so many near copies of each, mixed."""
    generator = np.random.default_rng(seed)
    hashes, thumbs = [], []
    for _ in range(sets):
        bits = generator.integers(0, 2, 256, dtype=np.uint8)
        thumb = generator.integers(30, 226, 256)
        for _ in range(generator.integers(1, most + 1)):
            changed = bits.copy()
            changed[generator.choice(256, generator.integers(0, 15), replace=False)] ^= 1
            hashes.append(np.packbits(changed))
            thumbs.append(np.clip(thumb + generator.normal(0, 3, 256), 0, 255))
    order = generator.permutation(len(hashes))
    return np.array(hashes)[order], np.array(thumbs).astype(np.uint8)[order]


def plain_sets(hashes: Bytes, thumbs: Bytes) -> set[frozenset[int]]:
    """By comparing each with each, one after the other."""
    sets = [{row} for row in range(len(hashes))]
    for a in range(len(hashes)):
        for b in range(a):
            bits = sum(int(x ^ y).bit_count() for x, y in zip(hashes[a], hashes[b], strict=True))
            if bits <= NEAR_BITS:
                if np.corrcoef(thumbs[a], thumbs[b])[0, 1] < NEAR_CORRELATION:
                    continue
                joined = next(one for one in sets if a in one) | next(
                    one for one in sets if b in one
                )
                sets = [one for one in sets if not one & joined] + [joined]
    return {frozenset(one) for one in sets if len(one) > 1}


def found_sets(hashes: Bytes, thumbs: Bytes, workers: int = 1) -> set[frozenset[int]]:
    checksums = np.arange(len(hashes) * 16).reshape(-1, 16).astype(np.uint32).view(np.uint8)
    return {frozenset(one.rows.tolist()) for one in find_copies(checksums, hashes, thumbs, workers)}


@pytest.mark.parametrize("tile", [7, 64, 2048])
@pytest.mark.parametrize("links", [3, 1000])
def test_tiles_find_what_a_plain_comparison_finds(
    tile: int, links: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "TILE", tile)
    monkeypatch.setattr(duplicates, "MOST_LINKS", links)
    for seed in range(3):
        hashes, thumbs = drawn(seed, 30, 4)
        expected = plain_sets(hashes, thumbs)
        assert expected
        assert found_sets(hashes, thumbs) == expected
        assert found_sets(hashes, thumbs, workers=2) == expected


def test_it_is_told_how_far_the_comparison_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "TILE", 30)
    hashes, thumbs = drawn(0, 70, 1)
    told: list[tuple[int, int]] = []
    near_links(hashes, thumbs, 2, lambda *done: told.append(done))
    assert told == [(done, 6) for done in range(1, 7)]  # three tiles, each with each


def test_one_picture_a_thousand_times_is_one_set_by_few_links(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duplicates, "TILE", 300)
    generator = np.random.default_rng(0)
    hashes = np.repeat(generator.integers(0, 256, (1, 32), dtype=np.uint8), 1000, axis=0)
    thumbs = np.repeat(generator.integers(0, 256, (1, 256), dtype=np.uint8), 1000, axis=0)
    assert len(near_links(hashes, thumbs)) == 999
    assert found_sets(hashes, thumbs) == {frozenset(range(1000))}


def test_near_hashes_of_other_pictures_and_flat_images_are_no_copies() -> None:
    generator = np.random.default_rng(0)
    hashes = np.repeat(generator.integers(0, 256, (1, 32), dtype=np.uint8), 4, axis=0)
    others = generator.integers(0, 256, (2, 256), dtype=np.uint8)
    flat = np.full((2, 256), 9, np.uint8)
    assert found_sets(hashes, np.concatenate([others, flat])) == set()


def test_equal_files_are_exact_and_with_a_near_one_both() -> None:
    generator = np.random.default_rng(0)
    checksums = np.array([[1] * 16, [2] * 16, [1] * 16, [3] * 16], np.uint8)
    hashes = np.repeat(generator.integers(0, 256, (1, 32), dtype=np.uint8), 4, axis=0)
    hashes[1] = ~hashes[1]
    thumbs = np.repeat(generator.integers(0, 256, (1, 256), dtype=np.uint8), 4, axis=0)
    found = [(one.rows.tolist(), one.is_exact) for one in find_copies(checksums, hashes, thumbs)]
    assert found == [([0, 2], True), ([0, 2, 3], False)]


def test_of_one_image_there_is_no_copy() -> None:
    none = np.zeros((1, 32), np.uint8)
    assert find_copies(none[:, :16], none, np.zeros((1, 256), np.uint8)) == ()
