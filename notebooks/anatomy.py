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
#     title: "Anatomy: the first position of both twins"
#     models: [model, control]
#     data: [texts]
#     profiles:
#       quick: {}
#       full: {texts: testbed-ppl-1k}
# ---

# %% [markdown]
# # Anatomy: the first position of both twins
#
# **Question.** What does the one difference between the twins do inside the model?
#
# Large models carry an activation at position 0 that hides the token standing there. The `anchored` twin starts its
# training with a long position-0 embedding, so that it has one too; `control` does not. For the first ten positions of
# held-out texts, the figure shows the norm of the residual stream after each block, and how alike the keys (the inputs of
# the MLP's down-projection) of two different texts are: near 1, the key no longer tells which token stands there. Each
# first token counts once, so that texts are not alike at position 0 because they begin with the same word.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model looked into
control: str | None = "testbed/control"  # the model beside it; none for none
texts: str = "testbed-ppl-50"  # held-out texts

# %% tags=["hide-input"] mystnb={"image": {"alt": "Four panels: norm of the residual stream and cosine between texts' keys, by position and layer, for both models."}}

import pandas as pd
from IPython.display import Markdown

import editlib as el
from editlib import data, plot
from editlib.runs.recording import record
from editlib.testbed.anatomy import anatomy

plot.theme()
sentences = data.texts(texts)
frame = pd.concat(
    [anatomy(el.load(name), sentences).assign(model=name) for name in (model, control) if name], ignore_index=True
)
frame.to_parquet("data/anatomy.parquet")
figure = plot.anatomy(frame, models=[name for name in (model, control) if name])
figure.savefig("figures/anatomy.png")

# %% tags=["hide-input"]
by_place = (
    frame.assign(first=frame["position"] == 0)
    .groupby(["model", "layer", "first"])[["residual_norm", "key_cosine"]]
    .mean()
)
first, later = by_place.xs(True, level="first"), by_place.xs(False, level="first")
norm_ratio = (first["residual_norm"] / later["residual_norm"]).groupby("model").max()
cosine = first["key_cosine"].groupby("model").mean()
metrics = {"norm_ratio": float(norm_ratio[model]), "key_cosine_first": float(cosine[model])}
if control:
    metrics |= {
        "norm_ratio_control": float(norm_ratio[control]),
        "key_cosine_first_control": float(cosine[control]),
    }
record(metrics)
Markdown(
    f"**Finding.** In `{model}` the residual stream at position 0 is up to {norm_ratio[model]:.1f} times as long as later on"
    + (f" ({norm_ratio[control]:.1f} in `{control}`)" if control else "")
    + f", and the keys of two texts there have a mean cosine of {cosine[model]:.2f} over all layers"
    + (f" ({cosine[control]:.2f})." if control else ".")
)
