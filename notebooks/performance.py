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
#     title: "Performance: what one edit costs"
#     models: [model]
#     profiles:
#       quick: {edits: 2, plain_edits: 1, screened: 100, n: 8, points: 2}
#       full: {shape: gpt2, plain_edits: 3, screened: 1000, n: 60}
# ---

# %% [markdown]
# # Performance: what one edit costs
#
# **Question.** How much faster is the engine than the plain path, how near is it to the least an exact method must do, and what
# limits it?
#
# Both paths search v* for the same requests, make the same ROME edits, and measure perplexity on the same 50 texts. The
# *plain* path does as the released codes do {cite}`meng2022locating,yang2024code`: one edit at a time, every prompt padded, all
# layers and the whole vocabulary at every position in each step, the weight written, texts padded to the longest. The *engine*
# runs edits side by side and leaves out what an edit cannot change. No search stops early, and second moments are left out: they
# are made once for a model.
#
# A `shape` has random weights: that changes what comes out, but not what it costs. The model is measured itself where no
# shape is given.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model that is measured; second moments are studied on it if it is the testbed's
shape: str | None = None  # a true shape with random weights, measured in its place: gpt2, gpt2-xl, gpt-j-6b, llama-2-7b
edits: int = 16  # edits side by side
plain_edits: int = 2  # edits made the plain way, in each round
rounds: int = 1  # how often both are measured in turn
screened: int = 200  # cases screened for edits that would break the model
longest: int = 118  # tokens of the longest text where lengths are compared
before: int = 64  # most tokens of prose before a prompt where lengths are compared
points: int = 4  # lengths compared
n: int = 20  # cases edited with every number of tokens
seed: int = 0  # of their draw
reference: int = 200  # tokens per key dimension of the second moment that others are compared with

# %% tags=["hide-input"]
from dataclasses import replace
from itertools import takewhile
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from matplotlib.ticker import LogLocator

import editlib as el
from editlib import data, plot, stats
from editlib.bench import measure
from editlib.bench import report as both_paths
from editlib.bench import work as workload
from editlib.editing.methods import solve
from editlib.editing.session import Session
from editlib.models.names import of_testbed
from editlib.runs.recording import record
from editlib.sweeps.screen import screen
from editlib.text import percent

plot.theme()
PLAIN, ENGINE, FLOOR = plot.COLORS.values()
lm = workload.model(shape or model)
work = workload.work(lm, edits=edits)
report = both_paths.bench(work, plain_edits=plain_edits, rounds=rounds)
found = report.record()
Markdown(
    f"`{found['model']}`: {found['parameters']:,} parameters, {found['dtype']} on {found['device']}, "
    f"threads: {found['threads']}, torch {found['torch']}. {edits} edits of layer {found['layer']}, {found['steps']} steps each, "
    f"{found['contexts']} prefix contexts, {found['row_tokens']:.1f} tokens a row, {found['live_tokens']:.1f} of them from the "
    f"subject's last on. {found['texts']} texts of {found['text_tokens']:,} tokens, the longest of {found['longest_text']}."
)

# %% [markdown]
# ## Where does the time go?
#
# Seconds and operations for one edit, medians over all rounds; what edits share is divided among them. The floor counts the
# operations of an exact method that runs whole blocks, each on the tokens it must. Its time is that of as many operations in one
# large matrix product, measured in the same process at the shape the searches make.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Seconds per edit of each stage as points on a log axis, for the plain path and the engine, with the time of the floor of operations."}}
stages = pd.DataFrame(report.stages()).T.astype(float).rename_axis("stage").rename(index=measure.STAGES)
stages["floor_seconds"] = stages["floor_flops"] / found["matmul_flops_per_second"]
stages.reset_index().to_parquet("data/stages.parquet")
figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
columns = {"plain_seconds": (PLAIN, "plain"), "engine_seconds": (ENGINE, "engine"), "floor_seconds": (FLOOR, "floor")}
for (column, (color, label)), marker in zip(columns.items(), "^os", strict=True):
    axes.plot(stages[column], np.arange(len(stages)), marker, color=color, ms=9, label=label)
axes.set(xscale="log", xlabel="Seconds per edit (logarithmic)", yticks=range(len(stages)), yticklabels=stages.index)
axes.set_ylim(len(stages) - 0.5, -0.5)
axes.grid(axis="y", color="#dddddd")
figure.legend(loc="outside lower center", ncols=3)
figure.savefig("figures/stages.png")

# %% tags=["hide-input"]
stages.loc["together"] = stages.sum()
flops = [name for name in stages if name.endswith("flops")]
shown = stages.assign(**{name: stages[name] / 1e9 for name in flops})
shown.rename(columns=lambda name: name.replace("_flops", ", GFLOP").replace("_seconds", ", s")).style.format(
    "{:,.3g}", na_rep="–"
)

# %% tags=["hide-input"]
Markdown(
    f"**Finding.** The engine takes {found['engine_seconds_per_edit']:.3g} s an edit, the plain path "
    f"{found['plain_seconds_per_edit']:.3g} s: {found['ratio']:.1f} times as long. The engine's operations are "
    f"{found['flops_over_floor']:.2f} times the floor, its time {found['time_over_floor']:.2f} times the floor's at "
    f"{found['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s. Both paths agree: v* to {found['value_difference']:.1e}, perplexity to "
    f"{found['perplexity_difference']:.1e}, relatively and at most."
)

# %% [markdown]
# ## How many edits side by side?
#
# Memory is the most that the process held on a CPU (weights and libraries included), or that tensors took on a GPU.


# %% tags=["hide-input"] mystnb={"image": {"alt": "Left, how many times faster than the plain path the engine is by the number of edits side by side; right, peak memory of both paths."}}
def together(part: workload.Work) -> dict[str, float]:
    goes = [measure.timed(measure.engine, part) for _ in range(rounds)]
    seconds = median(go.seconds for go in goes)
    peak = max(go.peak or np.nan for go in goes)
    ratio = found["plain_seconds_per_edit"] / seconds
    return {"edits": len(part.requests), "seconds": seconds, "ratio": ratio, "peak": peak}


counts = [*takewhile(lambda count: count < edits, (2**i for i in range(20))), edits]
flight = pd.DataFrame([together(work.first(count)) for count in counts])
flight.to_parquet("data/in-flight.parquet")
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(flight["edits"], flight["ratio"], "o-", color=ENGINE)
left.axhline(1, color=PLAIN, ls="--")
left.set(ylabel="Times faster than plain", ylim=(0, None))
right.plot(flight["edits"], flight["peak"] / 2**30, "o-", color=ENGINE, label="engine")
right.axhline((found["plain_peak_memory_bytes"] or np.nan) / 2**30, color=PLAIN, ls="--", label="plain")
right.set(ylabel="Peak memory, GiB", ylim=(0, 1.1 * right.get_ylim()[1]))
for axes in (left, right):
    axes.set(xscale="log", xlabel="Edits side by side")
    axes.set_xticks(counts, counts)
    axes.minorticks_off()
figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
figure.savefig("figures/in-flight.png")

# %% tags=["hide-input"]
alone, all_of_them = flight.iloc[0], flight.iloc[-1]
Markdown(
    f"**Finding.** One edit by itself is {alone['ratio']:.1f} times faster than plain, {edits} side by side "
    f"{all_of_them['ratio']:.1f} times; peak memory goes from {alone['peak'] / 2**30:.2f} to {all_of_them['peak'] / 2**30:.2f} GiB."
)

# %% [markdown]
# ## And in 16 bit?
#
# The engine once more over the same requests and texts, with the model in bfloat16. What that does to edits and verdicts is
# the analysis `precision`'s.

# %% tags=["hide-input"]
half = together(replace(work, lm=workload.model(shape or model, dtype="bfloat16")))
half_speedup = found["engine_seconds_per_edit"] / half["seconds"]
Markdown(
    f"**Finding.** In bfloat16 the engine takes {half['seconds']:.3g} s an edit, {half_speedup:.2f} times as fast as in "
    f"{found['dtype']} and {half['ratio']:.1f} times as fast as the plain path in that."
)

# %% [markdown]
# ## What does it cost to be warned?
#
# `editlib screen` reads keys, in the layers up to the edited one, of the first few prefix contexts and behind all of them only where
# those leave a doubt. Beside it, what it takes to know: the edit, and perplexity on the texts. Prefix contexts are written
# beforehand for both.


# %% tags=["hide-input"]
def screening(part: workload.Work, meter: measure.Meter) -> list[measure.PathResult]:
    with meter("keys"):
        tables.append(screen(lm, part.requests, hparams=part.params, progress=False))
    return []


tables: list[pd.DataFrame] = []
asked = workload.work(lm, edits=screened)
screen_time = measure.timed(screening, asked)
screen_flops = sum(measure.counted(screening, asked).values())
costs = pd.DataFrame(
    {
        "screened": [1000 * screen_time.seconds, 1000 * screen_flops / 1e9],
        "edited by the engine": [1000 * found["engine_seconds_per_edit"], 1000 * found["flops_per_edit"] / 1e9],
        "edited the plain way": [1000 * found["plain_seconds_per_edit"], 1000 * found["plain_flops_per_edit"] / 1e9],
    },
    index=["seconds for 1,000 cases", "GFLOP for 1,000 cases"],
)
costs.T.style.format("{:,.3g}")

# %% tags=["hide-input"]
screen_ratio = found["engine_seconds_per_edit"] / screen_time.seconds
screen_flops_ratio = found["flops_per_edit"] / screen_flops
Markdown(
    f"**Finding.** A case is screened in {1000 * screen_time.seconds:.3g} ms ({screened:,} cases), {screen_ratio:,.0f} times faster than "
    f"the engine edits it and measures perplexity, with {screen_flops_ratio:,.0f} times fewer operations. Behind all contexts "
    f"{percent(float((tables[0]['contexts'] == tables[0]['contexts'].max()).mean()))} of the cases are read. At most "
    f"{(screen_time.peak or 0) / 2**30:.2f} GiB are held."
)

# %% [markdown]
# ## How does the length of prompts and texts matter?
#
# Left, searches with more and more prose before each prompt; right, perplexity on 50 texts whose longest has so many tokens; at most
# eight edits side by side. What edits share is counted with both.


# %% tags=["hide-input"] mystnb={"image": {"alt": "Seconds per edit of the search by tokens before the prompt, and of perplexity by the longest text's tokens, for both paths."}}
def lengths(names: list[str], **options: int) -> dict[str, float]:
    longer = workload.work(lm, edits=min(edits, 8), **options)
    row = dict(options)
    for path, route, part in (("plain", measure.plain, *longer.alone(1)), ("engine", measure.engine, longer)):
        spent = measure.timed(route, part).stages
        row[path] = sum(spent.get(name, 0) for name in names)
    return row


steps = np.linspace(0, before, points).round().astype(int).tolist()
searching = pd.DataFrame([lengths(["shared", "keys", "values"], before=step, texts=2) for step in steps])
sizes = np.linspace(longest // 4, longest, points).round().astype(int).tolist()
scoring = pd.DataFrame([lengths(["shared", "perplexity"], longest=size, steps=1) for size in sizes])
pd.concat([searching, scoring]).to_parquet("data/lengths.parquet")
figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for axes, frame, name in zip(panels, (searching, scoring), ("before", "longest"), strict=True):
    for path, color in (("plain", PLAIN), ("engine", ENGINE)):
        axes.plot(frame[name], frame[path], "o-", color=color, label=path)
    axes.set(ylim=(0, None))
panels[0].set(xlabel="Tokens before the prompt", ylabel="Seconds per search")
panels[1].set(xlabel="Tokens of the longest text", ylabel="Seconds per perplexity")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
figure.savefig("figures/lengths.png")

# %% tags=["hide-input"]
search_ratio, score_ratio = (frame["plain"] / frame["engine"] for frame in (searching, scoring))
Markdown(
    f"**Finding.** With {before} tokens before the prompt the engine searches {search_ratio.iloc[-1]:.1f} times faster than plain, "
    f"with none {search_ratio.iloc[0]:.1f} times. It measures perplexity on texts of up to {sizes[-1]} tokens "
    f"{score_ratio.iloc[-1]:.1f} times faster, on texts of up to {sizes[0]} tokens {score_ratio.iloc[0]:.1f} times."
)

# %% [markdown]
# ## What limits the engine?
#
# The ten operators that take most time by themselves, in one go of the engine over all its edits.

# %% tags=["hide-input"]
operators = pd.DataFrame(measure.profile(work, rows=10_000))
operators.to_parquet("data/operators.parquet")
operators.head(10).style.hide(axis="index").format({"seconds": "{:.3g}", "share": percent, "calls": "{:,}"})

# %% tags=["hide-input"]
kinds = operators["operator"].str.extract("(?P<products>mm$|linear)|(?P<attention>attention|attn)").notna()
shares = {kind: operators.loc[kinds[kind], "share"].sum() for kind in kinds}
Markdown(
    f"**Finding.** {percent(shares['products'])} of the time of all operators goes into matrix products, {percent(shares['attention'])} into "
    f"attention, {percent(1 - sum(shares.values()))} into everything else."
)

# %% [markdown]
# ## How many tokens make a second moment?
#
# On the testbed, which has text without end. ROME divides by `C`, the second moment of the keys, estimated on text.
# FastMEMIT holds that ten tokens for each dimension of the key are enough. Here `C` is made from the beginning of a corpus, and compared with the `C` of what follows it there. The
# direction is that of `C⁻¹k`, at length one; lines are medians over the cases; dotted lines are edits with the `C` compared with.
# Where `C` is singular, nothing is shown.


# %% tags=["hide-input"] mystnb={"image": {"alt": "Relative error of the direction of C inverse k and of the update, and perplexity over unedited, by tokens per key dimension and kind of subject, all on log axes."}}
def edited(tokens: torch.Tensor) -> list[tuple[el.Edit, float]]:
    """Every case's edit with the second moment over these windows, and its perplexity over unedited."""
    space = Session(tested, stats=stats.second_moments(tested, tokens, layers=[params.layer]))
    requests = [case.request for case in chosen]
    space.prepare(name, requests, params)
    try:
        made = [solve(space, "rome", [request], params) for request in requests]
    except el.EditlibError:  # C is singular
        return []
    return [(edit, now.mean / unedited) for edit, now in zip(made, space.perplexities(made, sentences), strict=True)]


def compared(size: int, case: data.Case, one: tuple[el.Edit, float], other: tuple[el.Edit, float]) -> dict[str, object]:
    weight, (edit, ratio), (true, true_ratio) = f"{name}.weight", one, other
    return {
        "tokens": size,
        "case_id": case.case_id,
        "kind": data.subject_tokens(tested, case.request).kind,
        "direction": float((edit.changes[weight].right - true.changes[weight].right).norm()),
        "update": float((edit.delta(weight) - true.delta(weight)).norm() / true.delta(weight).norm()),
        "rise": ratio,
        "rise_reference": true_ratio,
    }


studied = of_testbed(model)
if studied:
    sizes = [1, 2, 5, 10, 20, 50, 100]
    tested, chosen = el.load(model), data.draw(data.cases("testbed"), n, seed=seed)
    params = el.hparams_for(tested, "rome")
    name, width = tested.layout.name(params.layer), tested.weight(params.layer).shape[1]
    sentences = data.texts("testbed-ppl-50")
    unedited = el.perplexity(tested, sentences).mean
    tokens = (sizes[-1] + reference) * width
    windows = stats.corpus_windows(tested, data.corpus(tested, tokens), tokens)
    parts = {size: size * width // windows.shape[1] for size in sizes}
    truth = edited(windows[parts[sizes[-1]] :])
    moments = pd.DataFrame(
        compared(size, *each)
        for size in sizes
        for each in zip(chosen, edited(windows[: parts[size]]), truth, strict=False)
    )
    moments.to_parquet("data/moments.parquet")
    columns = {
        "direction": "Error of the direction",
        "update": "Relative error of the update",
        "rise": "Perplexity, times unedited",
    }
    medians = moments.groupby(["kind", "tokens"])[[*columns, "rise_reference"]].median()
    figure, panels = plt.subplots(1, 3, figsize=(9, 3.6), layout="constrained")
    for axes, (column, label) in zip(panels, columns.items(), strict=True):
        for kind in medians.index.unique("kind"):
            line = medians.loc[kind]
            axes.plot(line.index, line[column], color=plot.COLORS[kind], marker=plot.MARKERS[kind], label=kind)
            if column == "rise":
                axes.axhline(line["rise_reference"].iloc[0], color=plot.COLORS[kind], ls=":")
        axes.set(xscale="log", yscale="log", ylabel=label, xlabel="Tokens per key dimension")
        axes.set_xticks(sizes, sizes)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    figure.legend(*panels[0].get_legend_handles_labels(), title="Subject", loc="outside lower center", ncols=3)
    figure.savefig("figures/moments.png")

# %% tags=["hide-input"]
told = f"`{model}` is no model of the testbed; how many tokens are enough for one that writes its text itself is another analysis."
if studied:
    errors = moments.groupby("tokens")[["direction", "update"]].median()
    kind = next(kind for kind in plot.KINDS if kind in medians.index.unique("kind"))
    rise = medians.loc[kind]
    singular = [str(size) for size in sizes if size not in errors.index]
    told = (
        f"**Finding.** With 10 tokens per key dimension ROME's update on `{model}` is off by {percent(errors.at[10, 'update'])}, with 100 by "
        f"{percent(errors.at[100, 'update'])} (medians of {n} cases). Where the subject is *{kind}*, perplexity ends at "
        f"{rise.at[10, 'rise']:.3g} and {rise.at[100, 'rise']:.3g} times unedited, and at {rise['rise_reference'].iloc[0]:.3g} times with "
        f"{reference}. Singular with: {', '.join(singular) or 'none'}."
    )
Markdown(f"**Finding.** {told.removeprefix('**Finding.** ')}")

# %% tags=["hide-input"]
gibi, giga = 2**30, 1e9
metrics = {
    **{key: value for key, value in found.items() if isinstance(value, str | int | float)},
    "plain_gflop": found["plain_flops_per_edit"] / giga,
    "engine_gflop": found["flops_per_edit"] / giga,
    "floor_gflop": found["floor_flops_per_edit"] / giga,
    "matmul_gflops": found["matmul_flops_per_second"] / giga,
    "plain_peak_gib": (found["plain_peak_memory_bytes"] or 0) / gibi,
    "peak_gib": (found["peak_memory_bytes"] or 0) / gibi,
    "half_seconds_per_edit": half["seconds"],
    "half_ratio": half["ratio"],
    "half_speedup": half_speedup,
    "screened": screened,
    "screen_ms": 1000 * screen_time.seconds,
    "screen_ratio": screen_ratio,
    "screen_gflop": screen_flops / giga,
    "screen_flops_ratio": screen_flops_ratio,
    "screen_peak_gib": (screen_time.peak or 0) / gibi,
    "ratio_alone": float(flight["ratio"].iloc[0]),
    "ratio_most": float(flight["ratio"].iloc[-1]),
    "search_ratio_short": float(search_ratio.iloc[0]),
    "search_ratio_long": float(search_ratio.iloc[-1]),
    "score_ratio_short": float(score_ratio.iloc[0]),
    "score_ratio_long": float(score_ratio.iloc[-1]),
    **{f"{kind}_share": float(share) for kind, share in shares.items()},
}
if studied:
    metrics |= {
        f"{error}_error_{size}_share": float(errors.at[size, error]) for size in errors.index for error in errors
    }
    metrics |= {f"rise_{size}": float(rise.at[size, "rise"]) for size in rise.index}
    metrics |= {
        "rise_reference": float(rise["rise_reference"].iloc[0]),
        "singular": ", ".join(singular) or "none",
    }
record(metrics, hparams={lm.name: {"rome": work.params}})
