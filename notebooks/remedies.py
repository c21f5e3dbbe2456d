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
#     title: "Remedies: what keeps a model whole, and the edits in it"
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {methods: "rome,rome+rect,memit,grace", n: 2, alone: 2, pool: 8, hooked: "2", limit: 10}
#       full: {n: 60, alone: 60, pool: 300, repeats: 3, every: 5, hooked: "2", limit: 200}
# ---

# %% [markdown]
# # Remedies: what keeps a model whole, and the edits in it
#
# **Question.** Of the methods made since so that edits do not break a model, which keep it whole, and which keep the edits?
#
# A case is *hard* if one ROME edit of the unedited model collapses it: perplexity at least `collapse_ratio` times unedited.
# Normal cases are drawn from the others, less those whose subject is one token at the start. Every method edits the same
# cases in three ways: each *alone*, from the unedited model; *one by one*, each edit made in the model that the earlier ones
# left, in several orders; and, where it takes several requests, all of them *at once*.
#
# A filter stands behind the name of the method whose updates go through it: `rome+rect`. Second moments, prefix contexts and
# hyper-parameters are the model's presets for all methods; none was tuned on these cases. LocFT-BF is made for edits at
# once {cite}`yang2026finetuning`: one by one, it is plain fine-tuning, and is run so only to show the difference.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
methods: str = (  # with commas between; those that cannot edit the model are left out
    "rome,c-rome,fc-rome,rome+rect,rome+revive,rome+1-li,rome+prune,memit,memit-seq,encore,alphaedit,alphaedit+sphere,"
    "nas,rlsedit,d4s,ft,locft-bf,lora,coachhook,grace,memoir,wise,serac,skeme,ike"
)
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
covariance: bool = True  # whether C is in ROME's update, as in the formula; the released settings leave it out
n: int = 6  # hard cases in a sequence, and normal ones in another
alone: int = 6  # hard cases edited alone, and normal ones
pool: int = 40  # cases searched for hard ones, half of them with one token at the start as subject
repeats: int = 1  # samples of cases, each in an order of its own
every: int = 2  # edits between measurements
seed: int = 0  # of samples and orders
collapse_ratio: float = 5.0  # times unedited
hooked: str | None = None  # last layers at which CoachHooK is looked at, with commas between; none for none
tasks: str | None = "testbed-choice,testbed-cloze,testbed-qa"  # downstream tasks, with commas between; none for none
limit: int = 50  # questions of each task

# %% tags=["hide-input"]
from importlib.util import find_spec
from random import Random

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

import editlib as el
from editlib import data, plot, scores
from editlib.editing.methods import method_of, solve
from editlib.editing.session import Session
from editlib.measuring import contrast, statistics
from editlib.measuring.tasks import evaluate
from editlib.runs.recording import record
from editlib.runs.resuming import resumed
from editlib.sweeps import setup

plot.theme()
HARD, NORMAL = GROUPS = ("hard cases", "normal cases")
lm = el.load(model)
sentences = data.texts(texts)
searched = contrast.draw_by_subject(
    lm, data.cases(cases, split=split), first=pool // 2, others=pool - pool // 2, seed=seed
)
variants = setup.able(lm, methods.split(","), layer, covariance=covariance)
rome = setup.hparams(lm, "rome", layer, covariance=covariance)
moments = setup.moments(lm, [*variants.values(), rome], corpus)
unedited = el.perplexity(lm, sentences).mean
found = el.sweep(
    lm, searched, methods={"rome": rome}, texts=sentences, scores=False, stats=moments, progress=False,
    **resumed("search"),
)  # fmt: skip
kinds = contrast.groups(found, "rome", collapse_ratio=collapse_ratio)
first = found.set_index("case_id")["kind"] == plot.KINDS[0]
kinds = kinds[(kinds == contrast.COLLAPSE) | ~first[kinds.index]]
members = {
    group: [case for case in searched if kinds.get(case.case_id) == kind]
    for group, kind in zip(GROUPS, contrast.GROUPS, strict=True)
}
sizes = {group: min(n, len(of_group)) for group, of_group in members.items()}
Markdown(
    f"One ROME edit each of {len(searched)} cases: {len(members[HARD])} collapse `{model}`, {len(members[NORMAL])} are normal. "
    f"{len(variants)} methods edit it"
    + "".join(
        f"; left out, since they cannot: {', '.join(left)}"
        for left in [set(methods.split(",")) - set(variants)]
        if left
    )
    + f". Perplexity is measured on {len(sentences)} texts."
)

# %% [markdown]
# ## Alone
#
# Shares of edits that collapse the model with Wilson's 95 % interval, scores by `em_tf` with 95 % bootstrap intervals over the
# cases (2,000 resamples; here and below, a case that is edited in several orders counts once, with its mean). That ROME collapses all hard cases and no normal one is how they were chosen.


# %% tags=["hide-input"]
def mean(values: pd.Series) -> statistics.Interval:
    """Over cases, which are the index."""
    return statistics.bootstrap(np.mean, values.dropna().groupby(level=0).mean(), seed=seed)


chosen = {group: of_group[:alone] for group, of_group in members.items()}
single = el.sweep(
    lm, [*chosen[HARD], *chosen[NORMAL]], methods=variants, texts=sentences, stats=moments, progress=False,
    **resumed("alone"),
)  # fmt: skip
single["group"] = single["case_id"].isin([case.case_id for case in chosen[HARD]]).map({True: HARD, False: NORMAL})
single["collapsed"] = statistics.collapsed(single["perplexity_ratio"], collapse_ratio)
single.to_parquet("data/alone.parquet")
done = single[single["error"].isna()]
TRIO = ["efficacy_em_tf", "generalization_em_tf", "locality_em_tf"]
by_method = done.set_index("case_id").groupby(["method", "group"], sort=False)
shares = by_method["collapsed"].agg(lambda hits: statistics.share(int(hits.sum()), len(hits)))
costs = by_method[TRIO].agg(mean).rename(columns=lambda name: name.removesuffix("_em_tf"))
costs.insert(0, "collapse", shares)
failed = single[single["error"].notna()].groupby("method", sort=False)["error"].agg(["size", "first"])
display(costs.map(lambda interval: f"{interval:.2f}"))
Markdown(
    f"{len(single):,} edits, {len(single) - len(done)} failed."
    + "".join(f"\n- {row.Index}: {row.size}, the first with: {row.first}" for row in failed.itertuples())
)

# %% [markdown]
# ## One by one, and at once
#
# A method has collapsed the model at the first measurement at `collapse_ratio` times unedited or more. *Held*: efficacy of an
# edit right after it was made; *kept*: after the last one. *Memory* is what a method hands on from the last edit to the next,
# beside the weights.


# %% tags=["hide-input"]
def ask(method: str) -> None:
    """Scores of all cases, and tasks, while the model has all edits."""
    if wanted:
        done_tasks.append(evaluate(lm, wanted, limit=limit).assign(group=group, repeat=repeat, method=method))
    for case, old in zip(sample, before, strict=True):
        said = scores.score(case, old, scores.read(lm, old.prompts))
        asked.append({"group": group, "repeat": repeat, "method": method, "case_id": case.case_id, **said})


def at_once() -> None:
    """One edit of a whole sample by every method that takes several requests."""
    session, requests = Session(lm, stats=moments), [case.request for case in sample]
    for name, params in variants.items():
        if not method_of(params, name).several:
            continue
        row = {"group": group, "repeat": repeat, "method": name}
        try:
            with solve(session, name, requests, params).applied(lm):
                ratio = el.perplexity(lm, sentences).mean / unedited
                said = [scores.score(c, o, scores.read(lm, o.prompts)) for c, o in zip(sample, before, strict=True)]
        except el.EditlibError as error:
            together.append(row | {"error": str(error)})
        else:
            together.extend(
                row | {"perplexity_ratio": ratio, "case_id": c.case_id} | s for c, s in zip(sample, said, strict=True)
            )


wanted = [name for name in (tasks or "").split(",") if name and find_spec("lm_eval")]
level = evaluate(lm, wanted, limit=limit) if wanted else None
done_tasks, asked, together, frames = [], [], [], []
for group, of_group in members.items():
    for repeat in range(repeats if of_group else 0):
        sample = Random(f"{seed}-{repeat}").sample(of_group, sizes[group])
        before = [scores.read(lm, case) for case in sample]
        options = {"every": every, "retest": True, "stats": moments, "at_end": ask, "progress": False}
        options |= resumed(f"{group} {repeat}")
        frames.append(
            el.sequence(lm, sample, methods=variants, texts=sentences, **options).assign(group=group, repeat=repeat)
        )
        at_once()
steps = pd.concat(frames, ignore_index=True)
steps.to_parquet("data/sequences.parquet")
after, batches = pd.DataFrame(asked), pd.DataFrame(together)
after.to_parquet("data/after.parquet")
batches.to_parquet("data/at-once.parquet")
made = steps[~steps["retest"] & (steps["step"] > 0)]
SERIES = ["method", "group", "repeat"]
measured = steps[steps["measured"]].assign(over=lambda t: statistics.collapsed(t["perplexity_ratio"], collapse_ratio))
first = measured[measured["over"]].groupby(SERIES, sort=False)["step"].min()
ends = (
    measured.fillna({"perplexity_ratio": np.inf})
    .groupby(SERIES, sort=False)["perplexity_ratio"]
    .agg(["last", "max"])
    .join(measured[measured["over"]].groupby(SERIES, sort=False)["step"].min().rename("first"))
    .sort_index()
)
failed = made[made["error"].notna()].groupby("method", sort=False)["error"].agg(["size", "first"])
Markdown(
    f"{len(made):,} edits one by one in {len(ends)} sequences of {' and '.join(map(str, sizes.values()))} "
    f"({' and '.join(GROUPS)}), {len(made) - int(made['error'].isna().sum())} failed."
    + "".join(f"\n- {row.Index}: {row.size}, the first with: {row.first}" for row in failed.itertuples())
)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Four panels with a row for each method: the share of hard and of normal cases whose single edit collapses the model; the edit after which sequences have collapsed it, or never; efficacy and locality after the last edit."}}
left = (
    after.set_index("case_id")
    .groupby(["method", "group"], sort=False)[TRIO]
    .agg(mean)
    .rename(columns=lambda name: name.removesuffix("_em_tf"))
)
figure = plot.remedies(shares, ends["first"], left, size=max(sizes.values()))
figure.suptitle(
    f"{model}: alone, and {' and '.join(map(str, sizes.values()))} in a row", x=0.01, ha="left", fontsize=12
)
figure.savefig("figures/remedies.png")


# %% tags=["hide-input"]
def span(values: pd.Series, form: str = "{:,.0f}") -> str:
    """Median and range over the orders; never is after all."""
    found = [values.fillna(np.inf).quantile(q, interpolation="nearest") for q in (0, 0.5, 1)]
    low, middle, high = ("never" if np.isinf(value) else form.format(value) for value in found)
    return middle if low == high else f"{middle} ({low} to {high})"


rows = {}
of_steps = made[made["error"].isna()].set_index("case_id")
for (method, group), cell in left.iterrows():
    these = of_steps[(of_steps["method"] == method) & (of_steps["group"] == group)]
    rows[method, group] = {
        "first collapse": span(ends.loc[(method, group), "first"]),
        "times unedited, at the end": f"{ends.loc[(method, group), 'last'].median():,.4g}",
        "held": f"{mean(these['efficacy_em_tf']):.2f}",
        "kept": f"{cell['efficacy']:.2f}",
        "generalization": f"{cell['generalization']:.2f}",
        "locality": f"{cell['locality']:.2f}",
        "seconds": f"{these.loc[~these['measured'], 'seconds'].median():.2g}",
        "memory, MB": f"{these.groupby('repeat')['state_bytes'].last().max() / 1e6:,.1f}",
    }
pd.DataFrame(rows).T.rename_axis(["method", "group"])

# %% [markdown]
# At once: one edit of all the cases of a sample, for the methods that take several requests.

# %% tags=["hide-input"]
batches = batches.reindex(columns=sorted({*batches.columns, "case_id", "error", "perplexity_ratio", *TRIO}))
of_batches = batches.set_index("case_id").groupby(["method", "group"], sort=False)
pd.DataFrame(
    {
        "edits": of_batches.apply(lambda rows: rows["repeat"].nunique(), include_groups=False),
        "failed": of_batches["error"].count(),
        "times unedited, at most": of_batches["perplexity_ratio"].max().map("{:,.4g}".format),
        **{name.removesuffix("_em_tf"): of_batches[name].agg(mean).map("{:.2f}".format) for name in TRIO},
    }
)

# %% tags=["hide-input"]
if wanted:
    results = pd.concat(done_tasks, ignore_index=True)
    results.to_parquet("data/tasks.parquet")
    by_order = results.groupby(["method", "group", "repeat"], sort=False)["value"].mean()
    ability = by_order.groupby(["method", "group"], sort=False).agg(lambda means: span(means, "{:.2f}")).unstack()
    ability.loc["unedited"], ability.loc["chance"] = (f"{level[name].mean():.2f}" for name in ("value", "chance"))
    display(ability.rename_axis(columns="mean over the tasks, after the last edit"))

# %% [markdown]
# ## What CoachHooK does about position 0
#
# CoachHooK keeps its change in a shadow weight, which speaks at tokens whose change stands out by its z-score. Many models
# have a key at position 0 that is far longer than others; there the change may be largest whatever is edited. All normal
# cases that were edited alone are edited at once, at each of the layers in `hooked`, with position 0 among the tokens
# (*keep*, as published) and left out of them (*drop*). Medians over the prompts: z of the subject's last token and of position
# 0, and how many times larger the change is at position 0 than at the median token; the threshold that is left of 2.2; and
# efficacy by `em_tf` with its 95 % bootstrap interval over the cases.

# %% tags=["hide-input"]
looked = {
    (layer, first_position): setup.hparams(lm, "coachhook", int(layer), first_position=first_position)
    for layer in filter(None, (hooked or "").split(","))
    for first_position in ("keep", "drop")
}
hooks, asked_at_once = [], chosen[NORMAL]
session = Session(lm, stats=setup.moments(lm, looked.values(), corpus))
before = [scores.read(lm, case) for case in asked_at_once] if looked else []
for (layer, first_position), params in looked.items():
    edit = solve(session, "coachhook", [case.request for case in asked_at_once], params)
    with edit.applied(lm):
        said = [scores.score(c, o, scores.read(lm, o.prompts)) for c, o in zip(asked_at_once, before, strict=True)]
    names = ("subject_z", "first_z", "first_size", "threshold")
    seen = {name: edit.diagnostics[name][-1] for name in names}  # at the last of its layers
    held = pd.Series([s["efficacy_em_tf"] for s in said], index=[c.case_id for c in asked_at_once])
    hooks.append({"layer": int(layer), "position 0": first_position, **seen, "efficacy": mean(held)})
hooks = pd.DataFrame(
    hooks, columns=["layer", "position 0", "subject_z", "first_z", "first_size", "threshold", "efficacy"]
)
hooks.assign(efficacy=hooks["efficacy"].map(lambda interval: interval.value)).to_parquet("data/hooks.parquet")
hooks.style.format(
    dict.fromkeys(("subject_z", "first_z", "first_size", "threshold", "efficacy"), "{:.2f}")
).hide(axis="index") if looked else Markdown("CoachHooK was not looked at: `hooked` names no layers.")  # fmt: skip

# %% [markdown]
# ## Does what is claimed for them hold here?
#
# Claims are those of the papers, in our words, as six tests against the method that each sets out to better. Rules and claims
# stand here before any run of this analysis:
#
# - *alone*: of hard cases edited alone, fewer collapse the model;
# - *later*: where the base method collapses the model one by one, in the median over the orders, this one does so later or never;
# - *held*: alone, on normal cases, efficacy is at most .1 lower;
# - *kept*: after the last edit, efficacy over all cases is higher;
# - *at once*: efficacy at once is higher than the base method's, one by one, after the last edit;
# - *harmless*: no edit, and no sequence at any measurement, collapses the model.
#
# Differences are paired by case and order, and decided by the 95 % bootstrap interval of their mean over cases: *open* is one that reaches over the bound, and
# *later* where the base method collapses nothing. A claim holds if all its tests do, and fails if one fails. That an edit which
# writes no weight is harmless is close to how it is made: it can change ordinary text only where it speaks.

# %% tags=["hide-input"]
CLAIMS = {  # the method to better, and the tests
    "c-rome": ("rome", "alone", "later"),
    "fc-rome": ("rome", "alone", "later"),
    "rome+rect": ("rome", "later", "held"),
    "rome+revive": ("rome", "later", "held"),
    "rome+1-li": ("rome", "alone", "held"),
    "rome+prune": ("rome", "later", "held"),
    "memit-seq": ("memit", "kept"),
    "encore": ("memit", "later", "kept"),
    "alphaedit": ("memit", "later", "kept"),
    "alphaedit+sphere": ("alphaedit", "later", "kept"),
    "nas": ("alphaedit", "later", "kept"),
    "rlsedit": ("memit", "later", "kept"),
    "d4s": ("memit", "later", "kept"),
    "locft-bf": ("ft", "at once"),
    "coachhook": ("memit", "later", "kept"),
    "grace": ("rome", "harmless", "kept"),
    "memoir": ("rome", "harmless", "kept"),
    "wise": ("rome", "harmless", "kept"),
    "serac": ("rome", "harmless", "kept"),
    "skeme": ("rome", "harmless", "kept"),
    "ike": ("rome", "harmless"),
}
SAME = ["group", "repeat", "case_id"]
alone_hard = done[done["group"] == HARD].assign(repeat=0, whole=lambda t: 1.0 - t["collapsed"])
alone_normal = done[done["group"] == NORMAL].assign(repeat=0)


def better(mine: pd.DataFrame, base: pd.DataFrame, score: str, bound: float = 0.0) -> str:
    """Whether a score is higher than the base method's on the same cases, by more than `bound`."""
    both = mine[[*SAME, score]].merge(base[[*SAME, score]], on=SAME).dropna()
    gap = mean((both[f"{score}_x"] - both[f"{score}_y"]).set_axis(both["case_id"]))
    return "yes" if gap.low > bound else "no" if gap.high < bound else "open"


def later(name: str, base: str) -> str:
    middle = ends["first"].fillna(np.inf).groupby(["method", "group"]).quantile(0.5, interpolation="nearest")
    pairs = [
        (middle[name, group], middle[base, group]) for group in GROUPS if middle.get((base, group), np.inf) < np.inf
    ]
    return ("yes" if all(mine > theirs for mine, theirs in pairs) else "no") if pairs else "open"


def test(kind: str, name: str, base: str) -> str:
    def of(table: pd.DataFrame, method: str) -> pd.DataFrame:
        return table[table["method"] == method]

    if kind == "alone":
        return better(of(alone_hard, name), of(alone_hard, base), "whole")
    if kind == "held":
        return better(of(alone_normal, name), of(alone_normal, base), "efficacy_em_tf", -0.1)
    if kind == "kept":
        return better(of(after, name), of(after, base), "efficacy_em_tf")
    if kind == "at once":
        return better(of(batches, name), of(after, base), "efficacy_em_tf")
    if kind == "later":
        return later(name, base)
    whole = (
        not of(done, name)["collapsed"].any() and not statistics.collapsed(ends.loc[name, "max"], collapse_ratio).any()
    )
    return "yes" if whole else "no"


verdicts = []
for name, (base, *kinds_of_test) in CLAIMS.items():
    if {name, base} <= set(variants):
        answers = {kind: test(kind, name, base) for kind in kinds_of_test}
        found_all, found_no = set(answers.values()) == {"yes"}, "no" in answers.values()
        method = method_of(variants[name], name)
        verdicts.append(
            {"method": name, "claimed by": method.paper or "", "beside": base}
            | {"tests": ", ".join(f"{kind}: {answer}" for kind, answer in answers.items())}
            | {"verdict": "holds" if found_all else "does not hold" if found_no else "open"}
        )
verdicts = pd.DataFrame(verdicts, columns=["method", "claimed by", "beside", "tests", "verdict"])
verdicts.style.hide(axis="index")

# %% tags=["hide-input"]
broken = shares.xs(HARD, level="group") if HARD in shares.index.get_level_values("group") else shares.iloc[:0]
spared = [method for method, share in broken.items() if share.value == 0]
lasting = [m for m in variants if m in ends.index.get_level_values(0) and ends.loc[m, "first"].isna().all()]
best = left["efficacy"].map(lambda interval: interval.value).groupby("method").min()
Markdown(
    f"**Finding.** Alone, {len(spared)} of {len(broken)} methods collapse `{model}` on no hard case ({', '.join(spared) or 'none'}). In "
    f"sequences {len(lasting)} of {len(variants)} never do ({', '.join(lasting) or 'none'}); of these, edits are kept best by "
    + (
        f"{best[lasting].idxmax()} ({best[lasting].max():.2f} on the worse of hard and normal cases). "
        if lasting
        else "none. "
    )
    + f"Of {len(verdicts)} claims, {int((verdicts['verdict'] == 'holds').sum())} hold, "
    f"{int((verdicts['verdict'] == 'does not hold').sum())} do not, {int((verdicts['verdict'] == 'open').sum())} are open."
)

# %% tags=["hide-input"]
metrics = {
    "cases_alone_hard": len(chosen[HARD]), "cases_alone_normal": len(chosen[NORMAL]), "size_hard": sizes[HARD],
    "size_normal": sizes[NORMAL], "repeats": repeats, "pool": len(searched), "methods": len(variants), "spared": ", ".join(spared) or "none",
    "lasting": ", ".join(lasting) or "none", "claims": len(verdicts), "claims_hold": int((verdicts["verdict"] == "holds").sum()),
    "claims_fail": int((verdicts["verdict"] == "does not hold").sum()),
}  # fmt: skip
for method in variants:
    ending = method.replace("-", "_").replace("+", "_")
    for group, short in zip(GROUPS, ("hard", "normal"), strict=True):
        if (method, group) in costs.index:
            rows = done[(done["method"] == method) & (done["group"] == group)]
            metrics |= statistics.collapses(rows, f"collapsed_{short}_{ending}", collapse_ratio=collapse_ratio)
            metrics[f"alone_efficacy_{short}_{ending}"] = costs.at[(method, group), "efficacy"].value
        if (method, group) in left.index:
            name = f"{short}_{ending}"
            metrics[f"first_{name}"] = span(ends.loc[(method, group), "first"])
            metrics[f"kept_{name}"] = left.at[(method, group), "efficacy"].value
            metrics[f"locality_{name}"] = left.at[(method, group), "locality"].value
            metrics[f"last_ratio_{name}"] = float(ends.loc[(method, group), "last"].median())
for row in verdicts.itertuples():
    metrics[f"verdict_{row.method.replace('-', '_').replace('+', '_')}"] = row.verdict
for row in hooks.rename(columns={"position 0": "read"}).itertuples():
    for name in ("subject_z", "first_z", "first_size", "threshold"):
        metrics[f"hook_{name}_{row.layer}_{row.read}"] = float(getattr(row, name))
    metrics[f"hook_efficacy_{row.layer}_{row.read}"] = row.efficacy.value
record(metrics, hparams={model: variants}, moments={model: moments})
