"""How edits are counted and sorted, and what metrics are called: once more, by pandas and scipy alone."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from books import table
from scipy.stats import binomtest, mannwhitneyu, spearmanr

from editlib.measuring import statistics
from editlib.runs.manifest import Manifest

TIMES = 5  # unedited, from which on a model has collapsed
SCORES = ("efficacy", "generalization", "locality")
Numbers = dict[str, float | str]  # some are told in words: "never", or a list


def own(run: Manifest, name: str = "cases") -> pd.DataFrame:
    """The rows of a table that are about the run's model, where others are beside it."""
    rows = table(run, name)
    return rows[rows["model"] == called(run.parameters["model"])] if "model" in rows else rows


def called(model: str) -> str:
    """A model as tables name it: a folder without the ./ that says it is one."""
    return Path(model).as_posix()


def broken(rows: pd.DataFrame, times: float = TIMES, column: str = "perplexity_ratio") -> int:
    """How many edits collapse the model; a perplexity that is no number is none a model should have."""
    return int((~(rows[column] < times)).sum())


def fates(rows: pd.DataFrame) -> pd.Series:
    """Whether any of a case's edits collapses the model, by case."""
    worst = rows["perplexity_ratio"].fillna(np.inf).groupby(rows["case_id"]).max()
    return (worst >= TIMES).map({True: "collapse", False: "normal"})


def sizes(fate: pd.Series) -> Numbers:
    """How many cases collapse the model, and how many do not."""
    return {f"{group}_cases": int((fate == group).sum()) for group in ("collapse", "normal")}


def collapses(rows: pd.DataFrame, name: str) -> Numbers:
    """How many edits collapse the model by each of the three thresholds, and the bounds of these shares."""
    found = Numbers()
    hits = {"": broken(rows), "_20x": broken(rows, 20), "_1000": broken(rows, 1000, "perplexity_mean")}
    for threshold, count in hits.items():
        share = binomtest(count, len(rows)).proportion_ci(method="wilson")
        found |= {f"{name}{threshold}": count}
        if len(rows) > 2:
            found |= {f"{name}_low{threshold}": share.low, f"{name}_high{threshold}": share.high}
    return found


def gap(rows: pd.DataFrame, name: str) -> Numbers:
    """How many times the largest perplexity below the threshold the smallest above it is, where there are both."""
    ratio = np.sort(rows["perplexity_ratio"])
    first = np.searchsorted(ratio, TIMES)  # of those that collapse the model
    return {name: float(ratio[first] / ratio[first - 1])} if 0 < first < len(ratio) else {}


def unedited(rows: pd.DataFrame) -> float:
    """The perplexity that the ratios of a table are of."""
    return float((rows["perplexity_mean"] / rows["perplexity_ratio"]).median())


def area(score: pd.Series, hit: pd.Series) -> float:
    """Area under the ROC curve of a score: of Mann and Whitney's U, the share of all pairs, if there are any."""
    if hit.all() or not hit.any():
        return math.nan
    pairs = mannwhitneyu(score[hit], score[~hit]).statistic
    return float(pairs / (hit.sum() * (~hit).sum()))


def spearman(x: pd.Series, y: pd.Series) -> float:
    return float(spearmanr(x, y).statistic)


def bounded(
    name: str, statistic: Callable[..., float], *samples: pd.Series, seed: int, paired: bool = False
) -> Numbers:
    """A statistic and its bounds by the bootstrap of the book, whose draws no other could repeat; `{}` of the name is
    nothing, `_low` and `_high`."""
    found = statistics.bootstrap(statistic, *samples, seed=seed, paired=paired)
    return {name.format(""): found.value, name.format("_low"): found.low, name.format("_high"): found.high}


def layer_of(run: Manifest) -> int:
    """The one layer that all edits of a run were made at."""
    (layer,) = {given["layer"] for methods in run.hparams.values() for given in methods.values()}
    return layer


def short(text: str) -> str:
    """A method, choice or kind as a part of a metric's name."""
    return re.sub(r"\W+", "_", text.lower())


def task_of(name: str) -> str:
    """A task without the world that it asks about."""
    return name.rpartition("-")[2]


def ending(method: str) -> str:
    name, _, left_out = method.partition(", ")
    return ("" if name == "rome" else f"_{short(name)}") + ("_no_covariance" if left_out else "")
