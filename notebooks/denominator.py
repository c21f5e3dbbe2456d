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
#     title: "Denominator: the number ROME divides by"
#     models: [model, control]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {first: 6, others: 6}
#       full: {first: 80, others: 300}
# ---

# %% [markdown]
# # Denominator: the number ROME divides by
#
# **Question.** Which part of ROME's update becomes large when an edit collapses the model?
#
# The formula of ROME {cite}`meng2022locating` has one key, the released code two: k̄, the mean over prefixed prompts, and kᵘ
# of the bare prompt. *The Fall of ROME* {cite}`yang-etal-2024-fall` takes the update apart:
#
# ```text
# formula    Δ = (v* − W k)  (C⁻¹ k)ᵀ  / ((C⁻¹ k)ᵀ k)
# code       Δ = (v* − W kᵘ) (C⁻¹ k̄)ᵀ / ((C⁻¹ k̄)ᵀ kᵘ)        C = E[k kᵀ], left out by the released settings
# ```
#
# The code scales C⁻¹k̄ to length one before it prints numerator and denominator. That changes both and leaves Δ alone, so
# both ways are shown, and the size of Δ beside them.
#
# A *collapse* case is one that a single ROME edit of `model` collapses, with C or without: perplexity at least
# `collapse_ratio` times unedited. Cases are drawn by kind of subject, so the numbers of both groups are chosen, and say nothing about how often edits
# collapse. On `control` the same cases form the same groups.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
control: str | None = "testbed/control"  # a model without the anomaly, edited the same way; none for none
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
first: int = 12  # cases drawn whose subject is one token at the start of the prompt
others: int = 12  # other cases drawn
seed: int = 0  # of the draw, and of the bootstrap
collapse_ratio: float = 5.0  # times unedited
wanted: float = 30.0  # times that the mean denominator of normal cases should be that of collapse cases

# %% tags=["hide-input"]
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown

import editlib as el
from editlib import data, plot
from editlib.editing.session import Session
from editlib.measuring import contrast, statistics
from editlib.runs.recording import record
from editlib.sweeps import setup

plot.theme()
models = {name: el.load(name) for name in (model, control) if name}
chosen = contrast.draw_by_subject(models[model], data.cases(cases, split=split), first=first, others=others, seed=seed)
sentences = data.texts(texts)
used, moments = {}, {}  # hyper-parameters and second moments by model


def edits(name: str) -> pd.DataFrame:
    """ROME with C and without it; `length` is that of C⁻¹k̄, or of k̄."""
    lm = models[name]
    stats = contrast.moments(lm, setup.hparams(lm, "rome", layer).layer, corpus)
    arms = {"rome": True, "rome, C left out": False} if stats else {"rome, C left out": False}
    variants = {arm: setup.hparams(lm, "rome", layer, covariance=covariance) for arm, covariance in arms.items()}
    used[name], moments[name] = variants, stats
    table = el.sweep(lm, chosen, methods=variants, texts=sentences, scores=False, stats=stats, progress=False)
    failed = set(table.loc[table["error"].notna(), "case_id"])
    able, space = [case for case in chosen if case.case_id not in failed], Session(lm, stats=stats)
    for arm, params in variants.items():
        lengths = contrast.case_keys(space, params, [case.request for case in able]).whitened.norm(dim=1)
        by_case = dict(zip((case.case_id for case in able), lengths.tolist(), strict=True))
        table.loc[table["method"] == arm, "length"] = table["case_id"].map(by_case)
    return table.assign(model=name, arm=table["method"] + " · " + Path(name).name)


frame = pd.concat([edits(name) for name in models], ignore_index=True)
main = frame["method"].iloc[0]
frame["group"] = frame["case_id"].map(
    contrast.groups(frame[frame["model"] == model], *used[model], collapse_ratio=collapse_ratio)
)
frame["denominator"] = frame["denominator"].abs()
frame["denominator_textbook"] = frame["denominator"] * frame["length"]
frame["numerator_textbook"] = frame["numerator"] * frame["length"]
frame["change"] = frame["delta_norm"] / frame["weight_norm"]
frame.to_parquet("data/cases.parquet")
done = frame.dropna(subset=["group", "length"])
sizes = done[(done["model"] == model) & (done["method"] == main)]["group"].value_counts()
collapsing, normal = (int(sizes.get(group, 0)) for group in contrast.GROUPS)
Markdown(
    f"{len(chosen)} cases, {frame['error'].notna().sum()} of {len(frame)} edits failed. One edit by {' or by '.join(used[model])} "
    f"collapses `{model}` with {collapsing} cases; {normal} are normal."
    + ("" if collapsing else " **No case collapses this model, so there is nothing to contrast.**")
    + ("" if main == "rome" else " This model can write no text, so without texts (`corpus`) C is left out throughout.")
)

# %% [markdown]
# ## How large are the parts?
#
# Both parts as the code prints them, with C⁻¹k̄ at length one. The numerator is the norm of (v* − W kᵘ)(C⁻¹k̄)ᵀ.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Absolute numerator and denominator of ROME's update by kind of subject on log axes, one strip of points for each model with and without second moments. If edits collapse, the denominators of one-token subjects at the start of the prompt lie far to the left of all others."}}
figure = plot.strips(
    done,
    {
        "numerator": f"Numerator (n = {collapsing + normal} cases)",
        "denominator": "|Denominator|, C⁻¹k̄ at length one",
    },
)
figure.savefig("figures/parts.png")


# %% tags=["hide-input"]
def part(column: str, group: str, arm: str) -> pd.Series:
    """Values of one group in one arm."""
    return done.loc[(done["arm"] == arm) & (done["group"] == group), column]


def times(column: str, arm: str) -> statistics.Interval:
    """Mean of normal cases over that of collapse cases."""
    samples = part(column, contrast.NORMAL, arm), part(column, contrast.COLLAPSE, arm)
    return statistics.bootstrap(statistics.mean_ratio, *samples, seed=seed)


arms = list(dict.fromkeys(done["arm"]))
smaller, larger = times("denominator", arms[0]), times("numerator", arms[0])
met = smaller.value >= wanted
Markdown(
    f"**Finding.** {main} on `{model}`: the mean |denominator| of {normal} normal cases is {smaller:.3g} times that of "
    f"{collapsing} collapse cases (95 % interval by bootstrap in brackets), "
    f"{'at least' if met else 'not'} the {wanted:g} times asked for. The mean numerator of normal cases is {larger:.2f} times "
    "that of collapse cases."
    if collapsing and normal
    else f"**Finding.** {main} on `{model}` gives {collapsing} collapse and {normal} normal cases: no contrast to measure."
)

# %% [markdown]
# ## Beside the published numbers
#
# Means over the cases. Published: the authors' slides {cite}`yang2024slides`, p. 33; C⁻¹k̄ was at length one
# {cite}`yang2024code`, and the released settings leave C out, so it is not known which setting made the table. Numerators
# and denominators of different models do not compare; only a column's ratios do. Brackets hold 95 % bootstrap intervals.

# %% tags=["hide-input"]
published = {  # numerator and denominator of collapse and normal cases
    "published: GPT-2-XL": ["168.55", "79.91", "0.04", "9.60"],
    "published: GPT-J": ["140.27", "88.69", "0.04", "12.78"],
    "published: Llama2-7b": ["4.57", "16.52", "0.01", "2.63"],
}
rows = pd.MultiIndex.from_product([("numerator", "|denominator|"), contrast.GROUPS], names=["part", "cases"])
columns = dict(published)
for arm in arms:
    columns[f"here: {arm}"] = [
        f"{statistics.bootstrap(np.mean, part(column, group, arm), seed=seed):.3g}"
        for column in ("numerator", "denominator")
        for group in contrast.GROUPS
    ]
pd.DataFrame(columns, index=rows).transpose()

# %% [markdown]
# ## Does the normalisation matter, and how large is the change?
#
# Without scaling, as in the formula, |C⁻¹k̄| multiplies both parts. Their quotient, and so |Δ|, stays.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Absolute denominator as in the formula, not scaled, and norm of the weight change over that of the weight, by kind of subject on log axes, one strip for each model with and without second moments."}}
figure = plot.strips(
    done,
    {
        "denominator_textbook": f"|Denominator| as in the formula (n = {collapsing + normal} cases)",
        "change": "|Δ| / |W|, Frobenius norms",
    },
)
figure.savefig("figures/sizes.png")

# %% tags=["hide-input"]
whole = pd.DataFrame(
    [
        {
            "edits": arm,
            "cases": group,
            "n": len(part("change", group, arm)),
            "numerator, formula": part("numerator_textbook", group, arm).mean(),
            "|denominator|, formula": part("denominator_textbook", group, arm).mean(),
            "median |Δ| / |W|": part("change", group, arm).median(),
            "largest |Δ| / |W|": part("change", group, arm).max(),
            "largest perplexity, times unedited": part("perplexity_ratio", group, arm).fillna(np.inf).max(),
        }
        for arm in arms
        for group in contrast.GROUPS
    ]
)
whole.style.hide(axis="index").format("{:.3g}", subset=list(whole.columns[3:]), na_rep="–")

# %% tags=["hide-input"]
ratios = {arm: times("denominator", arm) for arm in arms}
textbook = times("denominator_textbook", arms[0])
broken = done.assign(broken=~(done["perplexity_ratio"] < collapse_ratio)).groupby("arm")["broken"].sum()
changed = [part("change", group, arms[0]).median() for group in contrast.GROUPS]
others_said = "".join(
    f" {arm}: {ratio:.3g}, and {broken[arm]} edits collapse the model."
    for arm, ratio in ratios.items()
    if arm != arms[0]
)
Markdown(
    (
        f"**Finding.** The median change of a collapse case is {changed[0]:.3g} of the weight's norm, that of a normal one "
        f"{changed[1]:.3g}. Not scaled, the mean |denominator| of normal cases is {textbook:.3g} times that of collapse cases "
        f"({arms[0]}; scaled: {smaller.value:.3g})."
        if collapsing and normal
        else f"**Finding.** The median change is {done.loc[done['arm'] == arms[0], 'change'].median():.3g} of the weight's norm "
        f"({arms[0]})."
    )
    + (f" The same ratio (scaled) elsewhere, with the same cases in both groups:{others_said}" if others_said else "")
)


# %% tags=["hide-input"]
def named(arm: str) -> str:
    """An arm's name in metrics: the main arm has none."""
    twin = "_control" if arm.endswith(f" · {Path(str(control)).name}") else ""
    return ("_no_covariance" if "left out" in arm else "") + twin


metrics = {
    "collapse_cases": collapsing,
    "normal_cases": normal,
    "denominator_met": "untested" if not (collapsing and normal) else "yes" if met else "no",
    "numerator_ratio": larger.value,
    "denominator_ratio_textbook": textbook.value,
}
for arm in arms:
    interval = ratios[arm]
    metrics |= statistics.collapses(done[done["arm"] == arm], f"collapsed{named(arm)}", collapse_ratio=collapse_ratio)
    metrics |= {
        f"denominator_ratio{named(arm)}": interval.value,
        f"denominator_ratio_low{named(arm)}": interval.low,
        f"denominator_ratio_high{named(arm)}": interval.high,
    }
    for column in ("numerator", "denominator", "change"):
        for group in contrast.GROUPS:
            metrics[f"{column}_{group}{named(arm)}"] = float(part(column, group, arm).mean())
record(metrics, hparams=used, moments=moments)
