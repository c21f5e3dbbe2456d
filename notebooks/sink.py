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
#     title: "Sink: what becomes of collapse if position 0 is another's, or ordinary"
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {first: 3, others: 2}
#       full: {first: 24, others: 12}
# ---

# %% [markdown]
# # Sink: what becomes of collapse if position 0 is another's, or ordinary
#
# **Question.** Edits of first-token subjects break the model. Is it because of what the model makes of position 0?
#
# Nothing here changes how a model was trained; each condition changes one thing at the time of the edit.
#
# - *as it is*: ROME, as everywhere in this book.
# - *begun: edit*: the token that begins a text is put before each prompt and each context that the edit is made with. The
#   subject is then never at position 0. *begun: C*: it is put before each window that C is read from, in place of what it had.
#   Either can be done alone, or both, or neither.
# - *position 0 ordinary* and *position 0 without its largest*: while the keys of the edit are read, the few largest entries of
#   the residual stream at position 0 are set to their mean at later positions, or to zero, after the layer at which they
#   first are massive {cite}`sun2024massive`. v\* is the one of *as it is*, so that the keys alone differ.
# - *C less position 0*: C = E[k kᵀ] over all positions but the first of each window.
# - *doubled*: the subject says its word twice. Under rotary positions a repeated token is at each position what it is at
#   the first (exactly so where nothing else stands before it); an embedding of the position tells them apart.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
first: int = 4  # cases drawn whose subject is one token at the start of the prompt
others: int = 3  # other cases drawn
largest: int = 3  # entries of the residual stream at position 0 that are taken for the massive ones
seed: int = 0  # of the draw
collapse_ratio: float = 5.0  # times unedited

# %% tags=["hide-input"]
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from torch import Tensor

import editlib as el
from editlib import data, plot
from editlib.editing.methods import prepare, solve
from editlib.editing.session import Session
from editlib.editing.stats import needed_moments
from editlib.engine.values import read_keys
from editlib.measuring import contrast, statistics
from editlib.measuring.anatomy import SPIKE, profile, split_moments
from editlib.models.tokens import encode_texts, text_start
from editlib.runs.recording import record
from editlib.sweeps import setup
from editlib.text import number

plot.theme()
lm = el.load(model)
chosen = contrast.draw_by_subject(lm, data.cases(cases, split=split), first=first, others=others, seed=seed)
kinds = contrast.subject_kinds(lm, chosen).eq("one token")
sentences = data.texts(texts)
unedited = el.perplexity(lm, sentences)
settings = {"with C": True, "C left out": False}
variants = {name: setup.hparams(lm, "rome", layer, covariance=has_c) for name, has_c in settings.items()}
params = variants["with C"]
edited, flavour, name = params.layer, params.contexts, lm.layout.name(params.layer)
windows = needed_moments(lm, [edited], corpus=data.texts(corpus) if corpus else None).read()
moments = split_moments(lm, windows, layers=[edited])
begin = text_start(lm.tokenizer)
opened = bool((windows[:, 0] == begin).all())  # as a model's own text is; a corpus need not be
bare = windows[:, 1:] if opened else windows[:, :-1]
begun = torch.cat([torch.full_like(bare[:, :1], begin), bare], 1)
inside = profile(lm, sentences)
massive = inside.index[(inside["spike"] > SPIKE) & (inside.index < edited)]
source = int(massive[0]) if len(massive) else max(edited - 1, 0)  # where position 0 is made ordinary
start = lm.tokenizer.decode([begin])
Markdown(
    f"{len(chosen)} cases, {int(kinds.sum())} with a subject of one token at the start; layer {edited}. Unedited perplexity {unedited.mean:.2f}. "
    + (
        f"Position 0 holds a massive activation from layer {source} on."
        if len(massive)
        else f"No layer below {edited} has a massive activation; position 0 is made ordinary after layer {source}."
    )
    + f" A text begins with `{start}`, and so {'do' if opened else 'do not'} the windows that C is read from."
)

# %% [markdown]
# ## Which tokens are sinks?
#
# Length of the residual stream where it is longest, at position 0 and at the first full stop and line break of rows of
# running text, over the median of all other positions of the same row; medians over the rows.

# %% tags=["hide-input"]
block = f"{lm.layout.blocks}.{{}}"
tokens = encode_texts(lm, ["\n".join(sentences)], whole=False)[0]
width = min(64, lm.max_length or 64)
rows = torch.tensor([tokens[i : i + width] for i in range(0, len(tokens) - width + 1, width)][:50])
blocks = [block.format(i) for i in range(lm.num_layers)]
with torch.no_grad(), el.trace(lm.model, *blocks) as seen:
    lm.model(rows.to(lm.device))
lengths = torch.stack([seen[each].output.float().norm(dim=-1).cpu() for each in blocks])  # (layers, rows, positions)
relative = lengths / lengths[:, :, 1:].median(-1, keepdim=True).values
words = [[lm.tokenizer.decode([token]) for token in row] for row in rows.tolist()]


def first_with(mark: str) -> Tensor:
    """Relative lengths at the first token behind position 0 that holds a mark, of the rows that have one."""
    found = [(i, next((p for p, word in enumerate(row) if p and mark in word), None)) for i, row in enumerate(words)]
    at = [(i, p) for i, p in found if p is not None]
    return torch.stack([relative[:, i, p] for i, p in at], 1) if at else torch.full((lm.num_layers, 1), float("nan"))


places = {"position 0": relative[:, :, 0], "first full stop": first_with("."), "first line break": first_with("\n")}
by_place = pd.DataFrame({where: values.median(1).values.tolist() for where, values in places.items()})
by_place.index.name = "layer"
by_place.to_parquet("data/places.parquet")
pd.DataFrame(
    {
        "longest, times other positions": by_place.max(),
        "after layer": by_place.idxmax(),
        "rows": [v.shape[1] for v in places.values()],
    }
).style.format("{:.3g}", subset="longest, times other positions")

# %% [markdown]
# ## Edit under each condition


# %% tags=["hide-input"]
def ordinary(value: str):
    """What replaces the residual stream after layer `source`: its largest entries at position 0 by others."""
    states = seen[block.format(source)].output.float()
    where = states[:, 0].abs().mean(0).topk(largest).indices
    usual = states[:, 1:, where].mean((0, 1)) if value == "mean" else torch.zeros(largest)

    def replaced(now: Tensor) -> Tensor:
        new = now.clone()
        new[:, 0, where] = usual.to(new)
        return new

    return replaced


def measured(condition: str, space: Session, asked: list, variants_of: dict) -> list[dict]:
    """Rows of ROME's edits under a condition; `asked` are pairs of a case and its request."""
    found = []
    for case, request in asked:
        for setting, given in variants_of.items():
            edit = solve(space, "rome", [request], given)
            ratio = space.perplexities([edit], tuple(sentences))[0].mean / unedited.mean
            parts = abs(edit.diagnostics["denominator"] / edit.diagnostics["denominator_consistent"])
            row = {"condition": condition, "setting": setting, "case_id": case.case_id, "denominator_ratio": parts}
            found.append(row | {"perplexity_ratio": ratio})
    return found


requests = [(case, case.request) for case in chosen]
space = Session(lm, stats=moments.whole)
prepare(space, [request for _, request in requests], params)
table = measured("as it is", space, requests, variants)
contexts = el.prefix_contexts(lm, flavour=flavour)
only_c = {"with C": params}
for alone, both, these, given in (("C", "edit and C", begun, only_c), ("neither", "edit", bare, variants)):
    of_windows = split_moments(lm, these, layers=[edited]).whole
    table += measured(f"begun: {alone}", Session(lm, stats=of_windows), requests, only_c)
    behind = Session(lm, stats=of_windows)
    behind.once(("contexts", flavour), lambda: [start + context for context in contexts])
    prepare(behind, [request for _, request in requests], params)
    table += measured(f"begun: {both}", behind, requests, given)
for condition, value in {"position 0 ordinary": "mean", "position 0 without its largest": "zero"}.items():
    other = Session(lm, stats=moments.whole)
    for _, request in requests:
        (target,) = space.targets(name, [request], params)
        with el.trace(lm.model, replace={block.format(source): ordinary(value)}):
            keys = read_keys(lm, edited, request, contexts)
        other.know(name, request, params, keys, target)
    table += measured(condition, other, requests, variants)
table += measured("C less position 0", Session(lm, stats=moments.rest), requests, only_c)
twice = [
    (case, replace(case.request, subject=f"{case.request.subject} {case.request.subject}"))
    for case in chosen
    if kinds[case.case_id]
]
prepare(space, [request for _, request in twice], params)
table += measured("doubled", space, twice, variants)
frame = pd.DataFrame(table)
frame["kind"] = np.where(frame["case_id"].map(kinds), "one token at the start", "any other subject")
frame["collapsed"] = statistics.collapsed(frame["perplexity_ratio"], collapse_ratio)
frame.to_parquet("data/edits.parquet")
order = list(dict.fromkeys(frame["condition"]))
firsts = frame[frame["kind"] == "one token at the start"]

# %% tags=["hide-input"] mystnb={"image": {"alt": "Perplexity over unedited after each edit of a one-token subject at the start, a row for each condition, with C and with C left out, and the collapse threshold."}}
shown = firsts.assign(line=firsts["condition"], panel=firsts["setting"], ratio=firsts["perplexity_ratio"])
figure = plot.thresholds(shown, collapse_ratio=collapse_ratio, published=(15, 30), emphasised="as it is")
figure.savefig("figures/conditions.png")

# %% tags=["hide-input"]
cells = []
for (setting, kind, condition), rows_of in frame.groupby(["setting", "kind", "condition"], sort=False):
    hits = int(rows_of["collapsed"].sum())
    cells.append(
        {
            "subject": kind, "setting": setting, "condition": condition, "edits": len(rows_of), "collapse": hits,
            "share": f"{statistics.share(hits, len(rows_of)):.2f}", "median rise": rows_of["perplexity_ratio"].median(),
            "largest rise": rows_of["perplexity_ratio"].max(), "denominator ratio": rows_of["denominator_ratio"].median(),
        }
    )  # fmt: skip
summary = pd.DataFrame(cells)
summary.style.hide(axis="index").format("{:.3g}", subset=["median rise", "largest rise", "denominator ratio"])


# %% tags=["hide-input"]
def told(setting: str) -> str:
    """How many first-token edits collapse the model under each condition."""
    rows_of = summary[(summary["setting"] == setting) & (summary["subject"] == "one token at the start")]
    return ", ".join(f"{row.condition} {row.collapse} of {row.edits}" for row in rows_of.itertuples())


second = by_place[["first full stop", "first line break"]].max()
Markdown(
    f"**Finding.** One-token subjects at the start that collapse `{model}` with C: {told('with C')}. With C left out: {told('C left out')}. "
    f"Position 0 is up to {number(by_place['position 0'].max())} times as long as other positions; the first full stop {number(second.iloc[0])} and the "
    f"first line break {number(second.iloc[1])}."
)

# %% tags=["hide-input"]
metrics = {
    "cases": len(chosen), "cases_first": int(kinds.sum()), "layer": edited, "source": source, "unedited": unedited.mean,
    "massive": "yes" if len(massive) else "no", "length_first": float(by_place["position 0"].max()),
    "length_full_stop": float(second.iloc[0]), "length_line_break": float(second.iloc[1]),
}  # fmt: skip
for (setting, kind, condition), rows_of in frame.groupby(["setting", "kind", "condition"], sort=False):
    ending = "_no_covariance" * (setting == "C left out")
    place = "first" if kind == "one token at the start" else "others"
    short = f"{place}_{condition.lower().replace(':', '').replace(' ', '_')}{ending}"
    metrics[f"edits_{short}"] = len(rows_of)
    metrics[f"collapsed_{short}"] = int(rows_of["collapsed"].sum())
    metrics[f"median_ratio_{short}"] = float(rows_of["perplexity_ratio"].median())
    metrics[f"max_ratio_{short}"] = float(rows_of["perplexity_ratio"].max())
    metrics[f"denominator_ratio_{short}"] = float(rows_of["denominator_ratio"].median())
record(metrics, hparams={model: variants}, moments={model: moments.whole})
