"""Values with their 95 % intervals, rank correlation, and the rule by which a model has collapsed: here, and nowhere
else."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pandas as pd
import scipy  # its parts are imported where they are first used: stats takes half a second
from numpy.typing import NDArray

from editlib.errors import EditlibError

COLLAPSE_RATIO = 5.0  # perplexity, times unedited
FAR, PUBLISHED = 20.0, 1000.0  # times unedited, as 1,000 was in the papers; and that perplexity itself
DRAWS = 2000  # of the bootstrap
FEWEST = 5  # values, or subjects, with an interval: of fewer, resamples are much the same few

Sample = Sequence[float] | NDArray[np.float64] | pd.Series


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval, nan where there is none; formatted as `value [low, high]`, `value [–]` or `–`."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        if math.isnan(self.value):
            return "–"
        bounds = "–" if math.isnan(self.low) else f"{self.low:{spec}}, {self.high:{spec}}"
        return f"{self.value:{spec}} [{bounds}]"


UNKNOWN = Interval(math.nan, math.nan, math.nan)


def share(hits: int, count: int) -> Interval:
    """A share of `count` with Wilson's interval, which has a width at 0 and 1 too; without one below `FEWEST`, and nan
    if there is nothing to count."""
    if not count:
        return UNKNOWN
    if count < FEWEST:
        return Interval(hits / count, math.nan, math.nan)
    bounds = scipy.stats.binomtest(int(hits), int(count)).proportion_ci(method="wilson")
    return Interval(hits / count, float(bounds.low), float(bounds.high))


def bootstrap(
    statistic: Callable[..., Any], *samples: Sample, seed: int, paired: bool = False, draws: int = DRAWS
) -> Interval:
    """A statistic of samples with the middle 95 % of its values on resampled ones.

    Samples are resampled independently, or row by row if `paired`. Bounds are values that occurred, so that inf stays
    inf; resamples of which the statistic is nan do not count. Without an interval if a sample has fewer than `FEWEST`
    values.
    """
    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    if paired and len({len(array) for array in arrays}) > 1:
        raise ValueError(f"paired samples of {[len(array) for array in arrays]} values")
    if not all(map(len, arrays)):
        return UNKNOWN
    value, rng = float(statistic(*arrays)), np.random.default_rng(seed)
    if math.isnan(value) or min(map(len, arrays)) < FEWEST:
        return Interval(value, math.nan, math.nan)
    drawn = np.empty(draws)
    for i in range(draws):
        rows = [rng.integers(len(array), size=len(array)) for array in (arrays[:1] if paired else arrays)]
        drawn[i] = statistic(*(array[rows[0 if paired else j]] for j, array in enumerate(arrays)))
    known = np.sort(drawn[~np.isnan(drawn)])
    tail = len(known) // 40
    return Interval(value, float(known[tail]), float(known[-tail - 1]))


def mean_ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Mean of one sample over that of the other."""
    return float(a.mean() / b.mean())


def spearman(x: Sample, y: Sample) -> float:
    """Spearman's rank correlation; equal values share their mean rank, inf ranks first, nan if all of one are equal."""
    a, b = scipy.stats.rankdata(x), scipy.stats.rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt((a @ a) * (b @ b))
    return float(a @ b) / scale if scale else math.nan


@overload
def collapsed(ratio: float, threshold: float = ...) -> bool: ...
@overload
def collapsed(ratio: pd.Series, threshold: float = ...) -> pd.Series: ...
def collapsed(ratio: Any, threshold: float = COLLAPSE_RATIO) -> Any:
    """Whether perplexity over unedited is `threshold` or more; nan has collapsed too. Of a column, for every row.

    Raises `EditlibError` for a threshold that is not above 0.
    """
    if not threshold > 0:
        raise EditlibError(f"collapse ratio {threshold} is out of range; give a number above 0, such as 5")
    below = ratio < threshold
    return ~below if isinstance(below, pd.Series) else not below


def collapses(table: pd.DataFrame, name: str, *, collapse_ratio: float = COLLAPSE_RATIO) -> dict[str, float]:
    """How many edits of a table collapse the model, by the name of a metric, and the ends of the 95 % interval of their
    share (`_low`, `_high`): from `collapse_ratio` times unedited on, from 20 times (`_20x`), and from a perplexity of
    1,000 (`_1000`). Edits that failed do not count.

    `table` is that of a sweep, or a part of it.
    """
    done, metrics = table[table["error"].isna()], dict[str, float]()
    ratio, mean = done["perplexity_ratio"], done["perplexity_mean"]
    hits = {"": collapsed(ratio, collapse_ratio), "_20x": collapsed(ratio, FAR), "_1000": collapsed(mean, PUBLISHED)}
    for ending, hit in hits.items():
        rate = share(int(hit.sum()), len(done))
        metrics |= {f"{name}{ending}": int(hit.sum()), f"{name}_low{ending}": rate.low}
        metrics |= {f"{name}_high{ending}": rate.high}
    return metrics
