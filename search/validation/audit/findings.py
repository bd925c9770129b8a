"""What an audit has found, as audit.json holds it, and its summary for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from search.validation.audit.leaks import FOLDS, Signal, Telling

FORMAT = 1
"""Of audit.json."""


@dataclass(frozen=True)
class AuditedImage:
    """An image that something is said of."""

    img_name: str
    split: str
    target: int
    group: str


@dataclass(frozen=True)
class BrokenFile:
    """An image that cannot be read."""

    image: AuditedImage
    reason: str


@dataclass(frozen=True)
class CopySet:
    """Images that are one picture."""

    is_exact: bool  # equal to the byte
    is_across_splits: bool
    has_both_labels: bool
    has_several_groups: bool
    images: tuple[AuditedImage, ...]


@dataclass(frozen=True)
class FarImage:
    """An image far from the rest."""

    image: AuditedImage
    what: str
    value: float
    median: float
    deviations: float


@dataclass(frozen=True)
class Finding:
    """Something that a network may learn instead of forgeries, or that makes figures lie."""

    kind: str  # a carrier of `search.validation.audit.headers`, duplicates or conflict
    text: str
    remedy: str


@dataclass(frozen=True)
class Audit:
    """What audit.json holds."""

    format: int
    splits: dict[str, dict[str, int]]
    images: int
    broken: int
    headers: Telling
    copies: dict[str, int]
    far: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    broken_files: tuple[BrokenFile, ...]
    copy_sets: tuple[CopySet, ...]
    far_images: tuple[FarImage, ...]
    seconds: float


def describe_signal(signal: Signal) -> str:
    """AUC with its interval: AUC 0.93 [0.91, 0.95]."""
    return f"AUC {signal.auc:.2f} [{signal.low:.2f}, {signal.high:.2f}]"


def summary(audit: Audit) -> Iterator[str]:
    """About ten lines."""
    sizes = ", ".join(f"{name} {split['images']:,}" for name, split in audit.splits.items())
    shares = ", ".join(
        f"{name} {split['fake'] / split['images']:.0%}" for name, split in audit.splits.items()
    )
    yield f"images: {audit.images:,} ({sizes}) in {audit.seconds:.0f} s"
    yield f"fakes: {shares}"
    yield f"broken files: {_broken(audit)}"
    told = audit.headers
    if told.combined is None:
        yield f"headers alone: {told.note}"
    else:
        yield (
            f"headers alone: {describe_signal(told.combined)} on {told.images:,} images of fit and "
            f"select, {FOLDS} folds by group"
        )
        best = ", ".join(f"{one.label} {one.auc:.2f}" for one in told.signals[:3])
        yield f"carried by: {best}"
    for name, label in (("exact", "equal files"), ("near", "near copies")):
        yield f"{label}: {_copies(audit.copies, name)}"
    yield f"far from the rest: {_far(audit)}"
    yield f"leaks: {len(audit.findings) or 'none found'}"
    for finding in audit.findings:
        yield f"  {finding.text}; {finding.remedy}"


def _broken(audit: Audit) -> str:
    if not audit.broken:
        return "none"
    kinds = Counter(one.reason for one in audit.broken_files)
    first = audit.broken_files[0]
    most, _ = kinds.most_common(1)[0]
    return f"{audit.broken:,}, most: {most}, for example {first.image.img_name}"


def _copies(counts: dict[str, int], name: str) -> str:
    if not counts[f"{name}_sets"]:
        return "none"
    return (
        f"{counts[f'{name}_images']:,} images in {counts[f'{name}_sets']:,} sets, "
        f"{counts[f'{name}_across_splits']:,} across splits, "
        f"{counts[f'{name}_with_both_labels']:,} with both labels"
    )


def _far(audit: Audit) -> str:
    if not audit.far:
        return "none"
    first = audit.far_images[0]
    return (
        f"{audit.far:,} images, farthest {first.image.img_name} ({first.what} {first.value:.3g}, "
        f"usually {first.median:.3g})"
    )
