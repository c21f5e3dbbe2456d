"""How well a score, or one straight line, tells two sets apart: the line on vectors it was not drawn from."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from editlib.errors import EditlibError
from editlib.measuring.statistics import DRAWS, FEWEST, UNKNOWN, Interval


def separability(
    a: Tensor,
    b: Tensor,
    *,
    folds: int = 5,
    seed: int = 0,
    subjects: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
) -> Interval:
    """Cross-validated area under the ROC curve (1 told apart, 0.5 alike) of the score along the difference of the class
    means, with its 95 % bootstrap interval over subjects; a is to score higher than b.

    `a` and `b` are (vectors, width). `subjects` names what each vector is about: vectors of one subject are never on
    both sides of a split, and are drawn together by the bootstrap; without it, each is its own. The interval is that
    of the scores as they are: no line is drawn anew. Raises `EditlibError` for other shapes, a value that is not
    finite, or fewer subjects in a class than folds.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise EditlibError(
            f"vectors of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared; give two matrices"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise EditlibError("a vector holds inf or nan; leave it out and say so")
    of_a, of_b = _numbered(len(a), len(b), subjects)
    fold = _folds(of_a, of_b, folds, seed)
    above, below = _scores(a.double().cpu(), b.double().cpu(), fold[of_a], fold[of_b])
    return _auc(above, below, of_a, of_b, seed)


def auc(
    a: Sequence[float],
    b: Sequence[float],
    *,
    seed: int = 0,
    subjects: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
) -> Interval:
    """Area under the ROC curve of scores, those of a to be higher, with its 95 % bootstrap interval over subjects; nan
    where a or b is empty. inf is a score, nan the highest one."""
    if not len(a) or not len(b):
        return UNKNOWN
    above, below = (torch.tensor([*scores], dtype=torch.float64).nan_to_num(math.inf, math.inf) for scores in (a, b))
    return _auc(above, below, *_numbered(len(a), len(b), subjects), seed)


def _numbered(a: int, b: int, subjects: tuple[Sequence[Hashable], Sequence[Hashable]] | None) -> tuple[Tensor, Tensor]:
    """The number of every row's subject; without subjects, each row is its own."""
    names = subjects or (range(a), range(a, a + b))
    number = {name: i for i, name in enumerate(dict.fromkeys([*names[0], *names[1]]))}
    of_a, of_b = (torch.tensor([number[name] for name in side]) for side in names)
    return of_a, of_b


def _auc(above: Tensor, below: Tensor, of_a: Tensor, of_b: Tensor, seed: int) -> Interval:
    """The area with its interval, if there are enough subjects of each class to resample."""
    wins = (above[:, None] > below).double() + 0.5 * (above[:, None] == below)  # (a, b)
    few = min(len(of_a.unique()), len(of_b.unique())) < FEWEST
    bounds = (math.nan, math.nan) if few else _bounds(wins, of_a, of_b, seed)
    return Interval(wins.mean().item(), *bounds)


def _folds(of_a: Tensor, of_b: Tensor, folds: int, seed: int) -> Tensor:
    """The fold of every subject; those of both classes, of one and of the other are each dealt out evenly."""
    fewest = min(len(of_a.unique()), len(of_b.unique()))
    if not 2 <= folds <= fewest:
        raise EditlibError(
            f"folds={folds} is out of range; the smaller class has {fewest} subjects, so choose 2 to {fewest}"
        )
    count = int(torch.cat([of_a, of_b]).max()) + 1
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    group = 2 * torch.isin(shuffled, of_a) + torch.isin(shuffled, of_b)
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


def _bounds(wins: Tensor, of_a: Tensor, of_b: Tensor, seed: int) -> tuple[float, float]:
    """The middle 95 % of AUCs over resampled subjects; draws without one of the classes do not count."""
    count = int(torch.cat([of_a, of_b]).max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    times = torch.from_numpy(drawn).double()
    a, b = times[:, of_a], times[:, of_b]
    aucs = (a @ wins * b).sum(1) / (a.sum(1) * b.sum(1))
    low, high = torch.nanquantile(aucs, torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high
