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
#     title: "Presets: which layer to edit"
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {layers: "1,2", n: 2, first: 1}
#       full: {n: 16, first: 8}
# ---

# %% [markdown]
# # Presets: which layer to edit
#
# **Question.** At which layer do edits of this model hold, carry over to other wordings, and leave other facts alone?
#
# Published layers were found by causal tracing on other models, and where tracing points is not where editing works best.
# So every method here edits the same *normal* cases at several layers (their subject is not one token at the start of the
# prompt), and the layer with the best score is taken; of a method that edits several layers, it is the last of them. The score is ROME's: the harmonic mean of efficacy, generalization and
# locality, all by the protocol `es`, in which one target is likelier than another {cite}`meng2022locating`. Rule, fixed before any run: the highest score wins; among layers within 0.02 of it, the highest one does, since edits
# there cost least.
#
# Cases that may collapse the model are edited as well and shown beside, but choose nothing: a preset picked by its collapses
# would say nothing about collapse afterwards. A choice is made on cases of the split `tune` where the set has one, and what
# is measured elsewhere in this book is measured on the others.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
methods: str = "rome,c-rome"  # with commas between
layers: str = "1,2,3"  # layers to compare, with commas between
n: int = 4  # normal cases drawn
first: int = 2  # cases drawn whose subject is one token at the start of the prompt
seed: int = 0  # of the draw, and of the bootstrap
collapse_ratio: float = 5.0  # times unedited

# %% tags=["hide-input"]
import numpy as np
import pandas as pd
from IPython.display import Markdown

import editlib as el
from editlib import data, plot
from editlib.measuring import contrast, statistics
from editlib.runs.recording import record
from editlib.runs.resuming import resumed
from editlib.sweeps import setup

plot.theme()
lm, names = el.load(model), methods.split(",")
pool = data.cases(cases, split=split)
chosen = contrast.draw_by_subject(lm, pool, first=first, others=n, seed=seed)
variants = {
    f"{name}, layer {layer}": setup.hparams(lm, name, int(layer)) for name in names for layer in layers.split(",")
}
moments = setup.moments(lm, variants.values(), corpus)
frame = el.sweep(
    lm, chosen, methods=variants, texts=data.texts(texts), stats=moments, progress=False, **resumed("edits")
)
frame[["name", "layer"]] = frame["method"].str.split(", layer ", expand=True)
frame["layer"] = frame["layer"].astype(int)
frame["group"] = np.where(frame["kind"] == plot.KINDS[0], "one token at the start", "normal")
frame["collapsed"] = statistics.collapsed(frame["perplexity_ratio"], collapse_ratio).where(frame["error"].isna())
frame.to_parquet("data/cases.parquet")
counts = frame.drop_duplicates("case_id")["group"].value_counts()
Markdown(
    f"{counts.get('normal', 0)} normal cases and {counts.get('one token at the start', 0)} with a subject of one token at the start, "
    f"drawn from {len(pool):,}; {frame['error'].notna().sum()} of {len(frame)} edits failed."
)

# %% [markdown]
# ## Scores by layer
#
# Means over the normal cases with 95 % bootstrap intervals; the lower panels have the share of cases of either kind that
# collapse the model.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Efficacy, generalization, locality and their harmonic mean by edited layer, a panel for each method with 95 % intervals, and the share of edits that collapse the model for normal cases and for subjects of one token at the start."}}
PARTS = ("efficacy_es", "generalization_es", "locality_es")
normal = frame[(frame["group"] == "normal") & frame["error"].isna()]


def harmonic(*parts: np.ndarray) -> float:
    """ROME's score: the harmonic mean of the parts' means, 0 where one is 0."""
    means = [part.mean() for part in parts]
    return len(means) / sum(1 / mean for mean in means) if all(means) else 0.0


by_layer = pd.DataFrame(
    [
        {"method": name, "layer": layer, "n": len(rows)}
        | {"score": statistics.bootstrap(harmonic, *(rows[part] for part in PARTS), seed=seed, paired=True)}
        | {part.removesuffix("_es"): statistics.bootstrap(np.mean, rows[part], seed=seed) for part in PARTS}
        | {"efficacy by em_tf": statistics.bootstrap(np.mean, rows["efficacy_em_tf"], seed=seed)}
        for (name, layer), rows in normal.groupby(["name", "layer"], sort=False)
    ]
)
collapses = frame[frame["error"].isna()].groupby(["name", "layer", "group"])["collapsed"].agg(["sum", "size"])
figure = plot.by_layer(by_layer, collapses.reset_index())
figure.savefig("figures/layers.png")


# %% tags=["hide-input"]
def choice(rows: pd.DataFrame) -> int:
    """The highest layer within 0.02 of the best score."""
    scores = rows.set_index("layer")["score"].map(lambda interval: interval.value)
    return int(scores.index[scores >= scores.max() - 0.02].max())


picked = {name: choice(rows) for name, rows in by_layer.groupby("method", sort=False)}
at = {
    name: by_layer[(by_layer["method"] == name) & (by_layer["layer"] == layer)].iloc[0]
    for name, layer in picked.items()
}
Markdown(
    "**Finding.** "
    + "; ".join(
        f"{name}: layer {layer}, score {at[name]['score']:.2f}, efficacy by `em_tf` {at[name]['efficacy by em_tf']:.2f}"
        for name, layer in picked.items()
    )
    + f" (n = {counts.get('normal', 0)} normal cases)."
)

# %% tags=["hide-input"]
shown = by_layer.set_index(["method", "layer"]).drop(columns="n").map(lambda interval: f"{interval:.2f}")
for group in counts.index:
    shown[f"collapses, {group}"] = [
        "{} of {}".format(*map(int, collapses.loc[(*key, group)])) if (*key, group) in collapses.index else "–"
        for key in shown.index
    ]
shown.style.set_caption("Scores are means over normal cases, with 95 % intervals by bootstrap.")

# %% tags=["hide-input"]
metrics: dict[str, float | str] = {"cases": len(chosen), "failed": int(frame["error"].notna().sum())}
for name, layer in picked.items():
    short = name.replace("-", "_")
    metrics |= {f"layer_{short}": layer, f"score_{short}": at[name]["score"].value}
    metrics[f"efficacy_em_tf_{short}"] = at[name]["efficacy by em_tf"].value
record(metrics, hparams={model: variants}, moments={model: moments})
