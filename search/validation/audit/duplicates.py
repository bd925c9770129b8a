"""Sets of images that are one picture: the same file, or nearly the same pixels.

Every pair is compared, exactly and without an index: two words of a hash rule nearly all pairs out,
and what is left is looked at whole. Memory is that of one tile for each thread; time grows with the
square of the images. 20,000 random hashes took 7.9 s in one thread on a busy machine (load 7 on two
cores, `bench_audit.py --hashes 20000`); 500,000 have 625 times as many pairs and were not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import joblib
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import zscore

NEAR_BITS = 24
"""Of 256, that hashes of one picture differ in at most; see `search.validation.audit.contents`."""

NEAR_CORRELATION = 0.98
"""Least correlation of the thumbnails of one picture: hashes look at signs alone, and half a
million faces have some in common by chance."""

FLAT = 2.0
"""Standard deviation of a thumbnail, in levels of 255, below which there is nothing to compare: the
hash of a black image is noise."""

TILE = 2048
"""Images compared with as many others at a time; about 50 MB for each thread."""

MOST_PARTNERS = 64
"""Of an image in a tile, where there are many: what joins thousands of frames of one still scene,
without all of their pairs."""

MOST_LINKS = 1_000_000
"""Kept before they are reduced to what still joins the same images."""

Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Copies:
    """A set of images that are one picture."""

    rows: Integers  # at least two, ascending
    is_exact: bool  # the files are equal to the byte


def find_copies(
    checksums: Bytes,
    hashes: Bytes,
    thumbs: Bytes,
    workers: int = 1,
    compared: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Copies, ...]:
    """All sets of copies: exact ones, and near ones that are not just those.

    Args:
        checksums: (N, 16).
        hashes: (N, 32).
        thumbs: (N, 256).
        workers: threads that compare.
        compared: told how many tiles are done, and of how many.
    """
    count = len(checksums)
    if count < 2:
        return ()
    keys = np.ascontiguousarray(checksums).view(f"V{checksums.shape[1]}").ravel()
    _, first, exact = np.unique(keys, return_index=True, return_inverse=True)
    # Of equal files one is compared with the others.
    links = near_links(hashes[first], thumbs[first], workers, compared)
    found = [Copies(rows, is_exact=True) for rows in _sets(exact)]
    near = _components(links, len(first))[exact]
    several = (rows for rows in _sets(near) if len(np.unique(exact[rows])) > 1)
    return (*found, *(Copies(rows, is_exact=False) for rows in several))


def near_links(
    hashes: Bytes,
    thumbs: Bytes,
    workers: int = 1,
    compared: Callable[[int, int], None] = lambda *_: None,
) -> Integers:
    """Pairs of near images, as many as join all that belong together, (M, 2)."""
    kept = np.flatnonzero(_deviations(thumbs) >= FLAT)
    if len(kept) < 2:
        return np.empty((0, 2), np.int64)
    words = _telling_first(hashes[kept])
    starts = range(0, len(kept), TILE)
    tiles = [(a, b) for a in starts for b in starts if a <= b]
    threads = joblib.Parallel(
        n_jobs=max(1, workers), backend="threading", return_as="generator_unordered"
    )
    links, waiting = np.empty((0, 2), np.int64), 0
    parts: list[Integers] = []
    calls = (joblib.delayed(_near_pairs)(words, a, b) for a, b in tiles)
    for done, pairs in enumerate(threads(calls), 1):
        compared(done, len(tiles))
        if not len(pairs):
            continue
        rows = kept[pairs]
        rows = rows[_correlation(thumbs, rows) >= NEAR_CORRELATION]
        parts.append(_forest(rows))
        waiting += len(parts[-1])
        if waiting > MOST_LINKS:
            links = _forest(np.concatenate([links, *parts]))
            parts, waiting = [], 0
    links = _forest(np.concatenate([links, *parts]))
    return links[np.lexsort(links.T[::-1])]


def _telling_first(hashes: Bytes) -> NDArray[np.uint64]:
    """Hashes as words of 64 bits, (N, W), those bits first that divide these images best: in
    aligned faces some are nearly always the same."""
    bits = np.unpackbits(hashes, axis=1)
    order = np.argsort(np.abs(bits.mean(axis=0) - 0.5), kind="stable")
    return np.ascontiguousarray(np.packbits(bits[:, order], axis=1)).view(np.uint64)


def _near_pairs(words: NDArray[np.uint64], a: int, b: int) -> Integers:
    """Pairs of rows of two tiles whose hashes are near, (M, 2), each pair once."""
    first, second = words[a : a + TILE], words[b : b + TILE]
    later = ~np.tri(len(first), dtype=np.bool_) if a == b else None
    near = _distance(first, second, words=2) <= NEAR_BITS
    if later is not None:
        near &= later
    if np.count_nonzero(near) > MOST_PARTNERS * TILE:
        near &= _distance(first, second, words=words.shape[1]) <= NEAR_BITS
        near &= np.cumsum(near, axis=1, dtype=np.uint16) <= MOST_PARTNERS
    rows, columns = np.nonzero(near)
    bits = np.bitwise_count(first[rows] ^ second[columns]).sum(axis=1)
    pairs: Integers = np.column_stack([rows + a, columns + b])[bits <= NEAR_BITS]
    return pairs


def _distance(
    first: NDArray[np.uint64], second: NDArray[np.uint64], words: int
) -> NDArray[np.uint16]:
    """Bits in which each differs from each in the first words, (len(first), len(second))."""
    distance = np.zeros((len(first), len(second)), np.uint16)
    for word in range(words):
        distance += np.bitwise_count(first[:, None, word] ^ second[None, :, word])
    return distance


def _deviations(thumbs: Bytes) -> NDArray[np.float64]:
    """The standard deviation of each thumbnail, in levels of 255, (N,)."""
    pieces = (thumbs[start : start + TILE] for start in range(0, len(thumbs), TILE))
    return np.concatenate([piece.std(axis=1, dtype=np.float64) for piece in pieces])


def _correlation(thumbs: Bytes, pairs: Integers) -> NDArray[np.float32]:
    """Of the thumbnails of pairs of two tiles, (M,); each thumbnail is made a float once."""
    sides = []
    for rows in pairs.T:
        names, places = np.unique(rows, return_inverse=True)
        sides.append((zscore(thumbs[names].astype(np.float32), axis=1), places))
    (a, at_a), (b, at_b) = sides
    found: NDArray[np.float32] = (a @ b.T)[at_a, at_b] / thumbs.shape[1]
    return found


def _forest(links: Integers) -> Integers:
    """As few links as join the same images."""
    names, ends = np.unique(links, return_inverse=True)
    components = _components(ends.reshape(-1, 2), len(names))
    _, first = np.unique(components, return_index=True)
    heads = names[first[components]]
    joined = heads != names
    return np.column_stack([heads[joined], names[joined]])


def _components(links: Integers, count: int) -> Integers:
    """The number of its set for each of so many images, (count,)."""
    ones = np.ones(len(links), np.int8)
    graph = coo_matrix((ones, (links[:, 0], links[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _sets(labels: Integers) -> Iterator[Integers]:
    """Rows of equal labels, where there is more than one; in the order of their first rows."""
    order = np.argsort(labels, kind="stable")
    borders = np.flatnonzero(np.diff(labels[order])) + 1
    sets = [rows for rows in np.split(order, borders) if len(rows) > 1]
    yield from sorted(sets, key=lambda rows: int(rows[0]))
