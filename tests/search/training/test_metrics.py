"""Metrics against scikit-learn, against their definitions, and against second methods."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm, permutation_test, rankdata
from scipy.stats import t as student
from sklearn.metrics import confusion_matrix, log_loss, roc_auc_score

from search.training.metrics import (
    Interval,
    delong_interval,
    delong_test,
    holm,
    measure,
    roc_auc,
    tpr_at_fpr,
)
from tests.benchmarks.validation.bench_coverage import (
    DESIGNS,
    bootstrap_interval,
    coverage,
    rejections,
)
from tests.benchmarks.validation.bench_coverage import draw_sample as draw_groups

Sample = tuple[NDArray[np.float64], NDArray[np.int64]]


@st.composite
def scored(draw: st.DrawFn, *, smallest: int = 1) -> Sample:
    """Scores with many ties, and targets with at least `smallest` images of each class."""
    size = draw(st.integers(2 * smallest, 40))
    fakes = draw(st.integers(smallest, size - smallest))
    targets = np.array(draw(st.permutations([1] * fakes + [0] * (size - fakes))))
    few = st.integers(0, 6).map(lambda step: step / 6)
    scores = draw(st.lists(few | st.floats(0, 1), min_size=size, max_size=size))
    return np.array(scores), targets


def normal_scores(auc: float, fakes: int, reals: int, seed: int = 0) -> Sample:
    """Probabilities whose logits are normal in both classes; `auc` is the true one."""
    generator = np.random.default_rng(seed)
    targets = np.r_[np.ones(fakes, int), np.zeros(reals, int)]
    logits = generator.normal(targets * norm.ppf(auc) * math.sqrt(2), 1.0)
    return 1 / (1 + np.exp(-logits)), targets


def pairwise_auc(scores: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    differences = scores[targets == 1][:, None] - scores[targets == 0][None, :]
    return float((np.sign(differences) + 1).mean() / 2)


def brute_tpr_at_fpr(scores: NDArray[np.float64], targets: NDArray[np.int64], fpr: float) -> float:
    best = 0.0
    for threshold in scores:
        called = scores >= threshold
        if called[targets == 0].mean() <= fpr:
            best = max(best, float(called[targets == 1].mean()))
    return best


@given(scored())
def test_auc_is_the_share_of_ordered_pairs(sample: Sample) -> None:
    assert roc_auc(*sample) == pytest.approx(pairwise_auc(*sample), abs=1e-12)
    assert roc_auc(*sample) == pytest.approx(roc_auc_score(sample[1], sample[0]), abs=1e-12)


@given(scored())
def test_auc_of_reversed_scores_is_the_rest(sample: Sample) -> None:
    scores, targets = sample
    assert roc_auc(-scores, targets) == pytest.approx(1 - roc_auc(scores, targets), abs=1e-12)
    assert roc_auc(scores, 1 - targets) == pytest.approx(1 - roc_auc(scores, targets), abs=1e-12)


def test_equal_orders_tie_exactly() -> None:
    scores, targets = normal_scores(0.8, 70, 110)
    order = np.random.default_rng(1).permutation(len(scores))
    assert roc_auc(scores, targets) == roc_auc(rankdata(scores)[order], targets[order])


def pairwise_variance(
    kernel: NDArray[np.float64], fakes: NDArray[np.int64], reals: NDArray[np.int64]
) -> float:
    """Obuchowski's variance of the mean of (fakes, reals) pairs, group by group, as the paper has
    it."""
    auc, count = kernel.mean(), kernel.shape
    groups = np.union1d(fakes, reals)
    squares = {"fakes": 0.0, "reals": 0.0, "both": 0.0}
    for group in groups:
        of_fakes = (kernel.mean(axis=1)[fakes == group] - auc).sum() / count[0]
        of_reals = (kernel.mean(axis=0)[reals == group] - auc).sum() / count[1]
        squares["fakes"] += of_fakes**2
        squares["reals"] += of_reals**2
        squares["both"] += of_fakes * of_reals
    m, n, both = len(set(fakes)), len(set(reals)), len(groups)
    return (
        m / (m - 1) * squares["fakes"]
        + n / (n - 1) * squares["reals"]
        + 2 * both / (both - 1) * squares["both"]
    )


@given(scored(smallest=2), st.sampled_from([1, 2, 3, 5]))
def test_delong_interval_equals_its_pairwise_definition(sample: Sample, size: int) -> None:
    scores, targets = sample
    groups = np.arange(len(scores)) // size
    fakes, reals = groups[targets == 1], groups[targets == 0]
    kernel = np.sign(scores[targets == 1][:, None] - scores[targets == 0][None, :]) / 2 + 0.5
    auc, smaller = kernel.mean(), min(len(set(fakes)), len(set(reals)))
    interval = delong_interval(scores, targets, groups)
    assert 0 <= interval.low <= auc <= interval.high <= 1
    if smaller > 1 and (variance := pairwise_variance(kernel, fakes, reals)) > 1e-12:
        logit = math.log(auc / (1 - auc))
        half = student.ppf(0.975, smaller - 1) * math.sqrt(variance) / (auc * (1 - auc))
        expected = [1 / (1 + math.exp(-logit - sign * half)) for sign in (-1, 1)]
        assert list(astuple(interval)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("auc", "fakes", "reals"), [(0.75, 300, 300), (0.93, 150, 400)])
def test_delong_interval_agrees_with_a_bootstrap(auc: float, fakes: int, reals: int) -> None:
    scores, targets = normal_scores(auc, fakes, reals)
    generator = np.random.default_rng(0)
    drawn = [
        roc_auc(
            scores[
                np.r_[
                    generator.integers(0, fakes, fakes),
                    fakes + generator.integers(0, reals, reals),
                ]
            ],
            targets,
        )
        for _ in range(2000)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    interval = delong_interval(scores, targets)
    assert interval.low == pytest.approx(low, abs=0.15 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.15 * (high - low))


@pytest.mark.parametrize(
    ("auc", "fakes", "reals"), [(0.6, 40, 60), (0.9, 100, 60), (0.98, 150, 150)]
)
def test_delong_interval_holds_the_truth_as_often_as_it_says(
    auc: float, fakes: int, reals: int
) -> None:
    intervals = [
        delong_interval(*normal_scores(auc, fakes, reals, seed), confidence=0.9)
        for seed in range(600)
    ]
    coverage = np.mean([interval.low <= auc <= interval.high for interval in intervals])
    # 0.9 +- 3.3 standard errors of 600 draws.
    assert 0.86 < coverage < 0.94


@given(scored(smallest=2))
def test_groups_of_one_image_are_delongs_own_case(sample: Sample) -> None:
    scores, targets = sample
    kernel = np.sign(scores[targets == 1][:, None] - scores[targets == 0][None, :]) / 2 + 0.5
    fakes, reals = kernel.shape
    variance = kernel.mean(axis=1).var(ddof=1) / fakes + kernel.mean(axis=0).var(ddof=1) / reals
    flat = np.full(len(scores), 0.5)
    found = delong_test(scores, flat, targets, [f"image {i}" for i in range(len(scores))])
    assert found.standard_error == pytest.approx(math.sqrt(variance), abs=1e-12)
    assert found == pytest.approx(delong_test(scores, flat, targets), nan_ok=True)


def test_the_interval_over_groups_agrees_with_their_bootstrap() -> None:
    for design in DESIGNS:
        sample = draw_groups(design, 150, 0.85, seed=4)
        resampled = bootstrap_interval(sample, corrected=False)
        interval = delong_interval(sample.scores[0], sample.targets, sample.groups)
        width = resampled.high - resampled.low
        assert interval.low == pytest.approx(resampled.low, abs=0.15 * width)
        assert interval.high == pytest.approx(resampled.high, abs=0.15 * width)


@pytest.mark.parametrize(
    ("design", "auc"),
    [
        *(("1 real, 3 fakes", 0.97), ("2 real, 2 fakes", 0.75)),
        *(("of one class", 0.9), ("of one class", 0.97)),
    ],
)
def test_intervals_over_150_groups_of_4_hold_the_truth(design: str, auc: float) -> None:
    """`bench_coverage` looks at all of them, and at more draws."""
    held, _, _ = coverage("groups", design, 150, auc, draws=600)
    # 95%, within 2 points beside two standard errors of 600 draws.
    assert 0.93 - 0.018 < held < 0.97 + 0.018


def test_images_are_not_independent() -> None:
    held, _, _ = coverage("images", "of one class", 150, 0.9, draws=200)
    assert held < 0.88


def test_the_paired_test_sees_no_difference_where_there_is_none() -> None:
    assert 0.02 < rejections("of one class", 150, 0.9, draws=400) < 0.085
    assert rejections("of one class", 150, 0.9, draws=200, grouped=False) > 0.12


def test_images_of_one_group_count_once() -> None:
    scores, targets = normal_scores(0.85, 60, 60)
    once, groups = delong_interval(scores, targets), np.tile(np.arange(120), 5)
    again = delong_interval(np.tile(scores, 5), np.tile(targets, 5), groups)
    assert astuple(again) == pytest.approx(astuple(once))
    believed = delong_interval(np.tile(scores, 5), np.tile(targets, 5))
    assert believed.high - believed.low < 0.5 * (once.high - once.low)


def test_groups_have_any_names_and_order() -> None:
    scores, targets = normal_scores(0.8, 40, 40)
    groups = np.arange(80) % 30
    expected = delong_interval(scores, targets, groups)
    order = np.random.default_rng(0).permutation(80)
    named = [f"clip/{number:03d}.mp4" for number in groups[order]]
    found = delong_interval(scores[order], targets[order], named)
    assert astuple(found) == pytest.approx(astuple(expected))


@pytest.mark.parametrize("perfect", [False, True])
def test_one_group_tells_nothing_of_others(perfect: bool) -> None:
    scores, targets = normal_scores(0.9, 50, 50)
    interval = delong_interval(targets if perfect else scores, targets, np.zeros(100))
    assert interval.high - interval.low > 0.75
    assert math.isnan(delong_test(scores, -scores, targets, np.zeros(100)).p_value)


def test_perfect_scores_of_groups_are_as_sure_as_their_number() -> None:
    targets = np.tile([0, 1, 1, 1], 50)
    found = delong_interval(targets, targets, np.arange(200) // 4)
    assert found == delong_interval(np.repeat([0, 1], 50), np.repeat([0, 1], 50))


def test_scores_that_shift_with_their_group_still_have_an_interval() -> None:
    """Every group adds the same to the AUC, which has no variance then but for rounding."""
    scores, targets = np.arange(7).repeat(2) + np.tile([0, 0.5], 7), np.tile([0, 1], 7)
    interval = delong_interval(scores, targets, np.arange(14) // 2)
    assert interval.low < 0.5 < roc_auc(scores, targets) < interval.high
    assert interval.high - interval.low > 0.3


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.9, math.nan, 0.001], [1.0, 1.0, math.nan, 0.003]),
        ([math.nan], [math.nan]),
    ],
)
def test_holms_correction(given: list[float], corrected: list[float]) -> None:
    assert holm(given).tolist() == pytest.approx(corrected, nan_ok=True)


def test_a_higher_confidence_is_a_wider_interval() -> None:
    scores, targets = normal_scores(0.8, 50, 50)
    narrow, wide = (delong_interval(scores, targets, None, level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("size", [2, 10, 100, 10_000])
def test_perfect_scores_have_a_score_interval(size: int) -> None:
    targets = np.repeat([0, 1], size)
    best, worst = delong_interval(targets, targets), delong_interval(-targets, targets)
    assert best.high == 1
    assert worst.low == 0
    assert worst.high == pytest.approx(1 - best.low)
    # Newcombe's method 5 where the AUC is 1: (1 - a) = z^2 a S(a) / (fakes * reals).
    a, z = best.low, 1.959963984540054
    spread = 1 + (size - 1) * ((1 - a) / (2 - a) + a / (1 + a))
    assert 1 - a == pytest.approx(z**2 * a * spread / size**2, rel=1e-6)
    # An exact bound on either class is 1 - 0.025^(1/size); the interval may not be far from it.
    assert 0.2 < (1 - a) / (1 - 0.025 ** (1 / size)) < 1.2


@pytest.mark.parametrize(
    ("scores", "targets"),
    [
        pytest.param([0.5] * 20, [0, 1] * 10, id="all scores equal"),
        pytest.param([0.1, 0.4, 0.2, 0.6], [0, 0, 1, 0], id="one fake"),
        pytest.param([0.1, 0.4, 0.2, 0.6], [1, 1, 0, 1], id="one real"),
        pytest.param([0.3, 0.7], [0, 1], id="one of each"),
    ],
)
def test_interval_without_a_variance_still_tells_the_uncertainty(
    scores: list[float], targets: list[int]
) -> None:
    interval = delong_interval(scores, targets)
    assert 0 <= interval.low <= roc_auc(scores, targets) <= interval.high <= 1
    assert interval.high - interval.low > 0.3


def test_delong_test_agrees_with_a_permutation_test() -> None:
    generator = np.random.default_rng(3)
    targets = np.repeat([0, 1], 100)
    common = generator.normal(1.2 * targets)
    a, b = (common + generator.normal(0, spread, 200) for spread in (0.5, 1.2))
    result = delong_test(a, b, targets)
    assert result.difference == pytest.approx(roc_auc(a, targets) - roc_auc(b, targets))

    def difference(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return roc_auc(x, targets) - roc_auc(y, targets)

    exchanged = permutation_test(
        (rankdata(a), rankdata(b)),
        difference,
        permutation_type="samples",
        vectorized=False,
        n_resamples=2000,
        rng=generator,
    )
    assert 0.001 < result.p_value < 0.2
    assert result.p_value == pytest.approx(exchanged.pvalue, abs=0.03)


def test_delong_test_is_antisymmetric_and_uses_the_pairing() -> None:
    scores, targets = normal_scores(0.8, 80, 80)
    noisy = scores + np.random.default_rng(0).normal(0, 0.02, len(scores))
    other, _ = normal_scores(0.8, 80, 80, seed=1)
    forward, backward = delong_test(scores, noisy, targets), delong_test(noisy, scores, targets)
    assert forward.difference == pytest.approx(-backward.difference)
    assert forward.p_value == pytest.approx(backward.p_value)
    assert forward.standard_error < delong_test(scores, other, targets).standard_error / 3


@pytest.mark.parametrize(
    ("a", "b", "targets", "p_value"),
    [
        pytest.param([1, 2, 3, 4], [1, 2, 3, 4], [0, 1, 0, 1], 1.0, id="equal scores"),
        pytest.param([1, 2, 3, 4], [10, 20, 30, 40], [0, 1, 0, 1], 1.0, id="equal order"),
        pytest.param([1, 2, 3, 4], [0, 0, 0, 0], [0, 0, 1, 1], math.nan, id="no variance"),
        pytest.param([1, 2, 3, 4], [4, 3, 2, 1], [0, 0, 0, 1], math.nan, id="one fake"),
        pytest.param([1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 1, 1], math.nan, id="no real"),
    ],
)
def test_delong_test_where_it_cannot_say(
    a: list[float], b: list[float], targets: list[int], p_value: float
) -> None:
    assert delong_test(a, b, targets).p_value == pytest.approx(p_value, nan_ok=True)


@given(scored(), st.sampled_from([0.0, 1e-3, 1e-2, 0.1, 0.29, 1 / 3, 0.5, 0.99, 1.0]))
def test_tpr_at_fpr_is_the_best_threshold(sample: Sample, fpr: float) -> None:
    assert tpr_at_fpr(*sample, fpr) == pytest.approx(brute_tpr_at_fpr(*sample, fpr), abs=1e-12)


@pytest.mark.parametrize("percent", range(101))
def test_tpr_at_fpr_allows_an_fpr_that_is_reached_exactly(percent: int) -> None:
    reals, fakes = np.arange(100.0), np.arange(100.0) + 0.5
    targets = np.repeat([0, 1], 100)
    expected = min(1.0, (percent + 1) / 100)
    assert tpr_at_fpr(np.r_[reals, fakes], targets, percent / 100) == expected


def test_tpr_at_fpr_calls_ties_alike() -> None:
    assert tpr_at_fpr([0.9, 0.9, 0.9, 0.1], [1, 1, 0, 0], 0.49) == 0
    assert tpr_at_fpr([0.9, 0.9, 0.9, 0.1], [1, 1, 0, 0], 0.5) == 1


@given(scored())
def test_measure_agrees_with_scikit_learn(sample: Sample) -> None:
    scores, targets = sample
    metrics = measure(scores, targets, threshold=0.4)
    matrix = confusion_matrix(targets, scores >= 0.4, labels=[0, 1])
    assert [[metrics.tn, metrics.fp], [metrics.fn, metrics.tp]] == matrix.tolist()
    assert metrics.accuracy == pytest.approx(np.trace(matrix) / len(scores))
    assert metrics.n == len(scores)
    assert metrics.log_loss == pytest.approx(log_loss(targets, scores, labels=[0, 1]))
    assert metrics.auc == roc_auc(scores, targets)
    assert Interval(metrics.auc_low, metrics.auc_high) == delong_interval(scores, targets)
    pairs = np.arange(len(scores)) // 2
    over_pairs = measure(scores, targets, pairs)
    expected = delong_interval(scores, targets, pairs)
    assert Interval(over_pairs.auc_low, over_pairs.auc_high) == expected
    assert [metrics.groups, over_pairs.groups] == [len(scores), len(set(pairs))]
    assert metrics.tpr_at_fpr_5e_3 == tpr_at_fpr(scores, targets, 5e-3)


def test_metrics_have_the_names_of_the_leaderboard() -> None:
    figures = measure([0.2, 0.8, 0.6], [0, 1, 0]).to_dict()
    assert list(figures) == [
        *("auc", "auc_low", "auc_high"),
        *("tpr_at_fpr_1e-2", "tpr_at_fpr_5e-3", "tpr_at_fpr_1e-3"),
        *("accuracy", "log_loss", "tp", "fp", "tn", "fn", "n", "groups"),
    ]
    assert [figures[name] for name in ("tp", "fp", "tn", "fn", "n")] == [1, 1, 1, 0, 3]


def test_a_score_at_the_threshold_is_fake() -> None:
    assert measure([0.5], [1]).tp == 1


def test_log_loss_of_certain_and_wrong_scores_is_finite() -> None:
    assert measure([0.0, 1.0], [1, 0]).log_loss == pytest.approx(-math.log(np.finfo(float).eps))


@pytest.mark.parametrize("targets", [[], [0, 0, 0], [1, 1, 1]])
def test_figures_of_a_split_without_one_of_the_classes_are_nan(targets: list[int]) -> None:
    metrics = measure([0.2] * len(targets), targets)
    undefined = [metrics.auc, metrics.auc_low, metrics.auc_high, metrics.tpr_at_fpr_1e_2]
    assert all(math.isnan(value) for value in undefined)
    assert metrics.tp + metrics.fp + metrics.tn + metrics.fn == len(targets)
    assert math.isnan(metrics.log_loss) == (not targets)


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([0.1, math.nan, math.inf, 0.2], [0, 1, 0, 1], "2 of 4 are not"),
        ([0.1, 0.2], [0, 2], r"targets must be 0 or 1, but got \[0 2\]"),
        ([0.1, 0.2, 0.3], [0, 1], r"got \(3,\) and \(2,\)"),
        ([[0.1], [0.2]], [[0], [1]], r"must be \(N,\) both"),
    ],
)
@pytest.mark.parametrize(
    "measure",
    [
        measure,
        roc_auc,
        delong_interval,
        lambda scores, targets: delong_test(np.zeros(len(targets)), scores, targets),
        lambda scores, targets: tpr_at_fpr(scores, targets, 0.1),
    ],
)
def test_bad_arrays_are_refused(measure, scores, targets, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        measure(scores, targets)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fpr=1\.5"):
        tpr_at_fpr([0.1, 0.2], [0, 1], 1.5)
    with pytest.raises(ValueError, match="confidence=95"):
        delong_interval([0.1, 0.2], [0, 1], None, 95)
    with pytest.raises(ValueError, match=r"groups must be \(2,\) as scores are, but got \(3,\)"):
        delong_interval([0.1, 0.2], [0, 1], ["a", "b", "c"])
    with pytest.raises(ValueError, match="every image must have a group, but 1 have none"):
        measure([0.1, 0.2], [0, 1], ["a", None])
    with pytest.raises(ValueError, match="greater than 1"):
        measure([0.1, 1.2], [0, 1])
