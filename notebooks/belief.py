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
#     title: "Belief: what an edit should do to everything else"
#     models: [model]
#     profiles:
#       quick: {methods: "rome,ft,ike", n: 6, asked: 10}
#       full: {n: 100, asked: 200}
# ---

# %% [markdown]
# # Belief: what an edit should do to everything else
#
# **Question.** An edited model says the new fact. Does it believe what follows from it, and nothing else?
#
# Hase et al. {cite}`hase2024fundamental` answer with a Bayesian agent that has read what the model has read. Here both have read
# 80,000 drawn facts of 1,000 invented subjects, in eight relations of four pairs: of each pair one is a root, the other its
# child, which depends on it. What the agent believes is an exact sum. Every request changes the agent's answer about the other
# relation of its pair. Four questions are asked of each edited model: the one *requested*; the *dependent* one; an *unrelated*
# relation of the same subject; and the same relation of an *other subject*.
#
# A model's belief is the probability of an object as a share of that of all objects there are. It is right where its first
# choice is the agent's; the *distance* of both is the total variation distance of all shares, 0 to 1. Prompts are never the
# edited one but for the request itself, and one half of the requests is about roots.
#
# Three readings of a request differ in what should follow. *Believed*: the fact was observed as often as it takes to believe it
# by .95. *Certain*: it holds, whatever was read. *Done*: it was brought about, so children follow, and parents do not.

# %% tags=["parameters"]
model: str = "testbed/belief"  # the model to edit; it must have read the world of dependent facts
methods: str = (  # with commas between; those that cannot edit the model are left out
    "rome,c-rome,fc-rome,rome+rect,rome+revive,rome+1-li,rome+prune,memit,memit-seq,encore,alphaedit,alphaedit+sphere,"
    "nas,rlsedit,d4s,ft,locft-bf,lora,coachhook,grace,serac,skeme,ike"
)
split: str = "test"  # requests that no setting was chosen on
n: int = 20  # requests, half of them about roots
asked: int = 50  # subjects whose every fact the unedited model is asked
strengths: str = "4,16"  # ROME's edits are also made so many times as strong, to see the model break
layer: int | None = None  # the layer that is edited; none for the model's preset, else a middle one
seed: int = 0  # of the draws, and of the bootstrap
collapse_ratio: float = 5.0  # perplexity, times unedited

# %% tags=["hide-input"]
import json
from itertools import islice
from random import Random

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

import editlib as el
from editlib import plot
from editlib.data import for_models
from editlib.editing.methods import prepare, solve
from editlib.editing.session import Session
from editlib.measuring import statistics
from editlib.measuring.belief import believed, distance, incoherence
from editlib.measuring.separability import auc
from editlib.runs.recording import record
from editlib.sweeps import setup
from editlib.testbed.agent import Agent
from editlib.testbed.belief_prose import held_out_sentences, logic_sentence, statement
from editlib.testbed.dependence import DEPENDENT, build_dependent_world
from editlib.testbed.revision import OTHER, Revision, build_revisions
from editlib.testbed.world import Fact
from editlib.text import percent

plot.theme()
lm = el.load(model)
card = json.loads((lm.folder / "card.json").read_text("utf-8")) if for_models.has_prose(lm) else {"recipe": {}}
if card["recipe"].get("prose") != "belief":
    raise el.EditlibError(
        f"{model} has not read the world of dependent facts; give testbed/belief, or one of editlib testbed train belief"
    )
world = build_dependent_world(card["recipe"]["seed"])
agent, sentences = Agent.of(world), held_out_sentences(world, seed=0)
texts = [" ".join(islice(sentences, 3)) for _ in range(50)]  # as its card's perplexity is measured on
unedited = el.perplexity(lm, texts).mean


def mean(values: pd.Series) -> statistics.Interval:
    return statistics.bootstrap(np.mean, values.dropna(), seed=seed)


Markdown(
    f"`{model}` knows {percent(card['recall'])} of the world's true facts by the measure of its card, each asked behind a sentence. Its "
    f"mean perplexity on {len(texts)} texts that it has not read is {unedited:.3f}."
)

# %% [markdown]
# ## Before any edit: does the model believe what it has read?
#
# Without that, no edit can be judged against the agent. Every fact of some subjects is asked in a wording drawn at random: bare,
# as edits are asked for, and behind the token that ends a document, as at the start of the next in what it read. A calibrated
# model gives an object in which the agent believes by .7 a share of .7.

# %% tags=["hide-input"] mystnb={"image": {"alt": "The share that the unedited model gives an object over the agent's belief in it, bare and as a document begins; a calibrated model lies on the diagonal."}}
rng = Random(f"asked-{seed}")
known = [(subject, relation) for subject in rng.sample(world.subjects, k=asked) for relation in DEPENDENT]
bare = [rng.choice(DEPENDENT[relation].prompts).replace("{}", subject) for subject, relation in known]
ways = {"bare": bare, "as a document begins": [f"{lm.tokenizer.eos_token}{prompt}" for prompt in bare]}
tables = []
for way, prompts in ways.items():
    found = believed(lm, [(p, world.objects(relation)) for p, (_, relation) in zip(prompts, known, strict=True)])
    for (subject, relation), own in zip(known, found, strict=True):
        wanted = agent.beliefs(subject, relation)
        rows = {"object": world.objects(relation), "agent": wanted, "model": own.shares}
        common = {"way": way, "subject": subject, "relation": relation, "mass": own.mass}
        common |= {"right": own.shares.argmax() == wanted.argmax(), "distance": distance(own.shares, wanted)}
        tables.append(pd.DataFrame(rows).assign(**common))
calibration = pd.concat(tables, ignore_index=True)
calibration.to_parquet("data/calibration.parquet")
figure = plot.calibration(calibration.rename(columns={"way": "line"}))
figure.suptitle(f"{model}, before any edit", x=0.01, ha="left", fontsize=12)
figure.savefig("figures/calibration.png")

# %% tags=["hide-input"]
before = calibration.drop_duplicates(["way", "subject", "relation"]).groupby("way", sort=False)
calibrated = before[["right", "distance", "mass"]].agg(mean)
calibrated.map(lambda interval: f"{interval:.3f}").rename_axis(f"{len(known):,} questions")

# %% [markdown]
# Does it know which statements are true? It has read sentences of logic about its subjects: a statement, its negation, two joined by
# "and" or "or", called true or false as the agent believes them. AUC is the chance that a sentence called true gets a higher
# probability of "true" than one called false; .5 is guessing, and then the model answers by the form of a sentence alone.

# %% tags=["hide-input"]
FORMS = {"a not": '"not ', "a and b": " and ", "a or b": " or ", "a": '"'}
told = [logic_sentence(world, agent, subject, rng) for subject in rng.choices(world.subjects, k=8 * asked)]
answers = believed(lm, [(text.rpartition(" ")[0], ("true", "false")) for text in told])
logical = pd.DataFrame(
    {"called": [text.endswith("true.") for text in told], "true": [own.shares[0] for own in answers]}
)
logical["form"] = [next(form for form, mark in FORMS.items() if mark in text) for text in told]
logical.to_parquet("data/logic.parquet")


def told_apart(rows: pd.DataFrame) -> statistics.Interval:
    return auc(rows.loc[rows["called"], "true"], rows.loc[~rows["called"], "true"], seed=seed)


by_form = {form: logical[logical["form"] == form] for form in sorted(FORMS)} | {"all": logical}
truth = pd.DataFrame(
    {
        "sentences": {form: len(rows) for form, rows in by_form.items()},
        "called true": {form: rows["called"].mean() for form, rows in by_form.items()},
        "the model's mean": {form: rows["true"].mean() for form, rows in by_form.items()},
    }
).round(2)
aucs = {form: told_apart(rows) for form, rows in by_form.items()}
truth["AUC"] = [f"{interval:.2f}" for interval in aucs.values()]
truth.rename_axis("form")

# %% [markdown]
# ## The edits
#
# Each request alone, from the unedited model, which stands in the tables too. Beside the four questions every model is asked
# whether six sentences are true, in the form in which it has read such sentences: the requested fact *A*, the dependent one *B* that
# the agent would now say, *not A*, *A and B*, *B and A*, *A or B*. Hyper-parameters are the presets of the testbed's twins.
# No document that the model has read states a fact twice, so it has never had to repeat what it read: editors that put the fact
# before the text (`ike`, `skeme`, `serac`) have to do with what followed from it there. `rome × 4` is ROME's change to the weights times four: no editor, but a way to see a model break by degrees.

# %% tags=["hide-input"]
KINDS = ("request", "dependent", "unrelated", "other subject")
READINGS = ("believed", "certain", "done")
rng = Random(f"requests-{seed}")
pool = [revision for revision in build_revisions(world) if revision.case.split == split]
chosen = [
    revision
    for group in ("root", "child")
    for revision in rng.sample([each for each in pool if each.case.group == group], k=n // 2)
]
variants = setup.able(lm, methods.split(","), layer)
moments = setup.moments(lm, variants.values(), None)
session = Session(lm, stats=moments)


def mode(beliefs: dict[str, float]) -> str:
    return max(beliefs, key=beliefs.get)


def look(revision: Revision) -> dict[str, float]:
    """What a model says of a request's four questions and six sentences, and its perplexity."""
    requested, wording = revision.fact, Random(revision.case.case_id)
    dependent = next(probe for probe in revision.probes if probe.kind == "dependent")
    a = statement(requested, wording)
    b = statement(Fact(OTHER[requested.relation], requested.subject, mode(dependent.beliefs["believed"])), wording)
    claims = [a, f"not {a}", b, f"{a} and {b}", f"{b} and {a}", f"{a} or {b}"]
    answers = believed(
        lm,
        [(probe.prompt, list(probe.beliefs["before"])) for probe in revision.probes]
        + [(f'"{claim}" is', ("true", "false")) for claim in claims],
    )
    row = {"perplexity_ratio": el.perplexity(lm, texts).mean / unedited}
    for probe, own in zip(revision.probes, answers, strict=False):
        kind, objects = probe.kind.replace(" ", "_"), list(probe.beliefs["before"])
        said = objects[int(own.shares.argmax())] if np.isfinite(own.shares).all() else None
        row |= {f"mass_{kind}": own.mass, f"right_{kind}_before": said == mode(probe.beliefs["before"])}
        for reading in READINGS:
            row[f"right_{kind}_{reading}"] = said == mode(probe.beliefs[reading])
            row[f"distance_{kind}_{reading}"] = distance(own.shares, probe.beliefs[reading])
        if probe.kind == "request":
            row["belief"] = own.shares[objects.index(requested.object)]
        if probe.kind == "dependent":
            row["belief_dependent"] = own.shares[objects.index(mode(probe.beliefs["believed"]))]
    true = [own.shares[0] for own in answers[len(revision.probes) :]]
    return row | incoherence(*true) | {"true": true[0], "said_and_true": abs(true[0] - row["belief"])}


rows = [{"method": "unedited", "case_id": revision.case.case_id, **look(revision)} for revision in chosen]
for name, params in variants.items():
    prepare(session, [revision.case.request for revision in chosen], params)
    for revision in chosen:
        row = {"method": name, "case_id": revision.case.case_id}
        try:
            edit = solve(session, name, [revision.case.request], params)
            with edit.applied(lm):
                rows.append(row | look(revision))
            for strength in strengths.split(",") if name == "rome" else ():
                with edit.scaled(float(strength)).applied(lm):
                    rows.append(row | {"method": f"rome × {strength}"} | look(revision))
        except el.EditlibError as error:
            rows.append(row | {"error": str(error)})
frame = pd.DataFrame(rows).reindex(columns=dict.fromkeys([*rows[0], "error"]))
frame["group"] = frame["case_id"].map({revision.case.case_id: revision.case.group for revision in chosen})
frame["weight"] = frame["case_id"].map({revision.case.case_id: revision.weight for revision in chosen})
frame.to_parquet("data/edits.parquet")
done = frame[frame["error"].isna()].infer_objects()
failed = frame[frame["error"].notna()].groupby("method", sort=False)["error"].agg(["size", "first"])
Markdown(
    f"{len(chosen)} requests by {len(variants)} methods. To be believed by .95, a fact has to be observed "
    f"{np.median([revision.weight for revision in chosen]):.0f} times in the median; ten draws were read of each."
    + "".join(f"\n- {row.Index}: {row.size} failed, the first with: {row.first}" for row in failed.itertuples())
)

# %% tags=["hide-input"] mystnb={"image": {"alt": "A row for each method, four marks in it for the request, the dependent fact, an unrelated relation and another subject. Left, the share of requests after which the model's first choice is the agent's; right, the distance of all its beliefs from the agent's."}}
columns = {"right": "First choice is the agent's", "distance": "Distance from the agent"}
by_method = done.groupby("method", sort=False)
measured = {
    (what, kind): by_method[f"{what}_{kind.replace(' ', '_')}_believed"].agg(mean) for what in columns for kind in KINDS
}
figure = plot.beliefs(measured, columns)
figure.suptitle(f"{model}, {len(chosen)} requests, each believed by .95", x=0.01, ha="left", fontsize=12)
figure.savefig("figures/belief.png")

# %% tags=["hide-input"]
LOGIC = {"negation": "negation", "order": "order", "sum": "sum", "said_and_true": "said and called true"}
table = pd.DataFrame({kind: measured["right", kind] for kind in KINDS})
table["belief in the request"] = by_method["belief"].agg(mean)
table["in what follows"] = by_method["belief_dependent"].agg(mean)
display(table.map(lambda interval: f"{interval:.2f}").rename_axis("share right"))
distances = pd.DataFrame({kind: measured["distance", kind] for kind in KINDS})
display(distances.map(lambda interval: f"{interval:.2f}").rename_axis("distance"))

# %% [markdown]
# ## What follows, by the reading of a request
#
# For a root, *certain* and *done* are one: its child follows in every reading. For a child, parents follow what is *believed*
# or *certain*, and not what is *done*. So an editor that leaves dependent facts alone is right about the parents of what is
# done: the unedited model shows how far it would be right without an edit.

# %% tags=["hide-input"]
by_group = done.groupby(["method", "group"], sort=False)
follows = pd.DataFrame(
    {(what, reading): by_group[f"{what}_dependent_{reading}"].agg(mean) for what in columns for reading in READINGS}
)
follows.map(lambda interval: f"{interval:.2f}")

# %% [markdown]
# ## Does it agree with itself?
#
# *Negation* is |P(A) + P(not A) − 1|, *order* |P(A and B) − P(B and A)|, *sum* |P(A) + P(B) − P(A and B) − P(A or B)|, 0 for any
# probabilities whatever. *Said and called true* is by how much the share that a model gives the requested object and its probability of
# "true" after the sentence differ. They mean something as far as the model tells true statements from false ones (the AUC above): one
# that answers by the form of a sentence alone agrees with itself without believing anything. Beside them is perplexity, which tells whether the model is whole.

# %% tags=["hide-input"]
logic = by_method[list(LOGIC)].agg(mean).rename(columns=LOGIC)
logic = logic.map(lambda interval: f"{interval:.2f}")
over = done.assign(over=statistics.collapsed(done["perplexity_ratio"], collapse_ratio))
collapses = over.groupby("method", sort=False)["over"].agg(["sum", "size"])
logic["times unedited, median"] = by_method["perplexity_ratio"].median().map("{:,.3f}".format)
logic["at most"] = by_method["perplexity_ratio"].max().map("{:,.4g}".format)
logic["collapsed"] = collapses["sum"].astype(str) + " of " + collapses["size"].astype(str)
logic.rename_axis("mean")

# %% tags=["hide-input"]
edits = over[over["method"] != "unedited"]
broken, sound = edits[edits["over"]], edits[~edits["over"]]
RIGHT = [f"right_{kind.replace(' ', '_')}_believed" for kind in KINDS]
looks = pd.DataFrame({name: part[RIGHT].agg(mean) for name, part in (("collapsed", broken), ("sound", sound))})
looks.index = KINDS
ranks = {
    kind: statistics.bootstrap(
        statistics.spearman, edits["perplexity_ratio"], edits[f"distance_{kind.replace(' ', '_')}_believed"],
        paired=True, seed=seed,
    )
    for kind in KINDS
}  # fmt: skip
looks["ρ of perplexity and distance"] = pd.Series(ranks)
display(looks.map(lambda interval: f"{interval:.2f}").rename_axis(f"{len(broken)} collapsed, {len(sound)} sound"))

# %% [markdown]
# ## Verdict
#
# By a rule that was written before any edit of this model was looked at, but for four of the requests, by which this notebook was
# tried, and not changed since. An editor *stores* if the model's first choice is what was requested
# for more than half of the requests and what follows for less than half, both by the whole 95 % interval; it *revises* if both are
# more than half; it *does not edit* if the request is less than half; else it is *open*. In the published test, of one small model
# and LoRA, accuracy on dependent facts that should change fell from .97 to .01 (a secondary source: the paper's table was not at hand).
# *Before* is the unedited model's against what the agent believed before the request.


# %% tags=["hide-input"]
def verdict(request: statistics.Interval, dependent: statistics.Interval) -> str:
    if request.high < 0.5:
        return "does not edit"
    if request.low > 0.5 and (dependent.high < 0.5 or dependent.low > 0.5):
        return "stores" if dependent.high < 0.5 else "revises"
    return "open"


right = {kind: measured["right", kind] for kind in KINDS}
verdicts = pd.DataFrame({"request": right["request"], "dependent": right["dependent"]})
verdicts = verdicts[verdicts.index.isin(variants)]
verdicts["verdict"] = [verdict(*row) for row in verdicts.itertuples(index=False)]
dependent_before = mean(done.loc[done["method"] == "unedited", "right_dependent_before"].astype(float))
verdicts.map(lambda cell: cell if isinstance(cell, str) else f"{cell:.2f}")

# %% tags=["hide-input"]
counts = verdicts["verdict"].value_counts()
most = verdicts["dependent"].map(lambda interval: interval.value).idxmax()
Markdown(
    f"**Finding.** Before any edit, the first choice of `{model}` about dependent facts is the agent's in {dependent_before:.2f} of the cases. "
    f"Of {len(verdicts)} editors, {counts.get('stores', 0)} store, {counts.get('revises', 0)} revise, "
    f"{counts.get('does not edit', 0)} do not edit, {counts.get('open', 0)} are open. What follows is said most often after `{most}`, "
    f"in {verdicts.loc[most, 'dependent']:.2f}. {len(broken)} of {len(edits):,} edits collapse the model."
)

# %% tags=["hide-input"]
metrics = {
    "cases": len(chosen), "methods": len(variants), "questions": len(known), "perplexity": unedited,
    "distance_bare": calibrated.loc["bare", "distance"].value, "right_bare": calibrated.loc["bare", "right"].value,
    "distance_begun": calibrated.loc["as a document begins", "distance"].value,
    "right_begun": calibrated.loc["as a document begins", "right"].value,
    "dependent_before": dependent_before.value, "dependent_before_low": dependent_before.low,
    "dependent_before_high": dependent_before.high, "stores": int(counts.get("stores", 0)),
    "revises": int(counts.get("revises", 0)), "open": int(counts.get("open", 0)), "most": most,
    "truth_auc": aucs["a"].value, "truth_auc_low": aucs["a"].low, "truth_auc_high": aucs["a"].high,
    "does_not_edit": int(counts.get("does not edit", 0)), "collapsed": len(broken), "edits": len(edits),
}  # fmt: skip
for method in by_method.groups:
    ending = method.replace("-", "_").replace("+", "_").replace(" × ", "_")
    for kind in KINDS:
        for what in columns:
            interval, name = measured[what, kind][method], f"{what}_{kind.replace(' ', '_')}_{ending}"
            metrics |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
record(metrics, hparams={model: variants}, moments={model: moments})
