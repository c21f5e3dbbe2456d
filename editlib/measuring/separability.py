"""How well one straight line tells two sets of vectors apart, measured on vectors it was not drawn from."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from editlib.errors import EditlibError

DRAWS = 2000  # of the bootstrap


@dataclass(frozen=True)
class Separability:
    """Area under the ROC curve (1 told apart, 0.5 alike) with a 95 % bootstrap interval over subjects."""

    auc: float
    low: float
    high: float


def separability(
    a: Tensor,
    b: Tensor,
    *,
    folds: int = 5,
    seed: int = 0,
    subjects: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
) -> Separability:
    """Cross-validated AUC of the score along the difference of the class means; a is to score higher than b.

    `a` and `b` are (vectors, width). `subjects` names what each vector is about: vectors of one subject are never on
    both sides of a split, and are drawn together by the bootstrap; without it, each is its own. The interval is that
    of the scores as they are: no line is drawn anew. Raises `EditlibError` for other shapes, a value that is not
    finite, or fewer subjects in a class than folds.
    """
    _check(a, b)
    names = subjects or (range(len(a)), range(len(a), len(a) + len(b)))
    order = {name: i for i, name in enumerate(dict.fromkeys([*names[0], *names[1]]))}
    mine, other = (torch.tensor([order[name] for name in side]) for side in names)
    fold = _folds(mine, other, folds, seed)
    wins = _wins(*_scores(a.double().cpu(), b.double().cpu(), fold[mine], fold[other]))
    return Separability(wins.mean().item(), *_interval(wins, mine, other, seed))


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise EditlibError(
            f"vectors of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared; give two matrices"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise EditlibError("a vector holds inf or nan; leave it out and say so")


def _folds(mine: Tensor, other: Tensor, folds: int, seed: int) -> Tensor:
    """The fold of every subject; those of both classes, of one and of the other are each dealt out evenly."""
    fewest = min(len(mine.unique()), len(other.unique()))
    if not 2 <= folds <= fewest:
        raise EditlibError(
            f"folds={folds} is out of range; the smaller class has {fewest} subjects, so choose 2 to {fewest}"
        )
    count = int(torch.cat([mine, other]).max()) + 1
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    group = 2 * torch.isin(shuffled, mine) + torch.isin(shuffled, other)
    dealt = torch.empty(count, dtype=torch.long)
    dealt[shuffled[group.argsort(stable=True)]] = torch.arange(count) % folds
    return dealt


def _scores(a: Tensor, b: Tensor, fold_a: Tensor, fold_b: Tensor) -> tuple[Tensor, Tensor]:
    """Places along the line between the class means of the other folds: 1 at the mean of `a`, -1 at that of `b`."""
    scores = torch.zeros(len(a)).double(), torch.zeros(len(b)).double()
    for fold in fold_a.unique():
        above, below = a[fold_a != fold].mean(0), b[fold_b != fold].mean(0)
        line, middle = above - below, (above + below) / 2
        for values, folds, places in zip((a, b), (fold_a, fold_b), scores, strict=True):
            places[folds == fold] = (2 * (values[folds == fold] - middle) @ line / line.square().sum()).nan_to_num()
    return scores


def _wins(above: Tensor, below: Tensor) -> Tensor:
    """1 where a score of the first set is the higher one, a half where they are equal.  # (a, b)"""
    return (above[:, None] > below).double() + 0.5 * (above[:, None] == below)


def _interval(wins: Tensor, mine: Tensor, other: Tensor, seed: int) -> tuple[float, float]:
    """The middle 95 % of AUCs over resampled subjects; draws without one of the classes do not count."""
    count = int(torch.cat([mine, other]).max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    times = torch.from_numpy(drawn).double()
    a, b = times[:, mine], times[:, other]
    aucs = (a @ wins * b).sum(1) / (a.sum(1) * b.sum(1))
    low, high = torch.nanquantile(aucs, torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high
