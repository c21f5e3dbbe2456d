"""The one equation of the MEMIT family, against least squares in numpy and against itself taken in other steps."""

import numpy as np
import pytest
import torch
from plain import Array, distance, ridge_change

from editlib.editing.methods.recursion import Prior
from editlib.errors import EditlibError

D_IN, D_OUT, TOTAL = 12, 5, 9
SPLITS = [[9], [1] * 9, [2, 3, 4], [4, 5]]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ROOT = random(D_IN, D_IN, seed=1)
MOMENT = ROOT @ ROOT.T + torch.eye(D_IN, dtype=torch.float64)
FACTOR = torch.linalg.cholesky(MOMENT)
BASIS = torch.linalg.qr(random(D_IN, 7, seed=2)).Q
WEIGHT, KEYS, VALUES = random(D_OUT, D_IN, seed=3), random(D_IN, TOTAL, seed=4), random(D_OUT, TOTAL, seed=5)
PRIORS = {
    "memit": Prior(FACTOR, 0.7),
    "encore": Prior(FACTOR, 0.7, 2.0),
    "rlsedit": Prior(FACTOR, 0.5**2 * 0.7, 1.5**2),
    "alphaedit": Prior(weight=3.0, basis=BASIS),
    "emmet": Prior(weight=0.1),
}


def solved(prior: Prior, keys: torch.Tensor, residual: torch.Tensor) -> Array:
    """Least squares over stacked rows, the keys as the prior sees them."""
    moment = torch.eye(D_IN, dtype=torch.float64) if prior.factor is None else prior.factor @ prior.factor.T
    held = prior.weight * moment + prior.ridge * torch.eye(D_IN, dtype=torch.float64)
    seen = keys if prior.basis is None else prior.basis @ prior.basis.T @ keys
    return ridge_change(held.numpy(), 1.0, seen.numpy(), residual.numpy())


@pytest.mark.parametrize("count", [1, 3, 30])
@pytest.mark.parametrize("name", PRIORS)
def test_an_update_is_the_least_squares_solution(name: str, count: int) -> None:
    """By the system of n equations and by that of d_in ones, which 30 keys and ridges need."""
    keys, residual = random(D_IN, count, seed=6), random(D_OUT, count, seed=7)
    change = PRIORS[name].update(keys, residual)
    assert distance(change.dense().numpy(), solved(PRIORS[name], keys, residual)) < 1e-10
    dense = PRIORS[name].update(keys, residual, torch.zeros(D_IN, D_IN, dtype=torch.float64))
    assert distance(change.dense().numpy(), dense.dense().numpy()) < 1e-10


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("name", PRIORS)
def test_sequential_equals_one_batch(name: str, order: int, split: list[int]) -> None:
    """With frozen keys and absolute targets, whatever the split and the order; without the past it does not."""
    prior, shuffled = PRIORS[name], torch.randperm(TOTAL, generator=torch.Generator().manual_seed(order))
    weight, forgetful, past = WEIGHT.clone(), WEIGHT.clone(), torch.zeros(D_IN, D_IN, dtype=torch.float64)
    for some in shuffled.split(split):
        keys, values = prior.seen(KEYS[:, some]), VALUES[:, some]
        forgetful = forgetful + prior.update(keys, values - forgetful @ keys).dense()
        weight = weight + prior.update(keys, values - weight @ keys, past).dense()
        past = past + keys @ keys.T
    one = solved(prior, KEYS, VALUES - WEIGHT @ prior.seen(KEYS))
    assert distance((weight - WEIGHT).numpy(), one) < 1e-8
    assert len(split) == 1 or distance((forgetful - WEIGHT).numpy(), one) > 1e-2


def test_sums_of_keys_and_residuals_give_the_same_as_the_recursion() -> None:
    """D4S keeps R Kᵀ against the unedited weight instead of the weight."""
    total = PRIORS["memit"].total((VALUES - WEIGHT @ KEYS) @ KEYS.T, KEYS @ KEYS.T)
    assert distance(total.numpy(), solved(PRIORS["memit"], KEYS, VALUES - WEIGHT @ KEYS)) < 1e-10


def test_the_inverse_that_rlsedit_keeps_by_woodbury_is_this_one() -> None:
    prior, weight = PRIORS["rlsedit"], WEIGHT.clone()
    inverse = torch.linalg.inv(prior.dense(KEYS))
    for some in torch.arange(TOTAL).split([2, 3, 4]):
        keys, values = KEYS[:, some], VALUES[:, some]
        pushed = inverse @ keys
        inverse = inverse - pushed @ torch.linalg.inv(torch.eye(len(some)) + keys.T @ pushed) @ pushed.T
        weight = weight + (values - weight @ keys) @ (inverse @ keys).T
    expected = prior.update(KEYS, VALUES - WEIGHT @ KEYS).dense()
    torch.testing.assert_close(weight - WEIGHT, expected, rtol=1e-9, atol=1e-10)


def test_alphaedit_is_the_released_equation_and_changes_nothing_outside_the_null_space() -> None:
    projector, past = BASIS @ BASIS.T, random(D_IN, 4, seed=8)
    prior, residual = PRIORS["alphaedit"], random(D_OUT, TOTAL, seed=9)
    seen = prior.seen(past)
    found = prior.update(KEYS, residual, seen @ seen.T).dense()
    left = projector @ (KEYS @ KEYS.T + past @ past.T) + 3.0 * torch.eye(D_IN)
    torch.testing.assert_close(found, torch.linalg.solve(left, projector @ KEYS @ residual.T).T)
    assert (found - found @ projector).norm() < 1e-12


def test_alphaedit_limits() -> None:
    residual, keys = random(D_OUT, 4, seed=10), KEYS[:, :4]
    nothing = Prior(weight=3.0, basis=torch.zeros(D_IN, 0, dtype=torch.float64))
    assert nothing.update(keys, residual).norm() == 0
    everything = Prior(weight=3.0, basis=torch.eye(D_IN, dtype=torch.float64)).update(keys, residual).dense()
    ridge = residual @ keys.T @ torch.linalg.inv(keys @ keys.T + 3.0 * torch.eye(D_IN))
    torch.testing.assert_close(everything, ridge)
    exact, inside = Prior(weight=1e-13, basis=BASIS), BASIS @ random(7, 4, seed=11)
    torch.testing.assert_close(exact.update(inside, residual).dense() @ inside, residual)
    outside = random(D_IN, 3, seed=12)
    outside = outside - BASIS @ BASIS.T @ outside
    assert (PRIORS["alphaedit"].update(keys, residual).dense() @ outside).norm() < 1e-12


def test_encores_ridge_makes_the_update_smaller_and_without_it_is_memit() -> None:
    norms = [Prior(FACTOR, 0.7, ridge).update(KEYS, VALUES).norm() for ridge in (0.0, 0.1, 1.0, 10.0, 100.0)]
    assert norms == sorted(norms, reverse=True) and len(set(norms)) == 5
    assert norms[0] == PRIORS["memit"].update(KEYS, VALUES).norm()


def test_dependent_keys_and_a_singular_system_are_one_line() -> None:
    twice = KEYS[:, [0, 0]]
    with pytest.raises(EditlibError, match="^two of these 2 requests have the same key; edit them apart or give a rid"):
        Prior(FACTOR, 0.0).update(twice, VALUES[:, :2])
    with pytest.raises(EditlibError, match="^the system of keys and second moment is singular; give it more weight$"):
        Prior(FACTOR, 0.0).update(twice, VALUES[:, :2], torch.zeros(D_IN, D_IN, dtype=torch.float64))
    assert np.isfinite(Prior(FACTOR, 0.1).update(twice, VALUES[:, :2]).norm())
