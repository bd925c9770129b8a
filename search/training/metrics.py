"""How good scores are: pure functions of (N,) scores, higher = more likely fake, and (N,) targets,
1 = fake, the positive class."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, rankdata
from sklearn.metrics import log_loss as sklearn_log_loss

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A confidence interval; both ends are NaN where there is nothing to estimate."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Two sets of scores of the same images, compared by AUC."""

    difference: float  # AUC of the first minus AUC of the second
    standard_error: float
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

    def to_dict(self) -> dict[str, float | int]:
        """The figures under their names in leaderboard.csv, as in `tpr_at_fpr_1e-2`."""
        return {name.replace("e_", "e-"): value for name, value in asdict(self).items()}


def measure(scores: ArrayLike, targets: ArrayLike, threshold: float = 0.5) -> Metrics:
    """All figures of one split.

    Args:
        scores: (N,) probabilities of fake.
        targets: (N,) 0 or 1.
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
    interval = delong_interval(values, is_fake)
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
    )


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


def delong_interval(scores: ArrayLike, targets: ArrayLike, confidence: float = 0.95) -> Interval:
    """Confidence interval of the AUC: DeLong's variance on the logit scale.

    The variance is that of DeLong, DeLong and Clarke-Pearson (1988), doi:10.2307/2531595, by the
    midranks of Sun and Xu (2014), doi:10.1109/LSP.2014.2337313, in O(N log N). The logit scale
    keeps the ends inside (0, 1), and the interval honest near 1, as Pohar Perme and Manevski
    (2018), doi:10.1177/0962280218814556, recommend: with 100 fakes and 100 reals of normal scores
    and a true AUC of 0.99, 92.4% of 1,500 such 95% intervals held it, 85.4% of those without.

    Where that variance is zero (AUC exactly 0 or 1, or all scores equal) or unknown (a class has
    one image only), the interval is Newcombe's score interval, method 5 of doi:10.1002/sim.2324,
    instead: perfect scores of 100 fakes and 100 reals give [0.980, 1], not [1, 1]. It is the wider
    of the two, so a perfect AUC may have a lower `low` than one that is just short of it.

    Args:
        scores: (N,) finite; only their order matters.
        targets: (N,) 0 or 1.
        confidence: between 0 and 1, both excluded.

    Returns:
        An interval that holds the AUC; NaN at both ends if a class is absent.

    Raises:
        ValueError: as `roc_auc`, and for a confidence out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`0 < confidence < 1` must hold, but got (confidence={confidence})")
    above_reals, below_fakes = _placements(*_checked(scores, targets))
    fakes, reals = len(above_reals), len(below_fakes)
    if not fakes or not reals:
        return Interval(math.nan, math.nan)
    auc = float(above_reals.mean())
    quantile = float(norm.ppf(0.5 + confidence / 2))
    standard_error = _standard_error(above_reals, below_fakes)
    # Also false for NaN, the standard error of a single image.
    if standard_error > 0:
        middle, half = logit(auc), quantile * standard_error / (auc * (1 - auc))
        return Interval(float(expit(middle - half)), float(expit(middle + half)))
    return Interval(
        _newcombe_low(auc, fakes, reals, quantile),
        1 - _newcombe_low(1 - auc, fakes, reals, quantile),
    )


def delong_test(scores_a: ArrayLike, scores_b: ArrayLike, targets: ArrayLike) -> PairedTest:
    """DeLong's test (doi:10.2307/2531595) of two sets of scores of the same images.

    Args:
        scores_a: (N,) finite.
        scores_b: (N,) of the same images in the same order.
        targets: (N,) 0 or 1.

    Returns:
        A p-value of 1 if both order the images alike. All figures are NaN if a class is absent; the
        p-value is NaN, too, where the test cannot say: a class has one image only, or the
        difference has no variance, as between perfect scores and constant ones.

    Raises:
        ValueError: as `roc_auc`.
    """
    above_a, below_a = _placements(*_checked(scores_a, targets))
    above_b, below_b = _placements(*_checked(scores_b, targets))
    if not len(above_a) or not len(below_a):
        return PairedTest(math.nan, math.nan, math.nan)
    above, below = above_a - above_b, below_a - below_b
    difference, standard_error = float(above.mean()), _standard_error(above, below)
    if standard_error > 0:
        p_value = 2 * float(norm.sf(abs(difference) / standard_error))
    else:
        p_value = 1.0 if standard_error == 0 and not above.any() else math.nan
    return PairedTest(difference, standard_error, p_value)


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


def _standard_error(above: Floats, below: Floats) -> float:
    """Of the mean of DeLong's components; NaN if a class has one image only."""
    if len(above) < 2 or len(below) < 2:
        return math.nan
    return math.sqrt(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))


def _newcombe_low(auc: float, fakes: int, reals: int, quantile: float) -> float:
    """The a < auc with auc - a = quantile * sqrt(V(a)), where V is Hanley and McNeil's variance
    (doi:10.1148/radiology.143.1.7063747) with classes of equal size in its numerator."""
    half = (fakes + reals) / 2 - 1

    def excess(a: float) -> float:
        spread = 1 + half * ((1 - a) / (2 - a) + a / (1 + a))
        return (auc - a) ** 2 - quantile**2 * a * (1 - a) * spread / (fakes * reals)

    # Not up to 1, which also solves the equation where the AUC is 1.
    return float(brentq(excess, 0, min(auc, 1 - 1e-12))) if auc > 0 else 0.0
