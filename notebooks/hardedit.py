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
#     title: "HardEdit: a set that is built to break models"
#     models: [model]
#     data: [texts, corpus]
#     profiles:
#       quick: {n: 3}
#       full: {n: 100, repeats: 2, every: 5}
# ---

# %% [markdown]
# # HardEdit: a set that is built to break models
#
# **Question.** Can cases that collapse a model be made to order, and do they break other methods, too?
#
# For *The Butterfly Effect of Model Editing* {cite}`yang-etal-2024-butterfly`, GPT-3.5 wrote cases after the pattern of known hard
# ones: a subject of one common word at the start of the prompt, and a false target of the right kind. A case was kept if one
# ROME edit with it collapses GPT-2-XL. The set, HardEdit, was then edited in sequence by four methods.
#
# `editlib hardedit` does the same. Its author is a language model behind an OpenAI-compatible endpoint or, as here, one that
# needs no network: for each of many one-word subjects it states one fact with a false target. For the testbed's models
# these are names of its invented world; for others they are those of the shipped facts about the real world, asked in other
# words and for other false targets than the cases of that name; subjects of one token, as common words are, come first. The filter is a perplexity of at least `collapse_ratio` times
# unedited after one ROME edit.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model that filters, and is edited
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
covariance: bool = True  # whether C is in the update, as in the formula; the released settings leave it out
n: int = 10  # cases to build
repeats: int = 1  # orders in which they are edited
every: int = 1  # edits between measurements
seed: int = 0  # of the author, and of the orders
collapse_ratio: float = 5.0  # times unedited

# %% tags=["hide-input"]
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pandas as pd
from IPython.display import Markdown, display

import editlib as el
from editlib import data, plot
from editlib.measuring import statistics
from editlib.models.names import of_testbed
from editlib.runs.recording import record
from editlib.runs.resuming import resumed
from editlib.sweeps import setup
from editlib.sweeps.hardedit.authors import FactsAuthor, WorldAuthor
from editlib.sweeps.hardedit.build import build
from editlib.sweeps.sequential import sequence, summary

plot.theme()
lm = el.load(model)
sentences = data.texts(texts)
unedited = el.perplexity(lm, sentences).mean
methods = setup.able(lm, ("ft", "ft-l", "mend", "rome", "memit"), layer, covariance=covariance)
moments = setup.moments(lm, methods.values(), corpus)

# %% [markdown]
# ## Build the set
#
# The author is asked for ten records a time. Each is checked, edited alone, and kept or rejected with the reason.

# %% tags=["hide-input"]
with TemporaryDirectory() as folder:
    options = {"texts": sentences, "collapse_ratio": collapse_ratio, "stats": moments, "hparams": methods["rome"]}
    author = WorldAuthor(seed) if of_testbed(model) else FactsAuthor(seed, lm)
    built = build(lm, author, n=n, out=Path(folder) / "set", **options)
    hard = data.cases(built.path) if built.accepted else []
written = pd.DataFrame([*built.accepted, *built.rejected])
measured = written["perplexity_ratio"].notna()  # of others the prompt or the answer was at fault; nan itself is a word
written["perplexity_ratio"] = written["perplexity_ratio"].astype(float)  # infinite ones are words in JSON
written.to_parquet("data/written.parquet")
judged = len(written)
written[["prompt", "ground_truth", "target_new", "perplexity_ratio"]].head(5).style.hide(axis="index").format(
    "{:,.1f}", subset=["perplexity_ratio"]
)

# %% tags=["hide-input"]
reasons = written["reason"].dropna().value_counts()
Markdown(
    f"**Finding.** {built.calls} call{'s' * (built.calls > 1)} gave {judged} records; {len(hard)} of {n} wanted are kept"
    + (
        f", with a median of {written.loc[written['reason'].isna(), 'perplexity_ratio'].median():,.1f} times unedited"
        if hard
        else ""
    )
    + "; rejected: "
    + (", ".join(f"{count} ({reason})" for reason, count in reasons.items()) or "none")
    + "."
)

# %% [markdown]
# ## Validate it by editing in sequence
#
# Every edit is computed on the model as the earlier ones left it; second moments and prefix contexts are those of the
# unedited model. Lines are medians over the orders, bands reach from the least to the largest, and perplexities that are no
# finite number are drawn at the dotted rim.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Perplexity over unedited after each edit of the built set on a log scale, one line with a band for each method, with the collapse threshold."}}
frames = []
for repeat in range(repeats if hard else 0):
    order = Random(f"{seed}-{repeat}").sample(hard, len(hard))
    options = {"every": every, "stats": moments, "progress": False, **resumed(f"order {repeat}")}
    table = sequence(lm, order, methods=methods, texts=sentences, **options)
    frames.append(table.assign(group=f"{len(hard)} built cases, {repeats} order{'s' * (repeats > 1)}", repeat=repeat))
frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
frame.to_parquet("data/cases.parquet")
if hard:
    made = frame[(frame["step"] > 0) & frame["error"].isna()]
    working = [method for method in methods if (made["method"] == method).any()]
    shown = frame[frame["measured"] & frame["method"].isin(working)]
    figure = plot.sequences(shown, collapse_ratio=collapse_ratio)
    figure.savefig("figures/sequences.png")


# %% tags=["hide-input"]
def ended(mine: pd.DataFrame) -> pd.Series:
    """First collapse and perplexity of one method's sequences: medians, with their range."""
    steps, last = mine["collapsed_at"].dropna(), mine["last_ratio"]
    first = f"{steps.median():g} ({steps.min()} to {steps.max()})" if len(steps) else "never"
    end = f"{last.median():,.4g} ({last.min():,.4g} to {last.max():,.4g})"
    counted = f"{len(steps)} of {len(mine)}"
    return pd.Series(
        {
            "collapse": counted,
            "first after": first,
            "times unedited at the end": end,
            "at most": mine["max_ratio"].max(),
        }
    )


said, ends = "No case collapses this model by one edit, so that there is nothing to edit in sequence.", None
if hard:
    ends = pd.concat(
        [
            summary(mine, collapse_ratio=collapse_ratio)
            for _, mine in frame[frame["method"].isin(working)].groupby("repeat")
        ]
    )
    table = ends.groupby("method", sort=False)[["collapsed_at", "last_ratio", "max_ratio"]].apply(ended)
    broken = [method for method, mine in ends.groupby("method", sort=False) if mine["collapsed_at"].notna().all()]
    spared = [method for method in working if method not in broken]
    said = (
        f"{len(hard)} edits in a row collapse `{model}` in every order with {', '.join(broken) or 'no method'}"
        + (f", and not with {', '.join(spared)}" if spared else "")
        + f". {len(methods) - len(working)} methods have no edit that can be computed." * (len(working) < len(methods))
    )
    display(table.style.format("{:,.4g}", subset=["at most"]))
Markdown(f"**Finding.** {said.rstrip('.')}.")

# %% [markdown]
# ## Beside the published numbers
#
# Decoded from the vector figures of the first author's slides (NICE seminar no. 33, 2024, p. 24): the first multiple of ten edits at
# which perplexity is above 1,000, and perplexity after 460 edits, on the set that GPT-2-XL filtered. The slides say that
# all models collapse; GPT-2-XL with MEMIT does not by that rule, and GPT-J with FT only for a while. The size of the set is
# not printed: the curves end at 460 edits.

# %% tags=["hide-input"]
pd.DataFrame(
    [
        ("GPT-2-XL", "30; 5.77e4", "50; 2.02e13", "10; 7.03e5", "never; 394.7 (at most 436.7)"),
        ("GPT-J", "200; 789 (at most 2,004)", "30; 2.26e12", "10; 2.56e8 (at most 3.6e18)", "50; 2.37e9"),
        ("Llama2-7b", "70; 1.51e4", "20; 5.31e4", "30; 7.28e4", "20; 7.09e6"),
    ],
    columns=["published: first; end", "FT", "MEND", "ROME", "MEMIT"],
).style.hide(axis="index")

# %% tags=["hide-input"]
ratios = written.loc[measured, "perplexity_ratio"]
metrics = {
    "kept_share": statistics.share(int(statistics.collapsed(ratios, collapse_ratio).sum()), len(ratios)).value,
    "kept_20x_share": statistics.share(int(statistics.collapsed(ratios, statistics.FAR).sum()), len(ratios)).value,
    "records": judged,
    "calls": built.calls,
    "accepted": len(hard),
    "rejected": int(written["reason"].notna().sum()),
}
for method, mine in ends.groupby("method", sort=False) if ends is not None else []:
    steps, name = mine["collapsed_at"].dropna(), method.replace("-", "_")
    late = frame[(frame["method"] == method) & frame["measured"]]
    worst = late.groupby("repeat")["perplexity_ratio"].agg(lambda found: found.fillna(float("inf")).max())
    metrics |= {
        f"collapsed_{name}_20x": int((worst >= statistics.FAR).sum()),
        f"collapsed_{name}_1000": int((worst * unedited >= statistics.PUBLISHED).sum()),
        f"collapsed_{name}": len(steps),
        f"first_{name}": int(steps.min()) if len(steps) else "never",
        f"last_ratio_{name}": float(mine["last_ratio"].median()),
        f"max_ratio_{name}": float(mine["max_ratio"].max()),
    }
record(metrics, hparams={model: methods}, moments={model: moments})
