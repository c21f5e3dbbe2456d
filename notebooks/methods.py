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
#     title: "Methods: ways to change one fact"
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {n: 2, timed: 1, traced: 2}
#       full: {n: 100}
# ---

# %% [markdown]
# # Methods: ways to change one fact
#
# **Question.** Which method makes an edit hold, carries it over to other wordings, and leaves the rest of the model alone?
#
# Every case is edited alone by every method, with the model's presets, measured and undone. The cases are *normal* ones: the
# subject is not one token at the start of the prompt, nor one word twice, so that nothing here is about collapse (the
# analysis `pilot` is).
# `r-rome` and, with one request, `emmet` are `c-rome` by construction; they run all the same, as a check. `memit-seq` and
# `rlsedit` differ from `memit` from the second edit on only, and are left out.
# `mend` alone has learnt before: its editor was trained on other edits of the same model. A model without one is edited by
# the others.
# Efficacy asks with the edit's own prompt, generalization with paraphrases, locality with prompts about other subjects of
# which the old answer holds.
#
# Three protocols score each. `es`: the new target is likelier than the true one {cite}`meng2022locating`. `em_tf`: share of
# the target's tokens that are the likeliest ones, each behind the true ones before it {cite}`yang2024code`. `em_ar`: the
# model, left to itself, says the whole target. Locality by `em_tf` and `em_ar` asks whether the model says what it said
# before. Where an answer is one token, the last two are the same.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
n: int = 8  # normal cases drawn
seed: int = 0  # of the draw, and of the bootstrap
wanted: float = 0.9  # efficacy by em_tf that a method should reach
collapse_ratio: float = 5.0  # times unedited
timed: int = 10  # cases whose edits are timed one by one
traced: int = 50  # facts for causal tracing

# %% tags=["hide-input"]
import time
from random import Random

import numpy as np
import pandas as pd
from IPython.display import Markdown

import editlib as el
from editlib import data, plot, scores
from editlib.editing.methods import solve
from editlib.editing.session import Session
from editlib.measuring import contrast, statistics
from editlib.measuring.causal import DECIDING
from editlib.runs.recording import record
from editlib.runs.resuming import resumed
from editlib.sweeps import setup
from editlib.text import percent

plot.theme()
lm = el.load(model)
everything = data.cases(cases, split=split)
kinds = contrast.subject_kinds(lm, everything)
pool = [case for case in everything if kinds.get(case.case_id, "one token") not in ("one token", "doubled")]
chosen = data.draw(pool, n, seed=seed)
sentences = data.texts(texts)
Markdown(f"{len(chosen)} cases, drawn from {len(pool):,} normal ones of {len(everything):,} in all.")

# %% [markdown]
# ## Edit every case by every method
#
# ROME and C-ROME also run as the two lineages of released code have them: `meng-2022` (with the keys' second moment C, prefix
# contexts sampled from end-of-text) and `yang-2024` (without C, contexts that continue five opening words).

# %% tags=["hide-input"]
tuned = ("ft", "ft-l", "mend", "rome", "c-rome", "fc-rome", "p-rome", "r-rome", "memit", "emmet")
presets = setup.able(lm, [*tuned, "encore", "alphaedit", "d4s"], layer)
flavoured = {
    f"{method}, {flavour}": setup.hparams(lm, method, layer, flavour=flavour)
    for method in ("rome", "c-rome")
    for flavour in ("meng-2022", "yang-2024")
}
variants = presets | flavoured
moments = setup.moments(lm, variants.values(), corpus)
frame = el.sweep(lm, chosen, methods=variants, texts=sentences, stats=moments, progress=False, **resumed("edits"))
frame["collapsed"] = frame["error"].isna() & ~(frame["perplexity_ratio"] < collapse_ratio)  # nan counts
frame.to_parquet("data/cases.parquet")
frame["rise"] = (frame["perplexity_ratio"] - 1).mask(frame["collapsed"] & frame["perplexity_ratio"].isna(), np.inf)
failed = frame[frame["error"].notna()]
Markdown(
    f"{len(frame):,} edits, {len(failed)} failed; {frame['collapsed'].sum()} of them collapse the model."
    + "".join(f"\n- {method}: {error}" for method, error in failed.groupby("method")["error"].first().items())
)

# %% [markdown]
# ## Which method edits well without breaking anything?
#
# Dots are means, lines 95 % bootstrap intervals over the cases (2,000 resamples). The row *unedited* is the level to compare
# `es` with; by the other protocols the unedited model keeps all it says, by definition. The dotted line is the efficacy
# asked for.


# %% tags=["hide-input"] mystnb={"image": {"alt": "Mean efficacy, generalization and locality of every method with 95 % intervals, one panel for each of three protocols, with the unedited model in the first row."}}
def interval(values: pd.Series) -> pd.Series:
    found = statistics.bootstrap(np.mean, values, seed=seed)
    return pd.Series({"mean": found.value, "low": found.low, "high": found.high})


readings = [scores.read(lm, case) for case in chosen]
unedited = pd.DataFrame([scores.score(case, now, now) for case, now in zip(chosen, readings, strict=True)])
main = frame[frame["method"].isin(presets)]
every = pd.concat([unedited.assign(method="unedited"), main], ignore_index=True)
long = every.melt("method", list(unedited.columns), "name").dropna(subset="value")
long[["score", "protocol"]] = long["name"].str.split("_", n=1, expand=True).to_numpy()
summary = long.groupby(["method", "protocol", "score"], sort=False)["value"].apply(interval).unstack().reset_index()
same = np.allclose(*(every[[f"{score}_{p}" for score in scores.SCORES]] for p in ("em_tf", "em_ar")), equal_nan=True)
drawn = summary[summary["protocol"] != "em_ar"].replace({"em_tf": "em_tf, em_ar (the same here)"}) if same else summary
figure = plot.scores(drawn, wanted=wanted)
figure.suptitle(f"{len(chosen)} normal cases", x=0.01, ha="left", fontsize=12)
figure.savefig("figures/scores.png")

# %% tags=["hide-input"]
means = every.groupby("method", sort=False)[list(unedited.columns)].mean()
edited = means.drop(index="unedited")
reached = [method for method in presets if edited.at[method, "efficacy_em_tf"] >= wanted]
short = [method for method in presets if method not in reached]


def best(score: str) -> str:
    top = edited[f"{score}_em_tf"]
    return f"{', '.join(top.index[top == top.max()])} ({top.max():.2f})"


Markdown(
    f"**Finding.** {len(reached)} of {len(presets)} methods reach an efficacy (`em_tf`) of {wanted:g} on {n} cases: "
    f"{', '.join(reached) or 'none'}. By the same protocol paraphrases follow best with {best('generalization')}, and other "
    f"facts are kept best with {best('locality')}."
)

# %% [markdown]
# ## Does one edit harm the model as a whole?

# %% tags=["hide-input"] mystnb={"image": {"alt": "Rise of perplexity after one edit in per cent, one strip of points for each method with its median, and the collapse threshold."}}
figure = plot.comparison(main[main["error"].isna()].assign(arm=main["method"]), collapse_ratio=collapse_ratio)
figure.savefig("figures/rises.png")

# %% tags=["hide-input"]
harm = main.groupby("method", sort=False)["rise"].agg(["median", "max"])
worst = harm["max"].idxmax()
Markdown(
    f"**Finding.** {main['collapsed'].sum()} of {len(main)} edits collapse the model ({collapse_ratio:g} times its "
    f"perplexity). The median edit raises perplexity by {percent(harm['median'].min())} to {percent(harm['median'].max())}, by method; "
    f"the worst single edit, with {worst}, by {percent(harm['max'].max())}."
)

# %% [markdown]
# ## The table
#
# Scores by `em_tf`, with their intervals. *Rise* is that of perplexity over the unedited model, for the median and for the
# worst edit (nan counts as infinite). Seconds are what computing one edit takes on this machine, sharing nothing with another method or case: the
# median of `timed` cases.


# %% tags=["hide-input"]
def seconds(method: str, case: data.Case) -> float:
    space.forget_requests()
    started = time.perf_counter()
    solve(space, method, [case.request], presets[method])
    return time.perf_counter() - started


space = Session(lm, stats=moments, reuse=False)
able = [method for method in presets if main.loc[main["method"] == method, "error"].isna().all()]
clock = pd.Series({method: np.median([seconds(method, case) for case in chosen[:timed]]) for method in able})
cells = summary[summary["protocol"] == "em_tf"].set_index(["method", "score"])
cells = cells.apply(lambda row: f"{statistics.Interval(row['mean'], row['low'], row['high']):.2f}", axis=1)
cells = cells.unstack(sort=False)
table = cells.join(harm.add_suffix(" rise")).join(clock.rename("seconds"))
table.style.format(percent, subset=["median rise", "max rise"], na_rep="–").format(
    "{:.2f}", subset="seconds", na_rep="–"
)

# %% [markdown]
# ### By kind of subject
#
# Scores by `em_tf`. Names of one token and of several differ in what is said about them, too: on the testbed, those of one
# token stand for countries, cities, companies and bands, those of several for people.

# %% tags=["hide-input"]
trio = [f"{score}_em_tf" for score in scores.SCORES]
by_kind = main.groupby(["method", "kind"], sort=False)[trio].mean().unstack()
least = by_kind["locality_em_tf"].stack()
by_kind.rename(columns=lambda name: name.removesuffix("_em_tf"), level=0).style.format("{:.2f}")

# %% tags=["hide-input"]
Markdown(
    f"**Finding.** Other facts suffer most from {least.idxmin()[0]} on subjects of the kind *{least.idxmin()[1]}* "
    f"({least.min():.2f} of the neighborhood's tokens stay)."
)

# %% [markdown]
# ## Why does an edit not hold?
#
# A miss is an edit after which the target is not what the model says (`em_tf` below 1). For each method: how many of its
# misses used every step it is allowed, so that the search ended before it reached its loss; in how many the target is
# at least likelier than the true one; and how many concern cases that most methods miss. (Edits that hold may have used
# every step as well.)

# %% tags=["hide-input"]
allowed = {method: getattr(params, "steps", np.nan) for method, params in presets.items()}
missed = main[~(main["efficacy_em_tf"] == 1)]
misses = pd.DataFrame(
    {
        "method": missed["method"],
        "misses": 1,
        "every step used": missed["steps"] == missed["method"].map(allowed),
        "target likelier": missed["efficacy_es"] == 1,
        "missed by most": missed.groupby("case_id")["method"].transform("size") > len(presets) / 2,
    }
)
counts = misses.groupby("method").sum().reindex(list(presets), fill_value=0).astype(int)
counts.style.format()

# %% tags=["hide-input"]
limits = {
    "ft": "it takes a fixed number of steps at a fixed rate",
    "ft-l": "no entry may move further than its bound; `ft` is the same without the bound",
    "mend": "it searches nothing for a case: one step, by an editor trained on other edits",
    "memit": "its ridge trades the edit against everything else, and its clamp keeps the wanted value near",
    "rome": "its update meets v* at the bare prompt, so that a miss is one of the search for v*",
    "c-rome": "its update meets v* at the mean key behind prefixes, and the bare prompt has another key",
    "fc-rome": "as `c-rome`",
    "p-rome": "its update meets v* at the bare prompt, so that a miss is one of the search for v*",
    "r-rome": "as `c-rome`",
    "emmet": "with one request, as `c-rome`",
    "encore": "as `memit`, with one ridge more",
    "alphaedit": "only what a key has in the null space of ordinary ones is edited, and a ridge holds that back too",
    "d4s": "as `memit`, but that on several layers it takes more than the whole step",
}
told = [
    f"- `{method}`: {edited.at[method, 'efficacy_em_tf']:.2f}; misses: {counts.at[method, 'misses']}, with every step used: "
    f"{counts.at[method, 'every step used']}. By construction, {limits[method]}."
    for method in short
]
Markdown(
    f"**Finding.** {counts['every step used'].sum()} of all {len(missed)} misses used every step allowed, and "
    f"{counts['missed by most'].sum()} concern cases that most methods miss. Efficacy (`em_tf`) below {wanted:g}: "
    + ("\n" + "\n".join(told) if told else "no method.")
)

# %% [markdown]
# ## What do the lineages' settings change?

# %% tags=["hide-input"]
flavours = frame[frame["method"].isin(["rome", "c-rome", *flavoured])].groupby("method", sort=False)
compared = flavours[[*trio, "rise", "collapsed"]].agg(
    {**dict.fromkeys(trio, "mean"), "rise": "max", "collapsed": "sum"}
)
compared.style.format("{:.2f}", subset=trio).format(percent, subset=["rise"])

# %% tags=["hide-input"]
spread = compared[trio].max() - compared[trio].min()
Markdown(
    f"**Finding.** Between these settings efficacy differs by up to {spread.iloc[0]:.2f}, generalization by "
    f"{spread.iloc[1]:.2f}, locality by {spread.iloc[2]:.2f}; {compared['collapsed'].sum()} of their edits collapse the model."
)

# %% [markdown]
# ## Where would causal tracing edit?
#
# Noise hides the subject; restoring the MLP of one layer brings part of the true answer back {cite}`meng2022locating`. The
# layer that brings most back at the subject's last token is the proposal: a place to start from, to be checked by edits.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Heat map: what restoring each layer's MLP brings back of the probability of the true answer, by group of tokens, with a frame around the proposed layer."}}
requests = [case.request for case in everything]
Random(seed).shuffle(requests)
try:
    trace = el.causal_trace(lm, requests, n=traced, seed=seed)
    figure = plot.layers(trace.effects, proposed=trace.proposed, facts=trace.facts)
    figure.savefig("figures/layers.png")
except el.EditlibError as error:  # it knows none of them
    trace = None
    print(error)

# %% tags=["hide-input"]
Markdown(
    f"**Finding.** Tracing {trace.facts} facts proposes layer {trace.proposed}; above, ROME edits layer "
    f"{presets['rome'].layer}."
    if trace
    else "**Finding.** There is no fact to trace."
)


# %% tags=["hide-input"]
def named(columns: pd.DataFrame) -> dict[str, float]:
    rows = columns.rename(index=lambda method: method.replace(", ", "_").replace("-", "_"))
    return {f"{method}_{name}": float(value) for (method, name), value in rows.stack(future_stack=True).items()}


grouped = frame.groupby("method", sort=False)
rises = 100 * grouped["rise"].agg(median_rise_percent="median", worst_rise_percent="max")
metrics = {
    "cases": n,
    "methods": len(presets),
    "reached": len(reached),
    "short": ", ".join(short) or "none",
    "failed": len(failed),
    "collapsed": int(main["collapsed"].sum()),
    "misses": len(missed),
    "misses_every_step": int(counts["every step used"].sum()),
    "facts_traced": trace.facts if trace else 0,
    **named(means.loc[["unedited"]]),
    **named(grouped[list(unedited.columns)].mean()),
    **named(rises.round(2)),
    **named(clock.rename("seconds").to_frame()),
}
if trace:
    effects = ", ".join(f"{effect:.3f}" for effect in trace.effects[DECIDING])
    metrics |= {"traced_layer": trace.proposed, "traced_effects": effects}
record(metrics, hparams={model: variants}, moments={model: moments})
