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
#     title: "Efficacy: at which layers an edit holds, with a prefix and without"
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {layers: "1,3", first: 2, others: 2}
#       full: {first: 12, others: 12}
# ---

# %% [markdown]
# # Efficacy: at which layers an edit holds, with a prefix and without
#
# **Question.** What does each remedy for collapse cost at each layer, and does the fully consistent one dominate C-ROME?
#
# `rome` reads one key behind prefixes and the other without; `c-rome` and `fc-rome` read both behind prefixes, `p-rome` none
# {cite}`yang-etal-2024-fall`. `fc-rome` starts v\* behind prefixes, too. Here each case is edited by each at several layers and
# asked twice: with the bare prompt, and behind `draws` held-out prefixes, which no edit has seen and which are the same for all
# edits. Generalization and locality are asked without a prefix of ours. Scores are shares of the target's tokens that are the
# likeliest, teacher forced (`em_tf`).
#
# Rule, fixed before any run: at a layer and for a kind of subject, `fc-rome` *dominates* `c-rome` if it collapses the model
# with no more cases and none of the four scores is lower by more than `margin`, decided by the lower end of the 95 %
# bootstrap interval of the difference, paired by case; it *loses* if it collapses it with more, or if the upper end of one
# difference is below `-margin`; all else is *open*.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layers: str | None = (
    None  # the layers edited, with commas between; none for all but the last, which reaches no later token
)
covariance: bool = True  # whether C is in the update, as in the formula; the released settings leave it out
first: int = 3  # cases drawn whose subject is one token at the start of the prompt
others: int = 3  # other cases drawn
draws: int = 2  # held-out prefixes
sentences: int = 20  # of the texts, how many perplexity is measured on
seed: int = 0  # of the draws, and of the bootstrap
collapse_ratio: float = 5.0  # times unedited
margin: float = 0.1  # loss of a score that does not count

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

import editlib as el
from editlib import data, plot, scores
from editlib.measuring import contrast, statistics
from editlib.runs.recording import record
from editlib.runs.resuming import resumed
from editlib.sweeps import setup

plot.theme()
METHODS, KINDS = ("rome", "c-rome", "fc-rome", "p-rome"), ("one token at the start", "any other subject")
lm = el.load(model)
try:
    chosen_layers = [int(layer) for layer in layers.split(",")] if layers else list(range(lm.num_layers - 1))
except ValueError:
    raise el.EditlibError(f"layers {layers!r} are no numbers; write them with commas between, as 0,1") from None
used = {
    f"{method}, layer {layer}": setup.hparams(lm, method, layer, covariance=covariance)
    for layer in chosen_layers
    for method in METHODS
}
chosen = contrast.draw_by_subject(lm, data.cases(cases, split=split), first=first, others=others, seed=seed)
kinds = contrast.subject_kinds(lm, chosen).eq("one token").map({True: KINDS[0], False: KINDS[1]})
counts = kinds.value_counts()
prefixes = el.test_prefixes(lm, "held-out", n=draws, seed=seed)
moments = setup.moments(lm, used.values(), corpus)
sets = {"bare": (("{}",), data.texts(texts)[:sentences]), "behind a prefix": (prefixes, data.texts(texts)[:1])}
bare, behind = (
    el.sweep(
        lm, chosen, methods=used, texts=some, prefixes=asked, stats=moments, progress=False, **resumed(name)
    ).set_index(["case_id", "method"])
    for name, (asked, some) in sets.items()
)  # fmt: skip
SCORES = {"efficacy": "efficacy, bare prompt", "prefixed": "efficacy, behind a prefix"} | {
    score: score for score in scores.SCORES[1:]
}
frame = bare.rename(columns={f"{score}_em_tf": score for score in scores.SCORES})
frame["prefixed"] = behind["efficacy_em_tf"]
frame["error"] = frame["error"].fillna(behind["error"])
frame = frame.reset_index()
frame[["method", "layer"]] = frame["method"].str.split(", layer ", expand=True).to_numpy()
frame["layer"] = frame["layer"].astype(int)
frame["group"] = frame["case_id"].map(kinds)
frame["collapsed"] = statistics.collapsed(frame["perplexity_ratio"], collapse_ratio)
frame.to_parquet("data/cases.parquet")
done = frame[frame["error"].isna()]
Markdown(
    f"{' and '.join(f'{counts.get(kind, 0)} cases with {kind}' for kind in KINDS)}, edited by {len(METHODS)} methods at layers "
    f"{', '.join(map(str, chosen_layers))} of `{model}`, {'with' if covariance else 'without'} C; "
    f"{len(frame) - len(done)} of {len(frame):,} edits failed. Prefixes: {', '.join(f'`{prefix!r}`' for prefix in prefixes)}."
)

# %% [markdown]
# ## What holds, layer by layer
#
# Means over the cases with 95 % bootstrap intervals (2,000 resamples); a ring stands where at least one edit in ten collapses
# the model.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Four columns, efficacy of the bare prompt, efficacy behind a prefix, generalization and locality, over two rows, subjects of one token at the start and any other: a line for each of rome, c-rome, fc-rome and p-rome over the edited layer, with 95 % intervals and rings where the model collapses."}}
keys = ["group", "layer", "method"]
means = done.groupby(keys, sort=False)[list(SCORES)].agg(
    lambda values: statistics.bootstrap(np.mean, values.dropna(), seed=seed)
)
collapses = done.groupby(keys, sort=False)["collapsed"].agg(["sum", "size"]).astype(int)
present = [kind for kind in KINDS if kind in counts]
figure, panels = plt.subplots(
    len(present), len(SCORES), figsize=(11.5, 2.7 * len(present) + 0.8), sharex=True, sharey=True, squeeze=False,
    layout="constrained",
)  # fmt: skip
RING = "10 % of edits or more collapse the model"
STYLES = dict(zip(METHODS, zip(("#d55e00", "#0072b2", "#009e73", "#555555"), "ovs^", strict=True), strict=True))
for kind, row in zip(present, panels, strict=True):
    for axes, score in zip(row, SCORES, strict=True):
        for shift, (method, (color, marker)) in enumerate(STYLES.items()):
            mine = means.xs((kind, method), level=("group", "method"))[score]
            at = np.array([chosen_layers.index(layer) for layer in mine.index]) + 0.12 * (shift - 1.5)
            axes.vlines(at, [i.low for i in mine], [i.high for i in mine], color=color, alpha=0.5, lw=1.2)
            axes.plot(at, [i.value for i in mine], color=color, marker=marker, ms=4.5, lw=1, label=method)
            broken = collapses.xs((kind, method), level=("group", "method")).eval("sum / size").to_numpy() >= 0.1
            axes.plot(
                at[broken], np.array([i.value for i in mine])[broken], "o", mfc="none", mec="black", ms=11, label=RING
            )
        axes.set(ylim=(-0.04, 1.04))
        axes.set_xticks(range(len(chosen_layers)), chosen_layers)
    row[0].set_ylabel(f"{kind}\n(n = {counts[kind]})")
for axes, title in zip(panels[0], SCORES.values(), strict=True):
    axes.set_title(title)
figure.supxlabel("Layer that is edited", fontsize="medium")
marks = {label: mark for axes in panels.flat for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=len(marks))
figure.savefig("figures/efficacy.png")

# %% tags=["hide-input"]
shown = means.map(lambda interval: f"{interval:.2f}").rename(columns=SCORES)
shown.assign(collapses=[f"{row['sum']} of {row['size']}" for _, row in collapses.loc[means.index].iterrows()])

# %% [markdown]
# ## Does the fully consistent method dominate C-ROME?


# %% tags=["hide-input"]
def verdict(here: pd.DataFrame) -> pd.Series:
    """Of `fc-rome` beside `c-rome` on the same cases."""
    mine, theirs = (here[here["method"] == method].set_index("case_id") for method in ("fc-rome", "c-rome"))
    both = mine.index.intersection(theirs.index)
    gaps = {
        score: statistics.bootstrap(np.mean, (mine.loc[both, score] - theirs.loc[both, score]).dropna(), seed=seed)
        for score in SCORES
    }
    more = int(mine.loc[both, "collapsed"].sum()) - int(theirs.loc[both, "collapsed"].sum())
    lost = more > 0 or any(gap.high < -margin for gap in gaps.values())
    kept = more <= 0 and all(gap.low >= -margin for gap in gaps.values())
    return pd.Series(
        {"collapses more": more}
        | gaps
        | {"verdict": "loses" if lost else "dominates" if kept else "open"}
    )  # fmt: skip


beside = done.groupby(["group", "layer"], sort=False)[done.columns.difference(["group", "layer"])].apply(verdict)
told = beside.copy()
told[list(SCORES)] = told[list(SCORES)].map(lambda interval: f"{interval:+.2f}")
told.rename(columns=SCORES)

# %% tags=["hide-input"]
tally = beside["verdict"].groupby("group", sort=False).value_counts().unstack(fill_value=0)
broken = done.groupby(["method", "group"], sort=False)["collapsed"].sum().unstack()
overall = done.groupby(["method", "group", "case_id"], sort=False)[list(SCORES)].mean()
overall = overall.groupby(["method", "group"]).agg(lambda v: statistics.bootstrap(np.mean, v.dropna(), seed=seed))
Markdown(
    "**Finding.** "
    + " ".join(
        f"*{kind.capitalize()}*, {len(chosen_layers)} layers: fc-rome dominates c-rome at {tally.get('dominates', {}).get(kind, 0)}, "
        f"loses at {tally.get('loses', {}).get(kind, 0)}, open at {tally.get('open', {}).get(kind, 0)}; collapses: "
        + ", ".join(f"{method} {broken.at[method, kind]}" for method in METHODS)
        + f". Over the layers, efficacy of the bare prompt is {overall.at[('c-rome', kind), 'efficacy']:.2f} by c-rome and "
        f"{overall.at[('fc-rome', kind), 'efficacy']:.2f} by fc-rome, behind a prefix "
        f"{overall.at[('c-rome', kind), 'prefixed']:.2f} and {overall.at[('fc-rome', kind), 'prefixed']:.2f}."
        for kind in present
    )
)

# %% tags=["hide-input"]
metrics: dict[str, float | str] = {
    "edits": len(done), "failed": len(frame) - len(done), "layers_edited": len(chosen_layers), "draws": draws,
    "layers": ", ".join(map(str, chosen_layers)),
}  # fmt: skip
for kind, place in zip(KINDS, ("first", "others"), strict=True):
    metrics[f"cases_{place}"] = int(counts.get(kind, 0))
    if kind in present:
        for outcome in ("dominates", "loses", "open"):
            metrics[f"{outcome}_{place}"] = int(tally.get(outcome, {}).get(kind, 0))
            at = beside.loc[kind].index[beside.loc[kind, "verdict"] == outcome]
            metrics[f"{outcome}_layers_{place}"] = ", ".join(map(str, at)) or "none"
        for method in METHODS:
            name = f"{place}_{method.replace('-', '_')}"
            metrics[f"collapsed_{name}"] = int(broken.at[method, kind])
            for score in SCORES:
                metrics[f"{score}_{name}"] = overall.at[(method, kind), score].value
record(metrics, hparams={model: used}, moments={model: moments})
