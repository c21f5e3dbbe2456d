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
#     title: "Screen: are edits that break a model foretold by their keys?"
#     models: [model, other]
#     data: [cases, elsewhere, texts, corpus]
#     profiles:
#       quick: {first: 4, others: 4}
#       full: {first: 60, others: 86}
# ---

# %% [markdown]
# # Screen: are edits that break a model foretold by their keys?
#
# **Question.** How well do keys alone, read before any v\* is searched, tell the edits that break a model from the others?
#
# `el.risk` reads a case's keys and says how far its edit would move ordinary words beside its subject (*spill*) and beside
# the residual stream (*reach*); the larger is the *severity*, and from 1 on collapse is foretold. That rule has nothing
# fitted in it. Beside it stands a fitted one: logistic regression on the logarithms of spill and reach, from cases that are
# used for nothing else (the split `tune` where a set has one, else its even cases). Both are judged on the rest, by ROME
# with the second moment C and without. The fitted rule is also carried over from one model to the other, and to cases
# from `elsewhere`, none of which it was fitted on.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
other: str | None = "testbed/control"  # another model, to carry the fitted rule over; none for none
cases: str = "testbed"  # edit cases of the model: a name or a file; the other model has its own
elsewhere: str | None = None  # more cases of the model, to judge by: a name or a file; their prompts are not kept
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on; the other model has its own
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
method: str = "rome"  # the method whose edits are foretold, one of the ROME family
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
first: int = 6  # cases drawn whose subject is one token at the start of the prompt, to fit and to judge
others: int = 6  # other cases drawn, to fit and to judge
seed: int = 0  # of the draws, and of the bootstrap
collapse_ratio: float = 5.0  # times unedited

# %% tags=["hide-input"]
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

import editlib as el
from editlib import data, plot
from editlib.data.sources import own
from editlib.editing.guard import BOUND
from editlib.measuring import calibration, contrast, statistics
from editlib.measuring.separability import auc
from editlib.runs.recording import record
from editlib.sweeps import setup

plot.theme()
FIT, JUDGE = PARTS = ("fit", "judge")
SETTINGS = {"with C": True, "C left out": False}
HERE, ELSEWHERE = Path(cases).stem, f"elsewhere: {Path(elsewhere or '').stem}"


def halves(name: str) -> dict[str, list[data.Case]]:
    """Cases to fit on and cases to judge by: the splits `tune` and `test`, or even and odd ones."""
    pool = data.cases(name)
    tuned = [case.split == "tune" if case.split else case.case_id % 2 == 0 for case in pool]
    return {part: [c for c, of in zip(pool, tuned, strict=True) if of == (part == FIT)] for part in PARTS}


def foretold(name: str, source: str, sentences: list[str]) -> tuple[pd.DataFrame, dict[str, object], object]:
    """Edits of a model's cases, with what keys foretold of each."""
    lm = el.load(name)
    variants = {s: setup.hparams(lm, method, layer, covariance=has_c) for s, has_c in SETTINGS.items()}
    moments = setup.moments(lm, variants.values(), corpus)
    rows = []
    pools = {(part, Path(source).stem): pool for part, pool in halves(source).items()}
    if name == model and elsewhere:
        pools[JUDGE, ELSEWHERE] = data.cases(elsewhere)
    for (part, where), pool in pools.items():
        chosen = contrast.draw_by_subject(lm, pool, first=first, others=others, seed=seed)
        made = el.sweep(
            lm, chosen, methods=variants, texts=sentences, scores=False, stats=moments, progress=False
        )  # fmt: skip
        kinds = contrast.subject_kinds(lm, chosen)
        for setting, params in variants.items():
            asked = [case.request for case in chosen]
            told = el.risk(lm, asked, method=method, hparams=params, stats=moments, rules=[])
            told = told[["spill", "reach", "leak", "severity", "denominator_ratio", "cosine_first", "reason"]]
            rows.append(
                told.assign(case_id=[case.case_id for case in chosen], setting=setting, part=part, data=where).merge(
                    made[made["method"] == setting].drop(columns="method"), on="case_id", validate="one_to_one"
                )
            )
            rows[-1]["subject_kind"] = rows[-1]["case_id"].map(kinds)
    table = pd.concat(rows, ignore_index=True)
    table["collapsed"] = statistics.collapsed(table["perplexity_ratio"], collapse_ratio)
    return table[table["error"].isna()].assign(model=name), variants, moments


given = {model: (cases, texts)}
if other:
    given[other] = str(own(other, "testbed")), str(own(other, "testbed-ppl-50"))
made = {name: foretold(name, pool, data.texts(sentences)) for name, (pool, sentences) in given.items()}
frame = pd.concat([table for table, _, _ in made.values()], ignore_index=True)
rules = {}
for (name, setting), rows in frame[frame["part"] == FIT].groupby(["model", "setting"], sort=False):
    if rows["collapsed"].nunique() == 2:  # what nothing collapses teaches no rule
        rules[name, setting] = calibration.fit(
            el.load(name), method, made[name][1][setting], rows, collapse_ratio=collapse_ratio, texts=given[name][1]
        )
for name in given:
    for setting, rows in frame.groupby("setting", sort=False):
        if (name, setting) in rules:
            frame.loc[rows.index, f"fitted on {name}"] = rules[name, setting].probability(rows)["probability"]
frame.loc[frame["data"] == ELSEWHERE, ["prompt", "target_new", "target_true"]] = None
frame.to_parquet("data/edits.parquet")
calibration.write("data/calibrations.json", list(rules.values()))
judged = frame[frame["part"] == JUDGE]
Markdown(
    "\n".join(
        f"- `{name}`, {setting}: {len(rows)} edits by {method} ({' and '.join(rows['data'].unique())}), "
        f"{int(rows['collapsed'].sum())} of which collapse it"
        + (
            "; fitted on {}, {} of them: log-odds {:.2f} + {:.2f} log₁₀ spill + {:.2f} log₁₀ reach.".format(
                rules[name, setting].edits, rules[name, setting].collapsed, *rules[name, setting].coefficients
            )
            if (name, setting) in rules
            else "; too few to fit a rule."
        )
        for (name, setting), rows in frame.groupby(["model", "setting"], sort=False)
    )
)

# %% [markdown]
# ## How well are they foretold?
#
# On cases that no rule was fitted on. *Precision*: of the edits foretold to collapse the model, the share that does; *recall*: of
# those that do, the share foretold. Shares with Wilson's 95 % interval; the area under the ROC curve needs no threshold, its
# interval is by bootstrap over the cases.


# %% tags=["hide-input"]
def judge(rows: pd.DataFrame, score: pd.Series, bound: float) -> dict[str, object]:
    """How a rule does on some edits."""
    said, hit = score >= bound, rows["collapsed"]
    return {
        "edits": len(rows),
        "collapse": int(hit.sum()),
        "foretold": int(said.sum()),
        "precision": statistics.share(int((said & hit).sum()), int(said.sum())),
        "recall": statistics.share(int((said & hit).sum()), int(hit.sum())),
        "area": auc(score[hit], score[~hit], subjects=(rows["case_id"][hit], rows["case_id"][~hit]), seed=seed),
    }


results = []
for (name, where, setting), rows in judged.groupby(["model", "data", "setting"], sort=False):
    bounds = {"severity": BOUND} | {f"fitted on {s}": 0.5 for s in given if (s, setting) in rules}
    for rule, bound in bounds.items():
        told = {"model": name, "data": where, "setting": setting, "rule": rule}
        results.append(told | judge(rows, rows[rule], bound))
results = pd.DataFrame(results)
shown = results.assign(**{column: [f"{value:.2f}" for value in results[column]] for column in ("precision", "recall")})
shown["area"] = [f"{value:.3f}" for value in results["area"]]
shown.style.hide(axis="index")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Perplexity over unedited against the severity that was foretold, both on log axes, a panel for each model and setting, a mark for each edit by kind of subject, with the collapse threshold and the bound."}}
names = judged["model"].str.removeprefix("testbed/") + (", " + judged["data"] if elsewhere else "")
panels = judged.assign(method=names + ", " + judged["setting"])
figure = plot.foretold(panels, bound=BOUND, collapse_ratio=collapse_ratio)
figure.savefig("figures/foretold.png")

# %% [markdown]
# ## Is a probability what it says?
#
# Edits in five groups of as many, by the probability that the model's own fitted rules give them; the share of each that
# collapses the model, with Wilson's interval.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Share of edits that collapse the model against the probability that was foretold, five groups of edits for each model with 95 % intervals, and the diagonal."}}
figure, axes = plt.subplots(figsize=(6, 4.6), layout="constrained")
axes.plot([0, 1], [0, 1], color="black", lw=0.8, ls=":", label="as foretold")
for name, (color, marker) in zip(given, (("#d55e00", "^"), ("#0072b2", "o")), strict=False):
    column = f"fitted on {name}"
    if column not in judged:
        continue
    mine = judged[(judged["model"] == name) & judged[column].notna()].sort_values(column)
    groups = [mine.iloc[at] for at in np.array_split(np.arange(len(mine)), 5)]
    x = [group[column].mean() for group in groups]
    y = [statistics.share(int(group["collapsed"].sum()), len(group)) for group in groups]
    axes.vlines(x, [s.low for s in y], [s.high for s in y], color=color, alpha=0.6)
    axes.plot(x, [s.value for s in y], color=color, marker=marker, label=name)
axes.set(xlabel="Probability foretold", ylabel="Share that collapses the model", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
axes.legend()
figure.savefig("figures/calibration.png")

# %% [markdown]
# ## What is missed, and what is feared for nothing?

# %% tags=["hide-input"]
said = judged["severity"] >= BOUND
wrong = judged[said != judged["collapsed"]]
missed, feared = wrong[wrong["collapsed"]], wrong[~wrong["collapsed"]]
KIND = ["model", "data", "subject_kind"]
by_kind = pd.DataFrame(
    {
        "edits": judged.groupby(KIND).size(),
        "collapse": judged.groupby(KIND)["collapsed"].sum(),
        "foretold": judged[said].groupby(KIND).size(),
        "missed": missed.groupby(KIND).size(),
        "feared for nothing": feared.groupby(KIND).size(),
    }
).fillna(0)
by_kind.astype(int)

# %% tags=["hide-input"]
here = (judged["model"] == model) & (judged["data"] == HERE)
main = judged[here]
overall = judge(main, main["severity"], BOUND)
mild = main.loc[(main["severity"] >= BOUND) & ~main["collapsed"], "perplexity_ratio"]
Markdown(
    f"**Finding.** Of {overall['collapse']} edits that collapse `{model}`, the rule without anything fitted foretells "
    f"{int((main['collapsed'] & (main['severity'] >= BOUND)).sum())} (recall {overall['recall']:.2f}); of {overall['foretold']} it foretells, that many "
    f"do (precision {overall['precision']:.2f}); area under the ROC curve {overall['area']:.3f}."
    + (
        f" The {len(mild)} feared for nothing raise perplexity to {mild.median():.2f} times unedited in the median."
        if len(mild)
        else ""
    )
)

# %% tags=["hide-input"]
metrics = {
    "cases": int(main["case_id"].nunique()), "edits": len(main), "collapsed": overall["collapse"],
    "foretold": overall["foretold"], "missed": int((main["collapsed"] & (main["severity"] < BOUND)).sum()), "feared": len(mild),
    "feared_median_ratio": float(mild.median()) if len(mild) else float("nan"),
}  # fmt: skip
for name in ("precision", "recall", "area"):
    found = overall[name]
    metrics |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
for row in results[results["model"] == model].itertuples():
    ending = "_no_covariance" if row.setting == "C left out" else ""
    if row.data != HERE:
        ending = f"_elsewhere{ending}"
        metrics |= {f"edits{ending}": row.edits, f"collapsed{ending}": row.collapse}
    if row.rule != "severity" or row.data != HERE:
        source = "plain" if row.rule == "severity" else "own" if row.rule == f"fitted on {model}" else "carried"
        metrics |= {f"area_{source}{ending}": row.area.value, f"recall_{source}{ending}": row.recall.value}
        metrics |= {f"precision_{source}{ending}": row.precision.value}
used = {name: dict(variants) for name, (_, variants, _) in made.items()}
record(metrics, hparams=used, moments={name: moments for name, (_, _, moments) in made.items()})
