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
#     title: "Second moments of a model's own text"
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {tokens: "1024,4096", first: 2, others: 2}
#       full: {first: 12, others: 24, tokens: "4096,8192,16384,32768,65536"}
# ---

# %% [markdown]
# # Second moments of a model's own text
#
# **Question.** ROME's C = E[k kᵀ] is a mean over text like that which the model was trained on. Where there is none at
# hand, the model can write some: how far is that C from one of a corpus, and how many tokens are enough?
#
# The same cases are edited by ROME with each C. Only C differs: keys, v* and the numerator are the same, so the update
# points along C⁻¹k̄. Compared are that direction, the denominator and perplexity, each with what the most tokens of the
# model's own text give. Two halves of one sample tell how much of a difference is due to the draw alone.

# %% tags=["parameters"]
model: str = "smollm2-135m"  # the model to edit
cases: str = "facts"  # edit cases: a name or a file
split: str | None = "test"  # the cases of one split only; none for all
texts: str = "prose-50"  # texts that perplexity is measured on
corpus: str | None = None  # a corpus to compare with: a name or a file; none for none
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
method: str = "rome"  # the method under test
tokens: str = "4096,16384"  # tokens of the model's own text, with commas between
first: int = 2  # cases drawn whose subject is one token at the start of the prompt
others: int = 2  # other cases drawn
seed: int = 0  # of the draw
collapse_ratio: float = 5.0  # times unedited

# %% tags=["hide-input"]
import pandas as pd
import torch
from IPython.display import Markdown

import editlib as el
from editlib import data, plot
from editlib.editing.session import Session
from editlib.editing.stats import second_moments, second_moments_of
from editlib.engine.samples import own_windows
from editlib.measuring import contrast, statistics
from editlib.runs.recording import record
from editlib.runs.resuming import resumed
from editlib.sweeps import setup

plot.theme()
lm = el.load(model)
chosen = contrast.draw_by_subject(lm, data.cases(cases, split=split), first=first, others=others, seed=seed)
params = setup.hparams(lm, method, layer, covariance=True)
layers, counts = [params.layer], sorted(int(count) for count in tokens.split(","))
most = own_windows(lm, counts[-1], window=128)
moments = {f"own text, {count:,}": second_moments_of(lm, layers, tokens=count) for count in counts}
reference = list(moments)[-1]
halves = zip(("first", "second"), most.chunk(2), strict=True)
moments |= {f"own text, {half} half": second_moments(lm, windows, layers=layers) for half, windows in halves}
if corpus:
    moments |= {
        f"corpus, {n:,}": second_moments_of(lm, layers, corpus=data.texts(corpus), tokens=n) for n in counts[-2:]
    }
frame = pd.concat(
    [
        el.sweep(
            lm, chosen, methods={name: params}, texts=data.texts(texts), stats=stats, progress=False, **resumed(name)
        )
        for name, stats in moments.items()
    ],
    ignore_index=True,
)
requests = [case.request for case in chosen]
directions = {
    name: torch.nn.functional.normalize(contrast.case_keys(Session(lm, stats=stats), params, requests).whitened)
    for name, stats in moments.items()
}
order = {case.case_id: i for i, case in enumerate(chosen)}
frame["cosine"] = [
    float(directions[row.method][order[row.case_id]] @ directions[reference][order[row.case_id]])
    for row in frame.itertuples()
]
frame["group"] = (
    frame["case_id"].map(contrast.subject_kinds(lm, chosen)).eq("one token").map({True: "one token", False: "others"})
)
frame["collapsed"] = statistics.collapsed(frame["perplexity_ratio"], collapse_ratio)
told = frame[frame["method"] == reference].set_index("case_id")
for column in ("denominator", "perplexity_ratio", "delta_norm"):
    frame[f"{column}_times"] = (frame[column] / frame["case_id"].map(told[column])).abs()
frame["same_verdict"] = frame["collapsed"] == frame["case_id"].map(told["collapsed"])
frame.drop(columns=["prompt", "target_new", "target_true"]).to_parquet("data/cases.parquet")
Markdown(
    f"{len(chosen)} cases, {len(moments)} second moments of layer {params.layer} with {params.contexts} contexts; "
    f"{frame['error'].notna().sum()} of {len(frame)} edits failed."
)

# %% [markdown]
# ## How near is each C to that of the most own text?

# %% tags=["hide-input"] mystnb={"image": {"alt": "For each second moment, a point for each case: cosine of the update's direction, denominator and perplexity after the edit, each beside those of the largest sample of the model's own text, for subjects of one token at the start and for others."}}
figure = plot.beside_reference(frame, list(moments), reference=reference)
figure.savefig("figures/moments.png")

# %% tags=["hide-input"]
summary = frame.groupby(["method", "group"], sort=False).agg(
    cases=("case_id", "size"),
    cosine=("cosine", "median"),
    denominator=("denominator_times", "median"),
    update=("delta_norm_times", "median"),
    rise=("perplexity_ratio", "median"),
    collapsed=("collapsed", "sum"),
    same=("same_verdict", "sum"),
)
summary.columns = [
    "cases",
    "cosine",
    "|denominator|, times",
    "|Δ|, times",
    "median rise",
    "collapses",
    "verdicts alike",
]
summary.style.format(precision=3)

# %% tags=["hide-input"]
per_dimension = {name: stats.header.tokens / lm.weight(params.layer).shape[1] for name, stats in moments.items()}
half = frame[frame["method"] == "own text, second half"]
enough = [name for name in list(moments)[: len(counts)] if frame.loc[frame["method"] == name, "same_verdict"].all()]
sentence = (
    f"**Finding.** Half of the sample ({per_dimension['own text, second half']:.0f} tokens a key dimension) gives updates "
    f"at a median cosine of {half['cosine'].median():.3f} to the whole's. All verdicts on collapse are those of "
    f"{reference.removeprefix('own text, ')} tokens from {enough[0].removeprefix('own text, ')} tokens on."
)
if corpus:
    other = frame[frame["method"] == list(moments)[-1]]
    sentence += (
        f" With {len(other)} cases and as many tokens of the corpus, the median cosine is {other['cosine'].median():.3f}, "
        f"denominators are {other['denominator_times'].median():.2f} times as large, and {other['same_verdict'].sum()} of "
        f"{len(other)} verdicts are alike."
    )
Markdown(sentence)

# %% tags=["hide-input"]
metrics: dict[str, float | str] = {
    "cases": len(chosen),
    "tokens_enough": int(enough[0].removeprefix("own text, ").replace(",", "")),
}
for (name, group), row in summary.iterrows():
    short = f"{name.replace(', ', '_').replace(',', '').replace(' ', '_')}_{group.replace(' ', '_')}"
    metrics |= {f"cosine_{short}": row["cosine"], f"denominator_{short}": row["|denominator|, times"]}
    metrics |= {f"collapsed_{short}": int(row["collapses"]), f"same_verdict_{short}": int(row["verdicts alike"])}
record(metrics, hparams={model: {method: params}}, moments={model: moments[reference]})
