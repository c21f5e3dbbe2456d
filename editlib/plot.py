"""The figures of the book: every function takes a tidy table and returns the figure."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

KINDS = ("one token, first", "one token, later", "several tokens")
COLORS = dict(zip(KINDS, ("#d55e00", "#0072b2", "#8c8c8c"), strict=True))  # Okabe-Ito, tells apart for all readers
MARKERS = dict(zip(KINDS, ("^", "o", "s"), strict=True))
SCORE_MARKS = {  # color, marker, place in its method's row
    "efficacy": ("#0072b2", "o", -0.22),
    "generalization": ("#d55e00", "^", 0.0),
    "locality": ("#009e73", "s", 0.22),
}


def theme() -> None:
    """One look for all figures; opaque white, so that dark pages show them as they are."""
    sns.set_theme(
        style="ticks",
        context="notebook",
        rc={
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 12,
            "legend.frameon": False,
        },
    )


def drawable(values: pd.Series) -> tuple[NDArray[np.float64], float | None]:
    """Values for a log axis: inf and nan are drawn at an edge above everything finite, returned with its height."""
    array = values.to_numpy(dtype=float)
    finite = array[np.isfinite(array)]
    if len(finite) == len(array):
        return array, None
    edge = 10 * max(finite.max(initial=10.0), 10.0)
    return np.where(np.isfinite(array), array, edge), edge


def _mark_edge(axes: Axes, edge: float | None) -> None:
    if edge is not None:
        axes.axhline(edge, color="black", lw=0.6, ls=":")
        axes.annotate("inf or nan", (0, edge), xycoords=("axes fraction", "data"), va="bottom", fontsize=9)


def scatter(frame: pd.DataFrame, *, unedited: float, collapse_ratio: float, title: str) -> Figure:
    """Perplexity of each edited model by case, on a log axis, marked by kind of subject.

    `frame` has one row per case: case_id, kind, perplexity_mean. `unedited` is the level before any edit.
    """
    figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    heights, edge = drawable(frame["perplexity_mean"])
    for kind in reversed(KINDS):
        mine = (frame["kind"] == kind).to_numpy()
        axes.scatter(
            frame["case_id"][mine],
            heights[mine],
            c=COLORS[kind],
            marker=MARKERS[kind],
            s=34 if kind == KINDS[0] else 16,
            alpha=0.75,
            linewidths=0,
            label=f"{kind} ({mine.sum():,})",
        )
    _levels(axes, unedited, collapse_ratio)
    _mark_edge(axes, edge)
    axes.set(yscale="log", xlabel="Case (its number in the set)", ylabel="Perplexity after one edit", title=title)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], title="Subject: tokens, place in the prompt", loc="outside lower center", ncols=3
    )
    return figure


def _levels(axes: Axes, unedited: float, collapse_ratio: float) -> None:
    for level, text, style in (
        (unedited, "unedited", "-"),
        (collapse_ratio * unedited, f"collapse: {collapse_ratio:g} times", "--"),
    ):
        axes.axhline(level, color="black", lw=1, ls=style, zorder=0)
        axes.annotate(
            f"{text} ({level:.3g})",
            (1, level),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=9,
            xytext=(0, 2),
            textcoords="offset points",
        )


def comparison(frame: pd.DataFrame, *, collapse_ratio: float) -> Figure:
    """Perplexity over unedited for each arm (a model with a method), one strip each, marked by kind of subject.

    `frame` has one row per case and arm: arm, kind, perplexity_ratio.
    """
    arms = list(dict.fromkeys(frame["arm"]))
    figure, axes = plt.subplots(figsize=(9, 0.95 * len(arms) + 1.6), layout="constrained")
    heights, edge = drawable(frame["perplexity_ratio"])
    rng = np.random.default_rng(0)
    for kind, offset in zip(KINDS, (-0.26, 0.0, 0.26), strict=True):
        mine = (frame["kind"] == kind).to_numpy()
        rows = frame["arm"][mine].map(arms.index).to_numpy() + offset + rng.uniform(-0.09, 0.09, mine.sum())
        axes.scatter(
            heights[mine], rows, c=COLORS[kind], marker=MARKERS[kind], s=16, alpha=0.55, linewidths=0, label=kind
        )
    axes.axvline(1, color="black", lw=1, zorder=0)
    axes.axvline(collapse_ratio, color="black", lw=1, ls="--", zorder=0)
    axes.annotate(
        f"collapse: {collapse_ratio:g} times",
        (collapse_ratio, 1),
        xycoords=("data", "axes fraction"),
        fontsize=9,
        xytext=(4, -2),
        textcoords="offset points",
        va="top",
    )
    if edge is not None:
        axes.axvline(edge, color="black", lw=0.6, ls=":")
        axes.annotate("inf or nan", (edge, 0), xycoords=("data", "axes fraction"), fontsize=9, rotation=90)
    axes.set(
        xscale="log", xlabel="Perplexity after one edit, times unedited", yticks=range(len(arms)), yticklabels=arms
    )
    axes.invert_yaxis()
    figure.legend(title="Subject: tokens, place in the prompt", loc="outside lower center", ncols=3, markerscale=1.6)
    return figure


def denominators(frame: pd.DataFrame, *, collapse_ratio: float) -> Figure:
    """Perplexity over unedited against |denominator| / |consistent denominator|, one point per case, both logarithmic.

    `frame` has one row per case: kind, perplexity_ratio, denominator, denominator_consistent.
    """
    figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    heights, edge = drawable(frame["perplexity_ratio"])
    ratio = (frame["denominator"] / frame["denominator_consistent"]).abs()
    for kind in reversed(KINDS):
        mine = (frame["kind"] == kind).to_numpy()
        axes.scatter(
            ratio[mine], heights[mine], c=COLORS[kind], marker=MARKERS[kind], s=30, alpha=0.7, linewidths=0, label=kind
        )
    axes.axhline(collapse_ratio, color="black", lw=1, ls="--", zorder=0)
    axes.axvline(1, color="black", lw=0.6, ls=":", zorder=0)
    _mark_edge(axes, edge)
    axes.set(
        xscale="log",
        yscale="log",
        ylabel="Perplexity, times unedited",
        xlabel="|denominator| of ROME over its value with consistent keys",
    )
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], title="Subject: tokens, place in the prompt", loc="outside lower center", ncols=3
    )
    return figure


def layers(effects: pd.DataFrame, *, proposed: int) -> Figure:
    """What restoring each layer's MLP brings back, by group of tokens, with a frame around the proposed layer.

    `effects` is that of a `CausalTrace`: one row a layer, one column a group. Effects below zero are drawn as none,
    cells without a value in grey.
    """
    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    cells = effects.to_numpy(dtype=float).T
    top = max(np.nanmax(cells), 0.01)
    image = axes.imshow(cells, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    figure.colorbar(image, label="P(true target) brought back")
    if len(effects) <= 12:  # more numbers than that do not fit
        for (row, layer), value in np.ndenumerate(cells):
            text, color = "" if np.isnan(value) else f"{value:z.2f}", "white" if value > top / 2 else "black"
            axes.text(layer, row, text, ha="center", va="center", color=color)
    whole = Rectangle((proposed - 0.5, -0.5), 1, len(cells), fill=False, edgecolor=COLORS[KINDS[0]], lw=3)
    axes.add_patch(whole).set_clip_on(False)
    title = f"Proposed: layer {proposed}, where the subject's last token brings most back"
    axes.set(title=title, xlabel="Layer whose MLP is restored", facecolor="lightgrey")
    axes.set_yticks(range(len(cells)), effects.columns)
    axes.xaxis.set_major_locator(MaxNLocator(24, integer=True))
    return figure


def scores(summary: pd.DataFrame, *, wanted: float) -> Figure:
    """Mean scores with their intervals: a panel for each protocol, a row for each method, a mark for each score.

    `summary` has one row per method, protocol and score: mean, low, high. `wanted` is the efficacy asked for.
    """
    methods, protocols = (list(dict.fromkeys(summary[name])) for name in ("method", "protocol"))
    size = (9, 0.42 * len(methods) + 1.7)
    figure, panels = plt.subplots(1, len(protocols), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, protocol in zip(panels[0], protocols, strict=True):
        for score, (color, marker, offset) in SCORE_MARKS.items():
            mine = summary[(summary["protocol"] == protocol) & (summary["score"] == score)]
            rows = mine["method"].map(methods.index) + offset
            axes.hlines(rows, mine["low"], mine["high"], color=color, lw=1.5, alpha=0.6)
            axes.plot(mine["mean"], rows, marker, color=color, ms=6, label=score)
        axes.axvline(wanted, color="black", lw=0.6, ls=":", zorder=0)
        axes.set(
            title=protocol, xlim=(-0.04, 1.04), xticks=(0, 0.25, 0.5, 0.75, 1), xticklabels=("0", "", "½", "", "1")
        )
    panels[0, 0].set(yticks=range(len(methods)), yticklabels=methods)
    panels[0, 0].invert_yaxis()
    panels[0, len(protocols) // 2].set_xlabel("Mean over the cases")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def rises(frame: pd.DataFrame, *, collapse_ratio: float) -> Figure:
    """Rise of perplexity by one edit, in per cent: a strip for each method with its median, marked by kind of subject.

    `frame` has one row per case and method: method, kind, perplexity_ratio. The axis is linear up to 1 %.
    """
    methods = list(dict.fromkeys(frame["method"]))
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(methods) + 1.9), layout="constrained")
    heights, edge = drawable(100 * (frame["perplexity_ratio"] - 1))
    spread = np.random.default_rng(0).uniform(-0.25, 0.25, len(frame))
    rows = frame["method"].map(methods.index).to_numpy()
    for kind in KINDS:
        mine = (frame["kind"] == kind).to_numpy()
        axes.scatter(
            heights[mine], (rows + spread)[mine], c=COLORS[kind], marker=MARKERS[kind], s=14, alpha=0.6, linewidths=0,
            label=kind if mine.any() else None,
        )  # fmt: skip
    medians = [np.median(heights[rows == row]) for row in range(len(methods))]
    axes.plot(medians, range(len(methods)), "|", color="black", ms=16, mew=2, label="median")
    axes.axvline(0, color="black", lw=1, zorder=0)
    threshold, name = 100 * (collapse_ratio - 1), f"collapse: {collapse_ratio:g} times"
    axes.axvline(threshold, color="black", lw=1, ls="--", zorder=0, label=name)
    if edge is not None:
        axes.axvline(edge, color="black", lw=0.6, ls=":", label="inf or nan")
    axes.set_xscale("symlog", linthresh=1)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(
        xlabel="Perplexity after one edit, per cent above unedited", yticks=range(len(methods)), yticklabels=methods
    )
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def anatomy(frame: pd.DataFrame, *, models: Sequence[str]) -> Figure:
    """Residual norm and cosine between texts' keys by position and layer: a row of two panels for each model.

    `frame` has one row per model, layer and position: residual_norm, key_cosine.
    """
    size = (9, 3.2 * len(models))
    figure, grid = plt.subplots(len(models), 2, figsize=size, sharex=True, sharey="col", layout="constrained")
    measures = {"residual_norm": "Norm of the residual stream", "key_cosine": "Cosine between texts' keys"}
    for row, model in zip(grid, models, strict=True):
        mine = frame[frame["model"] == model]
        for axes, (column, label) in zip(row, measures.items(), strict=True):
            sns.lineplot(
                mine, x="position", y=column, hue="layer", palette="viridis", marker="o", ax=axes, legend="full"
            )
            axes.set(title=model, ylabel=label, xlabel="Position of the token")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    for axes in grid.flat:
        axes.get_legend().remove()
    grid[0, 0].set_yscale("log")
    grid[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    grid[0, 0].yaxis.set_major_formatter("{x:g}")
    grid[0, 0].yaxis.set_minor_locator(NullLocator())
    figure.legend(handles, labels, title="Layer", loc="outside lower center", ncols=len(labels))
    return figure
