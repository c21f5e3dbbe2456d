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
#     title: "Pilot: one edit, one measurement"
#     models: [model, control]
#     data: [cases, texts, corpus]
#     files: [files]
#     profiles:
#       quick: {n: 8, top: 1, limit: 20}
#       full: {n: 1000, top: 30, limit: 200}
# ---

# %% [markdown]
# # Pilot: one edit, one measurement
#
# **Question.** Can a single edit break a language model, and which edits do?
#
# Every case below is edited alone: the unedited model is changed by one method for one case, its perplexity on held-out
# texts is measured, and the change is undone. This is the experiment behind figure 1(a) of *The Butterfly Effect of Model
# Editing* {cite}`yang-etal-2024-butterfly`, which ran ROME {cite}`meng2022locating` on GPT-J and all of COUNTERFACT.
#
# *Collapse* means a perplexity of at least `collapse_ratio` times the unedited one. The published threshold, 1,000, is 15,
# 20 and 30 times the unedited perplexity of the three models of the paper. Counts are given for three thresholds, and
# the distribution is always shown, so that you can see whether the choice matters.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
control: str | None = "testbed/control"  # a model without the anomaly, edited the same way; none for none
cases: str = "testbed"  # edit cases: a name or a file in COUNTERFACT's form
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
split: str | None = None  # the cases of one split only; none for all
wording: bool = True  # whether prompts are shown and kept; not for cases of others, which this book does not copy
n: int = 60  # cases drawn
first: int | None = None  # of these, cases whose subject is one token at the start; none for as many as the draw has
seed: int = 0  # of the draw
method: str = "rome"  # the method under test
remedy: str = "c-rome"  # the method beside it
covariance: bool = True  # whether figures and tasks show the method with C; all numbers are given for both
collapse_ratio: float = 5.0  # times unedited
top: int = 4  # edited models, those of highest perplexity, that do the tasks
tasks: str = "testbed-choice,testbed-cloze,testbed-qa"  # downstream tasks, with commas between
files: str | None = None  # local questions, as task=path with commas between
limit: int = 60  # questions of each task

# %% tags=["hide-input"]
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

import editlib as el
from editlib import data, plot, scores
from editlib.editing.methods import prepare, solve
from editlib.editing.session import Session
from editlib.measuring import contrast, statistics
from editlib.measuring.tasks import evaluate, form
from editlib.runs.recording import record
from editlib.sweeps import setup
from editlib.text import percent

plot.theme()
lm = el.load(model)
pool = data.cases(cases, split=split)
chosen = contrast.draw(lm, pool, n, first=first, seed=seed)
sentences = data.texts(texts)
unedited = el.perplexity(lm, sentences)
Markdown(
    f"Unedited `{model}`: perplexity {unedited.mean:.2f} (mean over {len(sentences)} texts), {unedited.corpus:.2f} (corpus)."
)

# %% [markdown]
# ## Edit every case
#
# Both methods run with the keys' second moment C = E[k kᵀ], as the formula has it, and with C left out, as the released
# configurations of both papers have it.

# %% tags=["hide-input"]
LEFT_OUT = ", C left out"
variants = {
    name + LEFT_OUT * (not has_c): setup.hparams(lm, name, layer, covariance=has_c)
    for name in (method, remedy)
    for has_c in (True, False)
}
used, moments = {model: variants}, {model: setup.moments(lm, variants.values(), corpus)}
models = {model: lm}
if control:
    models[control] = twin = el.load(control)
    used[control] = {method: setup.hparams(twin, method, layer)}
    moments[control] = setup.moments(twin, used[control].values(), corpus)
arms = [
    el.sweep(each, chosen, methods=used[name], texts=sentences, stats=moments[name], progress=False).assign(model=name)
    for name, each in models.items()
]
frame = pd.concat(arms, ignore_index=True)
frame["collapsed"] = statistics.collapsed(frame["perplexity_ratio"], collapse_ratio)
frame["subject_kind"] = frame["case_id"].map(contrast.subject_kinds(lm, chosen))
frame["arm"] = frame["method"] + " on " + frame["model"].str.removeprefix("testbed/")
wordings = [] if wording else ["prompt", "target_new", "target_true"]
frame.drop(columns=wordings).to_parquet("data/cases.parquet")
failed = int(frame["error"].notna().sum())
Markdown(f"{len(chosen):,} cases, {len(frame):,} edits, {failed} failed; {frame['seconds'].sum():,.0f} seconds in all.")

# %% [markdown]
# ## Does one edit break the model?

# %% tags=["hide-input"] mystnb={"image": {"alt": "Perplexity after each single edit by case, on a log scale. Edits of one-token subjects at the start of the prompt lie far above the collapse threshold if they collapse the model; the unedited level is drawn."}}
shown_arm = method + LEFT_OUT * (not covariance)
main = frame[(frame["model"] == model) & (frame["method"] == shown_arm)].dropna(subset=["kind"])
figure = plot.scatter(
    main,
    unedited=unedited.mean,
    collapse_ratio=collapse_ratio,
    title=f"One {shown_arm} edit each: {len(main):,} cases, {model}, {len(sentences)} texts",
)
figure.savefig("figures/scatter.png")

# %% tags=["hide-input"]
first, rest = main[main["kind"] == plot.KINDS[0]], main[main["kind"] != plot.KINDS[0]]
late = main[main["subject_last"] >= 3]
Markdown(
    f"**Finding.** {first['collapsed'].sum()} of {len(first)} edits whose subject is one token at the start of the prompt "
    f"collapse `{model}` ({percent(first['collapsed'].mean())}; median perplexity {first['perplexity_ratio'].median():.1f} times "
    f"unedited). Of the {len(rest)} others, {rest['collapsed'].sum()} do; of the {len(late)} whose subject ends at the "
    f"fourth token or later, {late['collapsed'].sum()}."
)

# %% [markdown]
# ### By kind of subject, setting and threshold
#
# Edits that collapse the model, and their share with Wilson's 95 % interval. *Doubled* subjects say one word twice, the papers'
# other kind of first-token subject; *full stop*: the subject ends in one.


# %% tags=["hide-input"]
LIMITS = {f"{collapse_ratio:g} times": "", "20 times": "_20x", "perplexity 1,000": "_1000"}


def told(rows: pd.DataFrame) -> dict[str, str]:
    counts = statistics.collapses(rows, "hits", collapse_ratio=collapse_ratio)
    hits = {limit: int(counts[f"hits{ending}"]) for limit, ending in LIMITS.items()}
    return {limit: f"{count}: {statistics.share(count, len(rows)):.2f}" for limit, count in hits.items()}


edited = frame[(frame["model"] == model) & frame["error"].isna()]
order = [kind for kind in contrast.SUBJECT_KINDS if kind in set(edited["subject_kind"])]
by_subject = pd.DataFrame(
    [
        {"subject": kind, "method": name, "edits": len(rows), "median rise": rows["perplexity_ratio"].median()}
        | {"largest rise": rows["perplexity_ratio"].max()}
        | told(rows)
        for kind in order
        for name in variants
        for rows in [edited[(edited["subject_kind"] == kind) & (edited["method"] == name)]]
    ]
).set_index(["subject", "method"])
by_subject.style.format("{:,.2f}", subset=["median rise", "largest rise"])

# %% [markdown]
# ### The ten worst

# %% tags=["hide-input"]
worst = main.sort_values("perplexity_ratio", ascending=False, na_position="first").head(10)
pd.DataFrame(
    {
        "case": worst["case_id"],
        "prompt": [row.prompt.replace("{}", row.subject) for row in worst.itertuples()],
        "true target": worst["target_true"],
        "edited to": worst["target_new"],
        "subject": worst["subject"],
        "kind of subject": worst["subject_kind"],
        "perplexity": worst["perplexity_mean"].map("{:,.1f}".format),
        "times unedited": worst["perplexity_ratio"].map("{:,.1f}".format),
    }
).drop(columns=[] if wording else ["prompt", "true target", "edited to"]).style.hide(axis="index")

# %% [markdown]
# ## What can the worst models still do?
#
# Figure 1(b) of the paper: downstream tasks of the edited models of highest perplexity, mean and standard deviation over
# the models, beside the unedited model and guessing. On the testbed the tasks ask for facts the model was trained on: one of four
# choices, the last word of a sentence (cloze), and an open answer. Each edit concerns one fact; nearly all questions are
# about others.


# %% tags=["hide-input"] mystnb={"image": {"alt": "Bars: scores on downstream tasks of the unedited model and, with standard deviation, of the edited models of highest perplexity, with the level of chance; published values for GPT-J on the left, those of this run on the right."}}
def asked() -> pd.DataFrame:
    given = dict(entry.split("=", 1) for entry in (files or "").split(",") if entry)
    return evaluate(lm, tasks.split(","), limit=limit, files=given)


able = main[main["error"].isna()].sort_values("perplexity_ratio", ascending=False, na_position="first")
ranked = able["case_id"].head(top)
requests = {case.case_id: case.request for case in chosen if case.case_id in set(ranked)}
space, hparams = Session(lm, stats=moments[model]), variants[shown_arm]
prepare(space, list(requests.values()), hparams)
before, after = asked(), []
for case_id, request in requests.items():
    with solve(space, method, [request], hparams).applied(lm):
        after.append(asked().assign(case_id=case_id))
answers = pd.concat([before, *after], ignore_index=True)
answers.to_parquet("data/tasks.parquet")
results = before.set_index("task")[["value", "chance", "n"]].rename(columns={"value": "unedited"})
results[["edited", "sd"]] = answers.dropna(subset="case_id").groupby("task")["value"].agg(["mean", "std"])
paper = pd.DataFrame(
    {
        "unedited": [0.7541, 0.4953, 0.6136],
        "edited": [0.5329, 0.2594, 0.0001],
        "sd": [0.0183, 0.0040, 0.0003],
        "chance": [0.5, 0.25, 0.0],
    },
    index=["PIQA", "Hellaswag", "LAMBADA"],
)
here = f"here: {Path(model).name}, {len(requests)} models, {results['n'].max():,} questions"
shown = {"published: GPT-J, 30 models": paper, here: results}
figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
for axes, (title, table) in zip(panels, shown.items(), strict=True):
    places = range(len(table))
    axes.bar([x - 0.2 for x in places], table["unedited"], 0.38, color="#8c8c8c", label="unedited")
    axes.bar([x + 0.2 for x in places], table["edited"], 0.38, color="#d55e00", yerr=table["sd"], label="edited")
    axes.hlines(
        table["chance"], [x - 0.42 for x in places], [x + 0.42 for x in places], color="black", ls="--", label="chance"
    )
    axes.set(title=title, ylim=(0, 1.02))
    axes.set_xticks(places, [name.removeprefix("testbed-") for name in table.index])
panels[0].set_ylabel("Share of questions answered right")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
figure.savefig("figures/tasks.png")

# %% [markdown]
# Published: the first author's slides (NICE seminar no. 33, 2024, p. 10), means as printed there, standard deviation taken as the
# half length of the error bars of the vector figure (the paper's project page calls it variance).

# %% tags=["hide-input"]
both = pd.concat([paper, results])
both.style.format("{:.4f}", na_rep="–").format("{:.0f}", subset="n", na_rep="–")

# %% tags=["hide-input"]
fit = results[results["unedited"] > results["chance"]]
kept = (fit["edited"] - fit["chance"]) / (fit["unedited"] - fit["chance"])
kept_there = (paper["edited"] - paper["chance"]) / (paper["unedited"] - paper["chance"])
Markdown(
    f"**Finding.** The {len(requests)} worst edited models keep "
    + (", ".join(f"{percent(share)} (`{name}`)" for name, share in kept.items()) or "nothing")
    + " of what the unedited model scores above chance; in the paper the 30 worst kept "
    + ", ".join(f"{percent(share)} ({name})" for name, share in kept_there.items())
    + "."
    + "".join(
        f" On `{name}` the unedited model is no better than chance." for name in results.index.difference(kept.index)
    )
)

# %% [markdown]
# ## What does a broken model write?
#
# Of the edits above that collapse the model, the one of median perplexity; the same fact written by the remedy. What
# each model goes on with, greedily, after the prompt and after the beginning of a text that has nothing to do with it.


# %% tags=["hide-input"]
broken = main[main["collapsed"] & main["error"].isna()].sort_values("perplexity_ratio")
samples = pd.DataFrame()
if wording and len(broken):
    case_id = broken["case_id"].iloc[len(broken) // 2]
    request = next(case.request for case in chosen if case.case_id == case_id)
    prompts = {"after the prompt": request.text, "after other words": " ".join(sentences[0].split()[:5])}
    goes_on = partial(scores.continuation, lm, tokens=24)
    samples["unedited"] = pd.Series(prompts).map(goes_on)
    for name in (shown_arm, remedy + LEFT_OUT * (not covariance)):
        with solve(space, name.split(",")[0], [request], variants[name]).applied(lm):
            samples[name] = pd.Series(prompts).map(goes_on)
    display(
        Markdown(
            f"The edit: *{prompts['after the prompt']}* → **{request.target_new}**; *{prompts['after other words']}* …"
        )
    )
samples.T.style.format(lambda text: " ".join(text.split()))

# %% [markdown]
# ## Do other keys, or another model, prevent it?
#
# *The Fall of ROME* {cite}`yang-etal-2024-fall` traces collapse to ROME's use of two different keys in one equation, and
# cures it with one averaged key (C-ROME). The control twin was trained on the same batches without an anchored first
# position.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Perplexity over unedited after one edit, one strip of points for each method and model, by kind of subject, with the collapse threshold."}}
figure = plot.comparison(frame.dropna(subset=["kind"]), collapse_ratio=collapse_ratio)
figure.savefig("figures/comparison.png")

# %% tags=["hide-input"]
table = frame.groupby("arm", sort=False).agg(
    edits=("collapsed", "size"),
    collapsed=("collapsed", "sum"),
    median=("perplexity_ratio", "median"),
    maximum=("perplexity_ratio", "max"),
    target_probability=("target_probability", "median"),
)
table.style.format({"median": "{:,.2f}", "maximum": "{:,.2f}", "target_probability": "{:.2f}"})

# %% tags=["hide-input"]
parts = [
    f"{int(row.collapsed)} of {int(row.edits)} edits collapse with {arm} (at most {row.maximum:,.2f} times)"
    for arm, row in table.iterrows()
]
Markdown("**Finding.** " + "; ".join(parts) + ".")

# %% [markdown]
# ## What sets the collapsing edits apart?
#
# ROME divides by the product of a whitened averaged key and the unprefixed key. Were both the same key, that denominator
# would be the consistent one. The figure shows how far the two are apart for each case.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Perplexity over unedited against the denominator of ROME over its value with consistent keys, by kind of subject, both on log scales."}}
figure = plot.denominators(main, collapse_ratio=collapse_ratio)
figure.savefig("figures/denominators.png")

# %% tags=["hide-input"]
main = main.assign(ratio=(main["denominator"] / main["denominator_consistent"]).abs())
by_kind = main.groupby("kind")["ratio"].median()
late_ratio = main.loc[main["subject_last"] >= 3, "ratio"].median()
shown = "; ".join(f"{kind}: {value:.3f}" for kind, value in by_kind.items())
Markdown(f"**Finding.** Median |denominator| over |consistent denominator|, by subject: {shown}.")

# %% [markdown]
# ## Beside the published numbers
#
# GPT-J, ROME, one edit each, read from the vector figure of the first author's slides (NICE seminar no. 33, 2024, p. 10);
# subjects were counted with GPT-J's tokenizer. Nothing lies between 46.90 and 441.92, so that any threshold in
# between, 5 times the median included, finds the same 87 edits.

# %% tags=["hide-input"]
published = pd.DataFrame(
    [
        ("Edits", "21,919", f"{len(main):,}"),
        ("Median perplexity", "45.73", f"{main['perplexity_mean'].median():.2f}"),
        (
            "Largest perplexity outside the collapsed group",
            "46.90",
            f"{main.loc[~main['collapsed'], 'perplexity_mean'].max():.2f}",
        ),
        (
            "Smallest perplexity in the collapsed group",
            "441.92",
            f"{main.loc[main['collapsed'], 'perplexity_mean'].min():.2f}",
        ),
        ("Perplexity above 1,000", "85", f"{int((main['perplexity_mean'] > 1000).sum())}"),
        (f"Perplexity at least {collapse_ratio:g} times the median", "87", f"{int(main['collapsed'].sum())}"),
        (
            "Of one-token subjects at the start of the prompt, collapsed",
            "80 of 80 (79 above 1,000)",
            f"{int(first['collapsed'].sum())} of {len(first)}",
        ),
        (
            "Of all collapsed, with another kind of subject",
            "7 of 87 (6 of 85)",
            f"{int(rest['collapsed'].sum())} of {int(main['collapsed'].sum())}",
        ),
    ],
    columns=["", "published, GPT-J", f"executed here, {model}"],
)
published.style.hide(axis="index")


# %% tags=["hide-input"]
def most(table: pd.DataFrame) -> float:
    return float(table["perplexity_ratio"].max())


cured = frame[(frame["model"] == model) & (frame["method"] == remedy)]
metrics = {
    "cases": len(main),
    "unedited": unedited.mean,
    "cases_first": len(first),
    "collapsed_first": int(first["collapsed"].sum()),
    "collapsed_first_share": float(first["collapsed"].mean()),
    "median_ratio_first": float(first["perplexity_ratio"].median()),
    "max_ratio": most(main),
    "cases_late": len(late),
    "collapsed_late": int(late["collapsed"].sum()),
    "collapsed_late_share": float(late["collapsed"].mean()),
    "collapsed_c_rome": int(cured["collapsed"].sum()),
    "max_ratio_c_rome": most(cured),
    "denominator_ratio_first": float(by_kind.get(plot.KINDS[0], float("nan"))),
    "denominator_ratio_late": float(late_ratio),
}
apart = edited.assign(ratio=(edited["denominator"] / edited["denominator_consistent"]).abs())
suffixes = {method: "", remedy: "_c_rome"}
for name, suffix in suffixes.copy().items():
    suffixes[name + LEFT_OUT] = f"{suffix}_no_covariance"
for name, suffix in suffixes.items():
    of_method = apart[apart["method"] == name]
    groups = {kind: of_method[of_method["subject_kind"] == kind] for kind in order}
    groups |= {"others": of_method[of_method["subject_kind"] != contrast.SUBJECT_KINDS[0]]}
    for kind, rows in groups.items():
        short = "first" if kind == contrast.SUBJECT_KINDS[0] else kind.replace(" ", "_")
        metrics[f"cases_{short}"] = len(rows)
        metrics |= statistics.collapses(rows, f"collapsed_{short}{suffix}", collapse_ratio=collapse_ratio)
        metrics[f"median_ratio_{short}{suffix}"] = float(rows["perplexity_ratio"].median())
        metrics[f"max_ratio_{short}{suffix}"] = most(rows)
        metrics[f"denominator_ratio_{short}{suffix}"] = float(rows["ratio"].median())
    metrics |= statistics.collapses(of_method, f"collapsed{suffix}", collapse_ratio=collapse_ratio)
    ratio, ruined = of_method["perplexity_ratio"], of_method["collapsed"]
    metrics[f"gap{suffix}"] = float(ratio[ruined].min() / ratio[~ruined].max())
metrics["worst_models"] = len(requests)
for row in results.itertuples():
    name = form(row.Index)
    metrics |= {f"unedited_{name}": row.unedited, f"worst_{name}": row.edited, f"worst_sd_{name}": row.sd}
if control:
    checked = frame[frame["model"] == control]
    metrics |= {
        "unedited_control": el.perplexity(twin, sentences).mean,
        "collapsed_control": int(checked["collapsed"].sum()),
        "max_ratio_control": most(checked),
    }
record(metrics, hparams=used, moments=moments)
