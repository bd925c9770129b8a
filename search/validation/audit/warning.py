"""A look at a few headers before a search begins: the leaks that an audit would surely find."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby

import pandas as pd

from search.data.splits import Splits
from search.pixels.images import BrokenImage
from search.validation.audit.contents import checksum
from search.validation.audit.headers import FEATURES, join_headers, read_headers
from search.validation.audit.leaks import telling
from search.validation.audit.listing import listing

LEAK = "Leak: "
"""What a warning begins with, in the notes of a run too."""

MOST_OF_A_CLASS = 2_000
"""Images whose headers are read."""

MOST_SECONDS = 2.0
"""After which no more headers are read: on a network drive each may take a second's tenth."""

MOST_BYTES = 64_000_000
"""Read of files that may be equal."""

STEP = 100


def leak_warnings(splits: Splits, seed: int) -> tuple[str, ...]:
    """A line for each leak across classes or splits that a sample shows; none on most sets.

    A leak through what no network sees, names and times, is left to the audit.

    Args:
        splits: the images, without samples that were generated; of report only whether files of
            other splits lie in it.
        seed: of the sample.
    """
    table = listing(splits)
    drawn = table[~table["is_generated"]].sample(frac=1.0, random_state=seed)
    drawn = drawn[drawn.groupby("target").cumcount() < MOST_OF_A_CLASS]
    found, deadline = [], time.monotonic() + MOST_SECONDS
    for start in range(0, len(drawn), STEP):
        piece = drawn.iloc[start : start + STEP]
        headers = read_headers(piece["path"].tolist(), piece["img_name"].tolist())
        found.append((headers, piece.iloc[headers.index]))
        if time.monotonic() > deadline:
            break
    headers = join_headers(one for one, _ in found)
    read = pd.concat([rows for _, rows in found], ignore_index=True)
    return (*_classes(headers, read, seed), *_splits(headers, read))


def _classes(headers: pd.DataFrame, read: pd.DataFrame, seed: int) -> Iterator[str]:
    """Of the carriers that a network sees, the strongest feature of each."""
    chosen = (read["split"] != "report").to_numpy()
    seen = [one for one in FEATURES if one.carrier.is_seen]
    told = telling(
        headers[chosen],
        read["target"].to_numpy()[chosen],
        pd.factorize(read["group"][chosen])[0],
        seed,
        features=seen,
        with_combined=False,
    )
    carriers = {one.carrier.name: one.carrier for one in seen}
    for signal in told.signals:
        if signal.is_leak and (carrier := carriers.pop(signal.carrier, None)) is not None:
            yield (
                f"{LEAK}{signal.label} alone tells fakes at AUC {signal.auc:.2f} "
                f"({told.images:,} headers); {carrier.remedy}; `python -m search audit` says more"
            )


def _splits(headers: pd.DataFrame, read: pd.DataFrame) -> Iterator[str]:
    """Equal files in several splits, among those that agree in size."""
    sizes = list(headers[["bytes", "width", "height"]].itertuples(index=False, name=None))
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    split, left = read["split"].tolist(), MOST_BYTES
    shared: list[str] = []
    for size, places in groupby(order, key=sizes.__getitem__):
        rows = list(places)
        if len({split[row] for row in rows}) > 1:
            left -= int(size[0]) * len(rows)
            if left < 0:
                break
            shared += _in_several_splits(read.iloc[rows])
    if shared:
        yield (
            f"{LEAK}equal files lie in several splits ({len(shared):,} among {len(read):,} images, "
            f"for example {shared[0]}); give them one group or remove them; `python -m search "
            "audit` lists them"
        )


def _in_several_splits(rows: pd.DataFrame) -> list[str]:
    """Names of images of which other splits hold the same file, one of each file."""
    sums = {}
    for row, path in rows["path"].items():
        with suppress(BrokenImage):
            sums[row] = checksum(path).hex()
    by_file = rows.loc[list(sums)].groupby(pd.Series(sums), sort=False)
    return by_file["img_name"].first()[by_file["split"].nunique() > 1].tolist()
