# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   editlib:
#     title: "Strengths: how far an edit is let go"
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {n: 2}
#       full: {n: 16}
# ---

# %% [markdown]
# # Strengths: how far an edit is let go
#
# **Question.** How much must a method be let go before its edits hold, and what does that cost other facts?
#
# Some methods have one number that holds an edit back: the weight of ordinary keys in MEMIT's family, a ridge, the bound of
# FT-L. Released numbers belong to the released models: on another, whose keys are longer or shorter, the same number holds
# back more or less. So each is tried here at several, on *normal* cases (the subject is not one token at the start of the
# prompt), from the one that holds back most on.
#
# Rule, fixed before any run: the first of the numbers, in the order given, at which the mean efficacy by `em_tf` is at least
# `wanted`; if there is none, the one with the highest. Locality, generalization and perplexity are shown beside and choose
# nothing. A choice is made on cases of the split `tune` where the set has one.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
tried: str = "memit.moment_weight=1000,10;ft-l.limit=0.001,0.02"  # method.name=values;... from what holds back most on
n: int = 4  # normal cases drawn
seed: int = 0  # of the draw, and of the bootstrap
wanted: float = 0.9  # efficacy by em_tf that a method should reach
collapse_ratio: float = 5.0  # times unedited

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

import editlib as el
from editlib import data, plot, scores
from editlib.measuring import contrast, statistics
from editlib.runs.recording import record
from editlib.runs.resuming import resumed
from editlib.sweeps import setup

plot.theme()
lm = el.load(model)
try:
    grid = {
        tuple(name.split(".", 1)): [float(value) for value in values.split(",")]
        for name, _, values in (entry.partition("=") for entry in tried.split(";"))
    }
    assert all(len(name) == 2 for name in grid)
except (ValueError, AssertionError):
    raise el.EditlibError(f"tried {tried!r} names no values; write method.name=value,value;...") from None
told = {f"{m}, {name} = {value:g}": (m, name, value) for (m, name), values in grid.items() for value in values}
variants = {label: setup.hparams(lm, m, layer, **{name: value}) for label, (m, name, value) in told.items()}
pool = data.cases(cases, split=split)
chosen = contrast.draw_by_subject(lm, pool, first=0, others=n, seed=seed)
moments = setup.moments(lm, variants.values(), corpus)
frame = el.sweep(
    lm, chosen, methods=variants, texts=data.texts(texts), stats=moments, progress=False, **resumed("edits")
)  # fmt: skip
frame["collapsed"] = statistics.collapsed(frame["perplexity_ratio"], collapse_ratio).where(frame["error"].isna())
frame[["name", "knob", "value"]] = frame["method"].map(told).tolist()
frame.to_parquet("data/cases.parquet")
Markdown(
    f"{len(chosen)} normal cases, drawn from {len(pool):,}; {frame['error'].notna().sum()} of {len(frame)} edits failed."
)

# %% [markdown]
# ## What holds, and what it costs
#
# Means over the cases by `em_tf`, with 95 % bootstrap intervals (2,000 resamples).

# %% tags=["hide-input"] mystnb={"image": {"alt": "Efficacy, generalization and locality over the number that holds a method back, on a log axis, a panel for each method, with 95 % intervals and the efficacy that is wanted."}}
done = frame[frame["error"].isna()]
means = pd.DataFrame(
    [
        {"method": name, "value": value}
        | {score: statistics.bootstrap(np.mean, rows[f"{score}_em_tf"].dropna(), seed=seed) for score in scores.SCORES}
        | {"median rise, %": 100 * (rows["perplexity_ratio"].median() - 1), "collapse": int(rows["collapsed"].sum())}
        for (name, value), rows in done.groupby(["name", "value"], sort=False)
    ]
)
figure, panels = plt.subplots(
    1, len(grid), figsize=(3.2 * len(grid) + 0.6, 3.9), sharey=True, squeeze=False, layout="constrained"
)
for axes, ((method, knob), _) in zip(panels[0], grid.items(), strict=True):
    rows = means[means["method"] == method]
    for score, color, marker in zip(scores.SCORES, ("#d55e00", "#0072b2", "#009e73"), "^os", strict=True):
        axes.vlines(rows["value"], [i.low for i in rows[score]], [i.high for i in rows[score]], color=color, alpha=0.5)
        axes.plot(rows["value"], [i.value for i in rows[score]], color=color, marker=marker, lw=1.2, label=score)
    axes.axhline(wanted, color="black", lw=1, ls=":")
    axes.set(xscale="log", ylim=(-0.04, 1.04), title=method, xlabel=knob)
panels[0, 0].set_ylabel("Mean over normal cases, em_tf")
figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
figure.savefig("figures/strengths.png")


# %% tags=["hide-input"]
def picked(rows: pd.DataFrame) -> pd.Series:
    """The first row that reaches what is wanted, else the highest."""
    found = rows["efficacy"].map(lambda interval: interval.value)
    return rows.loc[(found >= wanted).idxmax() if (found >= wanted).any() else found.idxmax()]


picks = {method: picked(means[means["method"] == method]) for method, _ in grid}
shown = means.set_index(["method", "value"])
shown[[*scores.SCORES]] = shown[[*scores.SCORES]].map(lambda interval: f"{interval:.2f}")
shown.style.format({"median rise, %": "{:.2f}"})

# %% tags=["hide-input"]
Markdown(
    f"**Finding.** By the rule (efficacy of at least {wanted:g}, n = {len(chosen)}): "
    + "; ".join(
        f"`{method}` with `{knob}` = {picks[method]['value']:g}, efficacy {picks[method]['efficacy']:.2f}"
        + ("" if picks[method]["efficacy"].value >= wanted else ", which is short of it")
        for method, knob in grid
    )
    + "."
)

# %% tags=["hide-input"]
metrics: dict[str, float | str] = {"cases": len(chosen), "failed": int(frame["error"].notna().sum())}
for method, row in picks.items():
    short = method.replace("-", "_")
    metrics |= {f"value_{short}": row["value"]} | {f"{score}_{short}": row[score].value for score in scores.SCORES}
record(metrics, hparams={model: variants}, moments={model: moments})
