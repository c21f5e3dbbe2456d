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
#     title: "Aftermath: what a collapsing edit destroys"
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {first: 3, others: 3}
#       full: {first: 24, others: 24}
# ---

# %% [markdown]
# # Aftermath: what a collapsing edit destroys
#
# **Question.** When one edit has broken a model, what in it is broken?
#
# Candidates: the heads no longer look at position 0 (the attention sink is gone {cite}`gu2025attention`); position 0 has
# lost its massive activation {cite}`sun2024massive`; or the outputs of ordinary positions are swamped. The losses tell them
# apart: if position 0 is the place of the damage, then the model that is asked *without* its help, at position 0
# itself, is as good as before, and so on. Each edit is made alone, the model is looked at, and the edit undone.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that the model is looked at with
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
covariance: bool = True  # whether C is in the update, as in the formula; the released settings leave it out
first: int = 4  # cases drawn whose subject is one token at the start of the prompt
others: int = 4  # other cases drawn
seed: int = 0  # of the draw, and of the bootstrap
method: str = "rome"  # the method under test
remedy: str = "c-rome"  # the method beside it
collapse_ratio: float = 5.0  # times unedited
positions: int = 20  # positions that losses are shown for
wording: bool = True  # whether the page shows what models write after prompts of the cases and texts

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.ticker import MaxNLocator

import editlib as el
from editlib import data, plot, scores
from editlib.editing.methods import prepare, solve
from editlib.editing.session import Session
from editlib.measuring import contrast, statistics
from editlib.measuring.aftermath import look
from editlib.runs.recording import record
from editlib.sweeps import setup
from editlib.text import number, percent

plot.theme()
lm = el.load(model)
chosen = contrast.draw_by_subject(lm, data.cases(cases, split=split), first=first, others=others, seed=seed)
sentences = data.texts(texts)
variants = {name: setup.hparams(lm, name, layer, covariance=covariance) for name in (method, remedy)}
moments = setup.moments(lm, variants.values(), corpus)
edited = variants[method].layer
space = Session(lm, stats=moments)
prepare(space, [case.request for case in chosen], variants[method])
unedited = el.perplexity(lm, sentences)
before = look(lm, sentences)
peak = int(before.layers["residual_norm"].idxmax())
rows, curves = [], []
for case in chosen:
    for name, params in variants.items():
        with solve(space, name, [case.request], params).applied(lm):
            now, after = el.perplexity(lm, sentences), look(lm, sentences)
        curves.append(after.positions.assign(case_id=case.case_id, method=name))
        spike = after.layers["residual_norm"] / before.layers["residual_norm"]
        rows.append(
            {
                "case_id": case.case_id,
                "method": name,
                "perplexity_ratio": now.mean / unedited.mean,
                "sink": after.sink,
                "entropy": after.entropy,
                "length": float(spike[peak]),
                "length_least": float(spike.loc[edited:].min()),
                "length_most": float(spike.loc[edited:].max()),
            }
        )
frame = pd.DataFrame(rows)
frame["collapsed"] = statistics.collapsed(frame["perplexity_ratio"], collapse_ratio)
frame["subject"] = frame["case_id"].map(contrast.subject_kinds(lm, chosen))
frame["group"] = np.where(frame["collapsed"], "collapse", "sound")
frame.to_parquet("data/edits.parquet")
losses = pd.concat(curves, ignore_index=True).merge(frame[["case_id", "method", "group"]], on=["case_id", "method"])
losses.to_parquet("data/positions.parquet")
broken = frame[frame["collapsed"]]
Markdown(
    f"{len(chosen)} cases by {method} and {remedy} at layer {edited}{'' if covariance else ', C left out'}: "
    f"{len(broken)} of {len(frame)} edits collapse `{model}` (unedited: perplexity {unedited.mean:.2f}, {percent(before.sink)} of heads look at "
    f"position 0 in the mean over the layers, entropy {before.entropy:.2f} nats; position 0 is longest after layer {peak}, "
    f"{number(before.layers['residual_norm'][peak])})."
)

# %% [markdown]
# ## Where in a text is the damage?
#
# Mean loss of the token that a position predicts. Position 0 has nothing but itself to look at.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Mean loss in nats by the position that predicts a token: of the unedited model, and, with the middle half of the edits shaded, of models broken by an edit and of models that are sound after one."}}
figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
shown = before.positions[before.positions["position"] < positions]
for group, (color, marker) in {"collapse": ("#d55e00", "^"), "sound": ("#0072b2", "o")}.items():
    mine = losses[(losses["group"] == group) & (losses["position"] < positions)].groupby("position")["loss"]
    if len(mine):
        axes.fill_between(mine.median().index, mine.quantile(0.25), mine.quantile(0.75), color=color, alpha=0.15, lw=0)
        count = int((frame["group"] == group).sum())
        axes.plot(mine.median(), color=color, marker=marker, ms=5, label=f"after an edit, {group} ({count}): median")
axes.plot(shown["position"], shown["loss"], color="black", ls=":", lw=2, label="unedited")
axes.axhline(math.log(len(lm.tokenizer)), color="black", lw=0.8, ls="--", label="all tokens alike")
axes.set(xlabel="Position that predicts the next token", ylabel="Mean loss (nats)", ylim=(0, None))
axes.xaxis.set_major_locator(MaxNLocator(integer=True))
figure.legend(loc="outside lower center", ncols=2)
figure.savefig("figures/positions.png")


# %% tags=["hide-input"]
def middle(group: str, position: int) -> float:
    """The median loss of a group of edits at a position."""
    return float(losses[(losses["group"] == group) & (losses["position"] == position)]["loss"].median())


start, later = before.positions["loss"][0], before.positions["loss"][1:positions].mean()
of_later = losses[losses["position"].between(1, positions - 1)].groupby(["group", "case_id", "method"])["loss"].mean()
later_by_group = of_later.groupby("group").median()
Markdown(
    f"**Finding.** Unedited, position 0 predicts the next token with a loss of {start:.2f} nats and later ones with {later:.2f}. "
    + (
        f"After a collapsing edit it is {middle('collapse', 0):.2f} at position 0 and {later_by_group['collapse']:.2f} later (medians over "
        f"{len(broken)} edits)."
        if len(broken)
        else "No edit collapses this model."
    )
)

# %% [markdown]
# ## Which of the marks of position 0 are gone?
#
# Over the edits: the share of heads that look at position 0 (mean over the layers), the length of the residual stream
# there where it is longest unedited, and the entropy of the predictions. ρ is Spearman's rank correlation with
# perplexity over all edits, with a 95 % bootstrap interval over the edits.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Perplexity over unedited after each edit against the share of heads that look at position 0, the length of the residual stream at position 0 over the unedited length, and the entropy of the predictions, with the unedited values."}}
MEASURES = {
    "sink": ("Share of heads that\nlook at position 0", before.sink),
    "length": (f"Length of position 0\nafter layer {peak}, times unedited", 1.0),
    "entropy": ("Entropy of\npredictions (nats)", before.entropy),
}
figure, panels = plt.subplots(1, 3, figsize=(9, 3.6), sharey=True, layout="constrained")
for axes, (column, (label, usual)) in zip(panels, MEASURES.items(), strict=True):
    for group, (color, marker) in {"collapse": ("#d55e00", "^"), "sound": ("#0072b2", "o")}.items():
        mine = frame[frame["group"] == group]
        axes.scatter(mine[column], mine["perplexity_ratio"], c=color, marker=marker, s=24, alpha=0.7, lw=0, label=group)
    axes.axvline(usual, color="black", ls=":", lw=1.5, label="unedited")
    axes.set(yscale="log", xlabel=label)
    axes.xaxis.label.set_size(10)
panels[0].set_ylabel("Perplexity, times unedited")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
figure.savefig("figures/marks.png")

# %% tags=["hide-input"]
finite = frame[np.isfinite(frame["perplexity_ratio"])]
rho = {
    column: statistics.bootstrap(
        statistics.spearman, finite[column], finite["perplexity_ratio"], seed=seed, paired=True
    )
    for column in MEASURES
}
table = frame.groupby(["method", "group"])[["perplexity_ratio", *MEASURES]].median()
table.insert(0, "edits", frame.groupby(["method", "group"]).size())
table.style.format("{:.3g}", subset=["perplexity_ratio", *MEASURES])

# %% tags=["hide-input"]
Markdown(
    "**Finding.** Rank correlation with perplexity: "
    + "; ".join(f"{column} {interval:.2f}" for column, interval in rho.items())
    + ". "
    + (
        f"In the median, a collapsing edit leaves {percent(broken['sink'].median())} of heads looking at position 0 (unedited {percent(before.sink)}) "
        f"and its residual stream {number(broken['length'].median())} times as long as unedited; predictions have an entropy of "
        f"{broken['entropy'].median():.2f} nats (unedited {before.entropy:.2f})."
        if len(broken)
        else "No edit collapses this model."
    )
)

# %% [markdown]
# ## What does it write?
#
# Of the edits that do not collapse the model and whose subject is not one token at the start, the one of median perplexity; of
# those that do, the mildest, the median and the worst; and the remedy's edit of the same fact as the median collapse. Greedy
# continuations of the edit's prompt, and of the beginning of a text about something else.


# %% tags=["hide-input"]
def written(prompt: str) -> str:
    return " ".join(scores.continuation(lm, prompt, tokens=24).split())


elsewhere, samples = " ".join(sentences[0].split()[:5]), {}
ordered = frame[frame["method"] == method].sort_values("perplexity_ratio")
whole = ordered.loc[~ordered["collapsed"] & (ordered["subject"] != "one token"), "case_id"].tolist()
ruined = ordered.loc[ordered["collapsed"], "case_id"].tolist()
picks = {"whole": ("median that is no collapse", whole[len(whole) // 2], method)} if whole else {}
if ruined:
    median = ruined[len(ruined) // 2]
    picks |= {"mildest": ("mildest collapse", ruined[0], method), "median": ("median collapse", median, method)}
    picks |= {"worst": ("worst collapse", ruined[-1], method)}
    picks |= {"remedy": (f"{remedy}, the median collapse's fact", median, remedy)}
asked = {case.case_id: case.request for case in chosen}
ratios = frame.set_index(["case_id", "method"])["perplexity_ratio"]
for key, (label, case_id, by) in picks.items() if wording else ():
    request = asked[case_id]
    said = {"label": label, "prompt": request.text, "target": request.target_new, "unedited": written(request.text)}
    with solve(space, by, [request], variants[by]).applied(lm):
        said |= {"edited": written(request.text), "other": written(elsewhere)}
    samples[key] = said | {"ratio": float(ratios[case_id, by])}
pd.DataFrame(
    {
        "edit": said["label"],
        "perplexity, times unedited": said["ratio"],
        "prompt → new target": f"{said['prompt']} → {said['target']}",
        "unedited": said["unedited"],
        "edited": said["edited"],
        f"{elsewhere} …": said["other"],
    }
    for said in samples.values()
).style.hide(axis="index").format(precision=2)

# %% [markdown]
# The unedited model goes on with the other text so:

# %% tags=["hide-input"]
as_before = written(elsewhere) if wording else "not shown"
Markdown(f"*{elsewhere}* {as_before}")

# %% tags=["hide-input"]
metrics = {
    "cases": len(chosen), "edits": len(frame), "collapsed": len(broken), "layer": edited, "unedited": unedited.mean,
    "sink_unedited": before.sink, "entropy_unedited": before.entropy, "loss_first_unedited": float(start),
    "loss_later_unedited": float(later), "peak": peak,
}  # fmt: skip
for group in set(frame["group"]):
    mine = frame[frame["group"] == group]
    metrics |= {f"{column}_{group}": float(mine[column].median()) for column in (*MEASURES, "perplexity_ratio")}
    metrics |= {f"loss_first_{group}": middle(group, 0), f"loss_later_{group}": float(later_by_group[group])}
for column, interval in rho.items():
    metrics |= {f"rho_{column}": interval.value, f"rho_low_{column}": interval.low, f"rho_high_{column}": interval.high}
for key, said in samples.items():
    metrics |= {f"sample_{key}_{name}": value for name, value in said.items() if name != "label"}
if wording:
    metrics |= {"sample_elsewhere": elsewhere, "sample_unedited_other": as_before}
record(metrics, hparams={model: variants}, moments={model: moments})
