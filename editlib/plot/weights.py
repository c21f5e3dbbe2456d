"""Changes of weights: entry by entry, by singular values, and beside what they do to perplexity."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from editlib.plot.style import OF_SUBJECTS, drawable, legend_below, mark_collapse, mark_edge, points_by_kind


def weight_changes(changes: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Sizes of the entries of matrices of one shape (d_out, d_in), as heat maps on one logarithmic colour scale.

    Large ones are shown in blocks, each by its largest entry; the scale reaches down to a third of the median entry of
    the matrix where that is least.
    """
    blocks = {title: _largest(np.abs(change)) for title, change in changes.items()}
    top = max(block.max() for block in blocks.values()) or 1.0
    middles = [np.median(block[block > 0]) for block in blocks.values() if block.any()]
    scale = LogNorm(min([*middles, top]) / 3, top, clip=True)
    figure, panels = plt.subplots(len(blocks), 1, figsize=(9, 2.4 * len(blocks) + 0.6), layout="constrained")
    for axes, (title, block) in zip(np.atleast_1d(panels), blocks.items(), strict=True):
        rows, columns = changes[title].shape
        image = axes.imshow(block, cmap="magma_r", norm=scale, aspect="auto", extent=(0, columns, rows, 0))
        axes.set_title(title, fontsize=10)
        axes.set_ylabel("Output")
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.set_xlabel("Input (entry of the key)")
    figure.colorbar(image, ax=panels, label="Size of an entry (logarithmic)", extend="min", shrink=0.8)
    return figure


def _largest(cells: NDArray[np.float64], most: int = 800) -> NDArray[np.float64]:
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
    for color, style, (matrix, values) in zip(colors, styles * 2, frame.groupby("matrix", sort=False), strict=False):
        if values["change"].any():
            axes.plot(values["rank"], values["value"], "*", color=color, ms=13, mec="black", mew=0.5, label=matrix)
        else:
            axes.plot(values["rank"], values["value"], style, color=color, lw=1.8, label=matrix)
    axes.set(xscale="log", yscale="log", xlabel="Rank of the singular value", ylabel="Singular value")
    axes.xaxis.set_major_formatter("{x:g}")
    legend_below(figure, axes, ncols=2)
    return figure


def changes(frame: pd.DataFrame, *, collapse_ratio: float) -> Figure:
    """Perplexity over unedited against `|Δ| / |W|`, both logarithmic: a panel a method, marked by kind of subject.

    `frame` has one row per case and method: method, kind, relative_change, perplexity_ratio.
    """
    methods = frame["method"].unique()
    figure, panels = plt.subplots(
        1, len(methods), figsize=(9, 4.2), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    heights, edge = drawable(frame["perplexity_ratio"])
    for axes, method in zip(panels[0], methods, strict=True):
        shown = frame["method"] == method
        points_by_kind(axes, frame["relative_change"][shown], heights[shown], frame["kind"][shown])
        mark_collapse(axes, collapse_ratio)
        mark_edge(axes, edge)
        axes.set(xscale="log", yscale="log", title=method, xlabel="|Δ| / |W|")
    panels[0, 0].set_ylabel("Perplexity, times unedited")
    legend_below(figure, panels[0, 0], title=OF_SUBJECTS, ncols=4)
    return figure
