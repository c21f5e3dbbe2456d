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
#     title: "Settings: which findings survive which choice"
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {first: 2, others: 2}
#       full: {first: 50, others: 50, windows: "32,64,512", layers: "1,3"}
# ---

# %% [markdown]
# # Settings: which findings survive which choice
#
# **Question.** The papers' sources disagree, or are silent, about how some numbers were made. Which of the findings depend on it?
#
# | Choice | What the sources say |
# |:--|:--|
# | second moment C | The formula has C⁻¹; every released ROME configuration switches it off (`mom2_adjustment: false`, authors' code {cite}`yang2024code`). A map of the keys (authors' slides {cite}`yang2024slides`, p. 36) has it. |
# | positions in C | Windows of text include position 0, whose keys are unlike all others: one in so many as a window is long (code: the model's context). |
# | edited layer | Found by causal tracing, on other models than those that were edited (code: 17 of GPT-2-XL's 48 layers, 5 of GPT-J's 28, 5 of Llama2-7b's 32). |
# | mean key | It counts the bare prompt as one of 21 contexts, though the key is described as prefixed (code). |
# | start of v\* | C-ROME's v\* starts from the value without prefix, though both keys are means (code). |
# | prefix contexts | Sampled from end-of-text alone in ROME {cite}`meng2022locating`, behind five opening words in both papers; unseeded in both. |
# | search for v\* | The testbed's preset searches longer (25 steps, clamp 12) than the released one (20 steps, clamp 4, decay 0.5). |
# | denominator | Printed with C⁻¹k̄ scaled to length one, the formula does not scale it (code); only ratios have a meaning. |
# | perplexity | Mean of the texts' perplexities, so that one text can dominate (code). The largest one after a ROME edit of GPT-2-XL is given as 26,084.66 (slides, p. 35), 179,185.99 (p. 40) and 179,837.93 (p. 16). |
# | threshold | 1,000, which is 15, 20 and 30 times the three unedited models (p. 35). For GPT-J nothing lies between 46.9 and 441.9 (decoded from the slides' vector figure, p. 10). |
#
# Each row below changes one choice and leaves all others as in the first row; *all of yang-2024* takes the settings of both
# papers' released code as a whole.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
windows: str | None = None  # further lengths of the windows that C is read from, with commas between; none for none
layers: str | None = None  # further layers to edit, with commas between; none for none
first: int = 3  # cases drawn whose subject is one token at the start of the prompt
others: int = 3  # other cases drawn
seed: int = 0  # of the draw, and of the bootstrap
collapse_ratio: float = 5.0  # times unedited

# %% tags=["hide-input"]
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

import editlib as el
from editlib import data, plot, stats
from editlib.engine.samples import own_windows
from editlib.engine.values import ValueParams
from editlib.measuring import contrast, statistics
from editlib.runs.recording import record
from editlib.sweeps import setup
from editlib.text import percent

plot.theme()
lm = el.load(model)
chosen = contrast.draw_by_subject(lm, data.cases(cases, split=split), first=first, others=others, seed=seed)
asked = [replace(case, paraphrase_prompts=(), neighborhood_prompts=(), neighborhood_answers=()) for case in chosen]
sentences = data.texts(texts)
unedited = el.perplexity(lm, sentences)
layer = setup.hparams(lm, "rome", layer).layer
moments = contrast.moments(lm, layer, corpus)
released = {field.name: field.default for field in fields(ValueParams) if field.name != "contexts"}
REFERENCE, UNMOVED = "as in the formula", "C without position 0"
lengths = [int(length) for length in (windows or "").split(",") if length and int(length) <= (lm.max_length or 2**20)]
choices = {
    REFERENCE: {},
    "C left out": {"covariance": False},
    "bare prompt not in mean key": {"empty_context": False},
    "v* from mean value": {"anchor": "mean"},
    "contexts of meng-2022": {"contexts": "meng-2022"},
    "v* as released": released,
    "all of yang-2024": {"flavour": "yang-2024"},
}
if moments is None:
    choices = {name: {"covariance": False} | those for name, those in choices.items() if name != "C left out"}
Markdown(
    f"{len(chosen)} cases on `{model}`, layer {layer}. Unedited perplexity over {len(sentences)} texts: {unedited.mean:.2f} "
    f"(mean), {unedited.corpus:.2f} (corpus)."
    + (f" C is read from {moments.header.tokens:,} tokens in windows of {moments.header.window}." if moments else "")
    + ("" if moments else " This model can write no text, so without texts (`corpus`) C is left out in every row.")
)

# %% [markdown]
# ## Edit every case under every choice
#
# *C without position 0*: the same windows, without the first token of each. *Windows of so many*: the same tokens, cut into
# windows of another length, so that position 0 is a larger or a smaller part of C; a window longer than the model's context
# is left out. At another layer everything else is as in the first row.


# %% tags=["hide-input"]
def tokens_of(whole: stats.Stats) -> torch.Tensor:
    """The windows that a second moment was read from."""
    size = whole.header.window
    if whole.header.source == "own text":
        return own_windows(lm, whole.header.tokens, window=size)
    prose = data.texts(corpus) if corpus else data.corpus(lm, whole.header.tokens)
    return stats.corpus_windows(lm, prose, whole.header.tokens, window=size)


def without_opening(whole: stats.Stats) -> stats.Stats:
    """The same second moment over the same windows, but for the first token of each: what precedes no other token can
    be read from one-token windows, and taken off."""
    opening = stats.second_moments(lm, tokens_of(whole)[:, :1], layers=[layer]).moments[layer]
    size, header = whole.header.window, replace(whole.header, first_position="drop")
    return stats.Stats(header, {layer: (size * whole.moments[layer] - opening) / (size - 1)})


def cut(whole: stats.Stats, length: int) -> stats.Stats:
    """The second moment over the same tokens in windows of another length."""
    tokens = tokens_of(whole).flatten()
    return stats.second_moments(lm, tokens[: len(tokens) // length * length].view(-1, length), layers=[layer])


used = {}  # hyper-parameters by method and choice


def edited(some: dict[str, dict[str, object]], moment: stats.Stats | None, at: int = layer) -> pd.DataFrame:
    """A row for each case, choice and method."""
    variants = {
        f"{method} | {name}": el.hparams_for(lm, method, layer=at, **those)
        for name, those in some.items()
        for method in ("rome", "c-rome")
    }
    used.update(variants)
    return el.sweep(lm, asked, methods=variants, texts=sentences, stats=moment, per_sentence=True, progress=False)


parts = [edited(choices, moments)]
if moments:
    parts.append(edited({UNMOVED: {}}, without_opening(moments)))
    parts += [edited({f"windows of {length}": {}}, cut(moments, length)) for length in lengths]
for other in (int(number) for number in (layers or "").split(",") if number):
    there = contrast.moments(lm, other, corpus)
    parts.append(edited({f"layer {other}": {"covariance": there is not None}}, there, other))
frame = pd.concat(parts, ignore_index=True)
frame[["method", "choice"]] = frame["method"].str.split(" | ", regex=False, expand=True).to_numpy()
frame["opens"] = frame["kind"] == plot.KINDS[0]
frame["mean"] = frame["perplexity_ratio"].fillna(np.inf)
frame["corpus"] = (frame["perplexity_corpus"] / unedited.corpus).fillna(np.inf)
sums = frame["perplexity_sentences"].map(np.sum, na_action="ignore")
frame["largest_text"] = frame["perplexity_sentences"].map(np.max, na_action="ignore") / sums  # nan where infinite
frame["scale_free"] = (frame["denominator"] / frame["denominator_consistent"]).abs()
frame.to_parquet("data/cases.parquet")
done = frame[frame["error"].isna()]
Markdown(f"{len(frame):,} edits, {len(frame) - len(done)} failed, {frame['seconds'].sum():,.0f} seconds in all.")

# %% [markdown]
# ## Which findings survive?
#
# Each cell has what was measured; a cross marks a finding that does not hold under that choice. What *holds* means:
#
# - **ROME collapses one token first**: at least half of the edits whose subject is one token at the start collapse the model (published: 80 of 80 on GPT-J, decoded from the slides' vector figure, p. 10).
# - **ROME spares the others**: at most one in twenty of the other edits does (published: 7 of 21,839).
# - **C-ROME never collapses**: no edit by C-ROME collapses the model (p. 35).
# - **denominators smaller**: mean |denominator| of the other cases over that of the one-token ones, at least 30 (published, for collapsing and normal cases: 240, 320, 263; p. 33). *scale-free*: the same of |denominator| over the one that a single key would give, which no scaling of C⁻¹k̄ can change; medians.
# - **C-ROME's edits of these do not hold**: efficacy (`em_tf`) of C-ROME on one-token subjects at the start is below one half (published: 5.19 %, 30.59 %, 18.65 %; p. 42).


# %% tags=["hide-input"]
def counted(rows: pd.DataFrame, measure: str, ratio: float) -> tuple[int, int]:
    """How many edits collapse the model, and how many there are."""
    return int((rows[measure] >= ratio).sum()), len(rows)


def measured(choice: str, label: str, measure: str, ratio: float) -> list[dict[str, object]]:
    """The findings under one choice."""
    rome, c_rome = (done[(done["choice"] == choice) & (done["method"] == name)] for name in ("rome", "c-rome"))
    opens, rest = rome[rome["opens"]], rome[~rome["opens"]]
    hit, missed, cured = (counted(rows, measure, ratio) for rows in (opens, rest, c_rome))
    size = rest["denominator"].abs().mean() / opens["denominator"].abs().mean()
    free = rest["scale_free"].median() / opens["scale_free"].median()
    efficacy = c_rome.loc[c_rome["opens"], "efficacy_em_tf"].mean()
    found = [
        (
            "ROME\ncollapses\none token first",
            hit[0] / max(1, hit[1]),
            "{} of {}".format(*hit),
            2 * hit[0] >= hit[1] > 0,
        ),
        (
            "ROME\nspares\nthe others",
            missed[0] / max(1, missed[1]),
            "{} of {}".format(*missed),
            20 * missed[0] <= missed[1],
        ),
        ("C-ROME\nnever\ncollapses", cured[0] / max(1, cured[1]), "{} of {}".format(*cured), cured[0] == 0),
        ("denominators\nsmaller by\na factor of", size, f"{size:.3g}", size >= 30),
        ("the same,\nscale-free", free, f"{free:.3g}", free >= 30),
        ("C-ROME's edits\nof these\ndo not hold", efficacy, f"{percent(efficacy)} hold", efficacy < 0.5),
    ]
    return [
        {"choice": label, "finding": finding, "value": float(value), "shown": shown, "holds": bool(holds)}
        for finding, value, shown, holds in found
    ]


rereadings = {
    REFERENCE: (REFERENCE, "mean", collapse_ratio),
    **{name: (name, "mean", collapse_ratio) for name in done["choice"].unique()},
    "perplexity over the corpus": (REFERENCE, "corpus", collapse_ratio),
    "collapse from 2 times on": (REFERENCE, "mean", 2.0),
    "collapse from 20 times on": (REFERENCE, "mean", 20.0),
    "collapse from 1,000 times on": (REFERENCE, "mean", 1000.0),
    "collapse from a perplexity of 1,000 on": (REFERENCE, "mean", 1000.0 / unedited.mean),
}
findings = pd.DataFrame([row for label, how in rereadings.items() for row in measured(how[0], label, *how[1:])])
findings.to_parquet("data/findings.parquet")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Table drawn as a figure: a row for each choice, a column for each finding, the measured number in each cell, crossed and darker where the finding does not hold."}}
sizes = done[done["choice"] == REFERENCE].groupby("opens")["case_id"].nunique()
title = f"{model}: {sizes.get(True, 0)} one-token subjects at the start, {sizes.get(False, 0)} others"
figure = plot.findings(findings, title=title)
figure.savefig("figures/findings.png")

# %% tags=["hide-input"]
lost = findings[~findings["holds"]]
by_choice = {
    name: "; ".join(finding.replace("\n", " ") for finding in mine["finding"])
    for name, mine in lost.groupby("choice", sort=False)
}
kept = [name for name in rereadings if name not in by_choice]
Markdown(
    f"**Finding.** All six findings hold under {len(kept)} of {len(rereadings)} choices ({', '.join(kept) or 'none'})."
    + "".join(f"\n- *{name}*, what does not hold: {those}." for name, those in by_choice.items())
)

# %% [markdown]
# ## Does the threshold matter?
#
# A line is an edit; whatever lies to the right of a threshold counts as collapse by it, and the share that does from
# `collapse_ratio` on stands at the right. Above, by mean and by corpus perplexity, under the first choice. Below, ROME on
# one-token subjects at the start under every choice; the released settings in bold. Grey: where the published 1,000 lies for the
# papers' three models, 14.5 to 30.1 times unedited (slides, p. 35).

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two panels of rows, a short line for each edit at its perplexity over unedited on a log axis. Above by method, kind of subject, and mean or corpus perplexity; below for ROME on one-token subjects by choice. The published thresholds are shaded, the collapse threshold is dashed."}}
plain = done[done["choice"] == REFERENCE]
rome = plain[plain["method"] == "rome"]
opening = done[(done["method"] == "rome") & done["opens"]]
lines = {
    REFERENCE.capitalize(): {
        "ROME, one token first, mean": rome.loc[rome["opens"], "mean"],
        "ROME, one token first, corpus": rome.loc[rome["opens"], "corpus"],
        "ROME, others, mean": rome.loc[~rome["opens"], "mean"],
        "C-ROME, all, mean": plain.loc[plain["method"] == "c-rome", "mean"],
    },
    "ROME, one token first, mean": {name: mine["mean"] for name, mine in opening.groupby("choice", sort=False)},
}
edits = pd.DataFrame(
    [
        {"panel": panel, "line": f"{name} ({len(values)})", "ratio": float(ratio)}
        for panel, group in lines.items()
        for name, values in group.items()
        for ratio in values
    ]
)
edits.to_parquet("data/thresholds.parquet")
released_row = next((line for line in edits["line"].unique() if line.startswith("C left out")), "")
figure = plot.thresholds(edits, collapse_ratio=collapse_ratio, published=(14.5, 30.1), emphasised=released_row)
figure.savefig("figures/thresholds.png")

# %% tags=["hide-input"]
collapsed = rome["mean"] >= collapse_ratio
below, above = rome.loc[~collapsed, "mean"].max(), rome.loc[collapsed, "mean"].min()
gap = above / below  # nan where all edits are on one side
counts = ", ".join(f"{int((rome['mean'] >= at).sum())} from {at:,g} times on" for at in (2, collapse_ratio, 20, 1000))
Markdown(
    (
        f"**Finding.** Between {below:.3g} and {above:.3g} times unedited, a factor of {gap:.3g}, no ROME edit leaves this model "
        "(GPT-J, published: between 1.03 and 9.7, a factor of 9.4), and any threshold in between gives the same collapses. "
        if gap == gap
        else f"**Finding.** All ROME edits are on one side of {collapse_ratio:g} times unedited. "
    )
    + f"Of {len(rome)} edits collapse: {counts}."
)

# %% [markdown]
# ## Does one text decide the mean?
#
# A point is a ROME edit. On the diagonal, mean and corpus perplexity rise alike. Published perplexities are means.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Scatter on log axes: mean perplexity over unedited against corpus perplexity over unedited after each ROME edit, by kind of subject, with the diagonal and the collapse threshold on both axes."}}
label, means = "Perplexity, times unedited", ("over the corpus", "mean of the texts")
pair = pd.concat({(label, name): rome[column] for name, column in zip(means, ("corpus", "mean"), strict=True)}, axis=1)
pair[("kind", "")] = rome["kind"]
title = f"Perplexity, times unedited: {len(rome)} ROME edits"
figure = plot.pairs(pair, {label: title}, models=means, collapse_ratio=collapse_ratio)
figure.set_size_inches(7.6, 5.8)  # as wide as its legend
figure.savefig("figures/mean-corpus.png")

# %% tags=["hide-input"]
broken = rome[collapsed]
apart = statistics.bootstrap(np.median, (broken["mean"] / broken["corpus"]).dropna(), seed=seed)
single = statistics.bootstrap(np.median, broken["largest_text"].dropna(), seed=seed)
agree = int(((rome["mean"] >= collapse_ratio) == (rome["corpus"] >= collapse_ratio)).sum())
Markdown(
    f"**Finding.** After a collapsing edit the mean, over unedited, is {apart:.3g} times the corpus value (median of {len(broken)} edits, "
    f"95 % bootstrap interval). The single worst of {len(sentences)} texts makes up {single:.2f} of the mean. At {collapse_ratio:g} times, "
    f"both give the same verdict on {agree} of {len(rome)} edits."
    if len(broken)
    else "No ROME edit collapses this model, so that mean and corpus perplexity give the same verdicts."
)


# %% tags=["hide-input"]
def named(text: str) -> str:
    """A choice or finding as a part of a metric's name."""
    return "".join(letter if letter.isalnum() else "_" for letter in text.lower()).strip("_").replace("__", "_")


NAMES = dict(
    zip(findings["finding"].unique(), ("first", "others", "c_rome", "smaller", "smaller_free", "efficacy"), strict=True)
)
metrics = {
    "cases": len(chosen),
    "choices": len(rereadings),
    "choices_all_hold": len(kept),
    "mean_over_corpus": apart.value,
    "largest_text_share": single.value,
    "same_verdict": agree,
    "gap": float(gap),
    **{f"{named(row.choice)}_{NAMES[row.finding]}": row.value for row in findings.itertuples()},
    **{f"holds_{NAMES[name]}": int(mine["holds"].sum()) for name, mine in findings.groupby("finding", sort=False)},
    "layer": layer,
}
for (choice, opens), rows in done[done["method"] == "rome"].groupby(["choice", "opens"], sort=False):
    name = f"{named(choice)}_{'first' if opens else 'others'}"
    metrics |= statistics.collapses(rows, f"collapsed_{name}", collapse_ratio=collapse_ratio)
    metrics |= {f"median_ratio_{name}": float(rows["mean"].median()), f"max_ratio_{name}": float(rows["mean"].max())}
    metrics[f"denominator_ratio_{name}"] = float(rows["scale_free"].median())
record(metrics, hparams={model: used}, moments={model: moments})
