"""What a model believes beside what it should: calibration before an edit, and four questions after each."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from editlib.plot.style import GROUP_MARKS, legend_below

BINS = 10
PROBE_MARKS = {  # color, marker, place in its method's row
    "request": ("#000000", "*", -0.27),
    "dependent": ("#d55e00", "^", -0.09),
    "unrelated": ("#009e73", "s", 0.09),
    "other subject": ("#0072b2", "o", 0.27),
}


def calibration(frame: pd.DataFrame) -> Figure:
    """A model's mean share over the agent's belief, in ten bins of the latter; areas go by the answers in a bin.

    `frame` has one row per question and object: line, agent, model. A calibrated model lies on the diagonal.
    """
    figure, axes = plt.subplots(figsize=(5.6, 5.2), layout="constrained")
    axes.plot((0, 1), (0, 1), color="black", lw=1, ls=":", zorder=0)
    for (line, rows), (color, marker, filled) in zip(frame.groupby("line", sort=False), GROUP_MARKS[::2], strict=False):
        bins = rows.groupby(
            pd.cut(rows["agent"], np.linspace(0, 1, BINS + 1).tolist(), include_lowest=True), observed=True
        )
        middle, sizes = bins[["agent", "model"]].mean(), 20 + 40 * np.log10(bins.size())
        axes.plot(middle["agent"], middle["model"], color=color, lw=1)
        look: dict[str, Any] = {"color": color, "marker": marker, "fc": color if filled else "white", "label": line}
        axes.scatter(middle["agent"], middle["model"], s=sizes, **look)
    axes.set(xlabel="The agent's belief in an object", ylabel="The model's share, mean", xlim=(0, 1), ylim=(0, 1))
    legend_below(figure, axes)
    return figure


def beliefs(measured: Mapping[tuple[str, str], pd.Series], titles: Mapping[str, str]) -> Figure:
    """A panel for each quantity, a row for each method, in it a mark with its interval for each kind of question.

    `measured` has intervals by method, under (quantity, kind of question); `titles` are by quantity.
    """
    methods = list(next(iter(measured.values())).index)
    size = (9, 0.42 * len(methods) + 1.9)
    figure, panels = plt.subplots(1, len(titles), figsize=size, sharey=True, layout="constrained")
    for axes, (quantity, title) in zip(panels, titles.items(), strict=True):
        for kind, (color, marker, offset) in PROBE_MARKS.items():
            own = measured[quantity, kind]
            rows = [methods.index(method) + offset for method in own.index]
            axes.hlines(rows, [i.low for i in own], [i.high for i in own], color=color, lw=1.5, alpha=0.6)
            axes.plot([i.value for i in own], rows, marker, color=color, ms=9 if marker == "*" else 6, label=kind)
        for border in range(1, len(methods)):
            axes.axhline(border - 0.5, color="#dddddd", lw=0.8, zorder=0)
        axes.set(title=title, xlim=(-0.04, 1.04), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"))
    panels[0].set(yticks=range(len(methods)), yticklabels=methods, ylim=(len(methods) - 0.5, -0.5))
    legend_below(figure, panels[0], ncols=4)
    return figure
