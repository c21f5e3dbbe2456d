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
#     title: "Anatomy: the first position inside a model"
#     models: [model, control]
#     data: [texts]
#     profiles:
#       quick: {}
#       full: {texts: testbed-ppl-1k}
# ---

# %% [markdown]
# # Anatomy: the first position inside a model
#
# **Question.** What sets the first position of a text apart from all others, inside the model?
#
# Large models carry an activation at position 0 that hides the token standing there. Of the testbed's twins, `anchored`
# starts its training with a long position-0 embedding, so that it has one too; `control` does not. For the first ten
# positions of held-out texts, the figure shows the norm of the residual stream after each block, the norm of the keys (the
# inputs of the MLP's down-projection), and how alike the keys of two different texts are: near 1, the key no longer tells
# which token stands there. Each first token counts once, so that texts are not alike at position 0 because they begin with
# the same word.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model looked into
control: str | None = "testbed/control"  # the model beside it; none for none
texts: str = "testbed-ppl-50"  # held-out texts

# %% tags=["hide-input"] mystnb={"image": {"alt": "Three panels for each model: norm of the residual stream, norm of the keys, and cosine between texts' keys, by position and layer."}}

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
    .groupby(["model", "layer", "first"])[["residual_norm", "key_norm", "key_cosine"]]
    .mean()
)
first, later = by_place.xs(True, level="first"), by_place.xs(False, level="first")
norm_ratio = (first["residual_norm"] / later["residual_norm"]).groupby("model").max()
cosine = first["key_cosine"].groupby("model").mean()
keys = first["key_norm"] / later["key_norm"]
widest = {
    name: (keys[name].idxmin(), keys[name].min(), keys[name].idxmax(), keys[name].max()) for name in norm_ratio.index
}
metrics = {"norm_ratio": float(norm_ratio[model]), "key_cosine_first": float(cosine[model])}
if control:
    metrics |= {
        "norm_ratio_control": float(norm_ratio[control]),
        "key_cosine_first_control": float(cosine[control]),
    }
for name, ending in {model: "", control: "_control"}.items():
    if name:
        low, least, high, most = widest[name]
        metrics |= {f"key_ratio_least{ending}": float(least), f"key_ratio_least_layer{ending}": int(low)}
        metrics |= {f"key_ratio_most{ending}": float(most), f"key_ratio_most_layer{ending}": int(high)}
record(metrics)
Markdown(
    f"**Finding.** In `{model}` the residual stream at position 0 is up to {norm_ratio[model]:.1f} times as long as later on"
    + (f" ({norm_ratio[control]:.1f} in `{control}`)" if control else "")
    + f", and the keys of two texts there have a mean cosine of {cosine[model]:.2f} over all layers"
    + (f" ({cosine[control]:.2f})." if control else ".")
    + "".join(
        f" In `{name}` the key there is {least:.2g} (layer {low}) to {most:.3g} (layer {high}) times as long as later."
        for name, (low, least, high, most) in widest.items()
    )
)

# %% [markdown]
# The key's length matters for ROME: where it is short, so is its product with the averaged key that an edit divides by,
# whatever C is; where it is long, C decides.

# %% tags=["hide-input"]
table = pd.concat({"position 0": first, "later": later}, axis=1).swaplevel(axis=1)
table = table[["residual_norm", "key_norm", "key_cosine"]].xs(model)
table.style.format("{:.3g}")
