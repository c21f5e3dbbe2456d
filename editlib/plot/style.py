"""What the figures share: colours, marks, one look, and the pieces that several of them draw."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

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
OF_SUBJECTS = "Subject: tokens, place in the prompt"
DPI = 180  # a column of 9 inches is 1,620 pixels wide: sharp where a page shows it 810 wide on a screen of two to one


def theme() -> None:
    """One look for all figures; opaque white, so that dark pages show them as they are."""
    sns.set_theme(
        style="ticks",
        context="notebook",
        rc={
            "figure.dpi": DPI,
            "savefig.dpi": DPI,
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


def mark_edge(axes: Axes, edge: float | None, *, upright: bool = False) -> None:
    """The line on which `drawable` puts what is not finite; `upright` where values run from left to right."""
    if edge is None:
        return
    if upright:
        axes.axvline(edge, color="black", lw=0.6, ls=":")
        axes.annotate(
            "inf or nan", (edge, 0), (-2, 4), ("data", "axes fraction"), "offset points", fontsize=9, rotation=90,
            ha="right",
        )  # fmt: skip
    else:
        axes.axhline(edge, color="black", lw=0.6, ls=":")
        axes.annotate(
            "inf or nan", (0, edge), (4, -2), ("axes fraction", "data"), "offset points", fontsize=9, va="top"
        )


def mark_collapse(axes: Axes, ratio: float, *, at: float | None = None, upright: bool = False) -> None:
    """The dashed line above which an edit counts as collapse, named in the legend; `at` on an axis without ratios."""
    line = axes.axvline if upright else axes.axhline
    line(ratio if at is None else at, color="black", lw=1, ls="--", zorder=0, label=f"collapse: {ratio:g} times")


def points_by_kind(axes: Axes, x: ArrayLike, y: ArrayLike, kinds: pd.Series, *, counted: bool = False) -> None:
    """Cases as points, marked by kind of subject: the first kind, the rare one, is larger and on top."""
    x, y = np.asarray(x), np.asarray(y)
    for rank, kind in enumerate(KINDS):
        of_kind = (kinds == kind).to_numpy()
        axes.scatter(
            x[of_kind], y[of_kind], c=COLORS[kind], marker=MARKERS[kind], s=18 if rank else 34, alpha=0.7,
            linewidths=0, zorder=2 - 0.1 * rank, label=f"{kind} ({of_kind.sum():,})" if counted else kind,
        )  # fmt: skip


def strips_by_kind(axes: Axes, rows: pd.Series, values: ArrayLike, kinds: pd.Series, *, counted: bool = False) -> None:
    """A strip for each name in `rows`, first on top, on a log axis: a point a case, marked by kind of subject.

    The legend has, where `counted`, the most cases of a kind that a row has.
    """
    names, values = list(rows.unique()), np.asarray(values)
    rng = np.random.default_rng(0)
    for kind, offset in zip(KINDS, (-0.26, 0.0, 0.26), strict=True):
        of_kind = (kinds == kind).to_numpy()
        heights = rows[of_kind].map(names.index).to_numpy() + offset + rng.uniform(-0.09, 0.09, of_kind.sum())
        axes.scatter(
            values[of_kind], heights, c=COLORS[kind], marker=MARKERS[kind], s=16, alpha=0.55, linewidths=0,
            label=(f"{kind} ({rows[of_kind].value_counts().max():,})" if counted else kind) if of_kind.any() else None,
        )  # fmt: skip
    for border in range(1, len(names)):
        axes.axhline(border - 0.5, color="#dddddd", lw=0.8, zorder=0)
    axes.set(xscale="log", yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))


def legend_below(figure: Figure, axes: Axes, *, ncols: int = 3, title: str | None = None) -> None:
    """What the marks of `axes` mean, once, under all panels."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, title=title)
