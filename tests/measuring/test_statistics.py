"""Intervals, rank correlation and the collapse rule, against theory, scipy and values worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from editlib.errors import EditlibError
from editlib.measuring.statistics import UNKNOWN, Interval, bootstrap, collapsed, collapses, mean_ratio, share, spearman


def test_the_bootstrap_of_a_mean_has_the_width_of_theory() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)
    found = bootstrap(np.mean, values, seed=0)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert found == bootstrap(np.mean, values, seed=0)


def test_its_draws_are_those_of_the_pages_that_are_published() -> None:
    """One stream of choices, whole samples one after the other, bounds by rank."""
    values, rng = np.arange(7.0) ** 2, np.random.default_rng(5)
    means = np.sort(rng.choice(values, (2000, 7)).mean(axis=1))
    assert bootstrap(np.mean, values, seed=5) == Interval(13.0, means[50], means[1949])


def test_samples_are_resampled_apart_or_row_by_row() -> None:
    x = np.arange(1.0, 9.0)
    apart, paired = (bootstrap(mean_ratio, x, 2 * x, seed=0, paired=paired) for paired in (False, True))
    assert apart.value == paired.value == 0.5
    assert paired.low == pytest.approx(0.5) and paired.high == pytest.approx(0.5)
    assert apart.low < 0.4 and apart.high > 0.6
    with pytest.raises(ValueError, match="paired samples of"):
        bootstrap(mean_ratio, x, x[:7], seed=0, paired=True)


def test_an_infinite_value_stays_in_the_interval() -> None:
    found = bootstrap(np.mean, [1.0, 1.0, 1.0, 1.0, 2.0, math.inf], seed=0)
    assert math.isinf(found.value) and math.isinf(found.high) and found.low < 2.0


def test_resamples_without_a_value_do_not_count() -> None:
    """Half of all pairs of five rows, four of them alike in y, have no rank correlation."""
    found = bootstrap(spearman, [1, 2, 3, 4, 5], [0, 0, 0, 0, 1], seed=0, paired=True)
    assert found.value > 0 and 0 < found.low <= found.high <= 1


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_values_have_no_interval(count: int) -> None:
    found = bootstrap(np.mean, [3.0] * count, seed=0)
    assert found.value == 3.0 and math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(bootstrap(mean_ratio, [3.0] * 9, [2.0] * count, seed=0).low)


def test_nothing_has_no_value() -> None:
    assert math.isnan(bootstrap(np.mean, [], seed=0).value)
    assert math.isnan(share(0, 0).value)


def test_a_share_of_few_has_no_interval() -> None:
    assert f"{share(3, 4):.2f}" == "0.75 [–]"
    assert f"{share(4, 5):.2f}" == "0.80 [0.38, 0.96]"


def test_a_share_of_all_has_an_interval_too() -> None:
    assert share(79, 80).low == pytest.approx(0.9325, abs=5e-5)  # Wilson 1927
    whole = share(10, 10)
    assert whole.value == 1.0 and whole.high == pytest.approx(1.0) and whole.low == pytest.approx(0.7225, abs=5e-5)


def test_rank_correlation_is_that_of_scipy_ties_and_inf_included() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 40).astype(float), rng.normal(size=40)
    x[3] = math.inf
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert math.isnan(spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))


def test_an_interval_is_written_with_its_bounds() -> None:
    assert f"{Interval(0.5, 0.25, 1.0):.2f}" == "0.50 [0.25, 1.00]"
    assert f"{Interval(0.5, math.nan, math.nan):.2f}" == "0.50 [–]"
    assert f"{UNKNOWN:.2f}" == "–"


def test_five_times_unedited_has_collapsed_and_so_has_nan() -> None:
    ratios = [1.0, 4.999, 5.0, math.inf, math.nan]
    expected = [False, False, True, True, True]
    assert [collapsed(ratio) for ratio in ratios] == expected
    assert collapsed(pd.Series(ratios)).tolist() == expected
    assert collapsed(np.float64(4.0), 3.0) is True
    for threshold in (0.0, -1.0, math.nan):
        with pytest.raises(EditlibError, match="is out of range; give a number above 0"):
            collapsed(1.0, threshold)


def test_collapses_are_counted_from_three_thresholds_on() -> None:
    table = pd.DataFrame(
        {
            "perplexity_ratio": [1.0, 5.0, 20.0, math.nan, 7.0, 3.0],
            "perplexity_mean": [50.0, 250.0, 1000.0, math.nan, 350.0, 2000.0],
            "error": [None, None, None, None, "no subject", None],
        }
    )
    found = collapses(table, "edits")
    assert [found[f"edits{ending}"] for ending in ("", "_20x", "_1000")] == [3, 2, 3]
    rate = share(2, 5)
    assert (found["edits_low_20x"], found["edits_high_20x"]) == (rate.low, rate.high)
    assert collapses(table, "edits", collapse_ratio=2)["edits"] == 4
