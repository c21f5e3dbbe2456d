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
#     data: [texts, corpus]
#     profiles:
#       quick: {}
#       full: {texts: testbed-ppl-1k}
# ---

# %% [markdown]
# # Anatomy: the first position inside a model
#
# **Question.** What sets the first position of a text apart from all others, inside the model?
#
# Many trained models carry a *massive activation* at position 0 {cite}`sun2024massive`, and many of their heads look
# there whatever stands there, an *attention sink* {cite}`gu2025attention`. Of the testbed's twins, `anchored` starts its
# training with a long position-0 embedding; `control` does not. ROME's keys are the inputs of the MLP's
# down-projection, so what position 0 does to them decides what an edit of a subject there divides by.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model looked into
control: str | None = "testbed/control"  # the model beside it; none for none
texts: str = "testbed-ppl-50"  # held-out texts
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
covariance: bool = True  # whether position 0's share in C, the second moment of the keys, is read too

# %% [markdown]
# ## By position
#
# For the first ten positions of held-out texts: the norm of the residual stream after each block, the norm of the keys,
# and how alike the keys of two different texts are. Near 1, the key no longer tells which token stands there. Each first
# token counts once, so that texts are not alike at position 0 because they begin with the same word.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Three panels for each model: norm of the residual stream, norm of the keys, and cosine between texts' keys, by position and layer."}}

import pandas as pd
from IPython.display import Markdown

import editlib as el
from editlib import data, plot
from editlib.editing.stats import needed_moments
from editlib.measuring.anatomy import SPIKE, anatomy, onset, profile
from editlib.runs.recording import record
from editlib.text import number, percent

plot.theme()
sentences = data.texts(texts)
models = {name: el.load(name) for name in (model, control) if name}
frame = pd.concat([anatomy(lm, sentences).assign(model=name) for name, lm in models.items()], ignore_index=True)
frame.to_parquet("data/anatomy.parquet")
figure = plot.anatomy(frame, models=list(models))
figure.savefig("figures/anatomy.png")

# %% [markdown]
# ## By layer
#
# Left: position 0 beside the mean of the nine positions behind it. Middle: the cosine again. Right: the share of heads
# and texts in which position 0 gets more than .3 of the attention on average, over rows of 64 tokens; and what
# position 0 is of C = E[k kᵀ], the second moment of the keys that an edit is divided by: its share of the trace and of
# the largest eigenvalue.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Three panels for each model, by layer: length of the residual stream and of the keys at position 0 over later ones; cosine between texts' keys at position 0 and later; share of heads that look at position 0, and its share in the second moment of the keys."}}
corpora = data.texts(corpus) if corpus else None
tables = {}
for name, lm in models.items():
    windows = needed_moments(lm, range(lm.num_layers), corpus=corpora).read() if covariance else None
    tables[name] = profile(lm, sentences, windows=windows)
layers = pd.concat([table.assign(model=name) for name, table in tables.items()]).reset_index()
layers.to_parquet("data/layers.parquet")
figure = plot.profile(layers, models=list(models))
figure.savefig("figures/layers.png")


# %% tags=["hide-input"]
def told(name: str) -> str:
    """What the tables say of a model, in words."""
    found, of_model = tables[name], frame[frame["model"] == name]
    begun, ratio = onset(found), found["key_norm_ratio"]
    first = of_model[of_model["position"] == 0]
    text = f"**`{name}`.** "
    text += f"No entry of the residual stream at position 0 is {SPIKE:g} times the median one or more. "
    if begun is not None:
        last = found.index[found["spike"] > SPIKE][-1]
        text = f"**`{name}`.** From layer {begun} to {last} position 0 holds a massive activation, up to "
        text += f"{number(found['spike'].max())} times the median entry (layer {found['spike'].idxmax()}). "
    text += f"{percent(found['sink'].max())} of heads, at most, look at it (layer {found['sink'].idxmax()}). "
    text += f"Two texts' keys there have a mean cosine of {first['key_cosine'].mean():.2f} over all layers. "
    text += (
        f"Its key is {number(ratio.min())} (layer {ratio.idxmin()}) to {number(ratio.max())} (layer {ratio.idxmax()}) "
    )
    return (
        text
        + f"times as long as later ones; at {int((ratio < 0.5).sum())} of {len(found)} layers less than half as long."
    )


Markdown("**Finding.** " + "\n\n".join(map(told, models)))

# %% [markdown]
# The key's length matters for ROME: where it is short, so is its product with the averaged key that an edit divides by,
# whatever C is; where it is long, C decides. *Damping* says how much: if all keys at position 0 were one vector, C with
# position 0 in it would make the product so many times smaller than C without.

# %% tags=["hide-input"]
shown = ["residual_norm_ratio", "spike", "key_norm", "key_norm_ratio", "key_cosine", "sink", "trace_share", "damping"]
tables[model][[column for column in shown if column in tables[model]]].style.format("{:.3g}")

# %% tags=["hide-input"]
metrics = {}
for name, ending in zip(models, ("", "_control"), strict=False):
    found, ratio = tables[name], tables[name]["key_norm_ratio"]
    first = frame[(frame["model"] == name) & (frame["position"] == 0)]
    metrics |= {
        f"norm_ratio{ending}": float(found["residual_norm_ratio"].max()),
        f"norm_ratio_layer{ending}": int(found["residual_norm_ratio"].idxmax()),
        f"spike{ending}": float(found["spike"].max()),
        f"spike_layer{ending}": int(found["spike"].idxmax()),
        f"onset{ending}": "none" if onset(found) is None else onset(found),
        f"sink{ending}": float(found["sink"].max()),
        f"sink_mean{ending}": float(found["sink"].mean()),
        f"key_cosine_first{ending}": float(first["key_cosine"].mean()),
        f"key_ratio_least{ending}": float(ratio.min()),
        f"key_ratio_least_layer{ending}": int(ratio.idxmin()),
        f"key_ratio_most{ending}": float(ratio.max()),
        f"key_ratio_most_layer{ending}": int(ratio.idxmax()),
        f"layers_short_key{ending}": int((ratio < 0.5).sum()),
        f"layers{ending}": len(found),
    }
    if covariance:
        metrics |= {f"damping{ending}": float(found["damping"].max())}
        metrics |= {f"damping_layer{ending}": int(found["damping"].idxmax())}
record(metrics)
