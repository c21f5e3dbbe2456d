"""Keys and what stands in an edit's denominator, layer by layer, position by position, dose by dose."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter, MaxNLocator

from editlib.plot.style import (
    COLORS,
    GROUP_MARKS,
    KINDS,
    OF_SUBJECTS,
    drawable,
    legend_below,
    mark_collapse,
    mark_edge,
    points_by_kind,
)  # fmt: skip
from editlib.text import percent


def denominators(frame: pd.DataFrame, *, collapse_ratio: float) -> Figure:
    """Perplexity over unedited against `|denominator|` over its consistent value, a point a case, both logarithmic.

    `frame` has one row per case: kind, perplexity_ratio, denominator, denominator_consistent.
    """
    figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    heights, edge = drawable(frame["perplexity_ratio"])
    points_by_kind(axes, (frame["denominator"] / frame["denominator_consistent"]).abs(), heights, frame["kind"])
    mark_collapse(axes, collapse_ratio)
    axes.axvline(1, color="black", lw=0.6, ls=":", zorder=0)
    mark_edge(axes, edge)
    axes.set(
        xscale="log",
        yscale="log",
        ylabel="Perplexity, times unedited",
        xlabel="|denominator| of ROME over its value with consistent keys",
    )
    legend_below(figure, axes, title=OF_SUBJECTS, ncols=4)
    return figure


def maps(frame: pd.DataFrame, *, columns: int = 2) -> Figure:
    """Maps of keys in two dimensions: a panel for each map, a mark for each group of keys, numbers of them shown.

    `frame` has one row per key and map: panel, group, x, y, and where a line should join them the `pair` they are of.
    The first group is drawn on top.
    """
    names, groups = frame["panel"].unique(), frame["group"].unique()
    most = frame.groupby(["panel", "group"]).size().groupby("group").max()
    rows = -(-len(names) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(9, 3.9 * rows + 0.6), squeeze=False, layout="constrained")
    for axes, name in zip(grid.flat, names, strict=False):
        for rank, (group, (color, marker, filled)) in enumerate(zip(groups, GROUP_MARKS, strict=False)):
            keys = frame[(frame["panel"] == name) & (frame["group"] == group)]
            look = {"fc": color if filled else "none", "ec": "none" if filled else color, "marker": marker, "s": 26}
            label, order = f"{group} ({most[group]:,})", 2 - 0.1 * rank
            axes.scatter(keys["x"], keys["y"], lw=1, alpha=0.75, zorder=order, label=label, **look)
        for _, ends in frame[frame["panel"] == name].groupby("pair") if "pair" in frame else ():
            axes.plot(ends["x"], ends["y"], color="#8c8c8c", lw=0.8, zorder=1)
        axes.set(title=name, xticks=[], yticks=[])
    for spare in grid.flat[len(names) :]:
        spare.remove()
    legend_below(figure, grid[0, 0], ncols=2)
    return figure


def anatomy(frame: pd.DataFrame, *, models: Sequence[str]) -> Figure:
    """Residual norm, key norm and cosine between texts' keys by position and layer: a row of panels for each model.

    `frame` has one row per model, layer and position: residual_norm, key_norm, key_cosine.
    """
    size = (9, 3.2 * len(models) + 0.4)
    figure, grid = plt.subplots(
        len(models), 3, figsize=size, sharex=True, sharey="col", squeeze=False, layout="constrained"
    )
    measures = {
        "residual_norm": "Norm of the residual stream", "key_norm": "Norm of the keys",
        "key_cosine": "Cosine between texts' keys",
    }  # fmt: skip
    for row, model in zip(grid, models, strict=True):
        of_model = frame[frame["model"] == model]
        few = "full" if of_model["layer"].nunique() <= 10 else "brief"  # of many layers some are named
        for axes, (column, label) in zip(row, measures.items(), strict=True):
            sns.lineplot(
                of_model, x="position", y=column, hue="layer", palette="viridis", marker="o", ms=4, ax=axes, legend=few
            )
            axes.set(title=Path(model).name, ylabel=label, xlabel="Position of the token")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.get_legend().remove()
    for axes in grid[0, :2]:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:,g}")
    legend_below(figure, grid[0, 0], title="Layer", ncols=10)
    return figure


def profile(frame: pd.DataFrame, *, models: Sequence[str]) -> Figure:
    """Position 0 by layer, a row of panels for each model: how many times as long its residual stream and its keys are
    as later ones, how alike two texts' keys are there and later, and its share of heads, of C's trace, and in C's
    largest direction.

    `frame` has one row per model and layer, with the columns of `measuring.anatomy.profile`.
    """
    panels: Mapping[str, Mapping[str, str]] = {
        "Length at position 0 / later": {"residual_norm_ratio": "residual stream", "key_norm_ratio": "keys"},
        "Cosine between texts' keys": {"key_cosine": "at position 0", "key_cosine_later": "later"},
        "Share of position 0": {
            "sink": "heads that look at it", "trace_share": "trace of C", "top_share": "largest eigenvalue of C",
        },
    }  # fmt: skip
    size = (9, 3 * len(models) + 0.9)
    figure, grid = plt.subplots(len(models), 3, figsize=size, sharey="col", squeeze=False, layout="constrained")
    for row, model in zip(grid, models, strict=True):
        of_model = frame[frame["model"] == model].set_index("layer")
        for axes, (label, lines) in zip(row, panels.items(), strict=True):
            for (column, name), (color, marker, filled) in zip(lines.items(), GROUP_MARKS, strict=False):
                look = {"color": color, "marker": marker, "ms": 4, "mfc": color if filled else "white"}
                axes.plot(of_model[column], label=name, **look)
            axes.set(title=Path(model).name, ylabel=label, xlabel="Layer")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        row[0].axhline(1, color="black", lw=0.6, ls=":", zorder=0)
    grid[0, 0].set_yscale("log")
    grid[0, 0].yaxis.set_major_formatter("{x:,g}")
    grid[0, 0].yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
    for axes in grid[0, 1:]:
        axes.set_ylim(-0.04, 1.04)
    for axes in grid[-1]:
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.24))
    return figure


def doses(frame: pd.DataFrame, *, learned: Mapping[str, float], cases: int, title: str = "") -> Figure:
    """Share of so many cases' edits that collapse the model, and median denominator ratio, over the length of position
    0's embedding, by model.

    `frame` has one row per model and dose: length, scaled, and collapsed and ratio with their `_low` and `_high`. What
    is not `scaled` is another embedding in its place; `learned` is the length each model was trained to, whose mark is
    filled.
    """
    figure, panels = plt.subplots(2, 1, figsize=(9, 6.4), sharex=True, layout="constrained")
    for number, (model, length) in enumerate(learned.items()):
        color, shape, _ = GROUP_MARKS[2 * number]
        mark = {"color": color, "ms": 12 - 5 * number}  # where marks meet, both are seen
        of_model = frame[frame["model"] == model]
        scaled, replaced = of_model[of_model["scaled"]], of_model[~of_model["scaled"]]
        trained = scaled[np.isclose(scaled["length"], length)]
        for axes, column in zip(panels, ("collapsed", "ratio"), strict=True):
            ends = of_model[f"{column}_low"], of_model[f"{column}_high"]
            axes.vlines(of_model["length"], *ends, color=color, alpha=0.5, lw=2)
            axes.plot(scaled["length"], scaled[column], marker=shape, mfc="white", label=model, **mark)
            axes.plot(trained["length"], trained[column], shape, label=f"{model}, as trained", **mark)
            axes.plot(replaced["length"], replaced[column], "X", label=f"{model}, row of position 1", **mark)
    panels[0].set(title=title, ylabel=f"Share of {cases} edits\nthat collapse it", ylim=(-0.05, 1.05), xscale="log")
    panels[0].yaxis.set_major_formatter(lambda share, _: percent(share))
    panels[1].set(ylabel="|denominator| / consistent one", yscale="log")
    panels[1].set_xlabel("Length of the position embedding of position 0")
    panels[1].axhline(1, color="black", lw=0.6, ls=":", zorder=0)
    legend_below(figure, panels[0], ncols=2)
    return figure


def layers(effects: pd.DataFrame, *, proposed: int, facts: int) -> Figure:
    """What restoring each layer's MLP brings back, in the mean over so many facts, by group of tokens, with a frame
    around the proposed layer.

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
    frame = Rectangle((proposed - 0.5, -0.5), 1, len(cells), fill=False, edgecolor=COLORS[KINDS[0]], lw=3)
    axes.add_patch(frame).set_clip_on(False)
    title = f"Layer {proposed} brings most back at the subject's last token (mean of {facts} facts)"
    axes.set(title=title, xlabel="Layer whose MLP is restored", facecolor="lightgrey")
    axes.set_yticks(range(len(cells)), effects.columns)
    axes.xaxis.set_major_locator(MaxNLocator(24, integer=True))
    return figure
