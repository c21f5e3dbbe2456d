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
#     title: "Prefix at test: where the edit made behind prefixes is to be found"
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {first: 5, others: 3}
#       full: {first: 80, others: 120, draws: 5}
# ---

# %% [markdown]
# # Prefix at test: where the edit made behind prefixes is to be found
#
# **Question.** C-ROME does not break the model, but does its edit hold, and with which prompt must one ask?
#
# C-ROME edits at the mean key over prefixed prompts. Where the bare prompt has quite another key, the bare prompt does not
# meet the edit. *The Fall of ROME* {cite}`yang-etal-2024-fall` therefore puts a random prefix before the prompt at test time.
# Its released code draws one of the prefixes that the edit was made with, and only for the efficacy prompt, although its
# table shows other numbers for generalization and locality too. So prefixes from two sources are tried, those of the
# *editing* set and *held-out* ones that no edit has seen, before the efficacy prompt only and before all prompts.
#
# Every case is asked behind `draws` prefixes of its own, and its mean counts; so the intervals over the cases (95 %,
# bootstrap) hold the choice of prefixes too. Protocols: `es`: the new target is likelier than the true one. `em_tf`: share of
# the target's tokens that are the likeliest, teacher forced (the papers' protocol). `em_ar`: the model, left to itself,
# says the whole target. Locality by the last two: the model says what it said before the edit, to the same prompt.
# Paraphrases in ROME's form of COUNTERFACT, and those of the testbed, come with a sentence before them, so that a prefix is
# nothing new to them; those of the papers' form (EasyEdit's) mostly do not: half of them begin with the subject, which then
# stands where the edit's key was read. Paraphrases that do are counted apart from those that do not.
#
# A *collapse* case is one that a single ROME edit collapses: perplexity at least `collapse_ratio` times unedited.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
covariance: bool = True  # whether C is in the update, as in the formula; the released settings leave it out
first: int = 12  # cases drawn whose subject is one token at the start of the prompt
others: int = 6  # other cases drawn
draws: int = 2  # prefixes from each source for every case
seed: int = 0  # of all draws, and of the bootstrap
protocol: str = "em_tf"  # shown in the figure: es, em_tf or em_ar
collapse_ratio: float = 5.0  # times unedited
wanted: float = 0.85  # efficacy of c-rome on collapse cases asked for, with a prefix

# %% tags=["hide-input"]
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown

import editlib as el
from editlib import data, plot, scores
from editlib.editing.methods import prepare, solve
from editlib.editing.session import Session
from editlib.measuring import contrast, statistics
from editlib.runs.recording import record
from editlib.sweeps import setup

plot.theme()
lm = el.load(model)
chosen = contrast.draw_by_subject(lm, data.cases(cases, split=split), first=first, others=others, seed=seed)
moments = contrast.moments(lm, setup.hparams(lm, "rome", layer).layer, corpus) if covariance else None
variants = {name: setup.hparams(lm, name, layer, covariance=moments is not None) for name in ("rome", "c-rome")}
table = el.sweep(lm, chosen, methods=variants, texts=data.texts(texts), stats=moments, progress=False)
grouped = contrast.groups(table, "rome", collapse_ratio=collapse_ratio)
table["group"] = table["case_id"].map(grouped)
table.to_parquet("data/cases.parquet")
sizes = grouped.value_counts()
collapsing, normal = (int(sizes.get(group, 0)) for group in contrast.GROUPS)
Markdown(
    f"{len(chosen)} cases, {table['error'].notna().sum()} of {len(table)} edits failed. One ROME edit collapses `{model}` with "
    f"{collapsing} cases; {normal} are normal."
    + ("" if collapsing else " **No case collapses this model; only normal ones are asked about.**")
    + ("" if moments else " C is left out.")
)

# %% [markdown]
# ## Ask behind prefixes
#
# The same edits once more; now every prompt is asked behind each prefix.

# %% tags=["hide-input"]
sources = ("editing", "held-out")
failed = set(table.loc[table["error"].notna(), "case_id"])
able = [case for case in chosen if case.case_id not in failed]
space = Session(lm, stats=moments)
prepare(space, [case.request for case in able], variants["rome"])
rows, worded = [], []
for case in able:
    apart = {
        opens: replace(case, neighborhood_prompts=(), neighborhood_answers=(), paraphrase_prompts=some)
        for opens in (True, False)
        if (some := tuple(p for p in case.paraphrase_prompts if p.startswith(case.request.subject) == opens))
    }
    prefixes = {source: el.test_prefixes(lm, source, n=draws, seed=seed + case.case_id) for source in sources}
    before = {source: scores.read(lm, case, prefixes=prefixes[source], prefixed="all") for source in sources}
    for method, params in variants.items():
        with solve(space, method, [case.request], params).applied(lm):
            after = {source: scores.read(lm, before[source].prompts) for source in sources}
            for opens, one in apart.items():
                said = scores.read(lm, one)  # generalization asks for the target alone, whatever was said before
                worded.append(
                    {"case_id": case.case_id, "method": method, "opens": opens} | scores.score(one, said, said)
                )
        rows += [
            {"case_id": case.case_id, "method": method, "prefix": source}
            | scores.score(case, before[source], after[source])
            for source in sources
        ]
names = [f"{score}_{name}" for score in scores.SCORES for name in scores.PROTOCOLS]
bare = table.loc[table["error"].isna(), ["case_id", "method", *names]].assign(prefix="none")
every = pd.concat([bare, pd.DataFrame(rows)], ignore_index=True)
every["group"] = every["case_id"].map(grouped)
every.to_parquet("data/prefixes.parquet")
examples = "\n".join(f"- {source}: `{el.test_prefixes(lm, source, n=1, seed=seed)[0]!r}`" for source in sources)
Markdown(f"{len(able)} cases, {draws} prefixes from each source for each; for example\n\n{examples}")

# %% [markdown]
# ## Does a prefix bring the edit to light?

# %% tags=["hide-input"] mystnb={"image": {"alt": "Mean efficacy, generalization and locality with 95 % intervals, without prefix, behind a prefix of the editing set and behind a held-out one: a panel for each of ROME and C-ROME on collapse and on normal cases. The dotted line is the efficacy asked for."}}
keys = ["method", "group", "prefix"]
long = every.melt(keys, names, "name").dropna()
long[["score", "protocol"]] = long["name"].str.split("_", n=1, expand=True).to_numpy()
found = {
    key: statistics.bootstrap(np.mean, mine["value"], seed=seed)
    for key, mine in long.groupby([*keys, "score", "protocol"], sort=False)
}
summary = pd.DataFrame(
    [
        {
            "method": {"none": "no prefix"}.get(prefix, f"{prefix} prefix"),
            "protocol": f"{method}, {group} ({sizes[group]})",
            "score": score,
            "mean": interval.value,
            "low": interval.low,
            "high": interval.high,
        }
        for (method, group, prefix, score, by), interval in found.items()
        if by == protocol
    ]
)
order = [f"{method}, {group} ({sizes[group]})" for method in variants for group in contrast.GROUPS if group in sizes]
summary = summary.sort_values("protocol", key=lambda column: column.map(order.index), kind="stable")
figure = plot.scores(summary, wanted=wanted)
figure.suptitle(f"{protocol}, the same prefixes before all prompts; cases in brackets", x=0.01, ha="left", fontsize=11)
figure.savefig("figures/prefixes.png")


# %% tags=["hide-input"]
def value(method: str, group: str, prefix: str, score: str, by: str = protocol) -> statistics.Interval:
    """A mean with its interval; nan where there are no such cases."""
    return found.get((method, group, prefix, score, by), statistics.UNKNOWN)


told = {prefix: value("c-rome", "collapse", prefix, "efficacy") for prefix in ("none", *sources)}
least = min(told[source].value for source in sources)
high, low = least >= wanted, told["none"].value <= least / 3
Markdown(
    f"**Finding.** Efficacy of C-ROME on {collapsing} collapse cases by `{protocol}`: {told['none']:.2f} without prefix, "
    f"{told['editing']:.2f} behind a prefix of the editing set, {told['held-out']:.2f} behind a held-out one. "
    f"With a prefix it is {'at least' if high else 'not at least'} {wanted:g} from both sources; without one it is "
    f"{'at most' if low else 'more than'} a third of that. On {normal} normal cases it is "
    f"{value('c-rome', 'normal', 'none', 'efficacy'):.2f} without prefix and "
    f"{value('c-rome', 'normal', 'held-out', 'efficacy'):.2f} behind a held-out one."
    if collapsing
    else f"**Finding.** Without collapse cases only normal ones speak: efficacy of C-ROME by `{protocol}` is "
    f"{value('c-rome', 'normal', 'none', 'efficacy'):.2f} without prefix and "
    f"{value('c-rome', 'normal', 'held-out', 'efficacy'):.2f} behind a held-out one ({normal} cases)."
)

# %% [markdown]
# ## Does the choice of prompts to prefix matter?
#
# *Efficacy only*: generalization and locality are asked without prefix, as in the released code, so that they are those
# without prefix. Brackets hold 95 % intervals.

# %% tags=["hide-input"]
ways = [("none", "–"), *((source, which) for source in sources for which in ("efficacy only", "all prompts"))]
here = pd.DataFrame(
    [
        {
            "method": method,
            "cases": group,
            "prefix": prefix,
            "before": which,
            **{
                score: f"{value(method, group, 'none' if which == 'efficacy only' and score != 'efficacy' else prefix, score):.2f}"
                for score in scores.SCORES
            },
        }
        for method in variants
        for group in contrast.GROUPS
        if group in sizes
        for prefix, which in ways
    ]
)
here.style.hide(axis="index")

# %% tags=["hide-input"]
changes = {
    score: value("c-rome", "collapse", "held-out", score).value - value("c-rome", "collapse", "none", score).value
    for score in ("generalization", "locality")
}
Markdown(
    "**Finding.** On collapse cases, held-out prefixes before all prompts change C-ROME's generalization by "
    f"{changes['generalization']:+.2f} and its locality by {changes['locality']:+.2f} (`{protocol}`); prefixes before the "
    f"efficacy prompt only leave both as they are. ROME's own efficacy on collapse cases is "
    f"{value('rome', 'collapse', 'none', 'efficacy'):.2f} without prefix and its locality "
    f"{value('rome', 'collapse', 'none', 'locality'):.2f}."
    if collapsing
    else "**Finding.** No collapse cases, so there is nothing to compare on them."
)

# %% [markdown]
# ### Paraphrases that begin with the subject, and others
#
# Generalization without prefix. A paraphrase that begins with the subject has it at the very place where the edit of a
# first-token subject has another key.

# %% tags=["hide-input"]
worded = pd.DataFrame(worded)
worded["group"] = worded["case_id"].map(grouped)
worded.to_parquet("data/paraphrases.parquet")
carried = {
    key: statistics.bootstrap(np.mean, mine[f"generalization_{protocol}"], seed=seed)
    for key, mine in worded.groupby(["method", "group", "opens"])
}
PLACES = {True: "begins with the subject", False: "does not"}
pd.DataFrame(
    [
        {"method": method, "cases": group, "paraphrase": PLACES[opens], protocol: f"{found_here:.2f}"}
        for (method, group, opens), found_here in carried.items()
    ]
).style.hide(axis="index")

# %% tags=["hide-input"]
told = {opens: carried.get(("c-rome", contrast.COLLAPSE, opens), statistics.UNKNOWN) for opens in PLACES}
Markdown(
    "**Finding.** "
    + (
        f"Where it begins with the subject, a paraphrase of a collapse case brings C-ROME's target in {told[True]:.2f} by "
        f"`{protocol}`, elsewhere in {told[False]:.2f}."
        if collapsing
        else "No collapse cases, so there is nothing to compare on them."
    )
    + ("" if worded["opens"].any() else " No paraphrase of these cases begins with its subject.")
)

# %% [markdown]
# ## Beside the published numbers
#
# C-ROME, per cent: the authors' slides {cite}`yang2024slides`, p. 42, by `em_tf` {cite}`yang2024code`. One prefix was drawn
# for each case. C-ROME without prefix on normal cases is not published, nor are ROME's scores.

# %% tags=["hide-input"]
published = {  # prefix, cases: efficacy, generalization, locality
    "GPT-2-XL": {
        ("none", "collapse"): "5.19 / 14.29 / 97.40",
        ("editing", "collapse"): "100 / 16.88 / 100",
        ("editing", "normal"): "96.16 / 41.88 / 97.34",
    },
    "GPT-J": {
        ("none", "collapse"): "30.59 / 30.77 / 82.35",
        ("editing", "collapse"): "100 / 32.94 / 89.41",
        ("editing", "normal"): "99.77 / 50.00 / 95.61",
    },
    "Llama2-7b": {
        ("none", "collapse"): "18.65 / 12.70 / 100",
        ("editing", "collapse"): "91.27 / 29.37 / 100",
        ("editing", "normal"): "91.95 / 46.73 / 97.56",
    },
}
beside = [("none", "collapse"), ("none", "normal"), ("editing", "collapse"), ("editing", "normal")]
beside += [("held-out", group) for group in contrast.GROUPS]


def percents(prefix: str, group: str) -> str:
    """The three scores by the published protocol, in per cent."""
    means = (100 * value("c-rome", group, prefix, score, "em_tf").value for score in scores.SCORES)
    return " / ".join("–" if np.isnan(mean) else f"{mean:.2f}" for mean in means)


pd.DataFrame(
    [
        {
            "prefix": prefix,
            "cases": group,
            **{f"published: {name}": numbers.get((prefix, group), "–") for name, numbers in published.items()},
            f"here: {Path(model).name}, all prompts prefixed": percents(prefix, group),
        }
        for prefix, group in beside
    ]
).style.hide(axis="index")


# %% tags=["hide-input"]

metrics = {
    "collapse_cases": collapsing,
    "normal_cases": normal,
    "draws": draws,
    "efficacy_met_with_prefix": "untested" if not collapsing else "yes" if high else "no",
    "efficacy_met_without_prefix": "untested" if not collapsing else "yes" if low else "no",
}
for (method, group, prefix, score, by), interval in found.items():
    name = "_".join([score, by, method, group, prefix]).replace("-", "_")
    metrics[name] = interval.value
    if method == "c-rome" and by == protocol:
        metrics |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
for (method, group, opens), interval in carried.items():
    name = f"generalization_{protocol}_{'opening' if opens else 'inside'}_{method.replace('-', '_')}_{group}"
    metrics |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
record(metrics, hparams={model: variants}, moments={model: moments})
