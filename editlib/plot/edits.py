"""Perplexity after edits: one edit each, the same cases on two models, and edits on top of each other."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, SymmetricalLogLocator
from numpy.typing import NDArray

from editlib.plot.style import (
    METHOD_MARKS,
    OF_SUBJECTS,
    drawable,
    legend_below,
    mark_collapse,
    mark_edge,
    points_by_kind,
    strips_by_kind,
)  # fmt: skip

PER_CENT = "Perplexity after one edit, per cent above unedited; linear from −1 to 1"


def scatter(frame: pd.DataFrame, *, unedited: float, collapse_ratio: float, title: str) -> Figure:
    """Perplexity of each edited model by case, on a log axis, marked by kind of subject.

    `frame` has one row per case: case_id, kind, perplexity_mean. `unedited` is the level before any edit.
    """
    figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    heights, edge = drawable(frame["perplexity_mean"])
    points_by_kind(axes, frame["case_id"], heights, frame["kind"], counted=True)
    threshold = collapse_ratio * unedited
    for level, text, style in ((unedited, "unedited", "-"), (threshold, f"collapse: {collapse_ratio:g} times", "--")):
        axes.axhline(level, color="black", lw=1, ls=style, zorder=0)
        axes.annotate(
            f"{text} ({level:.3g})", (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom",
            fontsize=9, xytext=(0, 2), textcoords="offset points",
        )  # fmt: skip
    mark_edge(axes, edge)
    axes.set(yscale="log", xlabel="Case (its number in the set)", ylabel="Perplexity after one edit", title=title)
    legend_below(figure, axes, title=OF_SUBJECTS)
    return figure


def comparison(frame: pd.DataFrame, *, collapse_ratio: float, title: str = "") -> Figure:
    """Rise of perplexity by one edit, in per cent: a strip for each arm with its median, marked by kind of subject.

    `frame` has one row per case and arm: arm, kind, perplexity_ratio. The axis is linear up to 1 %.
    """
    figure, axes = plt.subplots(figsize=(9, 0.5 * frame["arm"].nunique() + 1.9), layout="constrained")
    values, edge = drawable(100 * (frame["perplexity_ratio"] - 1))
    _rises(axes, frame, values, edge=edge, span=(values.min(), values.max()), collapse_ratio=collapse_ratio)
    axes.set(title=title, xlabel=PER_CENT)
    legend_below(figure, axes, title=OF_SUBJECTS, ncols=3)
    return figure


def _rises(
    axes: Axes,
    frame: pd.DataFrame,
    values: NDArray[np.float64],
    *,
    edge: float | None,
    span: tuple[float, float],
    collapse_ratio: float,
) -> None:
    """Strips of rises in per cent, on an axis over `span` that is linear up to 1 % and logarithmic from there on."""
    strips_by_kind(axes, frame["arm"], values, frame["kind"], counted=True)
    medians = [np.median(values[frame["arm"] == arm]) for arm in frame["arm"].unique()]
    axes.plot(medians, range(len(medians)), "|", color="black", ms=16, mew=2, label="median")
    axes.axvline(0, color="black", lw=1, zorder=0)
    mark_collapse(axes, collapse_ratio, at=100 * (collapse_ratio - 1), upright=True)
    mark_edge(axes, edge, upright=True)
    axes.set_xscale("symlog", linthresh=1)
    axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1))
    low, high = span
    axes.set_xlim(min(-2.0, 1.5 * low), 2.5 * max(high, 100 * collapse_ratio))
    axes.xaxis.set_major_formatter(partial(_percent, every=1 + int(high > 1e6)))


def _percent(value: float, _: int, *, every: int) -> str:
    """A tick's label, in figures or as a power of ten; of many decades every other has one."""
    decade = round(np.log10(abs(value))) if value else 0
    return "" if decade % every or value == -1 else f"{value:,.0f}" if value < 1e6 else f"$10^{{{decade}}}$"


def strips(frame: pd.DataFrame, measures: Mapping[str, str]) -> Figure:
    """Distributions on log axes: a panel for each measure, a strip for each arm, marked by kind of subject.

    `frame` has one row per case and arm: arm, kind and the measures' columns; `measures` maps these to their labels.
    All panels span as many decades as the widest, so that equal distances are equal ratios.
    """
    size = (9, 0.8 * frame["arm"].nunique() + 1.7)
    figure, panels = plt.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, (column, label) in zip(panels[0], measures.items(), strict=True):
        values, edge = drawable(frame[column])
        strips_by_kind(axes, frame["arm"], values, frame["kind"])
        mark_edge(axes, edge, upright=True)
        axes.set(xlabel=label)
    limits = [np.log10(axes.get_xlim()) for axes in panels[0]]
    half = max(high - low for low, high in limits) / 2
    for axes, (low, high) in zip(panels[0], limits, strict=True):
        axes.set_xlim(10 ** ((low + high) / 2 - half), 10 ** ((low + high) / 2 + half))
    legend_below(figure, panels[0, 0], title=OF_SUBJECTS)
    return figure


def single_edits(frame: pd.DataFrame, *, collapse_ratio: float) -> Figure:
    """Rise of perplexity by one edit, in per cent: a panel for each set (row) and model (column), in it a strip for
    each arm with its median and its largest, marked by kind of subject.

    `frame` has one row per case and arm: set, model, arm, kind, perplexity_ratio.
    """
    sets, models = frame["set"].unique(), frame["model"].unique()
    size = (9, len(sets) * (0.5 * frame["arm"].nunique() + 0.9) + 1.0)
    figure, grid = plt.subplots(len(sets), len(models), figsize=size, sharex=True, squeeze=False, layout="constrained")
    values, edge = drawable(100 * (frame["perplexity_ratio"] - 1))  # one edge for all panels
    for (i, j), axes in np.ndenumerate(grid):
        shown = (frame["set"] == sets[i]) & (frame["model"] == models[j])
        span = values.min(), values.max()
        _rises(axes, frame[shown], values[shown], edge=edge, span=span, collapse_ratio=collapse_ratio)
        ratios = frame[shown].fillna({"perplexity_ratio": np.inf}).groupby("arm", sort=False)["perplexity_ratio"]
        for row, largest in enumerate(ratios.max()):
            axes.annotate(f"{largest:,.3g}×", (1, row), (4, 0), ("axes fraction", "data"), "offset points", fontsize=9,
                          va="center")  # fmt: skip
        axes.set_title(f"{sets[i]}, {models[j]}")
        axes.xaxis.set_major_formatter(partial(_percent, every=len(models)))
    for axes in grid[-1]:
        axes.set_xlabel("Per cent above unedited (linear to ±1)", fontsize=11)
    legend_below(figure, grid[0, 0], title=OF_SUBJECTS, ncols=3)
    return figure


def pairs(
    frame: pd.DataFrame, measures: Mapping[str, str], *, models: tuple[str, str], collapse_ratio: float
) -> Figure:
    """The same cases measured twice, as on two models: a panel for each measure, both axes logarithmic, with the
    diagonal.

    `frame` has one row per case: kind, and for each measure a column per model, the first for the horizontal axis.
    `measures` maps these to their labels; the first is perplexity over unedited.
    """
    size = (9, 5.2) if len(measures) > 1 else (6.4, 5.8)
    figure, panels = plt.subplots(1, len(measures), figsize=size, squeeze=False, layout="constrained")
    for axes, (measure, label) in zip(panels[0], measures.items(), strict=True):
        values, edge = drawable(pd.concat([frame[measure][name] for name in models]))
        x, y = np.split(values, 2)
        points_by_kind(axes, x, y, frame["kind"], counted=True)
        ends = values.min() / 1.4, values.max() * 1.4
        axes.plot(ends, ends, color="black", lw=0.8, zorder=0)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel=models[0], ylabel=models[1], box_aspect=1)
        axes.set_title(label, fontsize=11)
        mark_edge(axes, edge)
    legend_below(figure, panels[0, 0], title=OF_SUBJECTS)  # before the lines, which both axes have
    for upright in (False, True):
        mark_collapse(panels[0, 0], collapse_ratio, upright=upright)
    return figure


def sequences(frame: pd.DataFrame, *, collapse_ratio: float, detail: float = 3.0) -> Figure:
    """Perplexity over unedited after each edit, a panel for each group of cases: a method's median over repeats in a
    band from its least to its largest. Below, the same up to `detail` times on a linear axis.

    `frame` has one row per group, method, repeat and measured step: step, perplexity_ratio.
    """
    groups = frame["group"].unique()
    shape: dict[str, Any] = {"sharex": "col", "sharey": "row", "height_ratios": (3, 2)}
    size = (9 if len(groups) > 1 else 6, 7.0)
    figure: Figure
    figure, panels = plt.subplots(2, len(groups), figsize=size, squeeze=False, layout="constrained", **shape)
    heights, edge = drawable(frame["perplexity_ratio"])
    drawn = frame.assign(height=heights)
    for column, group in enumerate(groups):
        for method, steps in drawn[drawn["group"] == group].groupby("method", sort=False):
            color, marker = METHOD_MARKS.get(str(method), ("#8c8c8c", "x"))
            band = steps.groupby("step")["height"].agg(["median", "min", "max"])
            for axes in panels[:, column]:
                axes.fill_between(band.index, band["min"], band["max"], color=color, alpha=0.18, linewidth=0)
                axes.plot(band["median"], color=color, marker=marker, ms=5, markevery=0.1, lw=1.6, label=method)
        mark_collapse(panels[0, column], collapse_ratio)
        mark_edge(panels[0, column], edge)
        panels[0, column].set(title=group, yscale="log")
        panels[1, column].set(xlabel="Edits so far", ylim=(0.9, detail))
        panels[1, column].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0, 0].set_ylabel("Perplexity, times unedited")
    panels[1, 0].set_ylabel(f"The same, up to {detail:g} times")
    repeats = frame["repeat"].nunique()
    meaning = f"Lines: medians of {repeats} orders; bands: from the least to the largest" if repeats > 1 else None
    legend_below(figure, panels[0, 0], title=meaning)
    return figure
