"""A cross-validated straight line between two sets of vectors, on cases with a known answer."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from editlib.errors import EditlibError
from editlib.measuring.separability import auc, separability
from editlib.measuring.statistics import Interval


def normal(count: int, width: int, *, shift: float = 0.0, seed: int = 0) -> Tensor:
    """Unit normal vectors, moved along the first axis."""
    vectors = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    vectors[:, 0] += shift
    return vectors


def test_sets_far_apart_are_told_apart() -> None:
    assert separability(normal(30, 8, shift=50), normal(40, 8, seed=1)) == Interval(1.0, 1.0, 1.0)


def test_normal_sets_have_the_auc_of_theory() -> None:
    found = separability(normal(3000, 2, shift=1.0), normal(3000, 2, seed=1))
    theory = 0.5 * (1 + math.erf(1.0 / 2))  # P(N(1, 1) > N(0, 1)) = Φ(1/√2)
    assert found.value == pytest.approx(theory, abs=0.015)
    assert found.low < theory < found.high and found.high - found.low < 0.04


@pytest.mark.parametrize("width", [2, 300])
def test_sets_drawn_alike_are_not_told_apart_however_wide(width: int) -> None:
    aucs = [separability(normal(40, width, seed=s), normal(40, width, seed=s + 100)).value for s in range(20)]
    assert sum(aucs) / len(aucs) == pytest.approx(0.5, abs=0.06)


def test_a_line_learnt_from_a_subject_is_not_tried_on_it() -> None:
    """Two copies of each vector: told apart by memory alone, which subjects forbid."""
    a, b = normal(20, 500).repeat(2, 1), normal(20, 500, seed=1).repeat(2, 1)
    names = [f"a{i}" for i in range(20)] * 2, [f"b{i}" for i in range(20)] * 2
    assert separability(a, b).value > 0.9
    assert separability(a, b, subjects=names).value < 0.7


def test_the_interval_widens_where_vectors_share_a_subject() -> None:
    a, b = normal(40, 2, shift=1.0), normal(40, 2, seed=1)
    alone = separability(a, b)
    names = list(range(40)) * 5, list(range(100, 140)) * 5
    again = separability(a.repeat(5, 1), b.repeat(5, 1), subjects=names)
    assert again.high - again.low == pytest.approx(alone.high - alone.low, rel=0.3)
    apart = separability(a.repeat(5, 1), b.repeat(5, 1))
    assert apart.high - apart.low < 0.7 * (alone.high - alone.low)


def test_subjects_may_stand_in_both_sets() -> None:
    names = [f"s{i}" for i in range(10)]
    assert separability(normal(10, 4, shift=50), normal(10, 4, seed=1), subjects=(names, names)).value == 1.0


def test_equal_vectors_are_a_draw() -> None:
    assert separability(torch.ones(10, 3), torch.ones(12, 3)) == Interval(0.5, 0.5, 0.5)


def test_the_same_seed_gives_the_same_answer() -> None:
    a, b = normal(20, 4, shift=0.5), normal(20, 4, seed=1)
    assert separability(a, b) == separability(a, b)
    assert separability(a, b, seed=1) != separability(a, b)


def test_swapping_the_sets_changes_nothing() -> None:
    a, b = normal(25, 4, shift=1.0), normal(25, 4, seed=1)
    assert separability(a, b).value == pytest.approx(separability(b, a).value, abs=0.05)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(9), torch.ones(9, 2), r"shapes \(9,\) and \(9, 2\) cannot be compared"),
        (torch.ones(9, 3), torch.ones(9, 2), r"shapes \(9, 3\) and \(9, 2\) cannot be compared"),
        (
            torch.ones(4, 2),
            torch.ones(9, 2),
            "folds=5 is out of range; the smaller class has 4 subjects, so choose 2 to 4",
        ),
        (torch.full((9, 2), math.inf), torch.ones(9, 2), "a vector holds inf or nan"),
    ],
)
def test_what_cannot_be_compared_is_refused(a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(EditlibError, match=message):
        separability(a, b)


def test_few_subjects_have_an_area_and_no_interval() -> None:
    found = separability(normal(4, 4, shift=50), normal(40, 4, seed=1), folds=2)
    assert found.value == 1.0 and math.isnan(found.low) and math.isnan(found.high)


def test_area_of_scores_is_that_of_sklearn_inf_and_ties_included() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40).astype(float) + 2, rng.integers(0, 9, 60).astype(float)
    a[0], b[0] = math.inf, math.inf
    truth = [True] * 40 + [False] * 60
    found = auc(a.tolist(), b.tolist())
    assert found.value == pytest.approx(roc_auc_score(truth, np.nan_to_num([*a, *b], posinf=1e9)))
    assert found.low < found.value < found.high
    assert auc([math.nan], [1.0]).value == 1.0  # what cannot be foretold counts as the worst
    assert math.isnan(auc([], [1.0]).value) and math.isnan(auc([2.0], [1.0]).low)


def test_scores_of_one_subject_are_drawn_together() -> None:
    rng = np.random.default_rng(1)
    a, b = np.repeat(rng.normal(1, 1, 12), 9), np.repeat(rng.normal(0, 1, 12), 9)
    names = tuple([f"{side}{i // 9}" for i in range(108)] for side in "ab")
    alone, together = auc(a.tolist(), b.tolist()), auc(a.tolist(), b.tolist(), subjects=names)
    assert together.value == alone.value and together.high - together.low > 1.5 * (alone.high - alone.low)
