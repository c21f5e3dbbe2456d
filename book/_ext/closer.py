"""Tables of edits as interactive plots: what `explore.js` needs to draw each picture that can be explored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, Node, Range1d
from bokeh.models.annotations import Label, Legend, LegendItem, Span
from bokeh.models.renderers import DataRenderer, GlyphRenderer
from bokeh.models.tools import BoxZoomTool, HoverTool, PanTool, ResetTool, TapTool, WheelZoomTool
from bokeh.plotting import figure

from editlib.plot import drawable

Marks = Mapping[str, tuple[str, str, int]]  # color, marker and size of each series, the first drawn on top

SHAPES = {"^": "triangle", "v": "inverted_triangle", "o": "circle", "s": "square", "D": "diamond", "P": "plus"}
RESULTS = ("perplexity_mean", "perplexity_ratio")  # inf and nan are results here, and nothing elsewhere
FACTS = {"case_id": "Case", "prompt": "Prompt", "target": "Target", "kind": "Subject"}  # of a case, by column
MEASURES = {
    "perplexity_mean": "Perplexity",
    "perplexity_ratio": "Times unedited",
    "denominator": "Denominator",
    "denominator_consistent": "Consistent denominator",
    "denominator_ratio": "Denominator over the consistent one",
    "numerator": "Numerator",
    "delta_norm": "Size of the change",
    "relative_change": "Change over the weight",
    "severity": "Severity foretold",
    "layer": "Layer",
    "setting": "Second moments",
    "target_probability": "Probability of the new target",
    "efficacy_em_tf": "Efficacy",
    "generalization_em_tf": "Generalization",
    "locality_em_tf": "Locality",
    "error": "Error",
}  # of an edit
TIPS = ("perplexity_mean", "perplexity_ratio", "denominator", "denominator_consistent")


@dataclass(frozen=True, kw_only=True)
class Closer:
    """What `explore.js` needs to draw a table of edits, one of its views at a time."""

    plot: dict[str, Any]  # Bokeh's, without data
    rows: dict[str, Any]  # the table by column, see `packed`
    view: str  # the columns that say in which view a row is, in which series, and where
    series: str
    x: str
    y: str
    line: str  # the column that parts the points of a series into lines; empty for no lines
    facts: dict[str, str]  # columns with their labels: what a case is,
    edit: dict[str, str]  # what tells its edits apart,
    measures: dict[str, str]  # and what was measured of each
    tips: list[str]  # the columns of the tooltip
    levels: dict[str, list[int | float | str]]  # heights of the unedited model and of collapse, by view
    rim: float | None  # the height at which inf and nan are drawn
    ranges: dict[str, list[float]]  # left, right, low and high by view, where views measure different things


def closer(
    frame: pd.DataFrame,
    *,
    x: str,
    y: str,
    view: str,
    series: str,
    line: str = "",
    edit: dict[str, str],
    marks: Marks,
    levels: Mapping[str, tuple[float, ...]],
    labels: tuple[str, str],
    numbers: dict[str, str] | None = None,
    wide: bool = False,
    tall: bool = True,
) -> Closer:
    """The plot of a table of edits, or with `numbers` of other points; its axis across logarithmic if `wide`, that
    upwards if `tall`.

    Of what such a table may have of a case and an edit, it has that which is there.
    """
    drawn = frame[frame["measured"]] if "measured" in frame else frame
    heights, rim = drawable(drawn[y]) if tall else (drawn.loc[np.isfinite(drawn[y]), y], None)
    facts = {name: label for name, label in FACTS.items() if name in frame and not numbers}
    measures = {name: label for name, label in MEASURES.items() if name in frame and frame[name].notna().any()}
    tips = facts | edit | {name: measures[name] for name in TIPS if name in measures} | (numbers or {})
    places = {name: label for name, label in zip((x, y), labels, strict=True) if name not in facts | edit}
    measures = places | measures | (numbers or {})
    up = span([*heights, *(level for pair in levels.values() for level in pair)], log=tall)
    plot = axes(labels, across=span(drawn[x], log=wide), up=up, wide=wide, tall=tall)
    points = add_series(plot, marks, lines=bool(line))
    if any(levels.values()):
        add_levels(plot, rim)
    add_tools(plot, points, tips)
    ranges = dict[str, list[float]]()
    for name in levels if numbers else ():
        rows = drawn[(drawn[view] == name) & np.isfinite(drawn[y])]
        ranges[name] = [*span(rows[x], log=wide), *span(rows[y], log=tall)]
    columns = dict.fromkeys((*facts, *edit, *measures, *filter(None, [line])))
    return Closer(
        plot=dict(json_item(plot)), rows={name: packed(frame[name], drawn.index) for name in columns},
        view=view, series=series, x=x, y=y, line=line, facts=facts, edit=edit, measures=measures, tips=list(tips),
        levels={name: [digits(level) for level in pair] for name, pair in levels.items()}, rim=rim,
        ranges=ranges,
    )  # fmt: skip


def span(values: Iterable[float], *, log: bool) -> tuple[float, float]:
    """From the least to the largest value, and a little more, on an axis that is logarithmic or not."""
    sizes = np.log10([*values]) if log else np.array([*values])
    low, high = sizes.min(), sizes.max()
    room = 0.04 * (high - low) or 0.5
    return (10 ** (low - room), 10 ** (high + room)) if log else (low - room, high + room)


def packed(values: pd.Series, drawn: pd.Index) -> Any:
    """A column as JSON: texts as numbers of a list without repetition, numbers in five digits, nothing as null.

    inf and nan, which JSON has not, are text where they are results.
    """
    if not pd.api.types.is_numeric_dtype(values):
        codes, texts = pd.factorize(values)
        return {"at": codes.tolist(), "of": [str(text) for text in texts]}
    numbers = values.astype(float)
    kept = values.index.isin(drawn) if values.name in RESULTS else np.isfinite(numbers)
    return [digits(number) if keep else None for number, keep in zip(numbers, kept, strict=True)]


def digits(value: float) -> int | float | str:
    """Five digits are more than anyone reads, and make small files."""
    if not np.isfinite(value):
        return str(value)
    short = float(f"{value:.5g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


# -- what Bokeh draws ----------------------------------------------------------------------------------


def axes(
    labels: tuple[str, str], *, across: tuple[float, float], up: tuple[float, float], wide: bool, tall: bool
) -> figure:
    """An empty plot, white as the pictures are."""
    plot = figure(
        height=460, sizing_mode="stretch_width", y_axis_type="log" if tall else "linear", tools="",
        x_axis_type="log" if wide else "linear", background_fill_color="white",
        x_range=Range1d(start=across[0], end=across[1]), y_range=Range1d(start=up[0], end=up[1]),
        x_axis_label=labels[0], y_axis_label=labels[1], border_fill_color="white", outline_line_color=None,
    )  # fmt: skip
    plot.axis.axis_label_text_font_style = "normal"
    plot.grid.grid_line_color = "#eeeeee"
    plot.toolbar.logo = None
    return plot


def add_series(plot: figure, marks: Marks, *, lines: bool) -> list[DataRenderer]:
    """Empty points by name of series, with a line for each sample and one for their median if wanted, and a ring for
    the chosen case; returns the points."""
    curves = {"lines": (1, 0.35), "median": (2.5, 0.9)} if lines else {}  # width, opacity
    points: list[DataRenderer] = []
    items: list[LegendItem] = []
    for name, (color, marker, size) in reversed(list(marks.items())):
        drawn: list[GlyphRenderer[Any]] = [
            plot.line("x", "y", source=empty(f"{name} {kind}"), color=color, line_width=width, alpha=alpha)
            for kind, (width, alpha) in curves.items()
        ]
        look: dict[str, Any] = {"color": color, "alpha": 0.75, "nonselection_alpha": 0.75}
        mine: GlyphRenderer[Any] = plot.scatter("x", "y", source=empty(name), marker=SHAPES[marker], size=size, **look)
        points.append(mine)
        items.append(LegendItem(label=name, renderers=[*drawn, mine]))
    legend = Legend(items=items[::-1], click_policy="hide", name="legend", location="top_left", border_line_color=None)
    plot.add_layout(legend, "below")
    ring: dict[str, Any] = {"fill_color": None, "line_color": "black", "line_width": 2.5}
    plot.scatter("x", "y", source=empty("chosen"), marker="circle", size=18, **ring)
    return points


def empty(name: str) -> ColumnDataSource:
    return ColumnDataSource({"x": [], "y": []}, name=name)


def add_levels(plot: figure, rim: float | None) -> None:
    """The levels that the pictures have, by name; each view puts them at its own heights."""
    dashes = {"unedited": "solid", "collapse": "dashed"} | ({"inf or nan": "dotted"} if rim else {})
    right = Node(target="frame", symbol="right")
    for name, dash in dashes.items():
        plot.add_layout(Span(dimension="width", line_dash=dash, line_color="black", name=name))
        label = Label(
            x=right, y=1, x_offset=-4, y_offset=2, text="", text_align="right", text_font_size="12px",
            name=f"{name} label",
        )  # fmt: skip
        plot.add_layout(label)


def add_tools(plot: figure, points: list[DataRenderer], tips: Mapping[str, str]) -> None:
    """Zoom, pan, reset, a tooltip, and a click; wheel and drag move the page until they are asked for more."""
    rows = "".join(f"<span>{label}</span><span>@{{{name}}}</span>" for name, label in tips.items())  # Bokeh escapes
    look = "display: grid; grid-template-columns: max-content 1fr; gap: 2px 8px; max-width: min(20rem, 75vw)"
    tap = TapTool(renderers=points, mode="replace")
    told = f'<div style="{look}; color: #222">{rows}</div>'
    # above or below a point: on a phone, explore.css can then put it in sight
    hover = HoverTool(renderers=points, tooltips=told, limit=1, attachment="vertical", show_arrow=False)
    plot.add_tools(BoxZoomTool(), WheelZoomTool(), PanTool(), ResetTool(), tap, hover)
    plot.toolbar.active_drag = None
    plot.toolbar.active_scroll = None
