"""Forgery methods -> splits: select and report show forgeries that fit does not.

Each method belongs to one split, each group lies in one split. A fake whose group lies in fit is
kept if its method belongs to fit; one whose group lies in select or report is kept if its method
belongs to that split (unseen) or to fit (seen). Any other would show fit, or select, what is held
out from it, and is left out. A mixed-integer program gives methods and groups away so that little
is left out, sizes come near their shares, and methods that are alike end up in one split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import coo_array

from search.errors import UserError

SPLITS = ("fit", "select", "report")
HELD_OUT = ("select", "report")
LEFT_OUT = ""
"""Split of an image that is in none."""

DIVISION_COLUMNS = ("set", "img_name", "target", "group", "method", "split")

TRAIN, VAL = "train", "val"
"""The sets that label files name."""

IMAGE_SHARES = {"fit": 0.7, "select": 0.15, "report": 0.15}
"""Of the real images, and of the fakes that are kept, without a validation set."""
UNSEEN_SHARE = 2 / 3
"""Of the fakes of select and of report, where there is none: the others are of fit's methods, so
that seen and unseen forgeries can be compared."""
UNSEEN_SHARE_OF_VAL = 0.1
"""Of the validation set's fakes, those unseen in select, and as many in report: what is held out
takes its methods away from fit."""

PREFERENCE = 0.02
"""Images, as a share of the fakes, that a seed's preference for a method may cost: among divisions
that are nearly as good, the seed chooses which methods are held out."""

MISSING = 0.5
"""Cost of an image that a split lacks of its share, where one left out costs 1. Were it nothing,
groups that tie all methods together would nearly all lie in fit."""

FEWEST = 2
"""Real images, and fakes of its own methods, that each split must have."""

EXACT_GROUPS = 200
"""Up to so many groups are placed by the integer program one by one; beyond, shares of groups alike
are, and rounded."""
MOST_KINDS = 30
"""Of groups, that methods are divided by: more are a random part of the groups."""

SOLVER = {"node_limit": 200, "mip_rel_gap": 0.005, "time_limit": 60.0}
"""Limits of the integer program. Nodes end it where it is large: unlike seconds, they are the same
on every machine; the time is the last resort."""

STARTS, ROUNDS = 4, 8
"""Of the search for a division that keeps methods together which are alike: wishes that it begins
with, and rounds until nothing changes."""

_Integers = NDArray[np.int64]
_Floats = NDArray[np.float64]


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
    problem = _Problem.of(rows, methods, has_val=val is not None)
    likeness = None if found is None else found.likeness.loc[methods, methods].to_numpy(np.float64)
    generator = np.random.default_rng(seed)
    owners = _divide_methods(problem, likeness, generator)
    places = _place_groups(problem, owners, generator)
    rows["split"] = _kept(rows, dict(zip(methods, owners, strict=True)), problem, places)
    _check(rows, dict(zip(methods, owners, strict=True)))
    return Division(rows[list(DIVISION_COLUMNS)], None if found is None else found.by)


def _is_known(rows: pd.DataFrame) -> pd.Series[bool]:
    return (rows["target"] == 1) & (rows["method"] != "")


def _unnamed(rows: pd.DataFrame) -> str | None:
    """What is wrong if some fakes lack a name."""
    fakes = rows[rows["target"] == 1]
    without = fakes[fakes["method"] == ""]
    if without.empty:
        return None
    whole = [str(name) for name, own in fakes.groupby("set") if (own["method"] == "").all()]
    if len(whole) == 1:
        return (
            "the group files of both sets must name the methods of the fakes, or neither, found "
            f"none in that of the {whole[0]} set; add the column, or take it out of the other file"
        )
    return (
        f"a method must be named for every fake or for none, {len(without)} of {len(fakes)} have "
        f"none, for example {without['img_name'].iloc[0]}; name them, or take the column out"
    )


@dataclass(frozen=True, eq=False)
class _Problem:
    """Groups, by kind: those of one set with the same methods are alike."""

    methods: list[str]
    has_val: bool
    kinds: list[tuple[str, ...]]  # the splits that a kind may lie in
    counts: _Integers  # (K,) groups
    reals: _Integers  # (K,) images
    fakes: _Integers  # (K, M) images
    group_kinds: _Integers  # (G,) kind of each group
    row_groups: _Integers  # (N,) group of each row

    @classmethod
    def of(cls, rows: pd.DataFrame, methods: list[str], *, has_val: bool) -> _Problem:
        """Of the rows of both sets."""
        groups, _ = pd.factorize(pd.MultiIndex.from_frame(rows[["set", "group"]]))
        count = int(groups.max()) + 1
        numbers = pd.Index(methods).get_indexer(pd.Index(rows["method"]))
        known = _is_known(rows).to_numpy()
        by_method = np.zeros((count, len(methods)), np.int64)
        np.add.at(by_method, (groups[known], numbers[known]), 1)
        reals = np.bincount(groups[(rows["target"] == 0).to_numpy()], minlength=count)
        is_val = np.zeros(count, np.bool_)
        is_val[groups[(rows["set"] == VAL).to_numpy()]] = True
        keys = np.column_stack([is_val, by_method > 0])
        unique, kinds = np.unique(keys, axis=0, return_inverse=True)
        kinds = kinds.reshape(-1)
        totals = np.zeros((len(unique), len(methods) + 2), np.int64)
        np.add.at(totals, kinds, np.column_stack([np.ones(count, np.int64), reals, by_method]))
        allowed = [_allowed(bool(key[0]), has_val) for key in unique]
        return cls(
            methods, has_val, allowed, totals[:, 0], totals[:, 1], totals[:, 2:], kinds, groups
        )

    def part(self, generator: np.random.Generator) -> _Problem:
        """At most MOST_KINDS kinds of groups, or a few more, drawn by their images: the integer
        program must stay small."""
        if len(self.counts) <= MOST_KINDS:
            return self
        images = self.reals + self.fakes.sum(axis=1)
        drawn = generator.choice(
            len(images), MOST_KINDS, replace=False, p=images / images.sum(), shuffle=False
        )
        # Every method must be there, or it would be given away unseen.
        lacking = np.flatnonzero(
            (self.fakes.sum(axis=0) > 0) & (self.fakes[drawn].sum(axis=0) == 0)
        )
        needed = [int(self.fakes[:, method].argmax()) for method in lacking]
        drawn = np.union1d(drawn, needed).astype(np.int64)
        return _Problem(
            self.methods,
            self.has_val,
            [self.kinds[kind] for kind in drawn],
            self.counts[drawn],
            self.reals[drawn],
            self.fakes[drawn],
            self.group_kinds,
            self.row_groups,
        )


def _allowed(is_val: bool, has_val: bool) -> tuple[str, ...]:
    if not has_val:
        return SPLITS
    return HELD_OUT if is_val else ("fit",)


@dataclass
class _Program:
    """A mixed-integer program to be maximised, grown variable by variable."""

    gains: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)
    integral: list[int] = field(default_factory=list)
    rows: list[Mapping[int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def variable(self, gain: float = 0.0, most: float = np.inf, *, integral: bool = False) -> int:
        """A new variable from 0 to `most`; its number."""
        self.gains.append(gain)
        self.most.append(most)
        self.integral.append(int(integral))
        return len(self.gains) - 1

    def constrain(
        self, terms: Mapping[int, float], low: float = -np.inf, high: float = np.inf
    ) -> None:
        """Keeps a weighted sum of variables between two bounds."""
        self.rows.append(terms)
        self.low.append(low)
        self.high.append(high)

    def aim(self, terms: Mapping[int, float], least: float = 0.0) -> None:
        """Costs MISSING for each that a weighted sum is below what it should be."""
        missing = self.variable(-MISSING)
        self.constrain({**terms, missing: 1.0}, low=least)

    def solve(self) -> _Floats | None:
        """The best values found; None if there are none."""
        entries = [(i, j, v) for i, row in enumerate(self.rows) for j, v in row.items()]
        i, j, v = (np.array(column) for column in zip(*entries, strict=True))
        matrix = coo_array((v, (i, j)), shape=(len(self.rows), len(self.gains))).tocsr()
        result: OptimizeResult = milp(
            -np.array(self.gains),
            integrality=np.array(self.integral),
            bounds=Bounds(0.0, np.array(self.most)),
            constraints=LinearConstraint(matrix, np.array(self.low), np.array(self.high)),
            options=SOLVER,
        )
        return None if result.x is None else np.asarray(result.x, np.float64)


def _divide_methods(
    problem: _Problem, likeness: _Floats | None, generator: np.random.Generator
) -> list[str]:
    """The split that each method belongs to: the best of some starts, each the seed's own wishes.

    Methods that were found come together with those that are like them: kernel k-means with the
    splits as its clusters, whose assignment is the integer program with all its constraints
    (arXiv:2405.19461).
    """
    part = problem.part(generator)
    sizes = part.fakes.sum(axis=0).astype(np.float64)
    wish = PREFERENCE * float(sizes.sum()) / len(sizes)
    best, most = np.zeros(len(sizes), np.int64), -np.inf
    for _ in range(1 if likeness is None else STARTS):
        wishes = wish * generator.random((len(sizes), len(SPLITS)))
        owners, value = _solve_methods(part, wishes)
        for _ in range(0 if likeness is None else ROUNDS):
            assert likeness is not None
            before = owners
            owners, value = _solve_methods(part, wishes + _nearness(likeness, sizes, owners))
            if (owners == before).all():
                break
        if value > most:
            best, most = owners, value
    return [SPLITS[number] for number in best]


def _nearness(likeness: _Floats, sizes: _Floats, owners: _Integers) -> _Floats:
    """What each method gains in each split, (M, 3): minus the squared distance of its fakes from
    the mean of that split's, in the space of the kernel, but for what is the same in all splits."""
    members = (owners[:, None] == np.arange(len(SPLITS))) * sizes[:, None]
    shares = members / members.sum(axis=0)
    to_mean = likeness @ shares  # (M, 3)
    within = np.einsum("ms,ms->s", shares, to_mean)
    nearness: _Floats = sizes[:, None] * (2 * to_mean - within)
    return nearness


def _solve_methods(problem: _Problem, gains: _Floats) -> tuple[_Integers, float]:
    """The number of the split of each method, and how good that is."""
    for fewest in (FEWEST, 0):
        program = _Program()
        owns = _own_variables(program, problem, gains)
        _kept_variables(program, problem, owns, fewest)
        values = program.solve()
        if values is not None:
            return values[np.array(owns)].argmax(axis=1), float(values @ program.gains)
    raise UserError(
        "methods must be divisible among fit, select and report, but no division was found for "
        f"{', '.join(problem.methods)}; use --split group"
    )


def _own_variables(program: _Program, problem: _Problem, gains: _Floats) -> list[list[int]]:
    """Whether each method belongs to each split, (M, 3) variables."""
    own = [
        [program.variable(gain, 1.0, integral=True) for gain in of_method]
        for of_method in gains.tolist()
    ]
    for variables in own:
        program.constrain(dict.fromkeys(variables, 1.0), 1.0, 1.0)
    for number in range(len(SPLITS)):
        program.constrain({variables[number]: 1.0 for variables in own}, low=1.0)
    for split, number in (("fit", 0), ("report", 2)):
        # What one set alone has belongs to where that set goes.
        lies = [split in splits for splits in problem.kinds]
        for method in np.flatnonzero(problem.fakes[lies].sum(axis=0) == 0):
            held_out = {own[method][1]: 1.0, own[method][2]: 1.0}
            program.constrain({own[method][0]: 1.0} if number == 0 else held_out, high=0.0)
    return own


def _kept_variables(
    program: _Program, problem: _Problem, owns: list[list[int]], fewest: int
) -> None:
    """Where groups lie and what is then kept of them, with the aims for sizes."""
    places = _place_variables(program, problem)
    unseen: dict[str, dict[int, float]] = {split: {} for split in SPLITS}
    seen: dict[str, dict[int, float]] = {split: {} for split in HELD_OUT}
    for kind, method in zip(*np.nonzero(problem.fakes), strict=True):
        images = float(problem.fakes[kind, method])
        per_group = images / float(problem.counts[kind])
        for split, place in places[kind].items():
            own = program.variable(1.0, images)
            program.constrain({own: 1.0, owns[method][SPLITS.index(split)]: -images}, high=0.0)
            unseen[split][own] = 1.0
            there = {own: 1.0, place: -per_group}
            if split in HELD_OUT:
                known = program.variable(1.0, images)
                program.constrain({known: 1.0, owns[method][0]: -images}, high=0.0)
                seen[split][known] = 1.0
                there[known] = 1.0
            program.constrain(there, high=0.0)
    _aim_at_sizes(program, problem, places, unseen, seen, fewest)


def _place_variables(program: _Program, problem: _Problem) -> list[dict[str, int]]:
    """How many groups of each kind lie in each split that they may lie in."""
    exact = len(problem.group_kinds) <= EXACT_GROUPS
    places = []
    for kind, splits in enumerate(problem.kinds):
        count = float(problem.counts[kind])
        variables = {split: program.variable(0.0, count, integral=exact) for split in splits}
        program.constrain(dict.fromkeys(variables.values(), 1.0), count, count)
        places.append(variables)
    return places


def _aim_at_sizes(
    program: _Program,
    problem: _Problem,
    places: Sequence[Mapping[str, int]],
    unseen: Mapping[str, Mapping[int, float]],
    seen: Mapping[str, Mapping[int, float]],
    fewest: int,
) -> None:
    """Lets every image that a split has too few of cost half as much as one left out.

    Args:
        program: grows.
        problem: the groups.
        places: see `_place_variables`.
        unseen: for each split, the weighted variables whose sum are the fakes of its own methods.
        seen: likewise, the fakes of fit's methods in select and in report.
        fewest: real images and fakes of its own methods that each split must have.
    """
    for split in SPLITS:
        reals = {
            variables[split]: float(problem.reals[kind] / problem.counts[kind])
            for kind, variables in enumerate(places)
            if split in variables and problem.reals[kind]
        }
        if fewest:
            program.constrain(unseen[split], low=fewest)
            program.constrain(reals, low=fewest)
        if not problem.has_val:
            program.aim(reals, IMAGE_SHARES[split] * float(problem.reals.sum()))
        elif split in HELD_OUT:
            is_val = [splits == HELD_OUT for splits in problem.kinds]
            program.aim(reals, 0.5 * float(problem.reals[is_val].sum()))
    # Of the fakes that are kept: how many these are is not known before.
    pool = HELD_OUT if problem.has_val else SPLITS
    kept = [unseen[split] for split in pool] + [seen[split] for split in HELD_OUT]
    sums: dict[int, float] = defaultdict(float)
    for terms in kept:
        for variable, weight in terms.items():
            sums[variable] += weight
    total = program.variable()
    program.constrain({**sums, total: -1.0}, 0.0, 0.0)
    for split in pool:
        share = 0.5 if problem.has_val else IMAGE_SHARES[split]
        own = share
        if split in HELD_OUT:
            own = UNSEEN_SHARE_OF_VAL if problem.has_val else UNSEEN_SHARE * share
            # Where groups tie methods together, more seen fakes come with the unseen ones.
            program.aim({**seen[split], total: own - share})
        program.aim({**unseen[split], total: -own})


def _place_groups(
    problem: _Problem, owners: Sequence[str], generator: np.random.Generator
) -> list[str]:
    """The split of each group, for methods that are given away."""
    values: _Floats | None = None
    for fewest in (FEWEST, 0):
        program = _Program()
        places = _place_variables(program, problem)
        unseen: dict[str, dict[int, float]] = {split: {} for split in SPLITS}
        seen: dict[str, dict[int, float]] = {split: {} for split in HELD_OUT}
        is_of = {split: np.array([owner == split for owner in owners]) for split in SPLITS}
        for kind, variables in enumerate(places):
            per_group = problem.fakes[kind] / problem.counts[kind]
            for split, variable in variables.items():
                own = float(per_group[is_of[split]].sum())
                known = 0.0 if split == "fit" else float(per_group[is_of["fit"]].sum())
                program.gains[variable] += own + known
                if own:
                    unseen[split][variable] = own
                if known:
                    seen[split][variable] = known
        # A variable may count for both.
        _aim_at_sizes(program, problem, places, unseen, seen, fewest)
        values = program.solve()
        if values is not None:
            break
    assert values is not None  # without fewest, every placement will do
    chosen = np.empty(len(problem.group_kinds), object)
    for kind, variables in enumerate(places):
        members = generator.permutation(np.flatnonzero(problem.group_kinds == kind))
        shares = values[list(variables.values())]
        ends = np.rint(np.cumsum(shares)).astype(np.int64)
        for split, drawn in zip(variables, np.split(members, ends[:-1]), strict=True):
            chosen[drawn] = split
    return [str(split) for split in chosen]


def _kept(
    rows: pd.DataFrame, owners: Mapping[str, str], problem: _Problem, places: Sequence[str]
) -> pd.Series[str]:
    """The split of each row; LEFT_OUT for a fake that its group's split must not show."""
    place = pd.Series(np.array(places, object)[problem.row_groups], index=rows.index)
    owner = rows["method"].map(dict(owners))
    # Seen is only what fit has: a rare method may have all its groups elsewhere.
    in_fit = set(rows["method"][(owner == "fit") & (place == "fit") & _is_known(rows)])
    is_seen = rows["method"].isin(in_fit) & (place != "fit")
    is_shown = (owner == place) | is_seen
    return place.where((rows["target"] == 0) | is_shown, LEFT_OUT)


def _check(rows: pd.DataFrame, owners: Mapping[str, str]) -> None:
    """
    Raises:
        UserError: if a split lacks reals or fakes of its own methods.
    """
    is_own = rows["method"].map(dict(owners)) == rows["split"]
    have = {
        split: (
            int(((rows["split"] == split) & (rows["target"] == 0)).sum()),
            int(((rows["split"] == split) & is_own).sum()),
        )
        for split in SPLITS
    }
    if min(min(counts) for counts in have.values()) >= FEWEST:
        return
    known = rows[_is_known(rows)]
    tied = known.groupby(["set", "group"])["method"].agg(["size", "nunique"])
    tied = tied.sort_values(["nunique", "size"], ascending=False, kind="stable")
    (_, group), widest = tied.index[0], tied.iloc[0]
    nearest = "; ".join(
        f"{split} {reals:,} real and {fakes:,} fake of "
        f"{', '.join(method for method, owner in owners.items() if owner == split) or 'none'}"
        for split, (reals, fakes) in have.items()
    )
    raise UserError(
        f"fit, select and report must each have {FEWEST} real images and {FEWEST} fakes of methods "
        f"of their own, but groups tie methods together (group '{group}' holds {widest['size']:,} "
        f"of {len(known):,} fakes, of {widest['nunique']} of {len(owners)} methods); the nearest "
        f"division has {nearest}; divide that group, or use --split group"
    )
