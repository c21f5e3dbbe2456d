"""Results in few numbers: scores, findings that hold or do not, and shares over a threshold."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from editlib.measuring.statistics import collapsed
from editlib.plot.style import SCORE_MARKS, drawable, legend_below, mark_collapse, mark_edge
from editlib.text import percent


def scores(summary: pd.DataFrame, *, wanted: float) -> Figure:
    """Mean scores with their intervals: a panel for each protocol, a row for each method, a mark for each score.

    `summary` has one row per method, protocol and score: mean, low, high. `wanted` is the efficacy asked for.
    """
    methods, protocols = list(summary["method"].unique()), list(summary["protocol"].unique())
    size = (9, 0.42 * len(methods) + 1.9)
    figure, panels = plt.subplots(1, len(protocols), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, protocol in zip(panels[0], protocols, strict=True):
        for score, (color, marker, offset) in SCORE_MARKS.items():
            means = summary[(summary["protocol"] == protocol) & (summary["score"] == score)]
            rows = means["method"].map(methods.index) + offset
            axes.hlines(rows, means["low"], means["high"], color=color, lw=1.5, alpha=0.6)
            axes.plot(means["mean"], rows, marker, color=color, ms=6, label=score)
        axes.axvline(wanted, color="black", lw=1, ls=":", zorder=0, label=f"efficacy asked for: {wanted:g}")
        for border in range(1, len(methods)):
            axes.axhline(border - 0.5, color="#dddddd", lw=0.8, zorder=0)
        axes.set(title=protocol, xlim=(-0.04, 1.04), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"))
    panels[0, 0].set(yticks=range(len(methods)), yticklabels=methods, ylim=(len(methods) - 0.5, -0.5))
    panels[0, len(protocols) // 2].set_xlabel("Mean over the cases")
    legend_below(figure, panels[0, 0], ncols=4)
    return figure


def remedies(shares: pd.Series, first: pd.Series, left: pd.DataFrame, *, size: int) -> Figure:
    """What methods do to hard and to normal cases, a row for each method: the share of single edits that collapse the
    model, the edit after which each sequence of `size` has (at the right rim: never), efficacy and locality at its end.

    `shares` and the columns of `left` hold intervals by method and group, `first` steps by method, group and repeat.
    """
    methods = list(shares.index.unique("method"))
    size_of = (10, 0.36 * len(methods) + 1.9)
    figure, panels = plt.subplots(1, 4, figsize=size_of, sharey=True, layout="constrained")
    marks = {"hard cases": ("#d55e00", "^", -0.16), "normal cases": ("#0072b2", "o", 0.16)}
    never = 1.08 * size
    for group, (color, marker, offset) in marks.items():
        for axes, values in zip(panels[[0, 2, 3]], (shares, left["efficacy"], left["locality"]), strict=True):
            own = values[values.index.get_level_values("group") == group]
            rows = [methods.index(method) + offset for method in own.index.get_level_values("method")]
            axes.hlines(rows, [i.low for i in own], [i.high for i in own], color=color, lw=1.5, alpha=0.6)
            axes.plot([i.value for i in own], rows, marker, color=color, ms=6, label=group)
        steps = first[first.index.get_level_values("group") == group].fillna(never)
        rows = [methods.index(method) + offset for method in steps.index.get_level_values("method")]
        panels[1].plot(steps, rows, marker, color=color, ms=6, mfc="none")
    titles = (
        "Alone: share\nthat collapse it",
        "One by one:\ncollapsed after",
        "Kept at the end",
        "Locality at the end",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlim=(-0.05, 1.05), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"))
        for border in range(1, len(methods)):
            axes.axhline(border - 0.5, color="#dddddd", lw=0.8, zorder=0)
    panels[1].axvline(never, color="black", lw=0.6, ls=":")
    ticks = (1, size // 2, size, never)
    panels[1].set(xlim=(0, 1.16 * size), xticks=ticks, xticklabels=(*map(str, ticks[:2]), "", "never"))
    panels[0].set(yticks=range(len(methods)), yticklabels=methods, ylim=(len(methods) - 0.5, -0.5))
    legend_below(figure, panels[0], ncols=2)
    return figure


def by_layer(scores: pd.DataFrame, collapses: pd.DataFrame) -> Figure:
    """Scores over the edited layer, a panel for each method, and below them the share of edits that collapse the model.

    `scores` has one row per method and layer: score, efficacy, generalization and locality as intervals; `collapses`
    one per name (of the method), layer and group: sum, size.
    """
    methods, marks = list(scores["method"].unique()), {name: mark[:2] for name, mark in SCORE_MARKS.items()}
    shape: dict[str, Any] = {
        "figsize": (4.5 * len(methods), 5.4),
        "height_ratios": (2, 1),
        "sharex": True,
        "sharey": "row",
    }
    figure: Figure
    figure, panels = plt.subplots(2, len(methods), squeeze=False, layout="constrained", **shape)
    for column, method in enumerate(methods):
        rows, top, below = scores[scores["method"] == method], panels[0, column], panels[1, column]
        for name, (color, marker) in {**marks, "score": ("black", "")}.items():
            means, width = [interval.value for interval in rows[name]], 2.5 if name == "score" else 1
            top.plot(rows["layer"], means, color=color, marker=marker, ms=5, lw=width, label=name)
        bounds = [[getattr(interval, end) for interval in rows["score"]] for end in ("low", "high")]
        top.fill_between(rows["layer"], *bounds, color="black", alpha=0.12, lw=0)
        here = collapses[collapses["name"] == method]
        for group, (color, marker) in {"one token at the start": ("#d55e00", "^"), "normal": ("#0072b2", "o")}.items():
            cases = here[here["group"] == group]
            share = cases["sum"] / cases["size"]
            below.plot(cases["layer"], share, color=color, marker=marker, ms=5, lw=1, label=group)
        top.set(title=method, ylim=(-0.04, 1.04))
        below.set(xlabel="Edited layer", ylim=(-0.04, 1.04), xticks=sorted(scores["layer"].unique()))
    panels[1, -1].legend(title="Cases", fontsize=9, loc="center")
    panels[0, 0].set_ylabel("Mean over normal cases")
    panels[1, 0].set_ylabel("Share that collapse")
    legend_below(figure, panels[0, 0], ncols=4)
    return figure


def findings(frame: pd.DataFrame, *, title: str) -> Figure:
    """A table as a figure: a row for each choice, a column for each finding, a cross where it does not hold.

    `frame` has one row per choice and finding: shown (text), holds.
    """
    choices, names = list(frame["choice"].unique()), list(frame["finding"].unique())
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(choices) + 1.8), layout="constrained")
    for choice, name, shown, holds in frame[["choice", "finding", "shown", "holds"]].itertuples(index=False):
        x, y = names.index(name), choices.index(choice)
        color = "#d6eaf6" if holds else "#f2b790"
        axes.add_patch(Rectangle((x - 0.48, y - 0.44), 0.96, 0.88, color=color, lw=0))
        axes.text(x, y, shown if holds else f"✗ {shown}", ha="center", va="center", fontsize=10)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(choices) - 0.5, -0.5))
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    axes.set_xticks(range(len(names)), names, fontsize=10)
    axes.set_yticks(range(len(choices)), choices)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


def thresholds(
    frame: pd.DataFrame, *, collapse_ratio: float, published: tuple[float, float], emphasised: str = ""
) -> Figure:
    """Perplexity over unedited of every edit on a log axis, a row for each line of a panel, panels below each other.

    What lies to the right of a threshold counts as collapse; the share from `collapse_ratio` on stands at the right.
    `frame` has one row per panel, line and edit: ratio. `published` is a span of thresholds to be shaded, the row of
    the line `emphasised` is in bold.
    """
    rows = frame.groupby("panel", sort=False)["line"].nunique()
    shape: dict[str, Any] = {"sharex": True, "height_ratios": list(rows), "squeeze": False}
    figure: Figure
    size = (9, 0.36 * rows.sum() + 0.5 * len(rows) + 1.1)
    figure, grid = plt.subplots(len(rows), 1, figsize=size, layout="constrained", **shape)
    values, edge = drawable(frame["ratio"])
    for axes, panel in zip(grid[:, 0], rows.index, strict=True):
        of_panel = frame.assign(value=values)[frame["panel"] == panel]
        names = list(of_panel["line"].unique())
        axes.axvspan(*published, color="#e0e0e0", zorder=0, lw=0, label="1,000 in the papers")
        for row, (_, edits) in enumerate(of_panel.groupby("line", sort=False)):
            axes.plot(edits["value"], [row] * len(edits), "|", color="#0072b2", ms=12, alpha=0.6)
            share = collapsed(edits["ratio"], collapse_ratio).mean()
            axes.annotate(percent(share), (1, row), (4, 0), ("axes fraction", "data"), "offset points", va="center")
        mark_collapse(axes, collapse_ratio, upright=True)
        mark_edge(axes, edge, upright=True)
        axes.set(xscale="log", title=panel, yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        for label in axes.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() == emphasised else "normal")
    grid[-1, 0].set_xlabel("Perplexity after one edit, times unedited (a line an edit)")
    grid[-1, 0].xaxis.set_major_formatter("{x:,.0f}")
    legend_below(figure, grid[0, 0])
    return figure
