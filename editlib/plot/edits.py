"""Perplexity after edits: one edit each, the same cases on two models, and edits on top of each other."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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


def comparison(frame: pd.DataFrame, *, collapse_ratio: float) -> Figure:
    """Perplexity over unedited for each arm (a model with a method), one strip each, marked by kind of subject.

    `frame` has one row per case and arm: arm, kind, perplexity_ratio.
    """
    figure, axes = plt.subplots(figsize=(9, 0.95 * frame["arm"].nunique() + 1.6), layout="constrained")
    values, edge = drawable(frame["perplexity_ratio"])
    strips_by_kind(axes, frame["arm"], values, frame["kind"])
    mark_edge(axes, edge, upright=True)
    axes.axvline(1, color="black", lw=1, zorder=0)
    mark_collapse(axes, collapse_ratio, upright=True)
    axes.set(xlabel="Perplexity after one edit, times unedited")
    legend_below(figure, axes, title=OF_SUBJECTS, ncols=4)
    return figure


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
    """Perplexity over unedited after one edit: a panel for each set (row) and model (column), in it a strip for each
    arm, marked by kind of subject.

    `frame` has one row per case and arm: set, model, arm, kind, perplexity_ratio.
    """
    sets, models = frame["set"].unique(), frame["model"].unique()
    size = (9, len(sets) * (0.5 * frame["arm"].nunique() + 0.9) + 1.0)
    figure, grid = plt.subplots(len(sets), len(models), figsize=size, sharex=True, squeeze=False, layout="constrained")
    values, edge = drawable(frame["perplexity_ratio"])  # one edge for all panels
    for (i, j), axes in np.ndenumerate(grid):
        shown = (frame["set"] == sets[i]) & (frame["model"] == models[j])
        strips_by_kind(axes, frame["arm"][shown], values[shown], frame["kind"][shown])
        mark_collapse(axes, collapse_ratio, upright=True)
        mark_edge(axes, edge, upright=True)
        axes.set_title(f"{sets[i]}, {models[j]}")
    for axes in grid[-1]:
        axes.set_xlabel("Perplexity, times unedited")
    legend_below(figure, grid[0, 0], title=OF_SUBJECTS, ncols=4)
    return figure


def rises(frame: pd.DataFrame, *, collapse_ratio: float) -> Figure:
    """Rise of perplexity by one edit, in per cent: a strip for each method with its median, marked by kind of subject.

    `frame` has one row per case and method: method, kind, perplexity_ratio. The axis is linear up to 1 %.
    """
    methods = frame["method"].unique()
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(methods) + 1.9), layout="constrained")
    values, edge = drawable(100 * (frame["perplexity_ratio"] - 1))
    strips_by_kind(axes, frame["method"], values, frame["kind"])
    medians = [np.median(values[frame["method"] == method]) for method in methods]
    axes.plot(medians, range(len(methods)), "|", color="black", ms=16, mew=2, label="median")
    axes.axvline(0, color="black", lw=1, zorder=0)
    mark_collapse(axes, collapse_ratio, at=100 * (collapse_ratio - 1), upright=True)
    mark_edge(axes, edge, upright=True)
    axes.set_xscale("symlog", linthresh=1)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="Perplexity after one edit, per cent above unedited")
    legend_below(figure, axes, ncols=5)
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


def sequences(frame: pd.DataFrame, *, collapse_ratio: float) -> Figure:
    """Perplexity over unedited after each edit, a panel for each group of cases: a method's median over repeats in a
    band from its least to its largest.

    `frame` has one row per group, method, repeat and measured step: step, perplexity_ratio.
    """
    groups = frame["group"].unique()
    size = (9, 4.8) if len(groups) > 1 else (6, 4.8)
    figure, panels = plt.subplots(1, len(groups), figsize=size, sharey=True, squeeze=False, layout="constrained")
    heights, edge = drawable(frame["perplexity_ratio"])
    drawn = frame.assign(height=heights)
    for axes, group in zip(panels[0], groups, strict=True):
        for method, steps in drawn[drawn["group"] == group].groupby("method", sort=False):
            color, marker = METHOD_MARKS.get(str(method), ("#8c8c8c", "x"))
            band = steps.groupby("step")["height"].agg(["median", "min", "max"])
            axes.fill_between(band.index, band["min"], band["max"], color=color, alpha=0.18, linewidth=0)
            axes.plot(band.index, band["median"], color=color, marker=marker, ms=5, markevery=0.1, lw=1.6, label=method)
        mark_collapse(axes, collapse_ratio)
        mark_edge(axes, edge)
        axes.set(title=group, xlabel="Edits so far", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0, 0].set_ylabel("Perplexity, times unedited")
    legend_below(figure, panels[0, 0])
    return figure
