"""Methods and groups -> splits, so that little is left out and sizes come near their shares.

Which split each method belongs to is searched, from several starts, by giving one method away or
two in exchange. For given methods, a linear program places the groups; its prices bound what each
such step can gain, so that few are tried. Methods that were found also come together with those
that are like them: kernel k-means with the splits as its clusters, and with constraints
(arXiv:2405.19461).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, linprog, milp
from scipy.sparse import csr_array, eye_array, hstack, kron

SPLITS = ("fit", "select", "report")
FIT, HELD_OUT = 0, (1, 2)
"""Their numbers: what networks are trained on, and what is held out from them."""

KEPT = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
"""Of a fake whose group lies in the split of the row, and whose method belongs to that of the
column: whether it is kept."""

IMAGE_SHARES = (0.7, 0.15, 0.15)
"""Of the real images, and of the fakes that are kept, without a validation set."""
UNSEEN_SHARE = 2 / 3
"""Of the fakes of select and of report, where there is none: the others are of fit's methods, so
that seen and unseen forgeries can be compared."""
UNSEEN_SHARE_OF_VAL = 0.1
"""Of the validation set's fakes, those unseen in select, and as many in report: what is held out
takes its methods away from fit."""

MISSING = 0.5
"""Cost of an image that a split lacks of its share, where one left out costs 1. Were it nothing,
groups that tie all methods together would nearly all lie in fit."""

FEWEST = 2
"""Real images, and fakes of its own methods, that each split must have."""
LACKING = 1000.0
"""Cost of each that it has not: more than anything else, as long as there is a way."""

EXACT_GROUPS = 200
"""Up to so many groups are placed one by one, by an integer program; of more, those that hold more
than one part in so many of their set's reals or fakes, and more than groups with any do on average.
Of the others, those that show methods of the same splits are alike, and which of them lie where is
drawn."""

STARTS = 4
"""Of the search: owners drawn at random."""
LEAST_GAIN = 0.001
"""Of a step, as a share of the fakes: among divisions that are nearly as good, the seed's start
chooses which methods are held out."""
PROMISING = 10
"""Steps that are tried before the search gives up: those with the highest bounds."""
FINALISTS = 4
"""Of what was tried, that whole groups are placed by."""

SOLVER = {"node_limit": 200, "mip_rel_gap": 0.0}
"""Limits of the integer program: unlike seconds, nodes are the same on every machine."""

TASTES = 1e-4
"""What it costs at most, in images, to place a group in a split rather than in another: drawn, so
that among placements that are as good as each other every version of the solver finds the same."""
DIGITS = 5
"""Of a value; below lies what the solver's tolerance leaves."""

_Integers = NDArray[np.int64]
_Floats = NDArray[np.float64]
_Booleans = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Groups:
    """What is given away together."""

    reals: _Integers  # (G,) images
    fakes: _Integers  # (G, M) images
    is_val: _Booleans  # (G,) whose images are of the validation set
    has_val: bool
    """Then fit takes from the training set alone, select and report from the validation set."""

    @property
    def places(self) -> _Booleans:
        """Splits that each group may lie in, (G, 3)."""
        if not self.has_val:
            return np.ones((len(self.reals), len(SPLITS)), np.bool_)
        places: _Booleans = self.is_val[:, None] == np.isin(range(len(SPLITS)), HELD_OUT)
        return places

    @property
    def owners(self) -> _Booleans:
        """Splits that each method may belong to, (M, 3): where groups with it may lie."""
        owners: _Booleans = (self.fakes > 0).T.astype(np.int64) @ self.places > 0
        return owners

    @property
    def exact(self) -> _Booleans:
        """Which groups are placed one by one, (G,)."""
        if len(self.reals) <= EXACT_GROUPS:
            return np.ones(len(self.reals), np.bool_)
        images = np.column_stack([self.reals, self.fakes.sum(axis=1)])
        exact = np.zeros(len(self.reals), np.bool_)
        for own in (self.is_val, ~self.is_val):
            holders = np.clip((images[own] > 0).sum(axis=0), 1, EXACT_GROUPS)
            exact[own] = (images[own] > images[own].sum(axis=0) / holders).any(axis=1)
        return exact


@dataclass(frozen=True, eq=False)
class _Aim:
    """A weighted sum of images that should be so high; each that is missing costs something."""

    fakes: _Floats  # (3, 3) weight, by the split of the group and that of the method, as in KEPT
    reals: _Floats  # (3,) weight, by the split of the group
    least: float
    cost: float


def _aims(groups: Groups) -> list[_Aim]:
    pool = HELD_OUT if groups.has_val else range(len(SPLITS))
    kept = np.where(np.isin(range(len(SPLITS)), pool)[:, None], KEPT, 0.0)
    reals = float(groups.reals[groups.is_val | (not groups.has_val)].sum())
    nothing, none = np.zeros((3, 3)), np.zeros(3)
    aims = []
    for split in range(len(SPLITS)):
        own, seen, real = nothing.copy(), nothing.copy(), none.copy()
        own[split, split] = seen[split, FIT] = real[split] = 1.0
        aims += [_Aim(own, none, FEWEST, LACKING), _Aim(nothing, real, FEWEST, LACKING)]
        if split not in pool:
            continue
        share = 0.5 if groups.has_val else IMAGE_SHARES[split]
        aims.append(_Aim(nothing, real, share * reals, MISSING))
        unseen = share
        if split in HELD_OUT:
            unseen = UNSEEN_SHARE_OF_VAL if groups.has_val else UNSEEN_SHARE * share
            # Where groups tie methods together, more seen fakes come with the unseen ones.
            aims.append(_Aim(seen - (share - unseen) * kept, none, 0.0, MISSING))
        aims.append(_Aim(own - unseen * kept, none, 0.0, MISSING))
    return aims


@dataclass(frozen=True, eq=False)
class _Kinds:
    """Groups that are alike."""

    kind_of: _Integers  # of each group, or of each kind that these are made of
    counts: _Floats  # (K,) groups
    exact: _Booleans  # (K,) whether they are placed one by one
    places: _Booleans  # (K, 3) where they may lie
    reals: _Floats  # (K,) images
    fakes: _Floats  # (K, F) images: by method, or by the split that their method belongs to


@dataclass(frozen=True, eq=False)
class _Placement:
    """Where groups lie, for methods that are given away."""

    kinds: _Kinds
    counts: _Floats  # (K, 3) groups of each kind in each split
    value: float  # images kept, less what is missing
    prices: _Floats  # (A,) what one image more in an aim's sum would gain


class _Program:
    """Places groups, for any owners of the methods."""

    def __init__(self, groups: Groups) -> None:
        aims = _aims(groups)
        self.aim_fakes = np.stack([aim.fakes for aim in aims])  # (A, 3, 3)
        self.aim_reals = np.stack([aim.reals for aim in aims])  # (A, 3)
        self.least = np.array([aim.least for aim in aims])
        self.costs = np.array([aim.cost for aim in aims])
        exact = groups.exact
        places, reals = groups.places, groups.reals.astype(np.float64)
        fakes = groups.fakes.astype(np.float64)
        images = np.column_stack([exact, places, reals, fakes])
        # Exact ones are alike by how many images they have, the others by whether they have any.
        keys = np.where(exact[:, None], images, images > 0)
        self.kinds = _joined(keys, np.ones(len(reals)), exact, places, reals, fakes)

    def _owned(self, owners: _Integers) -> _Kinds:
        """Kinds for given owners, (M,): with fakes by the split that their method belongs to."""
        kinds = self.kinds
        fakes = kinds.fakes @ _members(owners)
        images = np.column_stack([kinds.reals, fakes]) / kinds.counts[:, None]
        keys = np.column_stack([kinds.places, images])
        if not kinds.exact.all():
            keys = np.sign(keys) @ 2.0 ** np.arange(keys.shape[1])  # sorted faster than rows
            keys[kinds.exact] = -1.0 - np.flatnonzero(kinds.exact)  # each a kind of its own
        return _joined(keys, kinds.counts, kinds.exact, kinds.places, kinds.reals, fakes)

    def place(self, owners: _Integers, *, whole: bool = False) -> _Placement:
        """The best placement.

        Args:
            owners: (M,) number of the split that each method belongs to.
            whole: of whole groups where they are placed one by one, without prices; or of shares
                of groups.
        """
        kinds = self._owned(owners)
        # The variables: groups by kind and split, then what is missing of each aim.
        kept = kinds.fakes @ KEPT.T
        sums = np.einsum("ko,aso->aks", kinds.fakes, self.aim_fakes)
        sums += np.einsum("k,as->aks", kinds.reals, self.aim_reals)
        kept, sums = kept / kinds.counts[:, None], sums / kinds.counts[:, None]
        costs = np.concatenate([-kept.ravel(), self.costs])
        tastes = np.zeros(len(costs))
        tastes[: kept.size] = np.random.default_rng(0).random(kept.size) * TASTES
        count, size = len(sums), kept.size
        reached = hstack([csr_array(sums.reshape(count, size)), eye_array(count)], format="csr")
        each = kron(eye_array(len(kept)), np.ones((1, len(SPLITS))))
        each = hstack([each, csr_array((len(kept), count))], format="csr")
        room = np.where(kinds.places, kinds.counts[:, None], 0).ravel()
        bounds = Bounds(0.0, np.concatenate([room, np.full(count, np.inf)]))
        result: OptimizeResult
        if whole:
            result = milp(
                costs + tastes,
                integrality=np.append(np.repeat(kinds.exact, len(SPLITS)), np.zeros(count)),
                bounds=bounds,
                constraints=[
                    LinearConstraint(each, kinds.counts, kinds.counts),
                    LinearConstraint(reached, self.least, np.inf),
                ],
                options=SOLVER,
            )
            if result.x is None:
                return self.place(owners)  # its nodes were not enough for any whole groups
            prices = np.zeros(count)
        else:
            result = linprog(
                costs + tastes,
                A_ub=-reached,
                b_ub=-self.least,
                A_eq=each,
                b_eq=kinds.counts,
                bounds=np.column_stack([np.zeros(len(costs)), bounds.ub]),
            )
            prices = -np.asarray(result.ineqlin.marginals, np.float64)
        assert result.x is not None  # what is missing costs, and forbids nothing
        counts = result.x[:size].reshape(kept.shape)
        return _Placement(kinds, counts, round(-float(costs @ result.x), DIGITS), prices)

    def bound(self, prices: _Floats, owners: _Integers) -> float:
        """What placements for some owners, (M,), are worth at most, by prices that those for any
        others have."""
        kinds = self._owned(owners)
        worth = kinds.fakes @ (KEPT + np.einsum("a,aso->so", prices, self.aim_fakes)).T
        worth += np.outer(kinds.reals, prices @ self.aim_reals)
        best = np.where(kinds.places, worth, -np.inf).max(axis=1)
        return float(best.sum() - prices @ self.least)


def _joined(
    keys: _Floats | _Booleans,
    counts: _Floats,
    exact: _Booleans,
    places: _Booleans,
    reals: _Floats,
    fakes: _Floats,
) -> _Kinds:
    """Kinds of those that have the same key."""
    _, first, kind_of = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    kind_of = kind_of.reshape(-1)  # NumPy 2.0 gives it as a column
    totals = [
        np.bincount(kind_of, column).astype(np.float64) for column in (counts, reals, *fakes.T)
    ]
    own = (exact[first], places[first])
    return _Kinds(kind_of, totals[0], *own, totals[1], np.stack(totals[2:], axis=1))


def _members(owners: _Integers) -> _Floats:
    """Which split each method belongs to, (M, 3), as weights of 1."""
    members: _Floats = (owners[:, None] == np.arange(len(SPLITS))).astype(np.float64)
    return members


def assign(
    groups: Groups, likeness: _Floats | None, generator: np.random.Generator
) -> tuple[_Integers, _Integers]:
    """Gives methods and groups away.

    Args:
        groups: that stay whole.
        likeness: (M, M) of methods that were found: the mean of a kernel in [0, 1].
        generator: where the search starts, and which groups lie where of those that are alike.

    Returns:
        The numbers of the splits that each method belongs to, (M,), and that each group lies in,
        (G,).
    """
    search = _Search(groups, likeness)
    for _ in range(STARTS):
        tastes = generator.random(search.allowed.shape)
        search.climb(np.where(search.allowed, tastes, -1.0).argmax(axis=1))
    owners, placement = search.best()
    kind_of = placement.kinds.kind_of[search.program.kinds.kind_of]
    splits = np.empty(len(kind_of), np.int64)
    for kind, counts in enumerate(placement.counts):
        members = generator.permutation(np.flatnonzero(kind_of == kind))
        ends = np.rint(np.cumsum(counts)).astype(np.int64)
        for split, drawn in enumerate(np.split(members, ends[:-1])):
            splits[drawn] = split
    return owners, splits


class _Search:
    """For owners whose methods and groups keep much together."""

    def __init__(self, groups: Groups, likeness: _Floats | None) -> None:
        self.program, self.likeness = _Program(groups), likeness
        self.allowed = groups.owners
        self.sizes = groups.fakes.sum(axis=0).astype(np.float64)
        self.least_gain = LEAST_GAIN * float(self.sizes.sum())
        self.tried: dict[tuple[int, ...], float] = {}

    def climb(self, owners: _Integers) -> None:
        """Takes steps for the better until there are none."""
        found: tuple[_Integers, float, _Floats] | None = (owners, *self._try(owners))
        while found is not None:
            found = self._better(*found)

    def best(self) -> tuple[_Integers, _Placement]:
        """Of the best FINALISTS that were tried."""
        ranked = sorted(self.tried, key=lambda owners: -self.tried[owners])
        finalists = [np.array(owners, np.int64) for owners in ranked[:FINALISTS]]
        whole = bool(self.program.kinds.exact.any())
        placed = [self.program.place(owners, whole=whole) for owners in finalists]
        values = [
            placement.value + self._tightness(owners)
            for owners, placement in zip(finalists, placed, strict=True)
        ]
        number = int(np.argmax(values))
        return finalists[number], placed[number]

    def _try(self, owners: _Integers) -> tuple[float, _Floats]:
        """What owners are worth, and the prices."""
        placement = self.program.place(owners)
        value = placement.value + self._tightness(owners)
        self.tried[tuple(owners.tolist())] = value
        return value, placement.prices

    def _tightness(self, owners: _Integers) -> float:
        """How like each other the fakes of a split's methods are, in images: less than all by their
        squared distances from its mean, in the space of the kernel."""
        if self.likeness is None:
            return 0.0
        fakes = _members(owners) * self.sizes[:, None]
        within = np.einsum("io,ij,jo->o", fakes, self.likeness, fakes)
        return float((within / np.maximum(fakes.sum(axis=0), 1.0)).sum())

    def _better(
        self, owners: _Integers, value: float, prices: _Floats
    ) -> tuple[_Integers, float, _Floats] | None:
        """The most promising step that gains and was not tried before; None if there is none."""
        steps = [
            step for step in _steps(owners, self.allowed) if tuple(step.tolist()) not in self.tried
        ]
        bounds = [self.program.bound(prices, step) + self._tightness(step) for step in steps]
        for number in np.argsort(np.negative(bounds), kind="stable")[:PROMISING]:
            if bounds[number] <= value + self.least_gain:
                break
            found, own_prices = self._try(steps[number])
            if found > value + self.least_gain:
                return steps[number], found, own_prices
        return None


def _steps(owners: _Integers, allowed: _Booleans) -> list[_Integers]:
    """Owners with one method given away, or two exchanged."""
    steps = []
    for method, split in np.argwhere(allowed):
        if owners[method] != split:
            step = owners.copy()
            step[method] = split
            steps.append(step)
    for one, other in combinations(range(len(owners)), 2):
        first, second = owners[one], owners[other]
        if first != second and allowed[one, second] and allowed[other, first]:
            step = owners.copy()
            step[one], step[other] = second, first
            steps.append(step)
    return steps
