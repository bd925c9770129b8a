"""`search audit`: what a data set gives away before a GPU hour is spent on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from rich.console import Console

from search.data.inputs import check_data, describe_data, read_splits
from search.data.splits import Splits, draw_part
from search.errors import UserError
from search.machine.files import short_path, write_json_atomically
from search.machine.progress import Bars, tell_line
from search.settings.data import DataSettings
from search.settings.saved import load_settings
from search.settings.subcommands import AuditSettings
from search.validation.audit.contents import Contents, look_at
from search.validation.audit.duplicates import Copies, find_copies
from search.validation.audit.findings import (
    FORMAT,
    Audit,
    AuditedImage,
    BrokenFile,
    CopySet,
    FarImage,
    Finding,
    describe_signal,
    summary,
)
from search.validation.audit.headers import FEATURES
from search.validation.audit.leaks import Signal, Telling, telling
from search.validation.audit.listing import listing
from search.validation.audit.outliers import find_outliers
from search.validation.audit.page import write_page

AUDIT, PAGE = "audit.json", "audit.html"

MOST_ROWS = 20_000
"""Images that models are fitted to: with so many an AUC is good to 0.01 and better."""

MOST_LISTED = 1_000
"""Broken files, sets of copies and outliers that are listed, each; all are counted."""

MOST_BROKEN = 0.05
"""Share from which a search would stop."""


def run_audit(settings: AuditSettings, console: Console) -> Audit:
    """Looks at every image once, writes audit.json and audit.html, and prints a summary.

    Args:
        settings: see there.
        console: where progress and the summary go.

    Raises:
        UserError: for bad input, or if no image can be read.
    """
    started = time.monotonic()
    out, data = _out_and_data(settings)
    splits = read_splits(data, tell=lambda line: tell_line(console, line))
    if settings.run is not None:
        check_data(settings.run, splits)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out must be a folder that can be made, found: {error}") from None
    table = listing(splits)
    workers = joblib.cpu_count() if settings.workers is None else settings.workers
    with Bars(console, time_left=True, transient=True) as bars:
        bar = bars.add("looking at", len(table), unit="images", plain="looked at")
        contents = look_at(table["path"].tolist(), table["img_name"].tolist(), workers, bar.update)
    if not len(contents.places):
        first = next(iter(contents.broken.values()))
        raise UserError(
            f"an audit needs images that can be read, found 0 of {len(table)}: {first}; check the "
            "folder"
        )
    with Bars(console, time_left=True, transient=True) as bars:
        bar = bars.add("comparing", unit="tiles", plain="compared")
        audit, headers = _judge(splits, table, contents, data, workers, bar.update, started)
    write_json_atomically(out / AUDIT, asdict(audit))
    write_page(audit, headers, out / PAGE)
    for line in summary(audit):
        tell_line(console, line)
    tell_line(console, f"wrote {short_path(out / AUDIT)}, {short_path(out / PAGE)}")
    return audit


def _out_and_data(settings: AuditSettings) -> tuple[Path, DataSettings]:
    """Where the results go, and which images they are of."""
    if settings.run is None:
        out = settings.out or settings.default_out
        return out.expanduser().absolute(), settings
    return (settings.out or settings.run).expanduser().absolute(), load_settings(settings.run)


def _judge(
    splits: Splits,
    table: pd.DataFrame,
    contents: Contents,
    data: DataSettings,
    workers: int,
    compared: Callable[[int, int], None],
    started: float,
) -> tuple[Audit, pd.DataFrame]:
    """The audit of what was seen, and the headers that it speaks of, with their targets."""
    read = table.iloc[contents.places].reset_index(drop=True)
    images = list(map(_image, table.to_dict("records")))
    # Without group files an image is its own group, by a name that both sets may have.
    has_val = data.is_demo or data.val_labels is not None
    read["is_train"] = (read["split"] == "fit") | (not has_val)
    # What labels are told by, a search might be changed by: report is left out.
    is_given = ~read["is_generated"]
    asked = draw_part(read[is_given & (read["split"] != "report")], MOST_ROWS, data.seed)
    headers = contents.headers.loc[asked.index]
    targets = asked["target"].to_numpy()
    groups = asked.groupby(["is_train", "group"]).ngroup().to_numpy().astype(np.int64)
    told = telling(headers, targets, groups, data.seed)
    copies = find_copies(contents.checksums, contents.hashes, contents.thumbs, workers, compared)
    sets = [
        _copy_set(
            one,
            [images[place] for place in contents.places[one.rows].tolist()],
            read.iloc[one.rows][["is_train", "group"]],
        )
        for one in copies
    ]
    # Those that something follows from come first, should there be more than are listed.
    sets.sort(key=lambda one: (one.has_both_labels, one.is_across_splits, one.is_exact))
    sets.reverse()
    given = contents.only(is_given.to_numpy())
    far = find_outliers(given)
    audit = Audit(
        format=FORMAT,
        splits=describe_data(splits)["splits"],
        images=len(table),
        broken=len(contents.broken),
        headers=told,
        copies=_count_copies(sets),
        far=len(far),
        findings=(*_told_findings(told), *_copy_findings(sets, data)),
        notes=tuple(_notes(table, contents, told, sets)),
        broken_files=tuple(
            BrokenFile(images[place], reason) for place, reason in contents.broken.items()
        )[:MOST_LISTED],
        copy_sets=tuple(sets[:MOST_LISTED]),
        far_images=tuple(
            FarImage(images[given.places[one.row]], one.what, one.value, one.median, one.deviations)
            for one in far[:MOST_LISTED]
        ),
        seconds=round(time.monotonic() - started, 1),
    )
    return audit, headers.assign(target=targets)


def _image(row: Mapping[Any, Any]) -> AuditedImage:
    return AuditedImage(
        str(row["img_name"]), str(row["split"]), int(row["target"]), str(row["group"])
    )


def _copy_set(copies: Copies, images: list[AuditedImage], groups: pd.DataFrame) -> CopySet:
    return CopySet(
        is_exact=copies.is_exact,
        is_across_splits=len({one.split for one in images}) > 1,
        has_both_labels=len({one.target for one in images}) > 1,
        has_several_groups=len(groups.drop_duplicates()) > 1,
        images=tuple(images),
    )


def _count_copies(sets: list[CopySet]) -> dict[str, int]:
    """How many sets, images, and sets of each kind there are."""
    counts: dict[str, int] = {}
    for name, is_exact in (("exact", True), ("near", False)):
        found = [one for one in sets if one.is_exact == is_exact]
        counts |= {
            f"{name}_sets": len(found),
            f"{name}_images": sum(len(one.images) for one in found),
            f"{name}_across_splits": sum(one.is_across_splits for one in found),
            f"{name}_with_both_labels": sum(one.has_both_labels for one in found),
        }
    return counts


def _told_findings(told: Telling) -> Iterator[Finding]:
    """One for each carrier of a leak, told by its strongest feature; carriers that a network sees
    come first."""
    carriers = {one.carrier.name: one.carrier for one in FEATURES}
    strongest: dict[str, Signal] = {}
    for signal in told.signals:
        if signal.is_leak:
            strongest.setdefault(signal.carrier, signal)
    for name, signal in sorted(strongest.items(), key=lambda item: not carriers[item[0]].is_seen):
        text = f"{signal.label} alone: {describe_signal(signal)}"
        yield Finding(name, text, carriers[name].remedy)
    if told.combined is not None and told.combined.is_leak and not strongest:
        text = f"headers together: {describe_signal(told.combined)}"
        yield Finding("combination", text, "look at the strongest features: none tells it alone")


def _copy_findings(sets: list[CopySet], data: DataSettings) -> Iterator[Finding]:
    if data.val_labels is None:
        apart = "give the images of one picture one group (--train-groups)"
    else:
        apart = "remove them from one of the label files"
    groups = "--train-groups" if data.val_labels is None else "--train-groups and --val-groups"
    conflicts = [one for one in sets if one.is_exact and one.has_both_labels]
    if conflicts:
        yield Finding(
            "conflict",
            f"{_count(conflicts)} of equal files have both labels, {_example(conflicts[0])}",
            "one label of each is wrong: correct it, or remove the images",
        )
    parted = [
        one for one in sets if not one.is_exact and one.has_both_labels and one.has_several_groups
    ]
    if parted:
        yield Finding(
            "conflict",
            f"{_count(parted)} of near copies in different groups have both labels, "
            f"{_example(parted[0])}",
            f"correct the labels; where a forgery lies beside its real image, give both one group "
            f"({groups})",
        )
    across = [one for one in sets if one.is_across_splits]
    if across:
        exact = sum(one.is_exact for one in across)
        yield Finding(
            "duplicates",
            f"{_count(across)} of copies lie in several splits ({exact:,} equal to the byte), "
            f"{_example(across[0])}",
            apart,
        )


def _count(sets: list[CopySet]) -> str:
    return f"{len(sets):,} set{'' if len(sets) == 1 else 's'}"


def _example(copies: CopySet) -> str:
    """Two of the images, as different as the set has them."""
    first = copies.images[0]
    other = max(
        copies.images[1:],
        key=lambda one: (one.target != first.target) + (one.split != first.split),
    )
    told = " and ".join(
        f"{one.img_name} ({one.split}, {('real', 'fake')[one.target]})" for one in (first, other)
    )
    return f"for example {told}"


def _notes(
    table: pd.DataFrame, contents: Contents, told: Telling, sets: list[CopySet]
) -> Iterator[str]:
    """What a reader should know beside the findings."""
    if told.note:
        yield f"Headers: {told.note}."
    generated = int(table["is_generated"].sum())
    if generated:
        yield (
            f"{generated:,} generated samples are looked at for copies alone: how `search expand` "
            "writes them tells nothing of the images that were given."
        )
    share = len(contents.broken) / len(table)
    if share > MOST_BROKEN:
        yield f"{share:.0%} of the images cannot be read: a search stops above {MOST_BROKEN:.0%}."
    pairs = sum(
        one.has_both_labels and not one.has_several_groups for one in sets if not one.is_exact
    )
    if pairs:
        yield (
            f"{pairs:,} sets of near copies have both labels within one group: forgeries beside "
            "their real image, as it should be."
        )
    loose = sum(one.has_several_groups and not one.is_across_splits for one in sets)
    if loose:
        yield (
            f"{loose:,} sets of copies lie in one split but in several groups: another division "
            "of the images, or an interval by groups, would part them."
        )
    weak = [one for one in told.signals if one.low > 0.5 and not one.is_leak]
    if weak:
        names = ", ".join(f"{one.label} {one.auc:.2f}" for one in weak)
        yield (
            f"More than chance, and no leak by itself: {names}. What an image shows changes its "
            "bytes as well: a smooth forgery takes fewer."
        )
