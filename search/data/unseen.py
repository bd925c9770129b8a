"""Forgery methods -> splits: select and report show forgeries that fit does not.

Each method belongs to one split, each group lies in one split. A fake whose group lies in fit is
kept if its method belongs to fit; one whose group lies in select or report is kept if its method
belongs to that split (unseen) or to fit (seen). Any other would show fit, or select, what is held
out from it, and is left out. Methods and groups are given away so that little is left out, sizes
come near their shares, and methods that are alike end up in one split, see
`search.data.assignment`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.data.assignment import FEWEST, HELD_OUT, SPLITS, Groups, assign
from search.data.labels import NO_METHOD
from search.errors import UserError

LEFT_OUT = ""
"""Split of an image that is in none."""

DIVISION_COLUMNS = ("set", "img_name", "target", "group", "method", "split")

TRAIN, VAL = "train", "val"
"""The sets that label files name."""

_NOT_OF = {TRAIN: {"select", "report"}, VAL: {"fit"}}
"""Splits that a set has no part in where there are both."""

MOST_NAMED = 10
"""Methods that an error names one by one."""

_Integers = NDArray[np.int64]
_Divide = Callable[[pd.DataFrame], tuple[pd.DataFrame, dict[str, str]]]
"""Rows -> the same with their split, and the split that each method belongs to."""


@dataclass(frozen=True, eq=False)
class Found:
    """Methods that no file names, found by what forgeries look like."""

    methods: list[str]  # one a row of the table; NO_METHOD for reals and what cannot be read
    likeness: pd.DataFrame  # (M, M), by method: the mean of a kernel in [0, 1] over their pairs
    by: str
    """What described the images."""


@dataclass(frozen=True, eq=False)
class Division:
    """Which split each image is in, and the method of each fake."""

    rows: pd.DataFrame  # DIVISION_COLUMNS; in the order of the files
    by: str | None = None
    """What the methods were found by; None: files name them."""

    @property
    def methods(self) -> dict[str, str]:
        """The split that each method belongs to: what it is kept in, fit first."""
        fakes = self.rows[(self.rows["target"] == 1) & (self.rows["split"] != LEFT_OUT)]
        splits = fakes.groupby("method")["split"].agg(lambda own: min(own, key=SPLITS.index))
        return {str(method): str(split) for method, split in splits.items()}

    @property
    def left_out(self) -> int:
        """Images that are in no split."""
        return int((self.rows["split"] == LEFT_OUT).sum())

    def split_of(self, name: str, table: pd.DataFrame) -> pd.DataFrame:
        """The split and method of each row of a set's label table.

        Args:
            name: of the set, TRAIN or VAL.
            table: label table.

        Returns:
            `split` and `method`, with the table's index; NaN for images that are not known.
        """
        own = self.rows[self.rows["set"] == name].set_index("img_name")[["split", "method"]]
        return own.reindex(table["img_name"]).set_axis(table.index)


def divide_by_method(
    train: pd.DataFrame,
    val: pd.DataFrame | None,
    *,
    seed: int,
    found: Found | None = None,
) -> Division:
    """Gives whole methods and whole groups to fit, select and report.

    With a validation set, fit takes from the training set alone, select and report from the
    validation set alone. A method that one set alone has is kept where that set goes.

    Args:
        train: label table.
        val: label table, or None.
        seed: of the choice among divisions that are as good.
        found: the methods of the rows of both tables, one after the other; None takes those that
            files name.

    Raises:
        UserError: if methods are named for some fakes only, there are too few, or groups tie them
            together so that no division is left.
    """
    rows = pd.concat(
        [
            table.assign(set=name)
            for name, table in ((TRAIN, train), (VAL, val))
            if table is not None
        ],
        ignore_index=True,
    )
    if found is not None:
        rows["method"] = found.methods
    elif unnamed := _unnamed(rows):
        raise UserError(unnamed)
    methods = sorted(set(rows["method"][_is_known(rows)]))
    if len(methods) < len(SPLITS):
        raise UserError(
            "unseen forgeries need three methods or more, one each for fit, select and report, "
            f"found {', '.join(methods) or 'none'}; use --split group"
        )
    in_val = sorted(set(rows["method"][_is_known(rows) & (rows["set"] == VAL)]))
    if val is not None and len(in_val) < len(HELD_OUT):
        raise UserError(
            "the validation set must have fakes of two methods or more, one each for select and "
            f"report, found {', '.join(in_val) or 'none'}; use --split group"
        )
    likeness = None if found is None else found.likeness.loc[methods, methods].to_numpy(np.float64)

    def divided(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
        groups, group_of = _groups(rows, methods)
        numbers, places = assign(groups, likeness, np.random.default_rng(seed))
        owners = {method: SPLITS[number] for method, number in zip(methods, numbers, strict=True)}
        kept = _kept(rows, owners, np.array(SPLITS, object)[places[group_of]])
        return rows.assign(split=kept), owners

    rows, owners = divided(rows)
    if not _is_enough(_held(rows, owners)):
        raise UserError(_lacking(rows, owners, divided))
    return Division(rows[list(DIVISION_COLUMNS)], None if found is None else found.by)


def problem_of(division: Division, sets: Mapping[str, pd.DataFrame]) -> str | None:
    """Why a division does not hold methods out from some images; None if it does.

    Args:
        division: from elsewhere.
        sets: label tables, by TRAIN and VAL.
    """
    rows = division.rows
    if odd := sorted(set(rows["split"]) - {*SPLITS, LEFT_OUT}):
        return f"its splits are {', '.join(SPLITS)} or blank, found '{odd[0]}'"
    twice = rows.duplicated(["set", "img_name"])
    if twice.any():
        return f"it names {rows['img_name'][twice].iloc[0]} more than once"
    known = rows.set_index(["set", "img_name"])[["target", "split", "method"]]
    parts = []
    for name, table in sets.items():
        asked = pd.MultiIndex.from_product([[name], table["img_name"]])
        found = known.reindex(asked).set_axis(table.index)
        without = table["img_name"][found["split"].isna()]
        if len(without):
            return (
                f"it lacks {len(without):,} of {len(table):,} images of the {name} set, for "
                f"example {without.iloc[0]}"
            )
        other = table["img_name"][found["target"] != table["target"]]
        if len(other):
            return f"it has another label for {len(other):,} images, for example {other.iloc[0]}"
        if VAL in sets and (wrong := set(found["split"]) & _NOT_OF[name]):
            return f"it puts images of the {name} set into {min(wrong)}"
        parts.append(found.assign(group=table["group"], set=name))
    kept = pd.concat(parts, ignore_index=True)
    kept = kept[kept["split"] != LEFT_OUT]
    places = kept.groupby(["set", "group"])["split"].nunique()
    if (places > 1).any():
        _, group = places.index[places > 1][0]
        return f"it parts {(places > 1).sum():,} groups, for example '{group}'"
    fakes = kept[kept["target"] == 1]
    held_out = fakes[~fakes["method"].isin(set(fakes["method"][fakes["split"] == "fit"]))]
    shared = held_out.groupby("method")["split"].nunique()
    if (shared > 1).any():
        return f"select and report share the method '{shared.idxmax()}', which fit lacks"
    missing = [split for split in SPLITS[1:] if split not in set(held_out["split"])]
    return f"{missing[0]} shows no method that fit lacks" if missing else None


def _is_known(rows: pd.DataFrame) -> pd.Series[bool]:
    return (rows["target"] == 1) & (rows["method"] != NO_METHOD)


def _unnamed(rows: pd.DataFrame) -> str | None:
    """What is wrong if some fakes lack a name."""
    fakes = rows[rows["target"] == 1]
    without = fakes[fakes["method"] == NO_METHOD]
    if without.empty:
        return None
    whole = [str(name) for name, own in fakes.groupby("set") if (own["method"] == NO_METHOD).all()]
    if len(whole) == 1:
        return (
            "the group files of both sets must name the methods of the fakes, or neither, found "
            f"none in that of the {whole[0]} set; add the column, or take it out of the other file"
        )
    return (
        f"a method must be named for every fake or for none, {len(without)} of {len(fakes)} have "
        f"none, for example {without['img_name'].iloc[0]}; name them, or take the column out"
    )


def _groups(rows: pd.DataFrame, methods: list[str]) -> tuple[Groups, _Integers]:
    """Of the rows of both sets, and the number of each row's, (N,)."""
    group_of, _ = pd.factorize(pd.MultiIndex.from_frame(rows[["set", "group"]]))
    count = int(group_of.max()) + 1
    known = _is_known(rows).to_numpy()
    numbers = pd.Index(methods).get_indexer(pd.Index(rows["method"]))
    fakes = np.zeros((count, len(methods)), np.int64)
    np.add.at(fakes, (group_of[known], numbers[known]), 1)
    reals = np.bincount(group_of[(rows["target"] == 0).to_numpy()], minlength=count)
    is_val = np.zeros(count, np.bool_)
    is_val[group_of[(rows["set"] == VAL).to_numpy()]] = True
    return Groups(reals, fakes, is_val, has_val=bool(is_val.any())), group_of


def _kept(
    rows: pd.DataFrame, owners: Mapping[str, str], places: NDArray[np.object_]
) -> pd.Series[str]:
    """The split of each row, whose group lies in a split, (N,); LEFT_OUT for a fake that its
    group's split must not show."""
    place = pd.Series(places, index=rows.index)
    owner = rows["method"].map(dict(owners))
    # Seen is only what fit has: a rare method may have all its groups elsewhere.
    in_fit = set(rows["method"][(owner == "fit") & (place == "fit") & _is_known(rows)])
    is_seen = rows["method"].isin(in_fit) & (place != "fit")
    is_shown = (owner == place) | is_seen
    return place.where((rows["target"] == 0) | is_shown, LEFT_OUT)


def _held(rows: pd.DataFrame, owners: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Real images, and fakes of its own methods, of each split."""
    is_own = rows["method"].map(dict(owners)) == rows["split"]
    return {
        split: (
            int(((rows["split"] == split) & (rows["target"] == 0)).sum()),
            int(((rows["split"] == split) & is_own).sum()),
        )
        for split in SPLITS
    }


def _is_enough(held: Mapping[str, tuple[int, int]]) -> bool:
    return min(min(counts) for counts in held.values()) >= FEWEST


def _lacking(rows: pd.DataFrame, owners: Mapping[str, str], divided: _Divide) -> str:
    """What to do where a split lacks reals or fakes of its own methods: the remedy is tried.

    One name for several methods would not help: nothing keeps them from one split as they are.
    """
    known = rows[_is_known(rows)]
    place = pd.Series(list(zip(rows["set"], rows["group"], strict=True)), index=rows.index)
    tied = known.groupby(place)["method"].agg(["size", "nunique"])
    tied = tied.sort_values(["nunique", "size"], ascending=False, kind="stable")
    widest, several = tied.index[0], tied.index[tied["nunique"] > 1]
    names = sorted(set(known["method"][place == widest]))
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    rule = (
        f"fit, select and report must each have {FEWEST} real images and {FEWEST} fakes of methods "
        "of their own"
    )
    remedies = (
        ("divide that group", place == widest),
        (f"divide the {len(several):,} groups of several methods", place.isin(set(several))),
    )
    for remedy, is_parted in remedies:
        alone = rows["group"] + [f"\0{number}" for number in range(len(rows))]
        parted, new_owners = divided(rows.assign(group=rows["group"].mask(is_parted, alone)))
        held = _held(parted, new_owners)
        if _is_enough(held):
            return (
                f"{rule}, but groups tie methods together: '{widest[1]}' holds "
                f"{tied['size'].iloc[0]:,} of {len(known):,} fakes, of "
                f"{', '.join(names[:MOST_NAMED])}{more}; {remedy}, and the nearest division is "
                f"{_told(held, new_owners)}; or use --split group"
            )
    return (
        f"{rule}, but the nearest division has {_told(_held(rows, owners), owners)}, and dividing "
        "groups brings no other; add images of what is lacking, or use --split group"
    )


def _told(held: Mapping[str, tuple[int, int]], owners: Mapping[str, str]) -> str:
    return "; ".join(
        f"{split} {reals:,} real and {fakes:,} fake of "
        f"{', '.join(method for method, owner in owners.items() if owner == split) or 'none'}"
        for split, (reals, fakes) in held.items()
    )
