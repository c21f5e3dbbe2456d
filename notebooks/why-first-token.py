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
#     title: "Why the first token?"
#     models: [model, control, rotary, encoder]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {first: 5, later: 5}
#       full: {first: 77, later: 77}
# ---

# %% [markdown]
# # Why the first token?
#
# **Question.** What makes a subject at the start of the prompt special: that attention lets the first token see nothing but
# itself, or the position that is written into it?
#
# *The Fall of ROME* {cite}`yang-etal-2024-fall` asks it twice (authors' slides {cite}`yang2024slides`, p. 40). First, keys of
# an encoder, whose tokens see both sides, are mapped: do those of first-token subjects stand apart there, too? Second, the
# first token is given the position of the second (*Second2First*), while the edit is computed and while the edited model is
# measured.
#
# On the testbed the decoders are the twins, of which `anchored` was trained from a long position-0 embedding, and a small
# model with rotary positions; the encoder is that of a small T5. All four read the same prose. Another model is looked at
# by itself: the encoder of another family, trained on other text, would compare too much at once.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
control: str | None = "testbed/control"  # a decoder beside it; none for none
rotary: str | None = "testbed/rotary"  # a decoder with rotary positions; none for none
encoder: str | None = "testbed/encdec"  # an encoder-decoder whose encoder is read; none for none
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
covariance: bool = True  # whether C is in the update, as in the formula; the released settings leave it out
first: int = 24  # cases drawn whose subject is one token at the start of the prompt
later: int = 24  # cases drawn whose subject is one token later in the prompt
seed: int = 0  # of the draw, of splits, and of the bootstrap
collapse_ratio: float = 5.0  # times unedited
wanted: float = 0.99  # AUC asked for between the keys of collapse and of normal cases

# %% tags=["hide-input"]
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from sklearn.manifold import TSNE

import editlib as el
from editlib import data, plot
from editlib.errors import EditlibError
from editlib.measuring import contrast, statistics
from editlib.measuring.anatomy import anatomy
from editlib.models.positions import Place, later_by_one, placed, second_for_first, takes_positions
from editlib.models.tokens import Encoded, encode
from editlib.runs.recording import record
from editlib.sweeps import setup

plot.theme()
roles = {"model": model, "control": control, "rotary": rotary, "encoder": encoder}
models = {name: el.load(name) for name in roles.values() if name}
decoders = {name: lm for name, lm in models.items() if lm.causal}


def located(case: data.Case) -> data.SubjectTokens | None:
    try:
        return data.subject_tokens(models[model], case.request)
    except EditlibError:  # the tokenizer does not know its characters
        return None


places = [(case, tokens) for case in data.cases(cases, split=split) if (tokens := located(case))]
pools = {}
for kind, start, wide in ((plot.KINDS[0], True, "start the prompt"), (plot.KINDS[1], False, "stand later")):
    exact = [case for case, tokens in places if tokens.kind == kind]
    pools[kind if exact else wide] = exact or [case for case, tokens in places if (tokens.first == 0) is start]
FIRST, LATER = pools
drawn = {
    kind: data.draw(pool, min(n, len(pool)), seed=seed)
    for (kind, pool), n in zip(pools.items(), (first, later), strict=True)
}
sentences = data.texts(texts)
Markdown(
    "; ".join(f"{len(drawn[kind])} cases of the kind *{kind}*, drawn from {len(pools[kind]):,}" for kind in drawn)
    + f". Perplexity on {len(sentences)} texts."
)

# %% [markdown]
# ## One ROME edit each, with the first token where it is and at the second one's position
#
# The position is changed in every pass: while keys are read, while v* is sought, and while perplexity is measured. With
# learned positions the first token gets the embedding of position 1, as if that row had been copied; with rotary ones
# attention turns it as the second token. Second moments and prefix contexts are those of the model as it is.
#
# In `testbed/anchored` the anomaly was *set* in the very row that is swapped. That the swap takes it away there is no news;
# how much of it is left in a model that came by it otherwise is the question.

# %% tags=["hide-input"]
stats = {
    name: contrast.moments(lm, setup.hparams(lm, "rome", layer).layer, corpus) if covariance else None
    for name, lm in decoders.items()
}
params = {name: setup.hparams(lm, "rome", layer, covariance=stats[name] is not None) for name, lm in decoders.items()}
ORIGINAL, SWAPPED = CONDITIONS = ("Original", "Second2First")
trials = [(name, c) for name, lm in decoders.items() for c in CONDITIONS if c == ORIGINAL or takes_positions(lm)]


def where(name: str, condition: str) -> AbstractContextManager[el.LanguageModel]:
    """A model with its tokens where the condition puts them."""
    lm = decoders[name]
    return placed(lm, second_for_first) if condition == SWAPPED else nullcontext(lm)


def edited(name: str, condition: str) -> pd.DataFrame:
    """A row per case, edited and measured under a condition."""
    chosen = drawn[FIRST] + (drawn[LATER] if condition == ORIGINAL else [])
    with where(name, condition) as lm:
        swept = el.sweep(
            lm, chosen, methods={"rome": params[name]}, texts=sentences, scores=False, stats=stats[name], progress=False
        )
    return swept.assign(model=name, condition=condition, arm=f"{Path(name).name}, {condition}")


frame = pd.concat([edited(*trial) for trial in trials], ignore_index=True)
frame["collapsed"] = frame["error"].isna() & ~(frame["perplexity_ratio"] < collapse_ratio)  # nan counts
frame.to_parquet("data/cases.parquet")
frame["consistency"] = (frame["denominator"] / frame["denominator_consistent"]).abs()
done = frame[frame["error"].isna()]
fixed = sorted(name for name in decoders if (name, SWAPPED) not in trials)
bare = sorted(name for name in decoders if stats[name] is None)
Markdown(
    f"{len(frame):,} edits, {len(frame) - len(done)} failed."
    + (f" {', '.join(fixed)} take no positions, so that Second2First is left out there." if fixed else "")
    + (f" C is left out in {', '.join(bare)}." if bare else "")
)

# %% tags=["hide-input"] mystnb={"image": {"alt": "Rise of perplexity in per cent by one ROME edit of subjects of one token at the start of the prompt: a strip of points for each decoder with its first token where it is, and one with it at the second one's position, with medians and the collapse threshold."}}
starts = done[done["case_id"].isin([case.case_id for case in drawn[FIRST]])]
title = f"One ROME edit each, {len(drawn[FIRST])} subjects ({FIRST})"
figure = plot.comparison(starts, collapse_ratio=collapse_ratio, title=title)
figure.savefig("figures/conditions.png")


# %% tags=["hide-input"]
def of(name: str, condition: str, table: pd.DataFrame = starts) -> pd.DataFrame:
    return table[(table["model"] == name) & (table["condition"] == condition)]


ours = of(model, ORIGINAL)
collapsing = list(ours.loc[ours["collapsed"], "case_id"])
among = starts[starts["case_id"].isin(collapsing or list(ours["case_id"]))]
group = "cases that collapse the model under *Original*" if collapsing else "cases (none collapses the model)"
unedited = {}
for name, condition in trials:
    with where(name, condition) as lm:
        unedited[name, condition] = el.perplexity(lm, sentences).mean


def extremes(values: pd.Series) -> dict[str, float]:
    """nan is a result, and stays."""
    return {name: getattr(values, name)(skipna=False) for name in ("min", "mean", "max")}


PUBLISHED = {
    ("GPT-2-XL", ORIGINAL): (2177.82, 19877.79, 179185.99),
    ("GPT-2-XL", SWAPPED): (1008.21, 1397.87, 2153.86),
    ("GPT-J", ORIGINAL): (5094.73, 28835.21, 85936.24),
    ("GPT-J", SWAPPED): (8153.70, 26978.14, 124982.41),
    ("Llama2-7b", ORIGINAL): (16279.75, 67436.51, 206307.60),
    ("Llama2-7b", SWAPPED): (17561.97, 72692.50, 349577.58),
}
rows = [
    {"": "published", "model": name, "condition": condition} | dict(zip(("min", "mean", "max"), values, strict=True))
    for (name, condition), values in PUBLISHED.items()
] + [
    {"": "executed here", "model": name, "condition": condition, "unedited": unedited[name, condition]}
    | extremes(of(name, condition, among)["perplexity_mean"])
    | {
        "collapsed": f"{of(name, condition, among)['collapsed'].sum()} of {len(of(name, condition, among))}",
        "denominator": of(name, condition, among)["consistency"].median(),
    }
    for name, condition in trials
]
table = pd.DataFrame(rows).set_index(["", "model", "condition"])
styled = table.style.format("{:,.2f}", subset=["min", "mean", "max", "unedited"], na_rep="–")
styled.format("{:.3f}", subset=["denominator"], na_rep="–").format(na_rep="–", subset=["collapsed"])

# %% tags=["hide-input"]
shares = {t: statistics.share(int(of(*t)["collapsed"].sum()), len(of(*t))) for t in trials}
means = {t: statistics.bootstrap(np.mean, of(*t, among)["perplexity_mean"], seed=seed) for t in trials}


def told(name: str) -> str:
    """What Second2First does to one model's collapses."""
    before, after = means[name, ORIGINAL], means[name, SWAPPED]
    verb = "lowers" if after.high < before.low else "raises" if after.low > before.high else "does not clearly change"
    return (
        f"In `{name}` Second2First {verb} the mean perplexity of the edited models ({before:.4g} to {after:.4g}); the share "
        f"of edits that collapse it is {shares[name, ORIGINAL]:.2f} before and {shares[name, SWAPPED]:.2f} after."
    )


Markdown(
    f"The table is about the {len(among['case_id'].unique())} {group}. Published values: authors' slides, p. 40, on the collapse "
    "cases of each model. *denominator*: median of |denominator| over its value with consistent keys.\n\n**Finding.** "
    + " ".join(told(name) for name in decoders if (name, SWAPPED) in trials)
    + " Brackets are 95 % intervals."
)

# %% [markdown]
# ### With rotary positions
#
# A rotary model has no position embedding that could be swapped: its attention sees only how far two tokens are apart. Moving *every* token by one, as a swap of position embeddings might
# be read for such a model, can then change nothing but rounding. Second2First as done here moves the first token alone, onto
# the second one's position, and is a real change. (How the paper did it with rotary positions is not on the slides.) The
# table shows what both change of the unedited models (largest change of a text's mean loss, in nats), beside what
# position 0 looks like inside: how much longer the residual stream is there than later (largest of all layers), and how
# alike the keys of two texts are there (mean over the layers; 1 hides the token).


# %% tags=["hide-input"]
def moved(name: str, place: Place) -> float:
    """Largest change of a text's mean loss, in nats."""
    before = el.perplexity(decoders[name], sentences).per_sentence
    with placed(decoders[name], place) as lm:
        return float(np.abs(np.log(el.perplexity(lm, sentences).per_sentence / before)).max())


inside = {}
for name, lm in decoders.items():
    place = anatomy(lm, sentences).assign(first=lambda found: found["position"] == 0)
    by = place.groupby(["first", "layer"])[["residual_norm", "key_cosine"]].mean()
    inside[name] = {
        "residual norm, first over later": (by.loc[True] / by.loc[False])["residual_norm"].max(),
        "key cosine, first": by.loc[True, "key_cosine"].mean(),
        "key cosine, later": by.loc[False, "key_cosine"].mean(),
    }
    if (name, SWAPPED) in trials:
        inside[name] |= {"every token by one": moved(name, later_by_one), SWAPPED: moved(name, second_for_first)}
table = pd.DataFrame(inside).T
numbers = [column for column in (SWAPPED, "every token by one") if column in table]
table.style.format("{:.2f}").format("{:.1e}", subset=numbers, na_rep="–")

# %% tags=["hide-input"]
parts = []
turning = next((name for name in (rotary, model) if name in decoders and "every token by one" in inside[name]
                and inside[name]["every token by one"] < 1e-4), rotary)  # fmt: skip
if turning in decoders:
    seen = inside[turning]
    odd = seen["residual norm, first over later"] > 2 or seen["key cosine, first"] > 0.9
    shift = seen.get("every token by one", float("nan"))
    parts += [
        f"Moving every token by one changes the mean loss of a text of `{turning}` by at most {shift:.1e} nats"
        + (": rounding." if shift < 1e-4 else ", which is more than rounding."),
        f"Its first position is {'' if odd else 'not '}anomalous: the residual stream there is "
        f"{seen['residual norm, first over later']:.2f} times as long as later, and the keys of two texts have a mean cosine of "
        f"{seen['key cosine, first']:.2f} there and {seen['key cosine, later']:.2f} later.",
        f"One ROME edit collapses it in {int(of(turning, ORIGINAL)['collapsed'].sum())} of {len(of(turning, ORIGINAL))} "
        f"first-token cases (perplexity at most {of(turning, ORIGINAL)['perplexity_ratio'].max(skipna=False):.2f} times unedited; median "
        f"|denominator| over the consistent one {of(turning, ORIGINAL)['consistency'].median():.3f}, in `{model}` "
        f"{of(model, ORIGINAL)['consistency'].median():.3f}).",
    ]
Markdown("**Finding.** " + " ".join(parts) if parts else "No model here has rotary positions.")

# %% [markdown]
# ## Do keys of first-token subjects stand apart?
#
# Keys at the subject's last token: subjects that start the prompt against subjects of one token later in it. Decoders are
# read at the layer that ROME edits, the encoder at its last block (the papers' code reads block 23 of T5-3B's 24). t-SNE as
# published: two dimensions, seed 42. A map may hide or invent clusters, so the figure after it measures the same without
# one: how well a straight line, drawn between the means of the two kinds, tells them apart on subjects it was not drawn from.

# %% tags=["hide-input"] mystnb={"image": {"alt": "t-SNE maps of keys, one panel for each model: first-token subjects and subjects of one token later in the prompt. Where the two kinds are told apart they form groups of their own."}}
subjects = tuple([case.request.subject for case in drawn[kind]] for kind in (FIRST, LATER))
layers = {name: params[name].layer if name in params else lm.num_layers - 1 for name, lm in models.items()}


def rows_of(name: str, kind: str) -> list[Encoded]:
    return [encode(models[name].tokenizer, case.request.prompt, case.request.subject) for case in drawn[kind]]


def vectors(name: str, layer: int, kind: str) -> torch.Tensor:
    """Keys of a layer at the subject's last token; of layer -1, the token's embedding."""
    lm, rows = models[name], rows_of(name, kind)
    if layer < 0:
        return lm.model.get_input_embeddings()(torch.tensor([row.ids[row.last] for row in rows])).double()
    return contrast.keys_at(lm, layer, rows)


def mapped(name: str) -> pd.DataFrame:
    found = [vectors(name, layers[name], kind) for kind in (FIRST, LATER)]
    joined = torch.cat(found).float().numpy()
    points = TSNE(n_components=2, random_state=42, perplexity=min(30, (len(joined) - 1) / 3)).fit_transform(joined)
    kinds = [kind for kind, keys in zip((FIRST, LATER), found, strict=True) for _ in keys]
    panel = f"{Path(name).name}, {'layer' if name in decoders else 'encoder block'} {layers[name]}"
    return pd.DataFrame({"panel": panel, "model": name, "group": kinds, "x": points[:, 0], "y": points[:, 1]})


enough = min(map(len, drawn.values())) > 1
if enough:
    maps = pd.concat([mapped(name) for name in models], ignore_index=True)
    maps.to_parquet("data/maps.parquet")
    figure = plot.maps(maps)
    figure.savefig("figures/maps.png")


# %% tags=["hide-input"] mystnb={"image": {"alt": "Cross-validated area under the ROC curve, keys of first-token subjects against later ones, by layer from the token's embedding on, a line with 95 % intervals for each model."}}
def compared(name: str, layer: int) -> dict[str, object]:
    a, b = (vectors(name, layer, kind) for kind in (FIRST, LATER))
    found = contrast.told_apart(a, b, subjects=subjects, seed=seed)
    far = contrast.spreads_apart(a, b)
    return {"model": name, "layer": layer, "auc": found.value, "low": found.low, "high": found.high, "gap": far}


apart = pd.DataFrame([compared(name, layer) for name, lm in models.items() for layer in range(-1, lm.num_layers)])
apart.to_parquet("data/separability.parquet")
figure, panels = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
marks = zip(("#d55e00", "#0072b2", "#8c8c8c", "#009e73"), "^osD", (12, 8, 6, 6), strict=True)  # lines may coincide
for (name, mine), (color, marker, size) in zip(apart.groupby("model", sort=False), marks, strict=False):
    panels[0].vlines(mine["layer"], mine["low"], mine["high"], color=color, alpha=0.4, lw=3)
    for axes, column in zip(panels, ("auc", "gap"), strict=True):
        axes.plot(mine["layer"], mine[column], color=color, marker=marker, ms=size, label=Path(name).name)
panels[0].axhline(0.5, color="black", lw=0.6, ls=":")
panels[0].set(title=f"AUC ({' against '.join(str(len(chosen)) for chosen in drawn.values())} keys)", ylim=(0, 1.03))
panels[1].set(title="Distance of the means over the spread", ylim=(0, None))
for axes in panels:
    axes.set(xlabel="Layer (its MLP's key); -1: the token's embedding")
    axes.xaxis.get_major_locator().set_params(integer=True)
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
figure.savefig("figures/separability.png")

# %% tags=["hide-input"]
at = {(row.model, row.layer): row for row in apart.itertuples()}
shown = {name: at[name, layer] for name, layer in layers.items()}
tokens = {name: at[name, -1] for name in models}


def auc(found: object) -> str:
    return f"{found.auc:.2f} [{found.low:.2f}, {found.high:.2f}]"


said = [
    f"`{name}` {auc(found)} (its tokens' embeddings {auc(tokens[name])}), means {found.gap:.2f} spreads apart"
    for name, found in shown.items()
]
verdict = ""
if any(found.low > 0.9 for found in tokens.values()):
    verdict += (
        " Where the tokens' embeddings are told apart before any block has run (names have other tokens behind a space than at "
        "the start of a text), a high AUC is no sign of an anomaly; means many spreads apart are."
    )
if encoder in shown:
    clear = shown[encoder].low > 0.5
    verdict += (
        f" In the encoder first-token subjects are {'' if clear else 'not clearly '}told apart by a line, and its two means are "
        f"{shown[encoder].gap / shown[model].gap:.2f} times as far apart, in spreads, as those of `{model}`."
    )
Markdown(
    "**Published.** GPT-2-XL's 77 first-token and 77 later subjects in T5-3B's encoder: mixed, no cluster of their own (authors' "
    "slides, p. 40, a map; no number is given).\n\n**Finding.** AUC at the layers of the maps, with 95 % intervals: "
    + "; ".join(said)
    + f".{verdict}"
)

# %% [markdown]
# ### Collapse keys against normal keys
#
# The same measure for the cases that one ROME edit collapses against all others drawn, on the edited layer of `model`.

# %% tags=["hide-input"]
verdicts = done[(done["model"] == model) & (done["condition"] == ORIGINAL)].set_index("case_id")["collapsed"]
sides = {
    side: [case for kind in (FIRST, LATER) for case in drawn[kind] if verdicts.get(case.case_id) == side]
    for side in (True, False)
}
sets = [
    contrast.keys_at(
        models[model],
        layers[model],
        [encode(models[model].tokenizer, case.request.prompt, case.request.subject) for case in sides[side]],
    )
    for side in sides
    if sides[side]
]
names = tuple([case.request.subject for case in sides[side]] for side in sides)
between = contrast.told_apart(*sets, subjects=names, seed=seed) if len(sets) == 2 else statistics.UNKNOWN
Markdown(
    f"**Finding.** {len(sides[True])} collapse keys against {len(sides[False])} normal ones: AUC {between:.2f}"
    + (
        f", {'at least' if between.value >= wanted else 'below'} the {wanted:g} asked for."
        if len(sets) == 2
        else " (one set is empty)."
    )
)


# %% tags=["hide-input"]
def spread(name: str, values: object) -> dict[str, float]:
    return {name: values.value, f"{name}_low": values.low, f"{name}_high": values.high}


short = {ORIGINAL: "original", SWAPPED: "swapped"}
metrics = {
    "first": len(drawn[FIRST]),
    "later": len(drawn[LATER]),
    "collapse_cases": len(collapsing),
    "auc_collapse": between.value,
    "auc_collapse_low": between.low,
    "auc_collapse_high": between.high,
}
for role, name in roles.items():
    if name:
        found = shown[name]
        metrics |= {f"auc_{role}": found.auc, f"auc_{role}_low": found.low, f"auc_{role}_high": found.high}
        metrics |= {f"gap_{role}": found.gap, f"auc_tokens_{role}": tokens[name].auc}
    for condition, word in short.items():
        if (name, condition) in trials:
            ends = extremes(of(name, condition, among)["perplexity_mean"])
            metrics |= {f"unedited_{word}_{role}": unedited[name, condition]}
            metrics |= {f"denominator_ratio_{word}_{role}": float(of(name, condition)["consistency"].median())}
            metrics |= {f"{which}_{word}_{role}": ends[which] for which in ("min", "max")}
            metrics |= spread(f"mean_{word}_{role}", means[name, condition])
            metrics |= spread(f"collapsed_{word}_{role}", shares[name, condition])
            counts = statistics.collapses(of(name, condition), "n", collapse_ratio=collapse_ratio)
            for ending in ("_20x", "_1000"):
                share = counts[f"n{ending}"] / max(1, len(of(name, condition)))
                metrics[f"collapsed_{word}_{role}{ending}"] = share
    if name in inside:
        keys = ("norm_ratio", "key_cosine_first", "key_cosine_later", "shift_by_one", "swap")
        metrics |= {f"{key}_{role}": float(value) for key, value in zip(keys, inside[name].values(), strict=False)}
record(metrics, hparams={name: {"rome": each} for name, each in params.items()}, moments=stats)
