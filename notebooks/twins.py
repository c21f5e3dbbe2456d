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
#     title: "Twins: the same edits with and without the cause"
#     models: [model, control]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {}
#       full: {first: 120, others: 120, dosed: 24, doses: 7}
# ---

# %% [markdown]
# # Twins: the same edits with and without the cause
#
# **Question.** Is an unusual first position what makes a single ROME edit break a model?
#
# *The Fall of ROME* {cite}`yang-etal-2024-fall` observes it: in the models that collapse, the key of the first token lies far
# from all others, and the edits of such subjects divide by a number close to zero. Observation cannot tell a cause from what
# goes with it. Here the cause is set. `testbed/anchored` and `testbed/control` were trained on the same batches in the same
# order, and differ in how long the position embedding of position 0 was when training began. Both are edited by the same cases.
#
# **This is a controlled intervention.** It says what such a first position does to an edit. It does not say how large models
# come by theirs, nor that nothing else can do the same.
#
# Published for comparison: GPT-2-XL's mean denominators are 0.04 in collapsing cases and 9.60 in normal ones, GPT-J's 0.04
# and 12.78, Llama2-7b's 0.01 and 2.63 (authors' slides {cite}`yang2024slides`, p. 33). *Collapse* means a perplexity of
# `collapse_ratio` times unedited or more; nan counts.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model with the cause
control: str | None = "testbed/control"  # its twin without; none for none
cases: str = "testbed"  # edit cases: a name or a file
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
first: int = 6  # cases drawn whose subject is one token at the start of the prompt
others: int = 6  # other cases drawn
dosed: int = 3  # of the former, cases edited again at every dose
doses: int = 2  # lengths that the embedding of position 0 is brought to, from an ordinary one to the longest
seed: int = 0  # of the draw, and of the bootstrap
method: str = "rome"  # the method under test
collapse_ratio: float = 5.0  # times unedited

# %% tags=["hide-input"]
import copy
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

import editlib as el
from editlib import data, plot
from editlib.measuring import contrast, statistics
from editlib.models.trace import trace
from editlib.runs.recording import record
from editlib.sweeps import setup
from editlib.text import percent

plot.theme()
lm = el.load(model)
twin = el.load(control) if control else lm
paired = bool(control) and twin.tokenizer.get_vocab() == lm.tokenizer.get_vocab()
arms = {model: lm, control: twin} if paired else {model: lm}
chosen = contrast.draw_by_subject(lm, data.cases(cases), first=first, others=others, seed=seed)
sentences = data.texts(texts)
used = {}  # hyper-parameters and second moments by model


def edited(arm: el.LanguageModel, some: list[data.Case]) -> pd.DataFrame:
    """A sweep with the model's own second moments, its unedited perplexity, and what is compared below."""
    moments = contrast.moments(arm, setup.hparams(arm, method, layer).layer, corpus)
    variants = {method: setup.hparams(arm, method, layer, covariance=moments is not None)}
    used.setdefault(arm.name, (variants, moments))  # of the models as they are, which come first
    table = el.sweep(arm, some, methods=variants, texts=sentences, scores=False, stats=moments, progress=False)
    return table.assign(
        unedited=el.perplexity(arm, sentences).mean,
        worst=table["perplexity_ratio"].fillna(np.inf).where(table["error"].isna()),
        collapsed=table["error"].isna() & ~(table["perplexity_ratio"] < collapse_ratio),
        denominator_ratio=(table["denominator"] / table["denominator_consistent"]).abs(),
    )


frame = pd.concat([edited(arm, chosen).assign(model=name) for name, arm in arms.items()], ignore_index=True)
frame.to_parquet("data/cases.parquet")
unedited = frame.groupby("model", sort=False)["unedited"].first()
Markdown(
    f"{len(chosen)} cases, {len(frame)} edits, {frame['error'].notna().sum()} failed. Unedited perplexity, mean over "
    f"{len(sentences)} texts: "
    + "; ".join(f"`{name}` {value:.2f}" for name, value in unedited.items())
    + "."
    + ("" if paired else f" **`{model}` has no twin here: none was given, or it reads other tokens.**")
)

# %% [markdown]
# ## The same edit on both twins
#
# A point is a case. Left, what its edit does to the perplexity of each twin; right, how far ROME's two keys disagree in each: 1
# if both are the same. On the diagonal, the cause would make no difference.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels on log axes, a point for each case, control on the horizontal and anchored on the vertical axis: perplexity over unedited after the edit, and denominator over its consistent value, by kind of subject, with the diagonal and the collapse threshold."}}
measures = {"worst": "Perplexity, times unedited", "denominator_ratio": "|denominator| over its consistent value"}
both = frame[frame["error"].isna()].pivot(index=["case_id", "kind"], columns="model", values=[*measures, "collapsed"])
both = both.dropna().reset_index("kind").astype({(name, arm): float for name in measures for arm in arms})
figure = plot.pairs(both, measures, models=tuple(reversed(arms)), collapse_ratio=collapse_ratio) if paired else None
_ = figure.savefig("figures/pairs.png") if figure else None


# %% tags=["hide-input"]
def effects(mine: pd.DataFrame) -> pd.Series:
    """How much more often, and how much worse, the same edits break the model that has the cause."""
    n, hits, ratio, broken = len(mine), mine["collapsed"].astype(int), mine["worst"], mine["denominator_ratio"]
    return pd.Series(
        {
            "cases": n,
            "collapsed": statistics.share(hits[model].sum(), n),
            "collapsed, twin": statistics.share(hits[control].sum(), n),
            "risk difference": statistics.bootstrap(np.mean, hits[model] - hits[control], seed=seed),
            "perplexity, times twin's": statistics.bootstrap(np.median, ratio[model] / ratio[control], seed=seed),
            "denominator, times twin's": statistics.bootstrap(np.median, broken[model] / broken[control], seed=seed),
        }
    )


table = pd.DataFrame({kind: effects(both[both["kind"] == kind]) for kind in plot.KINDS}).T if paired else pd.DataFrame()
table.map(lambda cell: f"{cell:.3g}" if isinstance(cell, statistics.Interval) else cell)

# %% [markdown]
# Shares have Wilson's 95 % intervals. The other columns have 95 % bootstrap intervals over cases: the difference of the
# shares, and the median over cases of what one twin has over what the other has.

# %% tags=["hide-input"]
collapses = both["collapsed"].groupby(both["kind"] == plot.KINDS[0]).sum().astype(int) if paired else None
sizes = (both["kind"] == plot.KINDS[0]).value_counts() if paired else {}
times = {
    name: table.loc[plot.KINDS[0]].get(f"{name}, times twin's") for name in ("perplexity", "denominator") if paired
}
Markdown(
    f"**Finding.** Of {sizes[True]} edits whose subject is one token at the start, {collapses.at[True, model]} collapse "
    f"`{model}` and {collapses.at[True, control]} collapse `{control}`: a risk difference of "
    f"{table.at[plot.KINDS[0], 'risk difference']:.2f}. Perplexity over unedited is {times['perplexity']:.3g} times the twin's in "
    f"the median, and the denominator's ratio {times['denominator']:.2g} times. Of the {sizes[False]} other edits, "
    f"{collapses.at[False, model]} and {collapses.at[False, control]} collapse their model."
    if len(sizes) == 2
    else f"`{model}` has no twin here, or the cases are all of one kind, so that there is nothing to compare."
)

# %% [markdown]
# ## Can the cause be turned down, or up?
#
# The twins also differ in all that training made of the first difference. Here nothing is trained: the position embedding of
# position 0 is given another length, its direction kept, and the same edits are computed and measured on the model as it is
# then, with its own second moments. `anchored` can thus be turned down and `control` up. `row of position 1` puts the second
# position's embedding in the place of the first's.
#
# The paper did the latter on three models: mean perplexity after the edit went from 19,877.79 to 1,397.87 (GPT-2-XL), from
# 28,835.21 to 26,978.14 (GPT-J), from 67,436.51 to 72,692.50 (Llama2-7b) (slides, p. 40; the last two models have no learned
# position embedding, and how it was done there is not known).


# %% tags=["hide-input"]
@torch.no_grad()
def position_row(arm: el.LanguageModel) -> tuple[str, int] | None:
    """The table of position embeddings and the row the first position has, found by running the same token twice."""
    words, modules = arm.model.get_input_embeddings(), dict(arm.model.named_modules())
    tables = [name for name, part in modules.items() if isinstance(part, torch.nn.Embedding) and part is not words]
    with trace(arm.model, *tables) as seen:
        arm.model(torch.zeros(1, 2, dtype=torch.long, device=arm.device))
    for name in tables:
        here, after = seen[name].output.flatten(end_dim=-2)[:2]
        if not torch.equal(here, after):
            return name, int((modules[name].weight == here).all(1).nonzero()[0])
    return None


def with_row(arm: el.LanguageModel, name: str, row: int, value: torch.Tensor) -> el.LanguageModel:
    """A copy of a model with another position embedding of the first position."""
    changed = copy.deepcopy(arm.model)
    with torch.no_grad():
        changed.get_submodule(name).weight[row] = value
    return el.LanguageModel(changed, arm.tokenizer, arm.layout, arm.name, arm.folder)


found = {name: where for name, arm in arms.items() if (where := position_row(arm))}
rows = {name: arms[name].model.get_submodule(where[0]).weight[where[1] :] for name, where in found.items()}
learned = {name: float(those[0].norm()) for name, those in rows.items()}
ordinary = {name: float(those[1:].norm(dim=1).median()) for name, those in rows.items()}
again = [case for case in chosen if data.subject_tokens(lm, case.request).kind == plot.KINDS[0]][:dosed]
parts = []
for name in found if again else []:
    lengths = sorted({*np.geomspace(min(ordinary.values()), max(learned.values()), doses), learned[name]})
    values = {f"{length:.3g}": rows[name][0] * (length / learned[name]) for length in lengths}
    for dose, value in (values | {"row of position 1": rows[name][1]}).items():
        if torch.equal(value, rows[name][0]):  # as trained, and edited above
            changed = frame[(frame["model"] == name) & frame["case_id"].isin([case.case_id for case in again])]
        else:
            changed = edited(with_row(arms[name], *found[name], value), again)
        parts.append(changed.assign(model=name, dose=dose, scaled=dose in values, length=float(value.norm())))
dosage = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
dosage.to_parquet("data/doses.parquet")
Markdown(
    f"{len(again)} cases with one token at the start as subject; "
    + "; ".join(
        f"in `{name}` position 0 has an embedding of length {learned[name]:.3g}, the others of {ordinary[name]:.2g}"
        for name in found
    )
    + "."
    if parts
    else f"`{model}` has no learned position embeddings or no such case, so that there is nothing to turn down."
)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels over the length of position 0's embedding on a log axis, a line for each twin: the share of edits that collapse the model, and the median denominator over its consistent value, both with intervals; hollow marks for position 1's embedding in its place; the length each twin was trained to is filled."}}
keys = ["model", "dose", "scaled", "length"]
steps = []
for about, mine in dosage[dosage["error"].isna()].groupby(keys, sort=False) if parts else []:
    broken = statistics.share(mine["collapsed"].sum(), len(mine))
    middle = statistics.bootstrap(np.median, mine["denominator_ratio"], seed=seed)
    steps.append(dict(zip(keys, about, strict=True)) | {"unedited": mine["unedited"].iloc[0], "cases": len(mine)})
    steps[-1] |= {
        f"collapsed{end}": getattr(broken, at) for end, at in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    steps[-1] |= {f"ratio{end}": getattr(middle, at) for end, at in (("", "value"), ("_low", "low"), ("_high", "high"))}
steps = pd.DataFrame(steps)
title = ""
if parts:
    least = steps[steps["scaled"] & (steps["model"] == model)].sort_values("length").iloc[0]
    title = f"{Path(model).name}: at a length of {least['length']:.2f}, {percent(least['collapsed'])} still collapse it"
figure = plot.doses(steps, learned=learned, cases=int(steps["cases"].max()), title=title) if parts else None
_ = figure.savefig("figures/doses.png") if figure else None

# %% tags=["hide-input"]
shown = steps.drop(columns=[name for name in steps if name.endswith(("_low", "_high"))])
shown.style.format(precision=3).hide(axis="index")


# %% tags=["hide-input"]
def told(name: str) -> str:
    """What the doses do in one twin."""
    mine = steps[steps["model"] == name]
    scaled, swapped = mine[mine["scaled"]], mine[~mine["scaled"]].iloc[0]
    low, high = scaled.iloc[0], scaled.iloc[-1]
    return (
        f"`{name}`: {percent(low['collapsed'])} of the edits collapse it at length {low['length']:.2g} (median ratio "
        f"{low['ratio']:.2g}), {percent(high['collapsed'])} at {high['length']:.3g} ({high['ratio']:.2g}), and "
        f"{percent(swapped['collapsed'])} with the row of position 1 ({swapped['ratio']:.2g})"
    )


def verdict() -> str:
    """Whether length alone switches the effect, which it need not: a model learns to read the direction, too."""
    mine = steps[(steps["model"] == model) & steps["scaled"]]
    spared, worst = mine.iloc[0]["collapsed_high"], mine.iloc[-1]["collapsed_low"]
    if spared < worst:
        return f" In `{model}` the intervals of the shortest and the longest do not overlap: length matters."
    return (
        f" In `{model}` the intervals of the shortest and the longest overlap: length alone does not undo the training."
    )


Markdown(
    "**Finding.** "
    + "; ".join(map(told, found))
    + f". Unedited, these models have perplexities from {steps['unedited'].min():.2f} to {steps['unedited'].max():.2f}."
    + verdict()
    if parts
    else "Nothing was turned down."
)


# %% tags=["hide-input"]
def numbers(name: str, interval: statistics.Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


metrics = {"cases": len(chosen), "paired": str(paired), "position_embedding": str(bool(found))}
short = {"first": [plot.KINDS[0]], "others": list(plot.KINDS[1:])} if paired else {}
for name, kinds in short.items():
    mine = both[both["kind"].isin(kinds)]
    if len(mine):
        effect = effects(mine)
        metrics |= {f"cases_{name}": len(mine)}
        metrics |= {f"collapsed_{name}": int(mine["collapsed"][model].sum())}
        metrics |= {f"collapsed_{name}_control": int(mine["collapsed"][control].sum())}
        metrics |= numbers(f"risk_difference_{name}", effect["risk difference"])
        metrics |= numbers(f"perplexity_times_{name}", effect["perplexity, times twin's"])
        metrics |= numbers(f"denominator_times_{name}", effect["denominator, times twin's"])
for name, arm in zip(found, ("", "_control"), strict=False):
    mine = steps[steps["model"] == name].set_index("dose") if parts else steps
    for dose, step in (("shortest", 0), ("longest", -2), ("second", -1)) if parts else ():
        metrics |= {
            f"dose_{dose}{arm}": float(mine["length"].iloc[step]),
            f"dose_{dose}_collapsed_share{arm}": float(mine["collapsed"].iloc[step]),
            f"dose_{dose}_denominator_ratio{arm}": float(mine["ratio"].iloc[step]),
            f"dose_{dose}_unedited{arm}": float(mine["unedited"].iloc[step]),
        }
record(metrics, hparams={name: used[name][0] for name in arms}, moments={name: used[name][1] for name in arms})
