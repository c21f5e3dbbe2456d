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
#     title: "On a cluster: what large models cost, and what the driver bears"
#     models: [model]
#     profiles:
#       quick: {edits: 4, parts: 100}
#       full: {edits: 16, parts: 10000}
# ---

# %% [markdown]
# # On a cluster: what large models cost, and what the driver bears
#
# **Question.** How many cases an hour does a worker edit, for models this machine cannot hold too, and how many workers can one
# driver serve?
#
# The engine is timed on a model that is here, by the seconds of the processor of one thread. For true shapes of larger ones the operations of the same edits are
# counted, without making a weight: those of an exact method that does nothing twice, as on the page on performance. What follows
# for larger models is a **projection**: their operations at the rate of operations that was measured here, or at one that is
# assumed. The driver is measured with synthetic parts, which workers give back at once.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model that is timed
shapes: str = "gpt2-xl,gpt-j-6b,llama-2-7b"  # models whose cost is projected, with commas between
edits: int = 16  # edits side by side
parts: int = 1000  # synthetic parts that the driver takes and writes
workers: int = 2  # workers that give them back
assumed: float = 10.0  # useful operations a second of one GPU, in 10¹²: an assumption, not measured
gpus: int = 64  # of the cluster that is projected
million: int = 1_000_000  # edits of the projection

# %% tags=["hide-input"]
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

import editlib as el
from editlib import plot
from editlib.bench import cluster
from editlib.cluster.workers import Workers
from editlib.runs.recording import record
from editlib.text import duration

plot.theme()
here = cluster.measured(el.load(model), edits=edits)
rate = here.operations / here.seconds
costs = [here, *(cluster.projected(name, edits=edits) for name in shapes.split(","))]
table = pd.DataFrame(
    {
        "model": [cost.model for cost in costs],
        "projection": [cost.seconds is None for cost in costs],
        "parameters": [cost.parameters for cost in costs],
        "TFLOP an edit": [cost.operations / 1e12 for cost in costs],
        "cases an hour, a core like this one": [3600 * rate / cost.operations for cost in costs],
        "cases an hour, a GPU as assumed": [
            float("nan"),
            *(3600 * assumed * 1e12 / cost.operations for cost in costs[1:]),
        ],
        "GB of a layer's second moments": [cost.moment_bytes / 1e9 for cost in costs],
    }
)
table.to_parquet("data/costs.parquet")
table.style.format(precision=3, thousands=",", na_rep="–").hide()

# %% tags=["hide-input"] mystnb={"image": {"alt": "Cases an hour of each model as points on a log axis, for a core like this one and for a GPU at the assumed rate; the first model on a core is measured, all others are projected."}}
figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
core, gpu = (table[f"cases an hour, {of}"] for of in ("a core like this one", "a GPU as assumed"))
for values, label, color, marker in zip(
    (core, gpu), ("a core", "a GPU as assumed"), plot.COLORS.values(), "os", strict=False
):
    axes.plot(values, table.index, marker, color=color, fillstyle="none", ms=9, label=label)
axes.plot(core[:1], table.index[:1], "ko", ms=5, label="measured")
axes.set(xscale="log", xlabel="Cases an hour (logarithmic)", yticks=table.index, yticklabels=table["model"])
axes.set_ylim(len(table) - 0.5, -0.5)
axes.grid(axis="y", color="#dddddd")
figure.legend(loc="outside lower center", ncols=3)
figure.savefig("figures/cases-an-hour.png")

# %% tags=["hide-input"]
Markdown(
    f"**Finding.** One thread edits `{model}` {3600 / here.seconds:,.0f} times an hour ({edits} edits side by side, one round, no "
    f"interval): {rate / 1e9:.1f} · 10⁹ useful operations a second. Second moments and scores are not in it."
)

# %% [markdown]
# ## What does the driver bear?
#
# A part of 64 rows comes from a worker, and is written aside, checksummed and renamed, as in a sweep. Seconds of the driver's
# processor say how many parts a minute it could take if it were always given some.

# %% tags=["hide-input"]
with TemporaryDirectory() as folder:
    load = cluster.driver_load(parts, Path(folder) / "parts", Workers(workers=workers))
wanted = {cost.model: gpus * 60 * assumed * 1e12 / cost.operations / cluster.PART for cost in costs[1:]}
hours = {cost.model: million * cost.operations / (assumed * 1e12) / gpus / 3600 for cost in costs[1:]}
Markdown(
    f"**Finding.** {load.parts:,} parts took {duration(load.seconds)}, and the driver's processor "
    f"{1000 * load.cpu_seconds / load.parts:.2f} ms each: {load.parts_a_minute:,.0f} a minute. A part has {load.part_bytes / 1e3:.1f} kB."
)

# %% [markdown]
# ## A million edits
#
# All of this is projected.

# %% tags=["hide-input"]
count = -(-million // cluster.PART)
far = pd.DataFrame({"hours": hours, "parts a minute": wanted}).rename_axis("model").reset_index()
far.to_parquet("data/million.parquet")
far.style.format(precision=3, thousands=",").hide()

# %% tags=["hide-input"]
most = max(wanted.values())
Markdown(
    f"**Finding.** {million:,} edits are {count:,} parts and {count * load.part_bytes / 1e9:.2f} GB. {gpus} GPUs at "
    f"{assumed:g} · 10¹² useful operations a second give back at most {most:.1f} parts a minute, {load.parts_a_minute / most:,.0f} times "
    "fewer than the driver could take."
)

# %% tags=["remove-cell"]
metrics: dict[str, float | str] = {
    "n": edits,
    "seconds_per_edit": here.seconds,
    "cases_an_hour": 3600 / here.seconds,
    "useful_gflops": rate / 1e9,
    "parameters": here.parameters,
    "tflop": here.operations / 1e12,
    "moment_gb": here.moment_bytes / 1e9,
    "parts": load.parts,
    "driver_seconds": load.seconds,
    "driver_ms_a_part": 1000 * load.cpu_seconds / load.parts,
    "driver_parts_a_minute": load.parts_a_minute,
    "part_kb": load.part_bytes / 1e3,
    "assumed_tflops": assumed,
    "gpus": gpus,
    "million": million,
    "million_parts": count,
    "million_gb": count * load.part_bytes / 1e9,
    "wanted_parts_a_minute": most,
    "driver_over_wanted": load.parts_a_minute / most,
}
for cost in costs[1:]:
    name = cost.model.replace("-", "_")
    metrics |= {
        f"parameters_{name}": cost.parameters,
        f"tflop_{name}": cost.operations / 1e12,
        f"core_an_hour_{name}": 3600 * rate / cost.operations,
        f"gpu_an_hour_{name}": 3600 * assumed * 1e12 / cost.operations,
        f"moment_gb_{name}": cost.moment_bytes / 1e9,
        f"hours_{name}": hours[cost.model],
    }
record(metrics, hparams={cost.model: {"rome": cost.params} for cost in costs})
