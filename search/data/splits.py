"""Tables -> fit (trained on), select (chosen by) and report (read once, at the end)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

from search.data.assignment import SPLITS
from search.data.generated import Generated
from search.data.labels import NO_METHOD, check_two_classes
from search.data.placing import place_groups
from search.data.unseen import LEFT_OUT, TRAIN, VAL, Division
from search.errors import UserError

HELD_OUT_FOLDS = (3, 10)
"""Share of the training set that select and report get together where no validation set is given,
as so many folds of so many."""
HALF = (1, 2)

Share = tuple[int, int]
"""So many folds of so many."""

Kind = Literal["random", "group", "unseen"]
"""How images are divided, see `SearchSettings.split`."""

_Integers = NDArray[np.int64]

TrainedOn = Literal["fit", "fit+select", "all"]
"""What a network was trained on."""

SEEN: Mapping[TrainedOn, tuple[str, ...]] = {
    "fit": ("fit",),
    "fit+select": ("fit", "select"),
    "all": ("fit", "select", "report"),
}
"""The splits that it has seen by that, and that cannot measure it any more."""


@dataclass(frozen=True, eq=False)  # tables do not compare to a bool; fingerprints do
class Splits:
    """Three label tables that share no image and, unless they were divided at random, no group."""

    fit: pd.DataFrame  # what networks are trained on
    select: pd.DataFrame  # what the search chooses by
    report: pd.DataFrame  # what nothing is chosen by
    generated: Generated | None = None  # what of fit was made of the rest of it
    kind: Kind = "group"
    division: Division | None = None
    """Of all images, before limits; None unless forgeries are held out by method."""
    left_out: pd.DataFrame | None = None
    """Fakes that the division keeps from all three; None with limits, which keep others back."""
    altered: pd.DataFrame | None = None
    """Some images of select once more, altered, see `search.pixels.altered`."""
    images: tuple[str, ...] = ()
    """Paths of all images of the label files and all generated samples, before limits and however
    they are divided; empty where that is not known."""

    def seen_by(self, trained_on: TrainedOn) -> Splits:
        """The same images as a training sees them: fit is all that it is trained on, and what that
        takes from the other splits leaves them empty, so that nothing seen can be scored. Fakes
        that were left out because they would have shown fit what these hold out come back."""
        named = {"fit": self.fit, "select": self.select, "report": self.report}
        seen = SEEN[trained_on]
        if seen == ("fit",):
            return self
        back = [] if self.left_out is None else [self._come_back(self.left_out, seen)]
        fit = pd.concat([*(named[name] for name in seen), *back], ignore_index=True)
        unseen = {name: table.iloc[:0] if name in seen else table for name, table in named.items()}
        select, report = told_apart(fit, [unseen["select"], unseen["report"]])
        return replace(
            self,
            fit=fit,
            select=select,
            report=report,
            generated=None,
            left_out=None,
            altered=None if "select" in seen else self.altered,
        )

    def _come_back(self, left_out: pd.DataFrame, seen: Collection[str]) -> pd.DataFrame:
        """Those that show nothing of the splits that are not seen: no method, no group."""
        assert self.division is not None
        kept = self.division.rows[["split", "group"]]
        groups = set(kept["group"][~kept["split"].isin({*seen, LEFT_OUT})])
        others = set(SPLITS) - set(seen)
        methods = {m for m, split in self.division.methods.items() if split in others}
        if others:
            methods.add(NO_METHOD)  # It may be one of theirs.
        shows = left_out["group"].isin(groups) | left_out["method"].isin(methods)
        return left_out[~shows]

    def fingerprint(self) -> str:
        """SHA-256 in hex of the names, targets and groups of all splits, in their order, and of
        which fakes are unseen; it does not change when the images move to another folder."""
        digest = hashlib.sha256()
        for table in (self.fit, self.select, self.report):
            columns = [table[column].tolist() for column in ("img_name", "target", "group")]
            digest.update(json.dumps(columns).encode())
            # A new name of a method may make other fakes unseen.
            if "unseen" in table and table["unseen"].any():
                digest.update(json.dumps(table["unseen"].tolist()).encode())
        if self.generated is not None:
            digest.update(self.generated.manifest_sha256.encode())
        return digest.hexdigest()


def make_splits(
    train: pd.DataFrame,
    val: pd.DataFrame | None,
    *,
    limit_train: int | None,
    limit_val: int | None,
    seed: int,
    kind: Literal["random", "group"] = "group",
) -> Splits:
    """Divides label tables by group, with the same share of fakes in every part.

    With a validation set, fit is the training set, and select and report are halves of the
    validation set. Without one, the training set is divided 70:15:15.

    Limits thin out what the division without limits gives: with one seed, a short run never
    selects on an image that a full run reports on.

    Args:
        train: label table.
        val: label table, or None.
        limit_train: most images of fit; whole groups are drawn, so there may be a few less.
        limit_val: most images of select and report together, half each.
        seed: of the division and the draws.
        kind: `random` divides image by image, whatever their groups: what was usual, and how much
            it flatters. The groups stay in the tables.

    Raises:
        UserError: if a set or a split holds one class only, an image or (unless `random`) a group
            is in both sets, too few groups hold a class for each split to have one, or a limit is
            too small.
    """
    _check_limits(limit_train, limit_val)
    check_two_classes(train, "the training set")
    if kind == "random":
        splits = make_splits(
            _ungrouped(train),
            None if val is None else _ungrouped(val),
            limit_train=limit_train,
            limit_val=limit_val,
            seed=seed,
        )
        fit, select, report = map(_regrouped, (splits.fit, splits.select, splits.report))
        return Splits(fit, select, report, kind=kind)
    divide_seed, *limit_seeds = _seeds(seed)
    if val is None:
        shares = [HELD_OUT_FOLDS, HALF]
        fit, select, report = _divide(train, shares, "the training set", divide_seed)
    else:
        check_two_classes(val, "the validation set")
        check_apart(train, val)
        fit = train
        select, report = _divide(val, [HALF], "the validation set", divide_seed)
    fit, select, report = _limited([fit, select, report], limit_train, limit_val, limit_seeds)
    return Splits(fit, select, report, kind=kind)


def splits_of(
    division: Division,
    train: pd.DataFrame,
    val: pd.DataFrame | None,
    *,
    limit_train: int | None,
    limit_val: int | None,
    seed: int,
) -> Splits:
    """The splits of a division by forgery method, with its methods; limits as in `make_splits`.

    Raises:
        UserError: if an image is not in the division, a split holds one class only, or a limit is
            too small.
    """
    _check_limits(limit_train, limit_val)
    sets = [(TRAIN, train)] if val is None else [(TRAIN, train), (VAL, val)]
    joined = []
    for name, table in sets:
        known = division.split_of(name, table)
        unknown = table["img_name"][known["split"].isna()]
        if len(unknown):
            raise UserError(
                f"every image must be in the division of the run, {len(unknown)} of {len(table)} "
                f"of the {name} set are not, for example {unknown.iloc[0]}; restore the label "
                "files, or choose another --out"
            )
        joined.append(table.assign(method=known["method"], split=known["split"]))
    rows = pd.concat(joined, ignore_index=True)
    parts = [rows[rows["split"] == split].drop(columns="split") for split in SPLITS]
    _, *limit_seeds = _seeds(seed)
    fit, select, report = _limited(parts, limit_train, limit_val, limit_seeds)
    left_out = None
    if limit_train is None and limit_val is None:
        left_out = rows[rows["split"] == LEFT_OUT].drop(columns="split")
    return Splits(fit, select, report, kind="unseen", division=division, left_out=left_out)


def _ungrouped(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each image as its own group; what groups it had is put aside."""
    return table.assign(own_group=table["group"], group=table["path"])


def _regrouped(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the groups that it had."""
    return table.assign(group=table["own_group"]).drop(columns="own_group")


def _seeds(seed: int) -> list[int]:
    """Of the division, and of the draw from each of the three parts."""
    seeds: list[int] = np.random.SeedSequence(abs(seed)).generate_state(4).tolist()
    return seeds


def _limited(
    parts: list[pd.DataFrame],
    limit_train: int | None,
    limit_val: int | None,
    seeds: list[int],
) -> list[pd.DataFrame]:
    """Fit, select and report, thinned out."""
    half = None if limit_val is None else limit_val // 2
    limits = (limit_train, None if half is None or limit_val is None else limit_val - half, half)
    # Before the draw: a method that fit loses by it is still fit's, and in both other splits.
    whole = [parts[0], *told_apart(parts[0], parts[1:])]
    drawn = [
        draw_part(part, limit, seed).reset_index(drop=True)
        for part, limit, seed in zip(whole, limits, seeds, strict=True)
    ]
    for part, name in zip(drawn, SPLITS, strict=True):
        check_two_classes(part, f"the split '{name}'")
    return drawn


def told_apart(fit: pd.DataFrame, parts: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Parts with a column `unseen`: fakes of a method that fit lacks, and lacked before where the
    column is there. Without it where no method is known; a fake without a known method counts as
    seen."""
    if "method" not in fit or not (set(fit["method"]) - {NO_METHOD}):
        return [part.drop(columns="unseen", errors="ignore") for part in parts]
    seen = {*fit["method"], NO_METHOD}
    return [
        part.assign(
            unseen=(part["target"] == 1)
            & ~part["method"].isin(seen)
            & part.get("unseen", pd.Series(True, index=part.index))
        )
        for part in parts
    ]


def _check_limits(limit_train: int | None, limit_val: int | None) -> None:
    for flag, limit, least in (("--limit-train", limit_train, 2), ("--limit-val", limit_val, 4)):
        if limit is not None and limit < least:
            raise UserError(f"{flag} must be at least {least}, found {limit}")


def check_apart(train: pd.DataFrame, val: pd.DataFrame) -> None:
    """Checks that no image and no group is in both sets.

    Equal names in different folders are different images; they make a common group only where a
    group file puts other images into it.

    Raises:
        UserError: naming the first one that is.
    """
    paths = val["path"][val["path"].isin(set(train["path"]))]
    if len(paths):
        raise UserError(
            "no image may be in both the training and the validation set, found "
            f"{len(paths)}, for example {paths.iloc[0]}; remove them from one of the lists"
        )
    named = pd.concat(
        [table["group"][table["group"] != table["img_name"]] for table in (train, val)]
    )
    common = val["group"][
        val["group"].isin(set(train["group"])) & val["group"].isin(set(named))
    ].unique()
    if len(common):
        raise UserError(
            "no group may be in both the training and the validation set, found "
            f"{len(common)}, for example '{common[0]}'; remove them from one of the sets"
        )


def _divide(
    table: pd.DataFrame, shares: Sequence[Share], what: str, seed: int
) -> list[pd.DataFrame]:
    """One part more than there are shares, each of both classes: a share is taken off the whole,
    the next one off that, and so on."""
    with suppress(ValueError):  # of scikit-learn, for too few images or groups of a class
        parts = [table]
        for share in shares:
            parts[-1:] = _halve(parts[-1], share, seed)
        if all(part["target"].nunique() == 2 for part in parts):
            return parts
    # Where few groups hold a class, folds may lack it.
    _check_groups(table, SPLITS[-len(shares) - 1 :], what)
    fractions = [1.0]
    for numerator, folds in shares:
        fractions[-1:] = [fractions[-1] * part / folds for part in (folds - numerator, numerator)]
    places = place_groups(table, fractions, seed)
    return [table[places == place] for place in range(len(shares) + 1)]


def _halve(table: pd.DataFrame, share: Share, seed: int) -> list[pd.DataFrame]:
    """Two parts, the second with a share of about share[0] / share[1] of each class."""
    numerator, folds = share
    groups, names = pd.factorize(table["group"])
    targets = table["target"].to_numpy()
    if len(names) == len(table):
        # 147,000 single images in 0.05 s; StratifiedGroupKFold, no better here, takes 6 s.
        shuffle = StratifiedShuffleSplit(1, test_size=numerator / folds, random_state=seed)
        _, taken = next(shuffle.split(targets, targets))
    else:
        taken = _take_groups(groups, targets, share, seed)
    is_taken = np.zeros(len(table), np.bool_)
    is_taken[taken] = True
    return [table[~is_taken], table[is_taken]]


def _take_groups(groups: _Integers, targets: _Integers, share: Share, seed: int) -> _Integers:
    """Rows of whole groups that make up the share, stratified."""
    numerator, folds = share
    # Its own shuffling loses the stratification before scikit-learn 1.8 (scikit-learn#32540), so
    # the groups are renamed in random order instead, which decides between equals.
    renamed = np.random.default_rng(seed).permutation(groups.max() + 1)[groups]
    folds = min(folds, int(groups.max()) + 1, int(np.bincount(targets).min()))
    tests = [test for _, test in StratifiedGroupKFold(folds).split(targets, targets, renamed)]
    # The last folds, because the largest groups come to lie in the first.
    count = math.ceil(folds * numerator / share[1])
    return np.concatenate(tests[-count:])


def _check_groups(table: pd.DataFrame, splits: Sequence[str], what: str) -> None:
    """
    Raises:
        UserError: if fewer groups hold a class than there are splits; with as many, each split can
            have one.
    """
    for target, name in enumerate(("real images", "fakes")):
        count = table["group"][table["target"] == target].nunique()
        if count < len(splits):
            raise UserError(
                f"{what} must have {len(splits)} groups or more that hold {name}, one each for "
                f"{', '.join(splits[:-1])} and {splits[-1]}, but only {count} "
                f"{'holds' if count == 1 else 'hold'} {name}; add {name} of other groups"
            )


def draw_part(table: pd.DataFrame, limit: int | None, seed: int) -> pd.DataFrame:
    """At most `limit` rows: whole groups at random, the share of fakes kept.

    Groups of one make-up (so many real, so many fake) are shuffled and spread evenly over a line,
    each make-up from a random start; the beginning of the line is then drawn, which has the
    make-ups in proportion. A smaller limit draws a part of what a larger one does, but for the
    last few groups.
    """
    if limit is None or limit >= len(table):
        return table
    generator = np.random.default_rng(seed)
    groups, names = pd.factorize(table["group"])
    sizes = np.bincount(groups)
    fakes = np.bincount(groups, weights=table["target"]).astype(np.int64)
    shuffled = generator.permutation(len(names))
    kinds = pd.DataFrame({"images": sizes, "fakes": fakes}).iloc[shuffled]
    alike = kinds.groupby(["images", "fakes"])
    starts = generator.random(alike.ngroups)[alike.ngroup()]
    places = (alike.cumcount() + starts) / alike["fakes"].transform("size")
    line = shuffled[np.argsort(places.to_numpy(), kind="stable")]
    taken, rows = [], 0
    for group, size in zip(line.tolist(), sizes[line].tolist(), strict=True):
        if rows + size <= limit:
            taken.append(group)
            rows += size
    return table[np.isin(groups, taken)]
