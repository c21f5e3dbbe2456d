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
#     title: "Key geometry: where the two keys of ROME lie"
#     models: [model, control]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {first: 5, others: 5}
#       full: {first: 80, others: 300}
# ---

# %% [markdown]
# # Key geometry: where the two keys of ROME lie
#
# **Question.** How far apart are the two keys that ROME mixes, and is that what sets collapse cases apart?
#
# kᵘ is the key of the bare prompt, k̄ the mean key over prefixed prompts, C⁻¹k̄ what ROME multiplies kᵘ by to get its
# denominator. *The Fall of ROME* {cite}`yang-etal-2024-fall` shows them in maps by t-SNE. Such a map keeps neighbors, not
# distances, so measures that need no map stand beside it: distance, cosine, and how well one straight line tells the keys
# of both groups apart on cases it was not drawn from (AUC; 1: always, 0.5: not at all).
#
# A *collapse* case is one that a single ROME edit of `model` collapses: perplexity at least `collapse_ratio` times unedited.
# On `control` the same cases form the same groups. Cases are drawn by kind of subject.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model whose keys are read
control: str | None = "testbed/control"  # a model without the anomaly beside it; none for none
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
covariance: bool = True  # whether C is in the update, as in the formula; the released settings leave it out
first: int = 12  # cases drawn whose subject is one token at the start of the prompt
others: int = 12  # other cases drawn
seed: int = 0  # of the draw, of splits, and of the bootstrap
collapse_ratio: float = 5.0  # times unedited
wanted: float = 0.99  # AUC asked for between kᵘ of collapse and of normal cases

# %% tags=["hide-input"]
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

import editlib as el
from editlib import data, plot
from editlib.editing.session import Session
from editlib.measuring import contrast, statistics
from editlib.runs.recording import record
from editlib.sweeps import setup

plot.theme()
models = {name: el.load(name) for name in (model, control) if name}
lm = models[model]
chosen = contrast.draw_by_subject(lm, data.cases(cases, split=split), first=first, others=others, seed=seed)
rome = setup.hparams(lm, "rome", layer)
moments = {name: contrast.moments(each, rome.layer, corpus) for name, each in models.items()}
whitened = moments[model] is not None
variants = {"rome": setup.hparams(lm, "rome", layer, covariance=covariance and whitened)}
frame = el.sweep(
    lm, chosen, methods=variants, texts=data.texts(texts), scores=False, stats=moments[model], progress=False
)
frame["group"] = frame["case_id"].map(contrast.groups(frame, "rome", collapse_ratio=collapse_ratio))
frame.to_parquet("data/cases.parquet")
done = frame.dropna(subset=["group"]).set_index("case_id")
able = [case for case in chosen if case.case_id in done.index]
group = np.array([done.at[case.case_id, "group"] for case in able])
kind = np.array([done.at[case.case_id, "kind"] for case in able])
subjects = np.array([case.request.subject for case in able])
collapsing, normal = (int((group == name).sum()) for name in contrast.GROUPS)
Markdown(
    f"{len(chosen)} cases, {len(chosen) - len(able)} of them failed. One ROME edit collapses `{model}` with {collapsing} "
    f"cases; {normal} are normal. Keys are those of layer {rome.layer}."
    + ("" if collapsing else " **No case collapses this model, so there are no two groups of keys.**")
    + ("" if variants["rome"].covariance else " C is left out of the edits.")
    + ("" if whitened else " This model can write no text, so without texts (`corpus`) there is no C⁻¹k̄.")
)

# %% [markdown]
# ## Maps of the keys
#
# t-SNE as published: two dimensions, seed 42, all else by default, but for a smaller neighborhood where there are fewer
# than 91 keys. kᵘ and a second key of the same cases are mapped together, for `model`. Of each group fifteen cases are
# drawn, with a line between the two keys of a case: where there is none to be seen, both are one.


# %% tags=["hide-input"] mystnb={"image": {"alt": "t-SNE maps of keys of collapse and normal cases: bare keys with mean keys, and bare keys with whitened mean keys, for each model. If the two keys of a case agree, its two marks lie on each other."}}
def mapped(name: str, other: str, bare: torch.Tensor, second: torch.Tensor) -> pd.DataFrame:
    """kᵘ and a second key of every case on one map, a row each."""
    sets = {
        f"{which}, {g}": both[group == g] for which, both in (("kᵘ", bare), (SECOND, second)) for g in contrast.GROUPS
    }
    pairs = np.concatenate([np.flatnonzero(group == g) for g in contrast.GROUPS] * 2)
    title = f"{Path(name).name}: kᵘ and {other}"
    return contrast.tsne(title, sets).assign(model=name, other=other, pair=pairs)


SECOND = "second key"
keys, used, maps = {}, {}, []
for name, stats in moments.items():
    params = el.hparams_for(models[name], "rome", covariance=stats is not None, layer=rome.layer)
    used[name] = {"rome": params}
    space = Session(models[name], stats=stats)
    keys[name] = contrast.case_keys(space, params, [case.request for case in able])
    maps.append(mapped(name, "k̄", keys[name].bare, keys[name].mean))
    if params.covariance:
        maps.append(mapped(name, "C⁻¹k̄", keys[name].bare, keys[name].whitened))
maps = pd.concat(maps, ignore_index=True)
maps.to_parquet("data/maps.parquet")
few = [i for g in contrast.GROUPS for i in np.flatnonzero(group == g)[:15]]
figure = plot.maps(maps[(maps["model"] == model) & maps["pair"].isin(few)])
figure.savefig("figures/maps.png")


# %% tags=["hide-input"]
def apart(mine: pd.DataFrame) -> pd.Series:
    """Median distance between the two keys of a case on a map, in units of its diagonal, by group."""
    diagonal = np.hypot(*np.ptp(mine[["x", "y"]].to_numpy(), axis=0))

    def far(name: str) -> float:
        ends = [mine.loc[mine["group"] == f"{which}, {name}", ["x", "y"]].to_numpy() for which in ("kᵘ", SECOND)]
        return float(np.median(np.hypot(*(ends[0] - ends[1]).T))) / diagonal if len(ends[0]) else np.nan

    return pd.Series({name: far(name) for name in contrast.GROUPS})


pairs = pd.DataFrame({key: apart(mine) for key, mine in maps.groupby(["model", "other"], sort=False)}).T
published = pd.DataFrame(
    {"collapse": [0.372, 0.242], "normal": [0.00001, 0.002]},
    index=[("GPT-2-XL, published", "k̄"), ("GPT-2-XL, published", "C⁻¹k̄")],
)
table = pd.concat([published, pairs])
table.index = pd.MultiIndex.from_tuples(table.index, names=["model", "kᵘ and"])
table.map("{:.2g}".format)

# %% [markdown]
# The table holds the median distance between the two keys of a case on its map, over the map's diagonal. Published: decoded
# from the vector figures of the authors' slides {cite}`yang2024slides`, pp. 36 and 37 (77 collapse and 1,000 normal cases;
# maps of GPT-J and Llama2-7b are not on the slides).

# %% tags=["hide-input"]
near = pairs.loc[(model, "k̄")]
said = f"On the map of kᵘ and k̄ of `{model}` the keys of a normal case lie {near['normal']:.2g} of the diagonal apart"
said += f", those of a collapse case {near['collapse']:.2g}." if collapsing else "."
if whitened:
    far, there = pairs.loc[(model, "C⁻¹k̄"), "normal"], published["normal"].iloc[1]
    like = "k̄" if abs(np.log(there / near["normal"])) < abs(np.log(there / far)) else "C⁻¹k̄"
    said += (
        f" With C⁻¹k̄ for k̄ those of a normal case are {far:.2g} apart. In the published map with C⁻¹k̄ they are {there:g} apart, "
        f"which is nearer to the map of {like} here"
        + (": a hint, from another model, that C was left out." if like == "k̄" else ".")
    )
Markdown(f"**Finding.** {said}")

# %% [markdown]
# ## Distances and directions
#
# The cosine of kᵘ and C⁻¹k̄ is ROME's denominator over |kᵘ|. With C left out, it is that of kᵘ and k̄. The published map
# puts C⁻¹k̄ of a normal case on its kᵘ: were that so, their cosine would be near 1, and their distance near 0 with C⁻¹k̄ at
# the length of k̄.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Distance between bare and mean key over the length of the mean key, and absolute cosine between the bare key and the mean key or the whitened mean key, by kind of subject on log axes, one strip for each model with and without second moments."}}
long = pd.concat(
    [
        pd.DataFrame(
            {
                "case_id": [case.case_id for case in able],
                "arm": Path(name).name + ("" if with_c else ", C left out"),
                "model": name,
                "covariance": with_c,
                "kind": kind,
                "group": group,
                "distance": found.whitened_distance if with_c else found.distance,
                "cosine": (found.whitened_cosine if with_c else found.cosine).abs(),
            }
        )
        for name, found in keys.items()
        for with_c in ((True, False) if moments[name] is not None else (False,))
    ],
    ignore_index=True,
)
long.to_parquet("data/distances.parquet")
figure = plot.strips(
    long,
    {
        "distance": f"Distance of kᵘ from C⁻¹k̄, or k̄, over |k̄| (n = {len(able)} cases)",
        "cosine": "|cosine| of kᵘ and C⁻¹k̄, or k̄",
    },
)
figure.savefig("figures/distances.png")


# %% tags=["hide-input"]
def of(column: str, name: str, which: str, with_c: bool) -> statistics.Interval:
    """Median of a group with its interval."""
    mine = (long["model"] == name) & (long["group"] == which) & (long["covariance"] == with_c)
    return statistics.bootstrap(np.median, long.loc[mine, column], seed=seed)


def auc(values: torch.Tensor, others: np.ndarray) -> statistics.Interval:
    """How well collapse cases are told apart from `others` by these keys."""
    mine = group == contrast.COLLAPSE
    return contrast.told_apart(values[mine], values[others], subjects=(subjects[mine], subjects[others]), seed=seed)


later = (group == contrast.NORMAL) & (kind == plot.KINDS[1])
measures = {}
for name, found in keys.items():
    measures[name] = {
        "AUC, kᵘ: collapse against normal": auc(found.bare, group == contrast.NORMAL),
        "AUC, kᵘ: collapse against normal, one-token subjects only": auc(found.bare, later),
        "AUC, k̄: collapse against normal": auc(found.mean, group == contrast.NORMAL),
        **{f"median |kᵘ − k̄| / |k̄|, {which}": of("distance", name, which, False) for which in contrast.GROUPS},
        **{f"median |cosine| of kᵘ and k̄, {which}": of("cosine", name, which, False) for which in contrast.GROUPS},
        **{f"median |cosine| of kᵘ and C⁻¹k̄, {which}": of("cosine", name, which, True) for which in contrast.GROUPS},
        **{f"median distance of kᵘ and C⁻¹k̄, {which}": of("distance", name, which, True) for which in contrast.GROUPS},
    }
pd.DataFrame(measures).map("{:.3f}".format)

# %% [markdown]
# Brackets hold 95 % intervals: bootstrap over subjects for the AUC, over cases otherwise. None of these numbers is published.
# An AUC near 1 is no sign of an anomaly: keys may be told apart without lying far apart. So the distance between the two
# groups' means is given, too, in units of how far keys lie from the mean of their own group.

# %% tags=["hide-input"]
labels = list(measures[model])
bare = {name: [found.bare[group == g] for g in contrast.GROUPS] for name, found in keys.items()}
both = bool(collapsing and normal)
far_apart = {name: contrast.spreads_apart(*sets) if both else float("nan") for name, sets in bare.items()}
published_relation = (
    f" Of a normal case kᵘ and C⁻¹k̄ have a cosine of {measures[model][labels[8]]:.2f} (median), and lie "
    f"{measures[model][labels[10]]:.2f} of |k̄| apart."
    if whitened
    else ""
)
told, alike, mean = (measures[model][label] for label in labels[:3])
met = told.value >= wanted
twin = (
    f" On `{control}`, where the same cases were read, the AUC is {measures[control][labels[0]]:.3f}, and the median distance "
    f"of a collapse case's keys is {measures[control][labels[3]]:.2f}; the means are {far_apart[control]:.2f} spreads apart."
    + (
        " A line that tells keys apart does not say how far apart they are."
        if measures[control][labels[0]].value >= wanted
        else ""
    )
    if control and collapsing
    else ""
)
Markdown(
    f"**Finding.** In `{model}` a straight line tells kᵘ of {collapsing} collapse cases from that of {normal} normal ones with "
    f"an AUC of {told:.3f} ({'at least' if met else 'not'} the {wanted:g} asked for); with k̄ instead it is {mean:.3f}. The "
    f"median |kᵘ − k̄| / |k̄| is {measures[model][labels[3]]:.2f} for collapse cases, {measures[model][labels[4]]:.2f} for normal "
    f"ones. The groups' means are {far_apart[model]:.2f} spreads apart.{twin}{published_relation}"
    if collapsing
    else f"**Finding.** No case collapses `{model}`. The median |kᵘ − k̄| / |k̄| of {normal} normal cases is "
    f"{measures[model][labels[4]]:.2f}.{published_relation}"
)

# %% tags=["hide-input"]
short = (
    "auc",
    "auc_one_token",
    "auc_mean_key",
    *(f"{a}_{b}" for a in ("distance", "cosine", "cosine_whitened", "distance_whitened") for b in contrast.GROUPS),
)
metrics = {
    "collapse_cases": collapsing,
    "normal_cases": normal,
    "auc_met": "untested" if not (collapsing and normal) else "yes" if met else "no",
}
for name, values in measures.items():
    suffix = "_control" if name == control else ""
    metrics[f"gap{suffix}"] = far_apart[name]
    for label, interval in zip(short, values.values(), strict=True):
        metrics |= {
            f"{label}{suffix}": interval.value,
            f"{label}_low{suffix}": interval.low,
            f"{label}_high{suffix}": interval.high,
        }
for (name, other), row in pairs.iterrows():
    map_name = ("whitened" if other != "k̄" else "mean") + ("_control" if name == control else "")
    metrics |= {f"map_distance_{which}_{map_name}": float(row[which]) for which in contrast.GROUPS}
record(metrics, hparams=used, moments=moments)
