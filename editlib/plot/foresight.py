"""Which layers an edit breaks a model at, and what keys foretold of it."""

from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from editlib.plot.style import (
    GROUP_MARKS,
    OF_SUBJECTS,
    drawable,
    legend_below,
    mark_collapse,
    mark_edge,
    points_by_kind,
)


def regimes(lengths: pd.Series, ratios: pd.DataFrame, shares: pd.DataFrame, *, title: str = "") -> Figure:
    """Layer by layer: the length of the key at position 0 over later ones, ROME's denominator over the consistent one,
    and the share of edits that collapse the model, a panel for each method and a mark for each choice of C. Layers
    whose key at position 0 is less than half as long as later ones are shaded.

    `lengths` is by layer, `ratios` by layer with a column for each choice; `shares` has one row per method, choice
    (`setting`) and layer: mean.
    """
    methods = list(shares["method"].unique())
    figure: Figure
    shape: dict[str, Any] = {"sharex": True, "height_ratios": (1.2, 1.2, *[1] * len(methods))}
    figure, panels = plt.subplots(
        2 + len(methods), 1, figsize=(9, 2.1 + 1.35 * (2 + len(methods))), layout="constrained", **shape
    )
    for axes in panels:
        for layer in lengths.index[lengths < 0.5]:
            axes.axvspan(layer - 0.5, layer + 0.5, color="#e8eef4", lw=0, zorder=0)
    for axes in panels[:2]:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.axhline(1, color="black", lw=0.6, ls=":", zorder=0)
    panels[0].plot(lengths, color="black", marker="o", ms=4)
    panels[0].set_ylabel("Key at position 0,\ntimes later keys")
    for setting, (color, marker, filled) in zip(ratios, GROUP_MARKS, strict=False):
        look = {
            "color": color,
            "marker": marker,
            "mfc": color if filled else "white",
            "ms": 5,
            "lw": 1,
            "label": setting,
        }
        panels[1].plot(ratios[setting], **look)
        for axes, method in zip(panels[2:], methods, strict=True):
            rows = shares[(shares["method"] == method) & (shares["setting"] == setting)]
            axes.plot(rows["layer"], rows["mean"], **look)
    panels[1].set_ylabel("ROME: |denominator|\n/ consistent one")
    for axes, method in zip(panels[2:], methods, strict=True):
        axes.set(
            ylabel=f"{method}:\ncollapse", ylim=(-0.08, 1.08), yticks=(0, 0.5, 1), yticklabels=("0 %", "50 %", "100 %")
        )
    panels[-1].set_xlabel("Layer")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    legend_below(figure, panels[1])
    return figure


def foretold(frame: pd.DataFrame, *, bound: float, collapse_ratio: float) -> Figure:
    """Perplexity over unedited against what keys foretold, a panel for each method and a point for each edit, both
    logarithmic.

    `frame` has one row per edit: method, kind, severity (as foretold), perplexity_ratio.
    """
    methods = list(frame["method"].unique())
    columns = len(methods) if len(methods) <= 4 else 3
    rows = -(-len(methods) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(9, 0.9 + 3 * rows), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    heights, edge = drawable(frame["perplexity_ratio"])
    for axes in panels.flat[len(methods) :]:
        axes.axis("off")
    for axes, method in zip(panels.flat, methods, strict=False):
        of_method = (frame["method"] == method).to_numpy()
        points_by_kind(axes, frame.loc[of_method, "severity"], heights[of_method], frame.loc[of_method, "kind"])
        mark_collapse(axes, collapse_ratio)
        mark_edge(axes, edge)
        axes.axvline(bound, color="black", lw=0.8, ls=":", zorder=0, label="foretold from here on")
        axes.set(xscale="log", yscale="log", title=fill(method, 84 // columns))
    figure.supylabel("Perplexity, times unedited", fontsize="medium")
    middle = min(columns // 2, (len(methods) - 1) % columns)  # a label of the figure would lie on its legend
    panels[-1, middle].set_xlabel("Severity, foretold before any search")
    legend_below(figure, panels[0, 0], title=OF_SUBJECTS, ncols=3)
    return figure
