"""The figures of the book: every function takes a tidy table and returns the figure."""

from collections.abc import Mapping, Sequence

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
GROUP_MARKS = (  # color, marker, whether it is filled
    ("#d55e00", "^", True),
    ("#8c8c8c", "o", True),
    ("#0072b2", "s", False),
    ("#009e73", "D", False),
)
METHOD_MARKS = {  # color, marker
    "ft": ("#000000", "v"),
    "ft-l": ("#009e73", "o"),
    "mend": ("#cc79a7", "s"),
    "rome": ("#d55e00", "^"),
    "memit": ("#0072b2", "D"),
    "c-rome": ("#56b4e9", "P"),
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
    _strips(axes, frame, "perplexity_ratio")
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
    axes.set(xlabel="Perplexity after one edit, times unedited")
    figure.legend(title="Subject: tokens, place in the prompt", loc="outside lower center", ncols=3, markerscale=1.6)
    return figure


def _strips(axes: Axes, frame: pd.DataFrame, column: str) -> None:
    """A strip for each arm on a log axis, marked by kind of subject."""
    arms = list(dict.fromkeys(frame["arm"]))
    values, edge = drawable(frame[column])
    rng = np.random.default_rng(0)
    for kind, offset in zip(KINDS, (-0.26, 0.0, 0.26), strict=True):
        mine = (frame["kind"] == kind).to_numpy()
        rows = frame["arm"][mine].map(arms.index).to_numpy() + offset + rng.uniform(-0.09, 0.09, mine.sum())
        axes.scatter(
            values[mine], rows, c=COLORS[kind], marker=MARKERS[kind], s=16, alpha=0.55, linewidths=0, label=kind
        )
    axes.set(xscale="log", yticks=range(len(arms)), yticklabels=arms, ylim=(len(arms) - 0.5, -0.5))
    if edge is not None:
        axes.axvline(edge, color="black", lw=0.6, ls=":")
        axes.annotate("inf or nan", (edge, 0), xycoords=("data", "axes fraction"), fontsize=9, rotation=90)


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
    figure.colorbar(image, label="P(first token of the true target) brought back")
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


def sequences(frame: pd.DataFrame, *, collapse_ratio: float) -> Figure:
    """Perplexity over unedited after each edit, a panel for each group of cases: a method's median over repeats in a
    band from its least to its largest.

    `frame` has one row per group, method, repeat and measured step: step, perplexity_ratio.
    """
    groups = list(dict.fromkeys(frame["group"]))
    size = (9, 4.8) if len(groups) > 1 else (6, 4.8)
    figure, panels = plt.subplots(1, len(groups), figsize=size, sharey=True, squeeze=False, layout="constrained")
    heights, edge = drawable(frame["perplexity_ratio"])
    drawn = frame.assign(height=heights)
    for axes, group in zip(panels[0], groups, strict=True):
        for method, mine in drawn[drawn["group"] == group].groupby("method", sort=False):
            color, marker = METHOD_MARKS.get(str(method), ("#8c8c8c", "x"))
            band = mine.groupby("step")["height"].agg(["median", "min", "max"])
            axes.fill_between(band.index, band["min"], band["max"], color=color, alpha=0.18, linewidth=0)
            axes.plot(band.index, band["median"], color=color, marker=marker, ms=5, markevery=0.1, lw=1.6, label=method)
        axes.axhline(
            collapse_ratio, color="black", lw=1, ls="--", zorder=0, label=f"collapse: {collapse_ratio:g} times"
        )
        _mark_edge(axes, edge)
        axes.set(title=group, xlabel="Edits so far", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0, 0].set_ylabel("Perplexity, times unedited")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def strips(frame: pd.DataFrame, measures: Mapping[str, str]) -> Figure:
    """Distributions on log axes: a panel for each measure, a strip for each arm, marked by kind of subject.

    `frame` has one row per case and arm: arm, kind and the measures' columns; `measures` maps these to their labels.
    All panels span as many decades as the widest, so that equal distances are equal ratios.
    """
    size = (9, 0.8 * frame["arm"].nunique() + 1.7)
    figure, panels = plt.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, (column, label) in zip(panels[0], measures.items(), strict=True):
        _strips(axes, frame, column)
        axes.set(xlabel=label)
    limits = [np.log10(axes.get_xlim()) for axes in panels[0]]
    half = max(high - low for low, high in limits) / 2
    for axes, (low, high) in zip(panels[0], limits, strict=True):
        axes.set_xlim(10 ** ((low + high) / 2 - half), 10 ** ((low + high) / 2 + half))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, title="Subject: tokens, place in the prompt", loc="outside lower center", ncols=3,
        markerscale=1.6,
    )  # fmt: skip
    return figure


def maps(frame: pd.DataFrame, *, columns: int = 2) -> Figure:
    """Maps of keys in two dimensions: a panel for each map, a mark for each group of keys, numbers of them shown.

    `frame` has one row per key and map: panel, group, x, y. The first group is drawn on top.
    """
    names, kinds = (list(dict.fromkeys(frame[name])) for name in ("panel", "group"))
    marks = dict(zip(kinds, GROUP_MARKS, strict=False))
    most = frame.groupby(["panel", "group"]).size().groupby("group").max()
    rows = -(-len(names) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(9, 3.9 * rows + 0.6), squeeze=False, layout="constrained")
    for axes, name in zip(grid.flat, names, strict=False):
        for kind in reversed(kinds):
            mine = frame[(frame["panel"] == name) & (frame["group"] == kind)]
            color, marker, filled = marks[kind]
            face, edge = (color, "none") if filled else ("none", color)
            label = f"{kind} ({most[kind]:,})"
            axes.scatter(mine["x"], mine["y"], marker=marker, s=26, fc=face, ec=edge, lw=1, alpha=0.75, label=label)
        axes.set(title=name, xticks=[], yticks=[])
    for spare in grid.flat[len(names) :]:
        spare.remove()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2)
    return figure


def single_edits(frame: pd.DataFrame, *, collapse_ratio: float) -> Figure:
    """Perplexity over unedited after one edit: a panel for each set (row) and model (column), in it a strip for each
    arm, marked by kind of subject.

    `frame` has one row per case and arm: set, model, arm, kind, perplexity_ratio.
    """
    sets, models = (list(dict.fromkeys(frame[name])) for name in ("set", "model"))
    size = (9, len(sets) * (0.5 * frame["arm"].nunique() + 0.9) + 1.0)
    figure, grid = plt.subplots(len(sets), len(models), figsize=size, sharex=True, squeeze=False, layout="constrained")
    values, edge = drawable(frame["perplexity_ratio"])
    drawn = frame.assign(drawn=values)  # one rim for all panels
    for (i, j), axes in np.ndenumerate(grid):
        _strips(axes, drawn[(drawn["set"] == sets[i]) & (drawn["model"] == models[j])], "drawn")
        axes.axvline(
            collapse_ratio, color="black", lw=1, ls="--", zorder=0, label=f"collapse: {collapse_ratio:g} times"
        )
        if edge is not None:
            axes.axvline(edge, color="black", lw=0.6, ls=":", label="inf or nan")
        axes.set_title(f"{sets[i]}, {models[j]}")
    for axes in grid[-1]:
        axes.set_xlabel("Perplexity, times unedited")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, markerscale=1.5)
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
        for kind in reversed(KINDS):
            mine = (frame["kind"] == kind).to_numpy()
            label_of = f"{kind} ({mine.sum():,})"
            axes.scatter(x[mine], y[mine], c=COLORS[kind], marker=MARKERS[kind], s=30, alpha=0.6, lw=0, label=label_of)
        ends = values.min() / 1.4, values.max() * 1.4
        axes.plot(ends, ends, color="black", lw=0.8, zorder=0)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel=models[0], ylabel=models[1], box_aspect=1)
        axes.set_title(label, fontsize=11)
        _mark_edge(axes, edge)
    panels[0, 0].axhline(collapse_ratio, color="black", lw=1, ls="--", zorder=0)
    panels[0, 0].axvline(collapse_ratio, color="black", lw=1, ls="--", zorder=0)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], title="Subject: tokens, place in the prompt", loc="outside lower center", ncols=3
    )
    return figure


def doses(frame: pd.DataFrame, *, learned: Mapping[str, float]) -> Figure:
    """Share of collapsed edits and median denominator ratio over the length of position 0's embedding, by model.

    `frame` has one row per model and dose: length, scaled, and collapsed and ratio with their `_low` and `_high`. What
    is not `scaled` is another embedding in its place; `learned` is the length each model was trained to, whose mark is
    filled.
    """
    figure, panels = plt.subplots(2, 1, figsize=(9, 6.4), sharex=True, layout="constrained")
    for number, (model, length) in enumerate(learned.items()):
        color, shape, _ = GROUP_MARKS[2 * number]
        mark = {"color": color, "ms": 12 - 5 * number}  # where marks meet, both are seen
        mine = frame[frame["model"] == model]
        scaled, apart = mine[mine["scaled"]], mine[~mine["scaled"]]
        trained = scaled[np.isclose(scaled["length"], length)]
        for axes, column in zip(panels, ("collapsed", "ratio"), strict=True):
            axes.vlines(mine["length"], mine[f"{column}_low"], mine[f"{column}_high"], color=color, alpha=0.5, lw=2)
            axes.plot(scaled["length"], scaled[column], marker=shape, mfc="white", label=model, **mark)
            axes.plot(trained["length"], trained[column], shape, label=f"{model}, as trained", **mark)
            axes.plot(apart["length"], apart[column], "X", label=f"{model}, row of position 1", **mark)
    panels[0].set(ylabel="Edits that collapse it", ylim=(-0.05, 1.05), xscale="log")
    panels[0].yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    panels[1].set(ylabel="|denominator| / consistent one", yscale="log")
    panels[1].set_xlabel("Length of the position embedding of position 0")
    panels[1].axhline(1, color="black", lw=0.6, ls=":", zorder=0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def weight_changes(changes: Mapping[str, NDArray[np.float64]]) -> Figure:
    """|Δ| of one weight, shape (d_out, d_in), as a heat map for each of several edits, all on one colour scale.

    Large weights are shown in blocks, each by its largest entry; the scale ends at the 99.9th percentile.
    """
    blocks = {title: _blocks(np.abs(change)) for title, change in changes.items()}
    top = np.quantile(np.concatenate([block.ravel() for block in blocks.values()]), 0.999) or 1.0
    figure, panels = plt.subplots(len(blocks), 1, figsize=(9, 2.4 * len(blocks) + 0.6), layout="constrained")
    for axes, (title, block) in zip(np.atleast_1d(panels), blocks.items(), strict=True):
        rows, columns = changes[title].shape
        image = axes.imshow(block, cmap="magma_r", vmin=0, vmax=top, aspect="auto", extent=(0, columns, rows, 0))
        axes.set_title(title, fontsize=10)
        axes.set_ylabel("Output")
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.set_xlabel("Input (entry of the key)")
    figure.colorbar(image, ax=panels, label="|W after − W before|", extend="max", shrink=0.8)
    return figure


def _blocks(cells: NDArray[np.float64], most: int = 800) -> NDArray[np.float64]:
    """Cells, or the largest entry of each block where there are more than `most` rows or columns."""
    for axis in (0, 1):
        step = -(-cells.shape[axis] // most)
        cells = np.maximum.reduceat(cells, np.arange(0, cells.shape[axis], step), axis=axis)
    return cells


def spectra(frame: pd.DataFrame) -> Figure:
    """Singular values of weights by rank, a line for each, and of changes, marked; both axes logarithmic.

    `frame` has one row per matrix and rank: matrix, rank (from 1), value, change (whether it is a change).
    """
    figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    colors = ("#000000", "#0072b2", "#d55e00", "#009e73", "#0072b2", "#d55e00", "#009e73")
    styles = ("-", "-", "--", ":")
    for color, style, (matrix, mine) in zip(colors, styles * 2, frame.groupby("matrix", sort=False), strict=False):
        if mine["change"].any():
            axes.plot(mine["rank"], mine["value"], "*", color=color, ms=13, mec="black", mew=0.5, label=matrix)
        else:
            axes.plot(mine["rank"], mine["value"], style, color=color, lw=1.8, label=matrix)
    axes.set(xscale="log", yscale="log", xlabel="Rank of the singular value", ylabel="Singular value")
    axes.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def changes(frame: pd.DataFrame, *, collapse_ratio: float) -> Figure:
    """Perplexity over unedited against |Δ| / |W|, both logarithmic: a panel for each method, marked by kind of subject.

    `frame` has one row per case and method: method, kind, relative_change, perplexity_ratio.
    """
    methods = list(dict.fromkeys(frame["method"]))
    figure, panels = plt.subplots(
        1, len(methods), figsize=(9, 4.2), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    heights, edge = drawable(frame["perplexity_ratio"])
    for axes, method in zip(panels[0], methods, strict=True):
        for kind in reversed(KINDS):
            mine = ((frame["method"] == method) & (frame["kind"] == kind)).to_numpy()
            axes.scatter(
                frame["relative_change"][mine], heights[mine], c=COLORS[kind], marker=MARKERS[kind], s=26, alpha=0.65,
                linewidths=0, label=kind,
            )  # fmt: skip
        axes.axhline(
            collapse_ratio, color="black", lw=1, ls="--", zorder=0, label=f"collapse: {collapse_ratio:g} times"
        )
        _mark_edge(axes, edge)
        axes.set(xscale="log", yscale="log", title=method, xlabel="|Δ| / |W|")
    panels[0, 0].set_ylabel("Perplexity, times unedited")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def findings(frame: pd.DataFrame, *, title: str) -> Figure:
    """A table as a figure: a row for each choice, a column for each finding, a cross where it does not hold.

    `frame` has one row per choice and finding: shown (text), holds.
    """
    choices, names = (list(dict.fromkeys(frame[name])) for name in ("choice", "finding"))
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


def thresholds(frame: pd.DataFrame, *, published: tuple[float, float]) -> Figure:
    """Share of edits that count as collapse over the threshold: a panel for each group of lines.

    `frame` has one row per panel, line and threshold: share. `published` is a span of thresholds to be shaded.
    """
    panels = list(dict.fromkeys(frame["panel"]))
    figure, grid = plt.subplots(1, len(panels), figsize=(9, 5), sharey=True, squeeze=False, layout="constrained")
    for axes, panel in zip(grid[0], panels, strict=True):
        axes.axvspan(*published, color="#e0e0e0", zorder=0, lw=0, label="1,000 in the papers")
        for number, (line, mine) in enumerate(frame[frame["panel"] == panel].groupby("line", sort=False)):
            color = sns.color_palette("colorblind")[number]
            style = ("-", "--", "-.", ":")[number % 4]
            axes.plot(mine["threshold"], mine["share"], color=color, ls=style, lw=2, label=line)
        axes.set(xscale="log", ylim=(-0.03, 1.03), title=panel)
        axes.set_xlabel("Threshold, times unedited")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=9)
    grid[0, 0].set_ylabel("Edits that count as collapse")
    grid[0, 0].yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    return figure
