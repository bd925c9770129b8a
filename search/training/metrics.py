"""How good scores are: pure functions of (N,) scores, higher = more likely fake, and (N,) targets,
1 = fake, the positive class."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, rankdata
from scipy.stats import t as student
from sklearn.metrics import log_loss as sklearn_log_loss

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ROUNDING = 1e-12
"""Standard errors of an AUC up to this are none: one pair out of order among 500,000 fakes and as
many reals makes 4e-12."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval; both ends are NaN where there is nothing to estimate."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Two sets of scores of the same images, compared by AUC."""

    difference: float  # AUC of the first minus AUC of the second
    standard_error: float  # images of one group counted together
    p_value: float  # two-sided, of no difference


@dataclass(frozen=True)
class Metrics:
    """What the scores of one split are worth; AUC and TPR are NaN if a class is absent."""

    auc: float
    auc_low: float  # 95% interval, see delong_interval
    auc_high: float
    tpr_at_fpr_1e_2: float
    tpr_at_fpr_5e_3: float
    tpr_at_fpr_1e_3: float
    accuracy: float  # at the threshold, as are the four counts
    log_loss: float  # mean, natural logarithm
    tp: int
    fp: int
    tn: int
    fn: int
    n: int
    groups: int  # that the interval takes as independent
    auc_seen: float | None = None  # real images against fakes of methods that fit has
    auc_unseen: float | None = None  # against those of methods that it lacks
    auc_stress: float | None = None  # mean over alterations of the images

    def to_dict(self) -> dict[str, float | int]:
        """The figures under their names in leaderboard.csv, as in `tpr_at_fpr_1e-2`, without those
        that were not measured."""
        return {
            name.replace("e_", "e-"): value
            for name, value in asdict(self).items()
            if value is not None
        }


def measure(
    scores: ArrayLike,
    targets: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    threshold: float = 0.5,
    unseen: NDArray[np.bool_] | None = None,
) -> Metrics:
    """All figures of one split, but for `auc_stress`.

    Args:
        scores: (N,) probabilities of fake.
        targets: (N,) 0 or 1.
        groups: (N,) equal where images are of one source; None: each image is its own.
        unseen: (N,) fakes of methods that fit lacks; None: that is not known.
        threshold: an image is called fake from this score on.

    Raises:
        ValueError: for scores that are not finite or outside [0, 1], targets other than 0 and 1,
            and arrays of other or unequal shapes.
    """
    values, is_fake = _checked(scores, targets)
    called_fake = values >= threshold
    tp, fp = int((called_fake & is_fake).sum()), int((called_fake & ~is_fake).sum())
    fn, n = int(is_fake.sum()) - tp, len(values)
    tn = n - tp - fp - fn
    numbers = _numbered(groups, n)
    interval = delong_interval(values, is_fake, numbers)
    of_seen, of_unseen = None, None
    if unseen is not None:
        of_seen, of_unseen = split_by_novelty(values, is_fake, unseen)
    return Metrics(
        auc=roc_auc(values, is_fake),
        auc_low=interval.low,
        auc_high=interval.high,
        tpr_at_fpr_1e_2=tpr_at_fpr(values, is_fake, 1e-2),
        tpr_at_fpr_5e_3=tpr_at_fpr(values, is_fake, 5e-3),
        tpr_at_fpr_1e_3=tpr_at_fpr(values, is_fake, 1e-3),
        accuracy=(tp + tn) / n if n else math.nan,
        # Clipped by the machine epsilon: a score of exactly 0 or 1 that is wrong costs 36.04.
        log_loss=float(sklearn_log_loss(is_fake, values, labels=[0, 1])) if n else math.nan,
        tp=tp,
        fp=fp,
        tn=tn,
        fn=fn,
        n=n,
        groups=int(numbers.max()) + 1 if n else 0,
        auc_seen=of_seen,
        auc_unseen=of_unseen,
    )


def split_by_novelty(
    scores: ArrayLike, targets: ArrayLike, unseen: NDArray[np.bool_]
) -> tuple[float | None, float | None]:
    """AUC of fakes of methods that fit has, and of those that it lacks, each against all real
    images; None where there are no such fakes, or no real images.

    Args:
        scores: (N,) any finite ones.
        targets: (N,) 0 or 1.
        unseen: (N,) fakes of methods that fit lacks.
    """
    values, is_fake = _checked(scores, targets)

    def of(fakes: NDArray[np.bool_]) -> float | None:
        if not fakes.any() or is_fake.all():
            return None
        shown = fakes | ~is_fake
        return roc_auc(values[shown], is_fake[shown])

    return of(is_fake & ~unseen), of(is_fake & unseen)


def mean_auc_of_alterations(
    scores: Floats, targets: Integers, alterations: Integers
) -> float | None:
    """The mean AUC over alterations; None if there are none, or one lacks a class.

    Args:
        scores: (N,) any finite ones.
        targets: (N,) 0 or 1.
        alterations: (N,) which one; -1: the image as it is, which does not count.
    """
    numbers = np.unique(alterations[alterations >= 0])
    found = [roc_auc(scores[alterations == n], targets[alterations == n]) for n in numbers]
    return float(np.mean(found)) if found and np.isfinite(found).all() else None


def roc_auc(scores: ArrayLike, targets: ArrayLike) -> float:
    """P(score of a random fake > score of a random real), ties counting one half.

    Returns:
        NaN if a class is absent.

    Raises:
        ValueError: as `evaluate`, but any finite score will do.
    """
    values, is_fake = _checked(scores, targets)
    fakes, reals = int(is_fake.sum()), int((~is_fake).sum())
    if not fakes or not reals:
        return math.nan
    # Ranks are whole or half numbers, so that their sum is exact and equal orders tie exactly.
    return float(rankdata(values)[is_fake].sum() - fakes * (fakes + 1) / 2) / (fakes * reals)


def delong_interval(
    scores: ArrayLike,
    targets: ArrayLike,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Confidence interval of the AUC: DeLong's variance over groups, on the logit scale.

    DeLong's structural components (doi:10.2307/2531595), by the midranks of Sun and Xu (2014),
    doi:10.1109/LSP.2014.2337313, in O(N log N), are summed within each group before their variance
    is taken: Obuchowski (1997), doi:10.2307/2533958. Where every image is its own group, that is
    DeLong's variance. The logit scale keeps the ends inside (0, 1), and the interval honest near 1,
    as Pohar Perme and Manevski (2018), doi:10.1177/0962280218814556, recommend; the quantile is
    Student's, of the groups of the rarer class less one degrees of freedom.

    Images of one group alike: of 1,500 samples of 150 groups each, in four designs (as one real and
    three fakes of a clip) and with true AUCs from 0.75 to 0.99, 93.3% to 95.7% of these 95%
    intervals held the truth; 77% to 97% of those that take every image for its own group, which is
    plain DeLong; 88% to 96% of the quantiles of a bootstrap of groups, 91% to 97% of those
    corrected for bias and acceleration, at 15 times the cost
    (tests/benchmarks/validation/bench_coverage.py). With 40 groups and a true AUC of 0.97, ours
    were 93% to 94%.

    Where that variance is zero (AUC exactly 0 or 1, or all scores equal) or unknown (a class lies
    in one group only), the interval is Newcombe's score interval, method 5 of
    doi:10.1002/sim.2324, for as many fakes and reals as there are groups of them: perfect scores of
    100 fakes and 100 reals, each its own group, give [0.980, 1], not [1, 1]. It is the wider of the
    two, so a perfect AUC may have a lower `low` than one that is just short of it.

    Args:
        scores: (N,) finite; only their order matters.
        targets: (N,) 0 or 1.
        groups: (N,) equal where images are of one source; None: each image is its own.
        confidence: between 0 and 1, both excluded.

    Returns:
        An interval that holds the AUC; NaN at both ends if a class is absent.

    Raises:
        ValueError: as `roc_auc`, for groups that are missing or of another shape, and for a
            confidence out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`0 < confidence < 1` must hold, but got (confidence={confidence})")
    values, is_fake = _checked(scores, targets)
    numbers = _numbered(groups, len(values))
    above_reals, below_fakes = _placements(values, is_fake)
    if not len(above_reals):
        return Interval(math.nan, math.nan)
    auc = float(above_reals.mean())
    spread = _spread(above_reals, below_fakes, is_fake, numbers)
    if spread.standard_error > ROUNDING:  # also false for NaN, of a class in one group
        quantile = float(student.ppf(0.5 + confidence / 2, spread.degrees))
        middle, half = logit(auc), quantile * spread.standard_error / (auc * (1 - auc))
        return Interval(float(expit(middle - half)), float(expit(middle + half)))
    quantile = float(norm.ppf(0.5 + confidence / 2))
    return Interval(
        _newcombe_low(auc, spread.fakes, spread.reals, quantile),
        1 - _newcombe_low(1 - auc, spread.fakes, spread.reals, quantile),
    )


def delong_test(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    targets: ArrayLike,
    groups: ArrayLike | None = None,
) -> PairedTest:
    """DeLong's test (doi:10.2307/2531595) of two sets of scores of the same images, its variance
    over groups as in `delong_interval`.

    Args:
        scores_a: (N,) finite.
        scores_b: (N,) of the same images in the same order.
        targets: (N,) 0 or 1.
        groups: (N,) equal where images are of one source; None: each image is its own.

    Returns:
        A p-value of 1 if both order the images alike. All figures are NaN if a class is absent; the
        p-value is NaN, too, where the test cannot say: a class lies in one group only, or the
        difference has no variance, as between perfect scores and constant ones.

    Raises:
        ValueError: as `delong_interval`.
    """
    values, is_fake = _checked(scores_a, targets)
    numbers = _numbered(groups, len(values))
    above_a, below_a = _placements(values, is_fake)
    above_b, below_b = _placements(*_checked(scores_b, targets))
    if not len(above_a):
        return PairedTest(math.nan, math.nan, math.nan)
    above, below = above_a - above_b, below_a - below_b
    spread = _spread(above, below, is_fake, numbers)
    difference, standard_error = float(above.mean()), spread.standard_error
    if standard_error > ROUNDING:
        p_value = 2 * float(student.sf(abs(difference) / standard_error, spread.degrees))
    else:
        p_value = 1.0 if standard_error == 0 and not above.any() else math.nan
    return PairedTest(difference, standard_error, p_value)


def holm(p_values: ArrayLike) -> Floats:
    """p-values corrected for their number (Holm 1979, jstor:4615733): with those up to 0.05 called
    differences, the chance that any of them is none is 5% at most, however they depend on each
    other.

    Args:
        p_values: (M,) of as many comparisons; NaN where there is none, which is not counted.

    Returns:
        (M,) in the order given, NaN where there was NaN.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")  # NaN last
    count = int(np.isfinite(values).sum())
    chosen = order[:count]
    factors = np.arange(count, 0, -1)
    corrected = np.full(len(values), np.nan)
    corrected[chosen] = np.minimum(np.maximum.accumulate(factors * values[chosen]), 1.0)
    return corrected


def tpr_at_fpr(scores: ArrayLike, targets: ArrayLike, fpr: float) -> float:
    """The highest true positive rate of a threshold whose false positive rate is at most `fpr`.

    A step function: no interpolation between thresholds, images of one score are called alike.
    With fewer than 1 / fpr reals, not one of them may be called fake.

    Returns:
        NaN if a class is absent.

    Raises:
        ValueError: as `roc_auc`, and for an `fpr` outside [0, 1].
    """
    if not 0 <= fpr <= 1:
        raise ValueError(f"`0 <= fpr <= 1` must hold, but got (fpr={fpr})")
    values, is_fake = _checked(scores, targets)
    fakes, reals = values[is_fake], np.sort(values[~is_fake])[::-1]
    if not len(fakes) or not len(reals):
        return math.nan
    # The same division as in a false positive rate: floor(0.29 * 100) would be 28.
    allowed = int(np.searchsorted(np.arange(len(reals) + 1) / len(reals), fpr, side="right")) - 1
    return 1.0 if allowed == len(reals) else float((fakes > reals[allowed]).mean())


def _checked(scores: ArrayLike, targets: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores as float64 and whether each image is fake."""
    values, classes = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if values.ndim != 1 or values.shape != classes.shape:
        raise ValueError(
            f"scores and targets must be (N,) both, but got {values.shape} and {classes.shape}"
        )
    if broken := int((~np.isfinite(values)).sum()):
        raise ValueError(f"scores must be finite, but {broken} of {len(values)} are not")
    if not np.isin(classes, (0, 1)).all():
        raise ValueError(f"targets must be 0 or 1, but got {np.unique(classes)[:5]}")
    return values, classes.astype(bool)


def _placements(values: Floats, is_fake: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """For each fake the share of reals below it, and for each real the share of fakes above it,
    ties counting one half: DeLong's structural components, (fakes,) and (reals,).

    Both are empty if a class is absent.
    """
    fakes, reals = values[is_fake], values[~is_fake]
    if not len(fakes) or not len(reals):
        return np.empty(0), np.empty(0)
    ranks = rankdata(values)
    above_reals = (ranks[is_fake] - rankdata(fakes)) / len(reals)
    below_fakes = 1 - (ranks[~is_fake] - rankdata(reals)) / len(fakes)
    return above_reals, below_fakes


@dataclass(frozen=True)
class _Spread:
    """How far a mean of DeLong's components would be elsewhere with other groups."""

    standard_error: float  # NaN if a class lies in one group only
    fakes: int  # groups that hold fakes
    reals: int  # groups that hold reals

    @property
    def degrees(self) -> int:
        """Degrees of freedom."""
        return min(self.fakes, self.reals) - 1


def _spread(above: Floats, below: Floats, is_fake: NDArray[np.bool_], groups: Integers) -> _Spread:
    """Obuchowski's variance (doi:10.2307/2533958) of the mean of DeLong's components.

    Args:
        above: (fakes,) components, or the differences of two models'.
        below: (reals,) likewise.
        is_fake: (N,).
        groups: (N,) from 0, without gaps.
    """
    count = int(groups.max()) + 1
    own = [groups[is_fake], groups[~is_fake]]
    fakes, reals = (int((np.bincount(numbers, minlength=count) > 0).sum()) for numbers in own)
    if fakes < 2 or reals < 2:
        return _Spread(math.nan, fakes, reals)
    of_fakes, of_reals = (
        np.bincount(numbers, part - part.mean(), count) / len(part)
        for numbers, part in zip(own, (above, below), strict=True)
    )  # (count,) - what each group adds to the mean

    def unbiased(number: int) -> float:
        return number / (number - 1)

    # Not negative: the first two factors are at least the third, and with it for all three this is
    # the sum of (of_fakes + of_reals)^2.
    variance = float(
        unbiased(fakes) * (of_fakes @ of_fakes)
        + unbiased(reals) * (of_reals @ of_reals)
        + 2 * unbiased(count) * (of_fakes @ of_reals)
    )
    return _Spread(math.sqrt(max(variance, 0.0)), fakes, reals)


def _numbered(groups: ArrayLike | None, count: int) -> Integers:
    """(N,) the number of each image's group, from 0 and without gaps."""
    if groups is None:
        return np.arange(count)
    names = np.asarray(groups)
    if names.shape != (count,):
        raise ValueError(f"groups must be ({count},) as scores are, but got {names.shape}")
    numbers, _ = pd.factorize(names)
    if (numbers < 0).any():
        raise ValueError(f"every image must have a group, but {(numbers < 0).sum()} have none")
    return numbers.astype(np.int64)


def _newcombe_low(auc: float, fakes: int, reals: int, quantile: float) -> float:
    """The a < auc with auc - a = quantile * sqrt(V(a)), where V is Hanley and McNeil's variance
    (doi:10.1148/radiology.143.1.7063747) with classes of equal size in its numerator."""
    half = (fakes + reals) / 2 - 1

    def excess(a: float) -> float:
        spread = 1 + half * ((1 - a) / (2 - a) + a / (1 + a))
        return (auc - a) ** 2 - quantile**2 * a * (1 - a) * spread / (fakes * reals)

    # Not up to 1, which also solves the equation where the AUC is 1.
    return float(brentq(excess, 0, min(auc, 1 - 1e-12))) if auc > 0 else 0.0
