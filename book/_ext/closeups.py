"""The pictures that can be explored, each with how the table of its run becomes a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from closer import MEASURES, Closer, Marks, closer

from editlib.plot import COLORS, KINDS, MARKERS, METHOD_MARKS

SAME = {"one token at the start": KINDS[0], "any other subject": KINDS[2]}  # drawn alike
SUBJECTS: Marks = {
    name: (COLORS[kind], MARKERS[kind], 9 if kind == KINDS[0] else 6)
    for name, kind in {**dict(zip(KINDS, KINDS, strict=True)), **SAME}.items()
}


def scatter(folder: Path) -> Closer:
    """The perplexity after each single edit by case; a view for each method and model."""
    frame, parameters = read(folder)
    pictured = parameters.get("method", "rome") + ", C left out" * (not parameters.get("covariance", True)) + " on "
    frame = frame.dropna(subset=["kind"])
    frame = frame.sort_values("arm", key=lambda arms: ~arms.str.startswith(pictured), kind="stable")
    unedited = (frame["perplexity_mean"] / frame["perplexity_ratio"]).groupby(frame["arm"], sort=False).median()
    return closer(
        frame, x="case_id", y="perplexity_mean", view="arm", series="kind", edit={"arm": "Edited by"},
        marks=SUBJECTS,
        levels={str(arm): (level, parameters["collapse_ratio"] * level) for arm, level in unedited.items()},
        labels=("Case (its number in the set)", "Perplexity after one edit"),
    )  # fmt: skip


def sequences(folder: Path) -> Closer:
    """Perplexity over unedited in sequences of edits, a line for each sample; a view for each group of cases."""
    frame, parameters = read(folder)
    if (folder / "data/after.parquet").exists():
        ends = pd.read_parquet(folder / "data/after.parquet")
        keys = ["group", "repeat", "method", "case_id"]
        frame = frame.merge(ends[[*keys, *(name for name in ends if name in MEASURES)]], how="left", on=keys)
    edits = frame[frame["step"] > 0]
    working = edits.loc[edits["error"].isna(), "method"].unique().tolist()
    groups = frame["group"].unique().tolist()[::-1]  # hard cases first: something happens there
    frame = frame[frame["method"].isin(working)].assign(repeat=frame["repeat"] + 1)
    return closer(
        frame.sort_values("group", key=lambda column: column.map(groups.index), kind="stable"),
        x="step", y="perplexity_ratio", view="group", series="method", line="repeat",
        edit={"group": "Cases", "method": "Method", "repeat": "Sample", "step": "Edits so far"},
        marks={method: (*METHOD_MARKS.get(method, ("#8c8c8c", "o")), 7) for method in working},
        levels={group: (1, parameters["collapse_ratio"]) for group in groups},
        labels=("Edits so far", "Perplexity, times unedited"),
    )  # fmt: skip


def against(x: str, label: str, view: str, told: str, folder: Path, *, table: str = "cases") -> Closer:
    """Perplexity over unedited against another size of each edit, both logarithmic, in a view for each value of a
    column; against the case's number where `x` says so."""
    frame, parameters = read(folder, table)
    frame = frame[frame["error"].isna()] if "error" in frame else frame
    frame = by_setting(frame, view).assign(**{x: frame[x].abs()}).dropna(subset=[x, "kind"])
    views = frame[view].unique().tolist()
    return closer(
        frame, x=x, y="perplexity_ratio", view=view, series="kind", edit={view: told},
        marks={kind: mark for kind, mark in SUBJECTS.items() if kind in set(frame["kind"])},
        levels={name: (1, parameters["collapse_ratio"]) for name in views}, wide=x != "case_id",
        labels=(label, "Perplexity, times unedited"),
    )  # fmt: skip


def curves(
    table: str, x: str, y: str, view: str, series: str, labels: tuple[str, str], folder: Path, *, told: str = "Shown",
    line: str = "", panels: Mapping[str, str] | None = None, marks: Marks | None = None, wide: bool = False,
    tall: bool = False, middle: str = "", group: str = "",
) -> Closer:  # fmt: skip
    """Points or curves that are no edits, a row of a table for each point, or the `middle` of those at one place (mean
    or median), in a view for each value of a column; of one `group` alone, where it is named.

    Columns that the picture has in a panel each become views or series (`panel`) of one (`value`). A view or a series
    that is no column of the table is one of all rows.
    """
    frame = pd.read_parquet(folder / f"data/{table}.parquet")
    frame = frame[frame["group"] == group] if group else frame
    if panels:
        frame = frame.rename(columns=panels)
        kept = [name for name in frame if name not in panels.values()]
        frame = frame.melt(kept, [*panels.values()], "panel", "value")
    frame = frame.assign(**{name: frame.get(name, name) for name in (view, series)})
    frame = by_setting(frame[np.isfinite(frame[x])].dropna(subset=y).astype({view: str, series: str}), view)
    if middle:
        places = [*dict.fromkeys((view, series, *filter(None, [line]), x))]
        frame = frame.astype({y: float}).groupby(places, sort=False)[y].agg(middle).reset_index()
    names = frame[series].unique()
    looks = {name: (*look, 6) for name, look in zip(names, LOOKS, strict=False)}
    looks = {name: look for name, look in marks.items() if name in names} if marks else looks
    return closer(
        frame.reset_index(drop=True), x=x, y=y, view=view, series=series, line=line,
        edit={view: told, series: "Series"}, numbers={x: labels[0], y: labels[1]}, marks=looks,
        levels={name: () for name in frame[view].unique()}, labels=labels, wide=wide, tall=tall,
    )  # fmt: skip


def reliability(folder: Path) -> Closer:
    """A model's mean share over the agent's belief in tenths of the latter, for each way of asking."""
    frame = pd.read_parquet(folder / "data/calibration.parquet")
    tenths = pd.cut(frame["agent"], np.linspace(0, 1, 11).tolist(), include_lowest=True)
    groups = frame.rename(columns={"model": "share"}).groupby(["way", tenths], sort=False, observed=True)
    found = [(str(way), rows) for (way, _), rows in groups]
    return binned(found, "agent", "share", ("The agent's belief in an object", "The model's share, mean"), "Answers")


def foretold(folder: Path) -> Closer:
    """The share of edits that collapse a model, over the probability its own rules foretold, in five equal groups."""
    found = list[tuple[str, pd.DataFrame]]()
    for name, frame in pd.read_parquet(folder / "data/edits.parquet").groupby("model", sort=False):
        rows = frame.assign(foretold=frame.get(f"fitted on {name}")).dropna(subset="foretold").sort_values("foretold")
        found += [(str(name), rows.iloc[at]) for at in np.array_split(np.arange(len(rows)), 5) if len(at)]
    return binned(found, "foretold", "collapsed", ("Probability foretold", "Share that collapses the model"), "Edits")


def strengths(folder: Path) -> Closer:
    """Mean scores over the number that holds a method back; a view for each method."""
    scores = {f"{name}_em_tf": name for name in ("efficacy", "generalization", "locality")}
    frame = pd.read_parquet(folder / "data/cases.parquet").rename(columns={"value": "number"} | scores)
    long = frame.melt(["name", "number"], [*scores.values()], "score", "mean")
    means = long.groupby(["name", "score", "number"], sort=False)["mean"].mean().reset_index()
    labels = ("Number that holds the method back", "Mean over normal cases")
    looks = {name: (*look, 6) for name, look in zip(scores.values(), LOOKS, strict=False)}
    return closer(
        means, x="number", y="mean", view="name", series="score", line="score",
        edit={"name": "Method", "score": "Score"}, numbers=dict(zip(("number", "mean"), labels, strict=True)),
        marks=looks, levels={name: () for name in means["name"].unique()}, labels=labels, wide=True, tall=False,
    )  # fmt: skip


def binned(groups: Iterable[tuple[str, pd.DataFrame]], x: str, y: str, labels: tuple[str, str], counted: str) -> Closer:
    """The means of two columns in groups of rows, each of a series, and how many rows there were."""
    points = [(name, rows[x].mean(), rows[y].mean(), len(rows)) for name, rows in groups]
    frame = pd.DataFrame(points, columns=["series", x, y, "n"]).sort_values(["series", x]).assign(shown="all")
    looks = {name: (*look, 6) for name, look in zip(frame["series"].unique(), LOOKS, strict=False)}
    return closer(
        frame.reset_index(drop=True), x=x, y=y, view="shown", series="series", line="series",
        edit={"shown": "Shown", "series": "Series"}, numbers={x: labels[0], y: labels[1], "n": counted}, marks=looks,
        levels={"all": ()}, labels=labels, tall=False,
    )  # fmt: skip


def by_setting(frame: pd.DataFrame, view: str) -> pd.DataFrame:
    """A view for each setting, too, where a table has them."""
    return frame.assign(**{view: frame[view] + ", " + frame["setting"]}) if "setting" in frame else frame


CASE = ("case_id", "Case (its number in the set)")
OVER = ("denominator_ratio", "Denominator over the consistent one")
LOOKS = (
    ("#d55e00", "^"), ("#0072b2", "o"), ("#cc79a7", "s"), ("#009e73", "D"), ("#8c8c8c", "v"), ("#56b4e9", "P"),
    ("#e69f00", "o"), ("#000000", "s"), ("#0072b2", "^"),
)  # fmt: skip
BROKEN: Marks = {"collapse": ("#d55e00", "^", 7), "sound": ("#0072b2", "o", 6)}
MAP = ("maps", "x", "y", "panel", "group", ("Across the map (no unit)", "Up the map (no unit)"))
PLOTS: dict[str, Callable[[Path], Closer]] = {
    "pilot/scatter": scatter,
    "pilot/comparison": partial(against, *CASE, "arm", "Edited by"),
    "pilot/denominators": partial(against, "denominator", "Size of the denominator", "arm", "Edited by"),
    "aftermath/marks": partial(
        curves, "edits", "value", "perplexity_ratio", "panel", "group", ("Size", "Perplexity, times unedited"),
        tall=True, marks=BROKEN, panels={
            "sink": "Share of heads that look at position 0", "entropy": "Entropy of predictions (nats)",
            "length": "Length of position 0, times unedited",
        },
    ),
    "aftermath/positions": partial(
        curves, "positions", "position", "loss", "method", "group", ("Position", "Mean loss (nats)"), line="case_id",
        marks=BROKEN,
    ),
    "anatomy/layers": partial(
        curves, "layers", "layer", "value", "panel", "model", ("Layer", "Size"), line="model", panels={
            "residual_norm_ratio": "Residual stream at position 0, times later positions",
            "key_norm_ratio": "Key at position 0, times later positions",
            "sink": "Share of heads that look at position 0",
        },
    ),
    "belief/calibration": reliability,
    "consistent-keys/comparison": partial(against, *CASE, "arm", "Edited by"),
    "denominator/parts": partial(against, "denominator", "Size of the denominator", "arm", "Edited by"),
    "denominator/sizes": partial(
        against, "denominator_textbook", "Size of the denominator, not scaled", "arm", "Edited by"
    ),
    "efficacy/efficacy": partial(
        curves, "cases", "layer", "value", "panel", "method", ("Layer", "Mean over one-token subjects at the start"),
        told="Score", line="method", middle="mean", group="one token at the start", panels={
            "efficacy": "Efficacy, bare prompt", "prefixed": "Efficacy, behind a prefix",
            "generalization": "Generalization", "locality": "Locality", "collapsed": "Share that collapse",
        },
    ),
    "first-token/kinds": partial(against, *CASE, "arm", "Subject"),
    "first-token/maps": partial(curves, *MAP),
    "hardedit/sequences": sequences,
    "key-geometry/distances": partial(
        curves, "distances", "case_id", "value", "panel", "arm", (CASE[1], "Size"), told="Between kᵘ and C⁻¹k̄, or k̄",
        panels={"distance": "distance over |k̄|", "cosine": "|cosine|"},
    ),
    "key-geometry/maps": partial(curves, *MAP),
    "layers/foretold": partial(against, "severity", "Severity foretold from keys", "method", "Method"),
    "layers/regimes": partial(
        curves, "keys", "layer", "denominator_ratio", "method", "kind", ("Layer", OVER[1] + ", median"), told="Method",
        line="kind", tall=True, middle="median", marks=SUBJECTS,
    ),
    "methods/rises": partial(against, *CASE, "method", "Method"),
    "own-text/moments": partial(
        curves, "cases", "case_id", "value", "panel", "method", (CASE[1], "Beside the most own text"), panels={
            "cosine": "cosine of the update's direction", "denominator_times": "denominator, times",
            "perplexity_ratio_times": "perplexity, times",
        },
    ),
    "performance/in-flight": partial(
        curves, "in-flight", "edits", "value", "panel", "engine", ("Edits side by side", "Size"), wide=True,
        line="engine", panels={"ratio": "Times faster than plain", "peak": "Peak memory (bytes)"},
    ),
    "performance/lengths": partial(
        curves, "lengths", "before", "value", "search", "panel", ("Tokens before the prompt", "Seconds per search"),
        line="panel", panels={"plain": "plain path", "engine": "engine path"},
    ),
    "performance/moments": partial(
        curves, "moments", "tokens", "value", "panel", "kind", ("Tokens per key dimension", "Size"), line="case_id",
        wide=True, tall=True, marks=SUBJECTS, panels={
            "direction": "Error of the direction", "update": "Relative error of the update",
            "rise": "Perplexity, times unedited",
        },
    ),
    "precision/losses": partial(
        curves, "losses", "step", "error", "all", "arm", ("Step", "Relative error of the loss"), line="case_id",
        tall=True,
    ),
    "presets/layers": partial(
        curves, "cases", "layer", "value", "name", "panel", ("Layer", "Mean over normal cases"), told="Method",
        line="panel", middle="mean", group="normal", panels={
            "efficacy_es": "Efficacy", "generalization_es": "Generalization", "locality_es": "Locality",
            "collapsed": "Share that collapse",
        },
    ),
    "screen/calibration": foretold,
    "screen/foretold": partial(against, "severity", "Severity foretold from keys", "model", "Model", table="edits"),
    "sequential/sequences": sequences,
    "settings/mean-corpus": partial(against, "perplexity_corpus", "Perplexity over the corpus", "choice", "Choice"),
    "settings/thresholds": partial(against, *CASE, "choice", "Choice"),
    "single-edits/strips": partial(against, *CASE, "method", "Method"),
    "sink/conditions": partial(against, *OVER, "condition", "Changed", table="edits"),
    "strengths/strengths": strengths,
    "surrogate/tasks": partial(
        curves, "scores", "perplexity_ratio", "value", "task", "way",
        ("Perplexity, times unedited", "Share of questions answered right"), told="Task", wide=True,
    ),
    "twins/doses": partial(against, "length", "Length of the embedding of position 0", "model", "Model", table="doses"),
    "twins/pairs": partial(against, *OVER, "model", "Model"),
    "weight-change/changes": partial(
        against, "relative_change", "Norm of the change over the weight's", "method", "Method"
    ),
    "weight-change/spectra": partial(
        curves, "spectra", "rank", "value", "change", "matrix", ("Rank", "Singular value"), told="Change alone",
        line="matrix", wide=True, tall=True,
    ),
    "why-first-token/conditions": partial(against, "denominator", "Size of the denominator", "arm", "Changed"),
    "why-first-token/maps": partial(curves, *MAP),
    "why-first-token/separability": partial(
        curves, "separability", "layer", "value", "panel", "model", ("Layer", "Size"), line="model",
        panels={"auc": "AUC", "gap": "Distance of the means over the spread"},
    ),
}  # fmt: skip


def read(folder: Path, table: str = "cases") -> tuple[pd.DataFrame, dict[str, Any]]:
    """A run's table of edits, with prompts and targets as a reader wants them, and its parameters."""
    parameters = json.loads((folder / "manifest.json").read_text("utf-8"))["parameters"]
    frame = pd.read_parquet(folder / f"data/{table}.parquet")
    if "prompt" not in frame:
        return frame, parameters
    pairs = zip(frame["prompt"], frame["subject"], strict=True)
    prompts = [prompt.replace("{}", subject) if isinstance(prompt, str) else None for prompt, subject in pairs]
    targets = frame["target_true"] + " → " + frame["target_new"]
    return frame.assign(prompt=pd.Series(prompts, frame.index), target=targets), parameters
