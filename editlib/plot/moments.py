"""Edits with several second moments, side by side."""

from collections.abc import Sequence

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from editlib.plot.style import drawable, legend_below, mark_edge

GROUPS = {"one token": ("#d55e00", "^", 0.14), "others": ("#0072b2", "o", -0.14)}  # color, marker, offset


def beside_reference(frame: pd.DataFrame, moments: Sequence[str], *, reference: str) -> Figure:
    """A row for each second moment, a mark for each case: how the edit differs from the reference's, and perplexity.

    `frame` has one row per method (named as the second moment) and case: group, cosine, denominator_times,
    perplexity_ratio.
    """
    shown = {
        "cosine": "Cosine of the update with that of the reference",
        "denominator_times": "|Denominator|, times the reference's",
        "perplexity_ratio": "Perplexity, times unedited",
    }
    figure, panels = plt.subplots(
        1, len(shown), figsize=(11, 0.5 * len(moments) + 1.8), sharey=True, layout="constrained"
    )
    for axes, (column, label) in zip(panels, shown.items(), strict=True):
        values, edge = drawable(frame[column])
        for group, (color, marker, offset) in GROUPS.items():
            rows = frame["group"].eq(group).to_numpy()
            heights = frame.loc[rows, "method"].map(list(moments).index) + offset
            axes.scatter(values[rows], heights, color=color, marker=marker, s=22, alpha=0.7, lw=0, label=group)
        if column != "cosine":
            axes.set_xscale("log")
            mark_edge(axes, edge, upright=True)
        axes.axvline(1, color="0.5", lw=1, ls=":")
        axes.set_xlabel(label)
    panels[0].set_yticks(range(len(moments)), [f"{name} (reference)" * (name == reference) or name for name in moments])
    panels[0].invert_yaxis()
    legend_below(figure, panels[0], ncols=2)
    return figure
