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
#     title: "Layers: two regimes, and what follows for an edit"
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {keyed: 4, edited: 1, every: 4, sentences: 10}
#       full: {keyed: 100, edited: 20, sentences: 20}
# ---

# %% [markdown]
# # Layers: two regimes, and what follows for an edit
#
# **Question.** At which layers does one edit break a model, which methods does it break with, and do the keys foretell it?
#
# Where the subject is the first token, ROME divides by the product of an averaged key k̄ and the key at position 0. That
# key can be *short*, so that the product is small whatever C is; or it can be *long*, as where a layer writes a massive
# activation {cite}`sun2024massive`. Then C, if position 0 is in it, shrinks the product, and without C the product is
# large. `c-rome` has one key throughout, but its v* starts from the bare prompt's value, which at such a layer is the
# massive activation itself. `fc-rome` starts it from the mean value behind the prefixes. `p-rome` reads keys and value without
# prefixes. R-ROME {cite}`gupta2024rebuilding` is `c-rome` with one position of its switch and `p-rome` with the other.
#
# Each method is run with the second moment C of the keys, with C less position 0, and without C. At every layer the keys
# of many cases are read, which takes one pass a case; at some layers, some of the cases are edited and measured.
#
# **Foretold, before any v\* is searched.** Let u = C⁻¹k_in. An edit moves the output of a key k by (v* − W k_out) (uᵀk) /
# (uᵀk_out). *Spill* is how far that moves the output of an ordinary key over how far it moves that of k_out: at 1, all
# words get as much of the edit as its subject. *Reach* is the same over the length of the residual stream after the layer;
# the length of v* − W k_out is not known yet, and is taken to be that of the value v* starts from plus the distance from
# there to W k_out. An edit is foretold to collapse the model where one of the two, its *severity*, is at least `bound`.
# That rule was chosen with the pilots of the anchored twin and of SmolLM2 before our eyes, which edit one layer each, by
# `rome` and `c-rome`. It was set before any edit of this analysis was made: other layers, `fc-rome` and `p-rome` test it.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
keyed: int = 6  # cases whose keys are read, of each kind: one token at the start of the prompt, and any other
edited: int = 3  # of these, cases that are edited
every: int = 2  # layers from one that is edited to the next; what the last one writes reaches no later token
sentences: int = 20  # of the texts, how many perplexity is measured on
seed: int = 0  # of the draws, and of the bootstrap
collapse_ratio: float = 5.0  # times unedited
bound: float = 1.0  # severity from which on collapse is foretold

# %% tags=["hide-input"]
import pandas as pd
import torch
from IPython.display import Markdown

import editlib as el
from editlib import data, plot
from editlib.editing.stats import needed_moments
from editlib.measuring import contrast, statistics
from editlib.measuring.anatomy import anatomy, split_moments
from editlib.measuring.prediction import foretell, keys_by_layer
from editlib.measuring.separability import auc
from editlib.runs.recording import record
from editlib.sweeps import setup
from editlib.text import number, percent

plot.theme()
METHODS, SETTINGS = ("rome", "c-rome", "fc-rome", "p-rome"), ("with C", "C less position 0", "C left out")
FIRST, OTHER = KINDS = ("one token at the start", "any other subject")
lm = el.load(model)
chosen = contrast.draw_by_subject(lm, data.cases(cases, split=split), first=keyed, others=keyed, seed=seed)
some = contrast.draw_by_subject(lm, chosen, first=edited, others=edited, seed=seed)
kinds = contrast.subject_kinds(lm, chosen).eq("one token").map({True: FIRST, False: OTHER})
windows = needed_moments(lm, range(lm.num_layers), corpus=data.texts(corpus) if corpus else None).read()
moments = split_moments(lm, windows)
layers = range(min(every - 1, lm.num_layers - 2), lm.num_layers - 1, every)
Markdown(
    f"Keys of {len(chosen)} cases, {int(kinds.eq(FIRST).sum())} with a subject of one token at the start, at all {lm.num_layers} "
    f"layers; {len(some)} of them edited at layers {', '.join(map(str, layers))}. C from {windows.numel():,} tokens in windows "
    f"of {windows.shape[1]}."
)


# %% [markdown]
# ## What the keys say, at every layer


# %% tags=["hide-input"]
def params(method: str, layer: int, setting: str) -> el.methods.RomeParams:
    return setup.hparams(lm, method, layer, covariance=setting != SETTINGS[2])


usual = params("rome", 0, SETTINGS[0])
pairs = keys_by_layer(
    lm, [case.request for case in chosen], el.prefix_contexts(lm, flavour=usual.contexts), empty=usual.empty_context
)
places = anatomy(lm, data.texts(texts)).assign(
    where=lambda rows: rows["position"].gt(0).map({True: "later", False: "first"})
)
lengths = places.groupby(["layer", "where"])[["residual_norm", "key_norm"]].mean().unstack()
foretold = []
for layer, of_layer in pairs.items():
    whole, later = moments.whole.moments[layer], moments.rest.moments[layer]
    factors = [torch.linalg.cholesky(moment) for moment in (whole, later)]
    inverses = [*(lambda keys, factor=factor: torch.cholesky_solve(keys.T, factor).T for factor in factors), None]
    for setting, whiten in zip(SETTINGS, inverses, strict=True):
        for method in METHODS:
            rows = foretell(
                of_layer, params(method, layer, setting), whiten=whiten, later=later, first=moments.first[layer],
                residual=lengths.loc[layer, "residual_norm"],
            )  # fmt: skip
            names = {"layer": layer, "method": method, "setting": setting}
            foretold.append(rows.assign(case_id=[case.case_id for case in chosen], **names))
foretold = pd.concat(foretold, ignore_index=True)
foretold["kind"] = foretold["case_id"].map(kinds)
foretold.to_parquet("data/keys.parquet")
key_ratio = lengths["key_norm", "first"] / lengths["key_norm", "later"]
of_rome = foretold[(foretold["method"] == "rome") & (foretold["kind"] == FIRST)]
ratios = of_rome.groupby(["layer", "setting"])["denominator_ratio"].median().unstack()[list(SETTINGS)]

# %% tags=["hide-input"]
short = list(key_ratio.index[key_ratio < 0.5])
tiny = ratios.lt(0.1)
Markdown(
    f"**Finding.** At {len(short)} of {lm.num_layers} layers the key at position 0 is less than half as long as later ones"
    + (f" ({', '.join(map(str, short))})" if short else "")
    + ". ROME's denominator for one-token subjects at the start is, in the median, less than a tenth of the consistent one at "
    + ", ".join(f"{int(tiny[setting].sum())} layers {setting}" for setting in SETTINGS)
    + f"; for any other subject the median is never below {number(foretold[(foretold['method'] == 'rome') & (foretold['kind'] == OTHER)].groupby(['layer', 'setting'])['denominator_ratio'].median().min())}."
)

# %% [markdown]
# ## Edited and measured

# %% tags=["hide-input"]
unedited = el.perplexity(lm, data.texts(texts)[:sentences])
asked = [(method, layer, setting) for setting in SETTINGS for layer in layers for method in METHODS]
used = {f"{method}, layer {layer}, {setting}": params(method, layer, setting) for method, layer, setting in asked}
parts = []
for setting, stats in zip(SETTINGS, (moments.whole, moments.rest, None), strict=True):
    variants = {name: given for name, given in used.items() if name.endswith(setting)}
    parts.append(el.sweep(lm, some, methods=variants, texts=data.texts(texts)[:sentences], stats=stats, progress=False))
frame = pd.concat(parts, ignore_index=True)
frame[["method", "layer", "setting"]] = frame["method"].str.split(", ", expand=True).to_numpy()
frame["layer"] = frame["layer"].str.removeprefix("layer ").astype(int)
frame["collapsed"] = statistics.collapsed(frame["perplexity_ratio"], collapse_ratio)
keys = ["case_id", "layer", "method", "setting"]
frame = frame.merge(
    foretold[[*keys, "denominator_ratio", "spill", "reach", "leak", "severity"]], on=keys, validate="one_to_one"
)
frame["group"] = frame["case_id"].map(kinds)
frame.to_parquet("data/cases.parquet")
done = frame[frame["error"].isna()]
shares = (
    done.groupby(["method", "setting", "group", "layer"], sort=False)["collapsed"]
    .agg(["sum", "size", "mean"])
    .reset_index()
)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Six panels over the layer. Length of the key at position 0 over later ones; ROME's denominator over the consistent one, for three choices of C; and the share of first-token edits that collapse the model with rome, with c-rome, with fc-rome and with p-rome, for the same three choices."}}
figure = plot.regimes(
    key_ratio, ratios, shares[shares["group"] == FIRST], title=f"One-token subjects at the start, {model}"
)
figure.savefig("figures/regimes.png")

# %% tags=["hide-input"]
totals = done.groupby(["method", "setting", "group"], sort=False)["collapsed"].agg(["sum", "size"])
largest = done.groupby(["method", "setting", "group"], sort=False)["perplexity_ratio"].max()
at = (
    shares[shares["sum"] > 0]
    .groupby(["method", "setting", "group"])["layer"]
    .agg(lambda rows: ", ".join(map(str, rows)))
)
table = totals.assign(
    share=[f"{statistics.share(row['sum'], row['size']):.2f}" for _, row in totals.iterrows()],
    largest=largest,
    layers=at,
)
table["layers"] = table["layers"].astype(object).fillna("–")  # all missing where nothing collapses, which is no text
table.rename(
    columns={"sum": "collapses", "size": "edits", "largest": "largest rise", "layers": "at layers"}
).style.format("{:,.2f}", subset="largest rise")

# %% tags=["hide-input"]
worst = done.groupby("method", sort=False)["perplexity_ratio"].max()
counts = done.groupby("method", sort=False)["collapsed"].sum()
Markdown(
    f"**Finding.** Of {len(done) // len(METHODS):,} edits by each method, over all layers edited and choices of C, "
    + "; ".join(
        f"{method} collapses {counts[method]} (at most {number(worst[method])} times unedited)" for method in METHODS
    )
    + "."
)

# %% [markdown]
# ## What does it cost?
#
# Scores by `em_tf`, means over the cases and over the layers edited, with 95 % bootstrap intervals over the cases. Efficacy
# is asked of the bare prompt.

# %% tags=["hide-input"]
TRIO = ["efficacy_em_tf", "generalization_em_tf", "locality_em_tf"]
by_case = done.groupby(["method", "setting", "group", "case_id"], sort=False)[TRIO].mean()
costs = by_case.groupby(["method", "setting", "group"], sort=False).agg(
    lambda values: statistics.bootstrap(lambda array: float(array.mean()), values.dropna(), seed=seed)
)
costs.map(lambda interval: f"{interval:.2f}")

# %% [markdown]
# ## Foretold against measured


# %% tags=["hide-input"]
def area(rows: pd.DataFrame) -> statistics.Interval:
    """How well the severity tells edits that collapse the model from the others."""
    hit, rest = rows[rows["collapsed"]], rows[~rows["collapsed"]]
    return auc(hit["severity"], rest["severity"], subjects=(hit["case_id"], rest["case_id"]), seed=seed)


judged = done.assign(said=done["severity"] >= bound)
judged["right"] = judged["said"] == judged["collapsed"]
groups = (
    {"all edits": judged}
    | dict(list(judged.groupby("method", sort=False)))
    | dict(list(judged.groupby("setting", sort=False)))
)
pd.DataFrame(
    [
        {
            "edits": name,
            "n": len(rows),
            "collapse": int(rows["collapsed"].sum()),
            "foretold": int(rows["said"].sum()),
            "of these, collapse": f"{statistics.share(int((rows['said'] & rows['collapsed']).sum()), int(rows['said'].sum())):.2f}",
            "collapses foretold": f"{statistics.share(int((rows['said'] & rows['collapsed']).sum()), int(rows['collapsed'].sum())):.2f}",
            "area under the ROC curve": f"{area(rows):.3f}",
        }
        for name, rows in groups.items()
    ]
).style.hide(axis="index")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Perplexity over unedited against the severity that was foretold, both on log axes, a panel for each method, a mark for each edit by kind of subject, with the collapse threshold and the bound."}}
figure = plot.foretold(done, bound=bound, collapse_ratio=collapse_ratio)
figure.savefig("figures/foretold.png")

# %% tags=["hide-input"]
right = judged.groupby("layer")["right"].mean()
failing = right.index[right < 0.8]
overall = area(judged)
Markdown(
    f"**Finding.** From keys alone, edits that collapse `{model}` are told from the others with an area under the ROC curve of "
    f"{overall:.3f} over all layers. The rule is right for {percent(judged['right'].mean())} of {len(judged):,} edits"
    + (
        f"; it fails for more than a fifth at layer {', '.join(f'{layer} ({percent(right[layer])} right)' for layer in failing)}."
        if len(failing)
        else ", and at every layer for at least four fifths."
    )
)

# %% tags=["hide-input"]
metrics = {
    "cases": len(chosen), "cases_edited": len(some), "edits": len(done), "failed": int(frame["error"].notna().sum()),
    "unedited": unedited.mean, "layers": lm.num_layers, "layers_edited": len(layers), "layers_short": len(short),
    "layers_long": int((key_ratio > 1).sum()), "auc": overall.value, "auc_low": overall.low, "auc_high": overall.high,
    "right_share": float(judged["right"].mean()), "layers_failing": ", ".join(map(str, failing)) or "none",
    "short_layers": ", ".join(map(str, short)) or "none",
    "long_layers": ", ".join(map(str, key_ratio.index[key_ratio > 1])) or "none",
}  # fmt: skip
for setting, ending in zip(SETTINGS, ("", "_less_first", "_no_covariance"), strict=True):
    metrics[f"layers_tiny{ending}"] = int(tiny[setting].sum())
    for method in METHODS:
        for kind, place in zip(KINDS, ("first", "others"), strict=True):
            rows = done[(done["method"] == method) & (done["setting"] == setting) & (done["group"] == kind)]
            name = f"{place}_{method.replace('-', '_')}{ending}"
            metrics[f"edits_{name}"] = len(rows)
            metrics |= statistics.collapses(rows, f"collapsed_{name}", collapse_ratio=collapse_ratio)
            metrics[f"max_ratio_{name}"] = float(rows["perplexity_ratio"].max())
            broken = sorted(rows.loc[rows["collapsed"], "layer"].unique())
            metrics[f"layers_{name}"] = ", ".join(map(str, broken)) or "none"
            for score in TRIO:
                metrics[f"{score.removesuffix('_em_tf')}_{name}"] = float(rows[score].mean())
for method in METHODS:
    metrics[f"max_ratio_{method.replace('-', '_')}"] = float(worst[method])
    metrics[f"collapsed_{method.replace('-', '_')}"] = int(counts[method])
record(metrics, hparams={model: used}, moments={model: moments.whole})
