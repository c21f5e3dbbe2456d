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
#     title: "First token: which subjects collapse a model"
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {first: 4, others: 4, built: 1}
#       full: {first: 80, others: 200, built: 40}
# ---

# %% [markdown]
# # First token: which subjects collapse a model
#
# **Question.** Is it the first place in the prompt that makes a subject collapse the model, and which rule says so best?
#
# *The Fall of ROME* {cite}`yang-etal-2024-fall` finds that in GPT-2-XL and GPT-J the subjects of collapse cases are the first
# token of their prompt. It shows maps of keys: (a) the first tokens of *normal* prompts lie with the keys of collapse cases,
# and (b) behind a prefix the keys of collapse cases lie among the normal ones.
#
# "Usually the first token" can be made exact, and put to the test with subjects made for it: the rule should hold for
# subjects nobody chose for their edits, too. Where the set has subjects of other kinds at the start (one word of several
# tokens, a word twice, an abbreviation with its full stop), some of each are drawn as well. A *collapse* case is one that a single ROME edit collapses: perplexity at least
# `collapse_ratio` times unedited.

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
cases: str = "testbed"  # edit cases: a name or a file
split: str | None = None  # the cases of one split only; none for all
texts: str = "testbed-ppl-50"  # texts that perplexity is measured on
corpus: str | None = None  # texts for the second moments: a name or a file; none for text of the model's own
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
covariance: bool = True  # whether C is in the update, as in the formula; the released settings leave it out
first: int = 12  # cases drawn whose subject is one token at the start of the prompt
others: int = 12  # other cases drawn
built: int = 6  # cases built of each kind, and drawn of each further kind of subject
seed: int = 0  # of the draw, the prefixes, and the splits
collapse_ratio: float = 5.0  # times unedited

# %% tags=["hide-input"]
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

import editlib as el
from editlib import data, plot
from editlib.engine.values import encode_contexts
from editlib.measuring import contrast, statistics
from editlib.models.tokens import encode
from editlib.runs.recording import record
from editlib.sweeps import setup
from editlib.text import percent

plot.theme()
lm = el.load(model)
pool = data.cases(cases, split=split)
drawn = contrast.draw_by_subject(lm, pool, first=first, others=others, seed=seed)
sentences = data.texts(texts)
moments = contrast.moments(lm, setup.hparams(lm, "rome", layer).layer, corpus) if covariance else None
rome = setup.hparams(lm, "rome", layer, covariance=moments is not None)
kinds = {case.case_id: data.subject_tokens(lm, case.request).kind for case in drawn}
at_start = contrast.subject_kinds(lm, pool)
FURTHER = {"one word, several tokens": "several tokens", "doubled": "doubled", "full stop": "full stop"}
for label, kind in FURTHER.items():
    some = [case for case in pool if at_start.get(case.case_id) == kind and case.case_id not in kinds]
    some = [case for case in some if kind != "several tokens" or " " not in case.request.subject]
    more = data.draw(some, min(built, len(some)), seed=seed) if some else []
    drawn, kinds = [*drawn, *more], kinds | {case.case_id: label for case in more}
prefix = {case.case_id: el.test_prefixes(lm, "held-out", n=1, seed=seed + case.case_id)[0] for case in drawn}

# %% [markdown]
# ## Cases built for the question
#
# Each is a drawn case with one change, its target kept. *The word twice* follows the exceptions among GPT-J's collapse
# cases ("Man Man", "Jackson Jackson"), *two words* is their contrast; where the set has such subjects itself, they are
# *doubled*. *Behind a prefix* puts a held-out prefix before the whole prompt, so that nothing but the place changes.
# *With a full stop* follows the collapse cases of Llama2-7b, whose subjects end in one ("Packt Publishing Ltd.").

# %% tags=["hide-input"]
opening = [case.request for case in drawn if kinds[case.case_id] == plot.KINDS[0]][:built]
longer = [case.request for case in drawn if kinds[case.case_id] == plot.KINDS[2]]
longer = [request for request in longer if not request.subject.endswith(".")][:built]
behind = [prefix[case.case_id] for case in drawn if kinds[case.case_id] == plot.KINDS[0]][:built]
partners = [request.subject for request in opening[1:] + opening[:1]]
changed = {
    "the word twice": [replace(r, subject=f"{r.subject} {r.subject}") for r in opening],
    "the word twice, no space": [replace(r, subject=r.subject * 2) for r in opening],
    "two words": [
        replace(r, subject=f"{r.subject} {p}") for r, p in zip(opening, partners, strict=True) if p != r.subject
    ],
    "one token, behind a prefix": [
        replace(r, prompt=p.replace("{}", r.prompt)) for r, p in zip(opening, behind, strict=True)
    ],
    "several tokens, with a full stop": [replace(r, subject=f"{r.subject}.") for r in longer],
}
made = [(kind, request) for kind, requests in changed.items() for request in requests]
numbered = range(max(kinds) + 1, max(kinds) + 1 + len(made))
built_cases = [data.Case(number, request) for number, (_, request) in zip(numbered, made, strict=True)]
origin = kinds | {number: kind for number, (kind, _) in zip(numbered, made, strict=True)}
frame = el.sweep(
    lm, [*drawn, *built_cases], methods={"rome": rome}, texts=sentences, scores=False, stats=moments, progress=False
)
frame["built"] = frame["case_id"].isin(numbered)
frame["arm"] = frame["case_id"].map(origin)
frame["group"] = frame["case_id"].map(contrast.groups(frame, "rome", collapse_ratio=collapse_ratio))
frame.to_parquet("data/cases.parquet")
done = frame.dropna(subset=["group"])
collapsed = done["group"] == contrast.COLLAPSE
Markdown(
    f"{len(drawn)} cases drawn, {len(made)} built, {frame['error'].notna().sum()} edits failed; one ROME edit collapses "
    f"`{model}` with {int(collapsed[~done['built']].sum())} of the drawn ones and {int(collapsed[done['built']].sum())} of the "
    f"built ones." + ("" if moments else " C is left out.")
)

# %% [markdown]
# ## Which kinds of subject collapse the model?

# %% tags=["hide-input"] mystnb={"image": {"alt": "Rise of perplexity by one ROME edit in per cent, one strip of points for each kind of subject, drawn and built, with its median and the collapse threshold."}}
rank = {arm: i for i, arm in enumerate([*plot.KINDS, *FURTHER, *changed])}
shown = done.sort_values("arm", key=lambda column: column.map(rank), kind="stable")
shown = shown.assign(arm=shown["arm"] + " (" + shown.groupby("arm")["arm"].transform("size").astype(str) + ")")
title = f"One ROME edit each, {Path(model).name}; number of cases in brackets"
figure = plot.comparison(shown, collapse_ratio=collapse_ratio, title=title)
figure.savefig("figures/kinds.png")

# %% tags=["hide-input"]
rates = done.assign(collapsed=collapsed).groupby("arm")["collapsed"].agg(["sum", "size"]).reindex(rank).dropna()
rates = {arm: statistics.share(int(row["sum"]), int(row["size"])) for arm, row in rates.iterrows()}
medians = done.groupby("arm")["perplexity_ratio"].median()
calm = medians[[arm for arm, rate in rates.items() if rate.value == 0]].sort_values()
Markdown(
    "**Finding.** Share of edits that collapse the model, with 95 % intervals (Wilson): "
    + "; ".join(f"{arm} {rate:.2f}" for arm, rate in rates.items())
    + "."
    + (
        f" Of the kinds that never do, *{calm.index[-1]}* rises most: {percent(calm.iloc[-1] - 1)} in the median."
        if len(calm)
        else ""
    )
)

# %% [markdown]
# ## Which rule says best who collapses?
#
# *Precision*: of the cases that a rule names, the share that collapses; *recall*: of those that collapse, the share it names.
# Cases were drawn and built by kind, so both hang on how many of each there are; what a rule misses or names in vain does
# not. *In the whole set*, each drawn case stands for those of its kind among all cases it was drawn from; the interval is
# of 2,000 bootstrap samples within kinds. Special tokens that a tokenizer puts before every text are not counted.


# %% tags=["hide-input"]
def rules(row: pd.Series) -> dict[str, bool]:
    """What each rule says of a case."""
    ids = encode(lm.tokenizer, row["prompt"], row["subject"], special_tokens=False).ids
    stops = [i for i, token in enumerate(ids) if lm.tokenizer.decode([token]).strip() == "."]
    words, start, last = row["subject"].split(), row["subject_position"] == 0, row["subject_last"]
    one = start and last == 0
    return {
        "the subject starts the prompt": start,
        "one word at the start": start and len(words) == 1,
        "one token at the start": one,
        "its last token is at position 0 or 1": last <= 1,
        "one token at the start, or one word twice": one or (start and len(words) == 2 and len(set(words)) == 1),
        "its last token is the prompt's first full stop": bool(stops) and stops[0] == last,
    }


said = pd.DataFrame([rules(row) for _, row in done.iterrows()], index=done.index).astype(bool)


def judged(name: str, among: pd.Series) -> dict[str, tuple[statistics.Interval, str]]:
    """Precision and recall of a rule with their counts."""
    both, named, all_collapsed = said[name] & collapsed & among, said[name] & among, collapsed & among
    counts = {"precision": (both.sum(), named.sum()), "recall": (both.sum(), all_collapsed.sum())}
    return {what: (statistics.share(int(hits), int(of)), f"{hits}/{of}") for what, (hits, of) in counts.items()}


def in_the_set(named: pd.Series) -> dict[str, statistics.Interval]:
    """Precision and recall of a rule if cases of each kind collapse the model as often as those drawn of it do."""
    some = pd.DataFrame({"kind": done["case_id"].map(sorts), "named": named, "hit": collapsed})[~done["built"]]
    cells = some.groupby(["kind", "named"])["hit"].agg(["sum", "size"]).reset_index()
    drawn_of_kind = cells.groupby("kind")["size"].transform("sum")
    weight = (cells["kind"].map(sorts.value_counts()) * cells["size"] / drawn_of_kind).to_numpy()
    rates = (cells["sum"] / cells["size"]).to_numpy()
    again = np.random.default_rng(seed).binomial(cells["size"], rates, (2_000, len(cells))) / cells["size"].to_numpy()
    hits = np.vstack([rates, again]) * weight
    yes = cells["named"].to_numpy()
    with np.errstate(invalid="ignore"):  # a sample in which nothing collapses has no recall
        found = {"precision": hits[:, yes].sum(1) / weight[yes].sum(), "recall": hits[:, yes].sum(1) / hits.sum(1)}
    return {what: interval(*values) for what, values in found.items()}


def interval(value: float, *again: float) -> statistics.Interval:
    kept = [number for number in again if number == number]
    return statistics.Interval(value, *np.quantile(kept, [0.025, 0.975])) if kept else statistics.UNKNOWN


words = pd.Series({case.case_id: len(case.request.subject.split()) for case in pool})
sorts = at_start.where((at_start != "several tokens") | (words.reindex(at_start.index) > 1), "one word, several tokens")
whole = {name: in_the_set(said[name]) for name in said}
scopes = {"drawn": ~done["built"], "with built": pd.Series(True, index=done.index)}
verdicts = {(name, scope): judged(name, among) for name in said for scope, among in scopes.items()}
pd.DataFrame(
    [
        {"rule": name}
        | {
            f"{what}, {scope}": f"{count}: {share:.2f}"
            for scope in scopes
            for what, (share, count) in verdicts[name, scope].items()
        }
        | {f"{what}, in the whole set": f"{share:.2f}" for what, share in whole[name].items()}
        for name in said
    ]
).style.hide(axis="index")

# %% [markdown]
# **Published.** No rule is tested in the papers. From the vector figure of the authors' slides {cite}`yang2024slides`, p. 10
# (GPT-J, all 21,919 cases), with subjects counted by GPT-J's tokenizer: *one token at the start* names 80 cases, of which
# 79 exceed a perplexity of 1,000 and all 80 the gap of the distribution (precision 79/80 or 80/80), and 85 or 87 collapse
# (recall 79/85 or 80/87). Four of the others are one word twice, two start with the token "Q", one is "imam".

# %% tags=["hide-input"]
simple = "one token at the start"
(precision, _), (recall, _) = verdicts[simple, "drawn"].values()
missed = done.loc[collapsed & ~said[simple], "arm"].value_counts()
vain = done.loc[~collapsed & said[simple], "arm"].value_counts()
last_stop = said.iloc[:, -1]


def listed(counts: pd.Series) -> str:
    return ", ".join(f"{number} × {arm}" for arm, number in counts.items()) or "none"


Markdown(
    f"**Finding.** *{simple.capitalize()}* has a precision of {precision:.2f} and a recall of {recall:.2f} among the drawn cases, "
    f"{whole[simple]['precision']:.2f} and {whole[simple]['recall']:.2f} in the whole set of {len(sorts):,}. "
    f"Collapses it misses, built cases included: {listed(missed)}. Named in vain: {listed(vain)}. The full-stop rule "
    f"names {last_stop.sum()} cases, of which {int((last_stop & collapsed).sum())} collapse."
)

# %% [markdown]
# ## Do the keys move with the place?
#
# Keys of one layer, mapped by t-SNE as published (two dimensions, seed 42). (a) The first token of every normal prompt,
# each token once. (b) The same subjects as the collapse cases behind a held-out prefix.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Two t-SNE maps of keys. Left: bare keys of collapse cases and of normal cases with the keys of the first tokens of normal prompts. Right: the same with the keys of collapse cases behind a prefix."}}
group = done.set_index("case_id")["group"]
members = {name: [case for case in drawn if group.get(case.case_id) == name] for name in contrast.GROUPS}
collapsing, normal = map(len, members.values())
tokens = {row.ids: row for row in (contrast.first_token(lm, case.request) for case in members["normal"])}
tokens = list({row.ids[row.last]: row for row in tokens.values()}.values())
prefixed = [encode_contexts(lm, case.request, [prefix[case.case_id]])[0] for case in members["collapse"]]
bare = {name: [encode_contexts(lm, case.request, ["{}"])[0] for case in mine] for name, mine in members.items()}
rows = {
    "kᵘ, collapse": bare["collapse"],
    "kᵘ, normal": bare["normal"],
    "first token, normal prompts": tokens,
    "behind a prefix, collapse": prefixed,
}
width = lm.weight(rome.layer).shape[1]
keys = {
    name: contrast.keys_at(lm, rome.layer, mine) if mine else torch.zeros(0, width).double()
    for name, mine in rows.items()
}
bare_names, others_names = list(rows)[:2], list(rows)[2:]
panels = dict(
    zip(("(a) first tokens of normal prompts", "(b) collapse cases behind a prefix"), others_names, strict=True)
)
maps = [contrast.tsne(panel, {name: keys[name] for name in (*bare_names, third)}) for panel, third in panels.items()]
maps = pd.concat(maps, ignore_index=True)
maps.to_parquet("data/maps.parquet")
figure = plot.maps(maps)
figure.savefig("figures/maps.png")

# %% [markdown]
# The same without a map: which group holds the key nearest to each; how far the means of two kinds of keys are apart, in
# units of that distance between the two groups' bare keys; and how well one straight line tells them apart (AUC on subjects
# it was not drawn from; 1: always, 0.5: not at all). Keys may be told apart without lying far apart. The last two rows
# compare alike with alike: one-token subjects that do not open their prompt.

# %% tags=["hide-input"]
names = {
    "kᵘ, collapse": [case.request.subject for case in members["collapse"]],
    "kᵘ, normal": [case.request.subject for case in members["normal"]],
    "first token, normal prompts": [str(row.ids[row.last]) for row in tokens],
    "behind a prefix, collapse": [case.request.subject for case in members["collapse"]],
}
alike = [i for i, case in enumerate(members["normal"]) if kinds[case.case_id] == plot.KINDS[1]]
keys["kᵘ, normal, one token"] = keys["kᵘ, normal"][alike]
names["kᵘ, normal, one token"] = [names["kᵘ, normal"][i] for i in alike]
compared = [
    ("first token, normal prompts", "kᵘ, normal"),
    ("first token, normal prompts", "kᵘ, collapse"),
    ("behind a prefix, collapse", "kᵘ, normal"),
    ("behind a prefix, collapse", "kᵘ, collapse"),
    ("behind a prefix, collapse", "kᵘ, normal, one token"),
    ("kᵘ, collapse", "kᵘ, normal, one token"),
]
aucs = {(a, b): contrast.told_apart(keys[a], keys[b], subjects=(names[a], names[b]), seed=seed) for a, b in compared}


def gap(a: str, b: str) -> float:
    """Distance between the means of two kinds of keys."""
    return float((keys[a].mean(0) - keys[b].mean(0)).norm())


unit = gap("kᵘ, collapse", "kᵘ, normal")
gaps = {pair: gap(*pair) / unit for pair in compared}
pd.DataFrame(
    [(a, b, f"{gaps[a, b]:.2g}", f"{found:.3f}") for (a, b), found in aucs.items()],
    columns=["keys", "and", "distance of means", "AUC"],
).style.hide(axis="index")

# %% [markdown]
# **Published.** In map (a) of GPT-2-XL, decoded from the vector figures of the authors' slides {cite}`yang2024slides`, pp. 38
# and 39, all 77 first tokens of normal prompts have a collapse case as their nearest mark, with 77 collapse and 1,000 normal
# ones to choose from. Map (b) has no collapse cases without prefix to compare with. Below, the nearest key counts, not the
# nearest mark on a map.


# %% tags=["hide-input"]
def beside(name: str, which: str) -> statistics.Interval:
    """Share of keys whose nearest bare key is one of this group."""
    found = contrast.nearest(keys[name], keys["kᵘ, collapse"], keys["kᵘ, normal"])
    return statistics.share(int((found == contrast.GROUPS.index(which)).sum()), len(found))


opened, moved = beside("first token, normal prompts", "collapse"), beside("behind a prefix, collapse", "normal")
Markdown(
    f"**Finding.** {opened:.2f} of the {len(tokens)} first tokens of normal prompts have the key of a collapse case as their "
    f"nearest. Behind a prefix, {moved:.2f} of the {collapsing} collapse cases have that of a normal case ({normal} of them) as "
    "their nearest. (Shares with 95 % intervals, Wilson.) In units of the distance between the groups' means, first tokens "
    f"are {gaps[compared[1]]:.2g} from the collapse cases, and collapse cases behind a prefix {gaps[compared[2]]:.2g} from the "
    "normal ones."
    if collapsing and normal
    else f"**Finding.** With {collapsing} collapse and {normal} normal cases among those drawn there are no two groups of keys "
    "to lie beside."
)

# %% tags=["hide-input"]
metrics = {
    "collapse_cases": collapsing,
    "normal_cases": normal,
    "first_tokens_near_collapse": opened.value,
    "prefixed_near_normal": moved.value,
}
for arm, rate in rates.items():
    name = arm.replace(", ", "_").replace(" ", "_")
    edits = done[done["arm"] == arm]
    metrics |= {f"collapsed_share_{name}": rate.value, f"cases_{name}": len(edits)}
    metrics |= statistics.collapses(edits, f"collapsed_{name}", collapse_ratio=collapse_ratio)
    metrics[f"median_ratio_{name}"] = float(medians[arm])
for (rule, scope), verdict in verdicts.items():
    name = f"{scope} {rule}".replace(",", "").replace("'", "").replace(" ", "_")
    metrics |= {f"{what}_{name}": share.value for what, (share, _) in verdict.items()}
for what, share in whole[simple].items():
    metrics |= {
        f"{what}_in_the_set": share.value,
        f"{what}_in_the_set_low": share.low,
        f"{what}_in_the_set_high": share.high,
    }
for (a, b), found in aucs.items():
    name = f"{a}_from_{b}".replace("kᵘ", "bare").replace(", ", "_").replace(" ", "_").replace("-", "_")
    metrics |= {f"auc_{name}": found.value, f"distance_{name}": gaps[a, b]}
record(metrics, hparams={model: {"rome": rome}}, moments={model: moments})
