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
#     title: "Precision: what rounding does to an edit"
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {n: 2}
#       full: {n: 100}
# ---

# %% [markdown]
# # Precision: what rounding does to an edit
#
# **Question.** How far are edits by the engine from those by the plain path, and edits in 32 and in 16 bit from those in 64?
#
# Both paths do the same arithmetic, but add in another order. Adam divides every gradient by its own size, so a rounding
# error in a small component of the gradient can become a whole step; the search for `v*` then amplifies it step by step.
# Nothing here is published by the papers. Their code runs in 32 bit.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
n: int = 8  # cases drawn, half of them with one token at the start as subject
seed: int = 0  # of the draw
collapse_ratio: float = 5.0  # times unedited

# %% tags=["hide-input"]
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

import editlib as el
from editlib import data, plot
from editlib.bench import plain
from editlib.editing.methods import solve
from editlib.editing.session import Session
from editlib.measuring import contrast, statistics
from editlib.runs.recording import record
from editlib.sweeps import setup
from editlib.text import percent

plot.theme()
TRUTH, SINGLE, PLAIN, HALF = "float64", "float32, engine", "float32, plain path", "bfloat16, engine"
models = {arm: el.load(model, dtype=arm.split(",")[0]) for arm in (TRUTH, SINGLE, HALF)}
models[PLAIN] = models[SINGLE]
pool = data.cases(cases, split=split)
chosen = contrast.draw_by_subject(models[TRUTH], pool, first=n // 2, others=n - n // 2, seed=seed)
sentences = data.texts(texts)
params = setup.hparams(models[TRUTH], "rome", layer, stop_loss=0.0)  # every search takes all its steps
name = models[TRUTH].layout.name(params.layer)
moments = setup.moments(models[SINGLE], [params], corpus)
Markdown(f"{len(chosen)} cases, {params.steps} steps each. All edits take the second moments of the model in 32 bit.")

# %% [markdown]
# ## Does the search go the same way?
#
# The loss after each step against that of the engine in 64 bit.

# %% tags=["hide-input"]
requests = [case.request for case in chosen]
spaces, targets = {}, {}
for arm, lm in models.items():
    mine = replace(moments, header=replace(moments.header, model=lm.fingerprint))
    spaces[arm] = Session(lm, stats=mine)
    if arm == PLAIN:
        contexts = el.prefix_contexts(lm, flavour=params.contexts)
        for request in requests:
            keys = plain.keys(lm, params.layer, request, contexts)
            spaces[arm].know(name, request, params, keys, plain.target(lm, name, request, contexts, params))
    targets[arm] = spaces[arm].targets(name, requests, params)
frame = pd.DataFrame(
    {"arm": arm, "case_id": case.case_id, "step": step, "error": abs(loss / true - 1)}
    for arm in (SINGLE, PLAIN, HALF)
    for case, found, truth in zip(chosen, targets[arm], targets[TRUTH], strict=True)
    for step, (loss, true) in enumerate(zip(found.losses, truth.losses, strict=True))
)
frame.to_parquet("data/losses.parquet")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Relative error of the loss at each step of the search on a log axis, for the engine and the plain path in float32 and the engine in bfloat16: a solid line for the median over cases, a dotted one for the largest."}}
figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
for (arm, mine), (color, marker) in zip(
    frame.groupby("arm", sort=False), list(plot.METHOD_MARKS.values())[1:], strict=False
):
    by_step = mine.groupby("step")["error"]
    axes.plot(by_step.median(), color=color, marker=marker, ms=4, label=arm)
    axes.plot(by_step.max(), color=color, ls=":", lw=1.5)
axes.set(yscale="log", xlabel="Step", ylabel="Relative error of the loss")
figure.legend(title=f"Solid: median of {len(chosen)} cases; dotted: the largest", loc="outside lower center", ncols=3)
figure.savefig("figures/losses.png")

# %% tags=["hide-input"]
last = frame[frame["step"] == params.steps - 1].groupby("arm")["error"].max()
first = frame[frame["step"] == 1].groupby("arm")["error"].max()
Markdown(
    f"**Finding.** After one step the engine in 32 bit is off by {first[SINGLE]:.1e} at most, after all by {last[SINGLE]:.1e}; the "
    f"plain path by {first[PLAIN]:.1e} and {last[PLAIN]:.1e}. In bfloat16 it is {first[HALF]:.1e} and {last[HALF]:.1e}."
)

# %% [markdown]
# ## Is the edit the same?
#
# ROME and C-ROME from these searches. The change is compared as a matrix, in the Frobenius norm, and perplexity in times
# unedited, each arm by its own unedited model.


# %% tags=["hide-input"]
def edits(arm: str, method: str) -> list[el.Edit]:
    """Edits from the searches of an arm."""
    same = setup.hparams(models[arm], method, layer, stop_loss=0.0)
    return [solve(spaces[arm], method, [request], same) for request in requests]


rows = []
truths = {method: edits(TRUTH, method) for method in ("rome", "c-rome")}
for arm, lm in models.items():
    unedited = el.perplexity(lm, sentences).mean
    for method, true in truths.items():
        made = edits(arm, method)
        for case, edit, exact, now in zip(chosen, made, true, spaces[arm].perplexities(made, sentences), strict=True):
            delta, right = (one.delta(f"{name}.weight").double() for one in (edit, exact))
            rows.append(
                {
                    "arm": arm,
                    "method": method,
                    "case_id": case.case_id,
                    "kind": data.subject_tokens(lm, case.request).kind,
                    "unedited": unedited,
                    "perplexity_ratio": now.mean / unedited,
                    "change": float((delta - right).norm() / right.norm()),
                }
            )
table = pd.DataFrame(rows)
exact = table[table["arm"] == TRUTH].set_index(["method", "case_id"])["perplexity_ratio"]
table["exact"] = exact.reindex(pd.MultiIndex.from_frame(table[["method", "case_id"]])).to_numpy()
table["off"] = (table["perplexity_ratio"] / table["exact"] - 1).abs()
broken, broken_exactly = (
    statistics.collapsed(table[column], collapse_ratio) for column in ("perplexity_ratio", "exact")
)
table["same"] = broken == broken_exactly
table.to_parquet("data/cases.parquet")
summary = (
    table[table["arm"] != TRUTH]
    .groupby(["method", "arm"], sort=False)
    .agg(
        median_change=("change", "median"),
        largest_change=("change", "max"),
        median_ratio=("off", "median"),
        largest_ratio=("off", "max"),
        same=("same", "mean"),
    )
)
summary.rename(
    columns={
        "median_change": "error of the change, median",
        "largest_change": "largest",
        "median_ratio": "error of perplexity over unedited, median",
        "largest_ratio": "largest ",
        "same": "same verdict",
    }
).style.format("{:.1e}").format(percent, subset="same verdict")

# %% tags=["hide-input"]
base = table.groupby("arm")["unedited"].first()
half_off = abs(base[HALF] / base[TRUTH] - 1)
same = table[table["arm"] != TRUTH].groupby("arm")["same"].mean()
Markdown(
    f"**Finding.** In 32 bit the engine's change is off by {summary.at[('rome', SINGLE), 'median_change']:.1e} (ROME, median), the "
    f"plain path's by {summary.at[('rome', PLAIN), 'median_change']:.1e}; in bfloat16 by "
    f"{summary.at[('rome', HALF), 'median_change']:.1e}. The verdict on collapse is that in 64 bit in {percent(same[SINGLE])} of the "
    f"engine's edits, {percent(same[HALF])} in bfloat16, whose unedited perplexity is off by {half_off:.1e}."
)

# %% tags=["hide-input"]
short = {SINGLE: "single", PLAIN: "plain", HALF: "half"}
metrics = {"cases": len(chosen), "steps": params.steps, "unedited_error_half": float(half_off)}
for arm, word in short.items():
    metrics |= {f"loss_error_{word}": float(last[arm]), f"same_verdict_{word}_share": float(same[arm])}
    for method in truths:
        row = summary.loc[(method, arm)]
        metrics |= {
            f"{key}_{method.replace('-', '_')}_{word}": float(row[key]) for key in ("median_change", "median_ratio")
        }
record(
    metrics,
    hparams={model: {method: setup.hparams(models[TRUTH], method, layer, stop_loss=0.0) for method in truths}},
    moments={model: moments},
)
