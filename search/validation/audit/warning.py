"""A look at a few headers, and at files of one size, before a search begins: the leaks that an
audit would surely find."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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

MOST_SECONDS_OF_SIZES, MOST_SECONDS_OF_FILES = 10.0, 5.0
"""After which no more files are asked for their size, half a million of which took 3.4 s on a busy
local drive, and no more are read."""

MOST_BYTES = 1_000_000_000
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
    given = table[~table["is_generated"]]
    parted = _parted(given) if splits.kind == "random" else ()
    return (*parted, *_classes(headers, read, seed), *_equal_files(given))


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


def _parted(table: pd.DataFrame) -> Iterator[str]:
    """Given groups whose images lie in several splits."""
    named = table[table["group"] != table["img_name"]]
    # Images of two folders may have one name; that makes no group of them.
    splits = table[table["group"].isin(set(named["group"]))].groupby("group")["split"].nunique()
    parted = splits.index[splits > 1]
    if len(parted):
        yield (
            f"{LEAK}--split random parts {len(parted):,} of {len(splits):,} groups, for example "
            f"'{parted[0]}': what a network learns of their images in fit flatters its figures on "
            "select and report; use --split group"
        )


def _equal_files(table: pd.DataFrame) -> Iterator[str]:
    """Equal files in several splits, among all that agree in size."""
    # Fit, the largest, comes last: in too short a time some of it is compared with all of the rest.
    table = table.iloc[::-1]
    sizes = _sizes(table["path"].tolist())
    table = table.iloc[: len(sizes)].assign(size=sizes)
    of_size = table.groupby("size")["split"]
    table = table.assign(files=of_size.transform("size"))
    table = table[(of_size.transform("nunique") > 1) & (table["size"] > 0)]
    # Where few files have a size, it is the less likely to be a chance.
    chosen = table.sort_values(["files", "size"], kind="stable")
    chosen = chosen[chosen["size"].cumsum() <= MOST_BYTES]
    shared, read = _in_several_splits(chosen)
    if shared:
        yield (
            f"{LEAK}equal files lie in several splits ({len(shared):,} among {read:,} of "
            f"{len(table):,} files that agree in size with one of another split, for example "
            f"{shared[0]}); give them one group or remove them; `python -m search audit` lists them"
        )


def _sizes(paths: Sequence[str]) -> NDArray[np.int64]:
    """In bytes, of the first files as far as the time allows, (N,); 0 where there is none."""
    sizes, deadline = [], time.monotonic() + MOST_SECONDS_OF_SIZES
    for number, path in enumerate(paths):
        if number % STEP == 0 and number and time.monotonic() > deadline:
            break
        try:
            sizes.append(os.stat(path).st_size)  # noqa: PTH116 - a third of the time
        except OSError:
            sizes.append(0)
    return np.array(sizes, np.int64)


def _in_several_splits(rows: pd.DataFrame) -> tuple[list[str], int]:
    """Names of images of which other splits hold the same file, one of each file; and how many were
    read in the time."""
    sums, deadline = {}, time.monotonic() + MOST_SECONDS_OF_FILES
    for number, (row, path) in enumerate(rows["path"].items()):
        if number % STEP == 0 and number and time.monotonic() > deadline:
            break
        with suppress(BrokenImage):
            sums[row] = checksum(path).hex()
    by_file = rows.loc[list(sums)].groupby(pd.Series(sums, dtype=object), sort=False)
    return by_file["img_name"].first()[by_file["split"].nunique() > 1].tolist(), len(sums)
