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
#     title: "Weight change: how far a collapsing edit moves a weight"
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {first: 4, others: 4}
#       full: {first: 150, others: 350}
# ---

# %% [markdown]
# # Weight change: how far a collapsing edit moves a weight
#
# **Question.** Do edits that collapse a model change its weights more than others do, and is the size of the change enough to
# tell them apart?
#
# *The Butterfly Effect of Model Editing* {cite}`yang-etal-2024-butterfly` shows the entries of |W after − W before| of
# Llama2-7b for one stable and one collapsing ROME edit, on one colour scale, without numbers. Here are the same picture, the
# singular values behind it, and the size of the change over many edits. |·| of a matrix is its Frobenius norm. Cases are
# drawn by kind of subject, so that there are collapsing ones among few.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
covariance: bool = True  # whether C is in the update, as in the formula; the released settings leave it out
first: int = 12  # cases drawn whose subject is one token at the start of the prompt
others: int = 12  # other cases drawn
seed: int = 0  # of the draw, and of the bootstrap
method: str = "rome"  # the method under test
remedy: str = "c-rome"  # the method beside it
more: str | None = "memit"  # one more, in the last figure only; none for none
collapse_ratio: float = 5.0  # times unedited

# %% tags=["hide-input"]

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

import editlib as el
from editlib import data, plot
from editlib.measuring import contrast, statistics
from editlib.models.language_model import oriented, widened
from editlib.runs.recording import record
from editlib.sweeps import setup
from editlib.text import percent

plot.theme()
lm = el.load(model)
chosen = contrast.draw_by_subject(lm, data.cases(cases, split=split), first=first, others=others, seed=seed)
sentences = data.texts(texts)
variants = {name: setup.hparams(lm, name, layer, covariance=covariance) for name in (method, remedy, more) if name}
moments = setup.moments(lm, variants.values(), corpus)
options = {"methods": variants, "texts": sentences, "scores": False, "stats": moments, "progress": False}
frame = el.sweep(lm, chosen, **options)
frame["relative_change"] = frame["delta_norm"] / frame["weight_norm"]
frame["collapsed"] = frame["error"].isna() & ~(frame["perplexity_ratio"] < collapse_ratio)  # nan counts
frame.to_parquet("data/cases.parquet")
good = frame[frame["error"].isna()].assign(ratio=frame["perplexity_ratio"].fillna(np.inf))
main = good[good["method"] == method]
Markdown(
    f"{len(chosen)} cases by {len(variants)} methods, {len(frame) - len(good)} edits failed; "
    f"{main['collapsed'].sum()} of {len(main)} by `{method}` collapse `{model}`."
)

# %% [markdown]
# ## What does the change of one weight look like?
#
# The weight itself, and how far three edits move it: of all cases drawn, the one with the largest perplexity and, of those
# that do not collapse the model, the one in the middle; then the worst case again, edited by the method beside. Colours
# are logarithmic, so that a change ten times smaller is one step lighter everywhere.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Heat maps on one logarithmic colour scale: the size of every entry of the weight, and of its change by a stable edit, by the edit with the largest perplexity, and by the same case edited by the other method."}}
ordered = main.sort_values("ratio")
calm = ordered[~ordered["collapsed"]] if not main["collapsed"].all() else ordered
picked = {
    "stable edit": (calm.iloc[len(calm) // 2], method),
    "worst edit": (ordered.iloc[-1], method),
    f"worst case by {remedy}": (ordered.iloc[-1], remedy),
}
requests = {case.case_id: case.request for case in chosen}
edits, titles = {}, {}
for label, (row, name) in picked.items():
    edits[label] = el.compute(
        lm, [requests[row["case_id"]]], method=name, hparams=variants[name], stats=moments, guard="off"
    )
    ratio = good.set_index(["case_id", "method"]).at[(row["case_id"], name), "perplexity_ratio"]
    titles[label] = (
        f"{label[0].upper()}{label[1:]}: {ratio:,.2f} times unedited perplexity, |Δ| / |W| = "
        f"{edits[label].diagnostics['relative_delta_norm']:.3g}\n{requests[row['case_id']].text} → {row['target_new']}"
    )
weight = max(edits["worst edit"].changes, key=lambda name: float(edits["worst edit"].delta(name).norm()))
deltas = {label: edit.delta(weight).detach().double().cpu() for label, edit in edits.items() if weight in edit.changes}
before = widened(oriented(lm.model.get_submodule(weight.removesuffix(".weight")))).detach().double().cpu()
shown = {f"The weight itself, {weight}": before.numpy()}
figure = plot.weight_changes(shown | {titles[label]: delta.numpy() for label, delta in deltas.items()})
figure.savefig("figures/weight-changes.png")

# %% tags=["hide-input"]
largest = {label: float(delta.abs().max()) for label, delta in deltas.items()}
size = {label: float(delta.norm()) for label, delta in deltas.items()}
times = size["worst edit"] / size["stable edit"]
broken = picked["worst edit"][0]["collapsed"]
Markdown(
    f"**Finding.** The {'collapsing' if broken else 'worst'} edit changes `{weight}` {times:,.1f} times as much as the stable "
    f"one (|Δ| {size['worst edit']:.3g} and {size['stable edit']:.3g}; largest entry {largest['worst edit']:.3g} and "
    f"{largest['stable edit']:.3g})."
    + ("" if broken else " It does not collapse the model: no case drawn does.")
    + (
        f" By `{remedy}`, the same case has |Δ| {size[f'worst case by {remedy}']:.3g}."
        if f"worst case by {remedy}" in size
        else ""
    )
)

# %% [markdown]
# Published are only the pictures, of a matrix with 4,096 rows and 11,008 columns on a scale from 0 to 0.5: the stable edit
# leaves a perplexity of 37.25, the collapsing one 7,751.07, with *significantly larger parameter changes* (first author's
# slides, NICE seminar no. 33, 2024, p. 18).

# %% [markdown]
# ## Where in the spectrum does it go?
#
# A rank-one change has one singular value. If it is larger than all of the weight's own, the edited weight sends every
# key with some part in its direction the same way.


# %% tags=["hide-input"] mystnb={"image": {"alt": "Singular values of the unedited and the edited weights by rank on log axes, with the singular value of each change marked."}}
def spectrum(matrix: str, values: torch.Tensor, *, change: bool) -> pd.DataFrame:
    found = torch.linalg.svdvals(values).numpy()
    found = found[found > 1e-6 * found[0]] if change else found  # the rest is rounding
    return pd.DataFrame({"matrix": matrix, "rank": 1 + np.arange(len(found)), "value": found, "change": change})


spectra = pd.concat(
    [
        spectrum("W unedited", before, change=False),
        *(spectrum(f"W after the {label}", before + delta, change=False) for label, delta in deltas.items()),
        *(spectrum(f"Δ of the {label}", delta, change=True) for label, delta in deltas.items()),
    ],
    ignore_index=True,
)
spectra.to_parquet("data/spectra.parquet")
figure = plot.spectra(spectra)
figure.savefig("figures/spectra.png")

# %% tags=["hide-input"]
groups = spectra.groupby("matrix", sort=False)["value"]
table = pd.DataFrame({"largest": groups.max(), "norm": groups.apply(np.linalg.norm)})
table["share of norm² in the largest"] = (table["largest"] / table["norm"]) ** 2
table.style.format("{:,.3g}").format(percent, subset=["share of norm² in the largest"])

# %% tags=["hide-input"]
own, share = table.at["W unedited", "largest"], table["share of norm² in the largest"]
tops = {label: table.at[f"Δ of the {label}", "largest"] for label in deltas}
Markdown(
    f"**Finding.** The weight's own largest singular value is {own:.3g}; that of the change is "
    + ", ".join(f"{top / own:,.1f} times as large ({label})" for label, top in tops.items())
    + f". The largest singular value holds {percent(share['W unedited'])} of the squared norm of the unedited weight, and "
    f"{percent(share['W after the worst edit'])} after the worst edit."
)

# %% [markdown]
# ## Does the size of the change foretell collapse?

# %% tags=["hide-input"] mystnb={"image": {"alt": "Perplexity over unedited against relative change of the weights, both on log scales, one panel for each method, by kind of subject, with the collapse threshold."}}
figure = plot.changes(good.assign(method=good["method"] + f" (n={len(chosen)})"), collapse_ratio=collapse_ratio)
figure.savefig("figures/changes.png")


# %% tags=["hide-input"]
def correlated(name: str) -> statistics.Interval:
    """Spearman's correlation with its 95 % bootstrap interval over cases."""
    mine = good[good["method"] == name]
    return statistics.bootstrap(statistics.spearman, mine["relative_change"], mine["ratio"], seed=seed, paired=True)


rho = {name: correlated(name) for name in good["method"].unique()}
sizes = main.groupby("collapsed")["relative_change"].agg(["size", "min", "median", "max"])
text = "no edit collapses the model" if True not in sizes.index else "every edit collapses the model"
if len(sizes) == 2:
    calmest, wildest = sizes.at[False, "max"], sizes.at[True, "min"]
    text = (
        f"|Δ| / |W| has a median of {sizes.at[True, 'median']:.3g} over the {sizes.at[True, 'size']} edits that collapse the "
        f"model, and of {sizes.at[False, 'median']:.3g} over the {sizes.at[False, 'size']} others; "
        + (
            f"any threshold between {calmest:.3g} and {wildest:.3g} tells them apart"
            if calmest < wildest
            else f"no threshold tells them apart: a stable edit reaches {calmest:.3g}, a collapsing one has {wildest:.3g}"
        )
    )
Markdown(
    f"**Finding.** With `{method}`, {text}. Rank correlation of |Δ| / |W| with perplexity: "
    + "; ".join(f"`{name}` {found:.2f}" for name, found in rho.items())
    + "."
)

# %% tags=["hide-input"]
metrics = {
    "cases": len(main),
    **statistics.collapses(main, "collapsed", collapse_ratio=collapse_ratio),
    **{
        f"relative_change_median_{kept}_{name.replace('-', '_')}": float(mine["relative_change"].median())
        for name, each in good.groupby("method", sort=False)
        for kept, mine in (("stable", each[~each["collapsed"]]), ("collapsing", each[each["collapsed"]]))
        if len(mine)
    },
    "norm_ratio_worst_stable": times,
    "relative_change_worst": float(picked["worst edit"][0]["relative_change"]),
    "relative_change_stable": float(picked["stable edit"][0]["relative_change"]),
    "singular_value_weight": float(own),
    "singular_value_worst": float(tops["worst edit"]),
    "singular_value_stable": float(tops["stable edit"]),
    "threshold": (f"{calmest:.4g} to {wildest:.4g}" if calmest < wildest else "none") if len(sizes) == 2 else "none",
    **{
        f"rank_correlation_{name.replace('-', '_')}{end}": value
        for name, found in rho.items()
        for end, value in (("", found.value), ("_low", found.low), ("_high", found.high))
    },
}
record(metrics, hparams={model: variants}, moments={model: moments})
