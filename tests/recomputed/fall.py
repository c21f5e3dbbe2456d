"""Numbers about keys, and about methods that use one throughout: what the second paper measured."""

import numpy as np
import pandas as pd
from books import table
from recomputed.counting import (
    SCORES,
    TIMES,
    Numbers,
    bounded,
    broken,
    collapses,
    ending,
    fates,
    own,
    short,
    sizes,
    unedited,
)
from scipy.stats import binom, binomtest

from editlib.runs.manifest import Manifest


def consistent_keys(run: Manifest) -> Numbers:
    cases = table(run)
    fate = fates(cases[cases["method"].str.startswith("rome")])
    found = sizes(fate) | {"unedited": unedited(cases)}
    for (method, group), rows in cases.groupby(["method", cases["case_id"].map(fate)]):
        name = ending(method) if method[:4] != "rome" else f"_rome{ending(method)}"
        found[f"max_ratio_{group}{name}"] = float(rows["perplexity_ratio"].max())
        found |= collapses(cases[cases["method"] == method], f"collapsed{name}")
    return found


def denominator(run: Manifest) -> Numbers:
    cases = own(run)
    cases = cases.assign(group=cases["case_id"].map(fates(cases)))
    found = sizes(fates(cases))
    for method, rows in cases.groupby("method"):
        found |= collapses(rows, f"collapsed{ending(method)}")
        middle = rows.groupby("group")[["denominator", "numerator"]].agg(lambda values: float(values.abs().mean()))
        for column in middle:
            found |= {f"{column}_{group}{ending(method)}": middle.at[group, column] for group in middle.index}
        apart = (rows.loc[rows["group"] == group, "denominator"].abs() for group in ("normal", "collapse"))
        name = "denominator_ratio{}" + ending(method)
        found |= bounded(name, lambda a, b: np.mean(a) / np.mean(b), *apart, seed=run.parameters["seed"])
    return found


def first_token(run: Manifest) -> Numbers:
    cases, found = table(run), Numbers()
    for arm, rows in cases.groupby("arm"):
        name = arm.replace(", ", "_").replace(" ", "_")
        found |= {f"cases_{name}": len(rows)} | collapses(rows, f"collapsed_{name}")
    drawn = cases[~cases["built"]]
    first = drawn[(drawn["subject_tokens"] == 1) & (drawn["subject_position"] == 0)]
    early = drawn[drawn["subject_last"] <= 1]
    for rule, named in {"one_token_at_the_start": first, "its_last_token_is_at_position_0_or_1": early}.items():
        found[f"precision_drawn_{rule}"] = broken(named) / len(named)
        found[f"recall_drawn_{rule}"] = broken(named) / broken(drawn)
    return found | {"precision_in_the_set": found["precision_drawn_one_token_at_the_start"]}


def precision_in_the_set(run: Manifest) -> tuple[Numbers, float]:
    """Bounds of the precision of *one token at the start* without drawing, and how near draws should come: a case. The
    rule names one kind of subject, so that of how many others there are nothing depends."""
    cases = table(run)
    named = cases[(cases["arm"] == "one token, first") & ~cases["built"]]
    low, high = binom.interval(0.95, len(named), broken(named) / len(named))
    bounds = {"precision_in_the_set_low": low / len(named), "precision_in_the_set_high": high / len(named)}
    return bounds, 1 / len(named)


def own_text(run: Manifest) -> Numbers:
    cases, found, enough = table(run), Numbers(), list[int]()
    told = cases[cases["method"] == "own text, 65,536"].set_index("case_id")
    for (method, group), rows in cases.groupby(["method", "group"]):
        name = f"{method.replace(', ', '_').replace(',', '').replace(' ', '_')}_{group.replace(' ', '_')}"
        beside = told.loc[rows["case_id"]]
        times = (rows["denominator"].to_numpy() / beside["denominator"].to_numpy()).__abs__()
        found |= {f"denominator_{name}": float(np.median(times)), f"same_verdict_{name}": int(alike(rows, told).sum())}
        found |= {f"cosine_{name}": float(np.median(rows["cosine"])), f"collapsed_{name}": broken(rows)}
    for tokens in map(int, run.parameters["tokens"].split(",")):
        enough += [tokens] * all(alike(cases[cases["method"] == f"own text, {tokens:,}"], told))
    return found | {"tokens_enough": min(enough)}


def alike(rows: pd.DataFrame, told: pd.DataFrame) -> np.ndarray:
    """Whether each edit's verdict is that of the same case in another table."""
    verdicts = (each["perplexity_ratio"].to_numpy() >= TIMES for each in (rows, told.loc[rows["case_id"]]))
    return np.equal(*verdicts)


def prefix_at_test(run: Manifest) -> Numbers:
    cases, every, worded = table(run), table(run, "prefixes"), table(run, "paraphrases")
    fate = fates(cases[cases["method"] == "rome"])
    found = sizes(fate) | {"draws": run.parameters["draws"]}
    for (method, group, prefix), rows in every.groupby(["method", every["case_id"].map(fate), "prefix"]):
        name = f"em_tf_{method}_{group}_{prefix}".replace("-", "_")
        for score in SCORES:
            asked = rows[f"{score}_em_tf"].dropna()
            found[f"{score}_{name}"] = float(asked.sum() / len(asked))
            if method == "c-rome":
                found |= bounded(f"{score}_{name}{{}}", np.mean, asked, seed=run.parameters["seed"])
    for (method, group, opens), rows in worded.groupby(["method", worded["case_id"].map(fate), "opens"]):
        name = f"generalization_em_tf_{'opening' if opens else 'inside'}_{short(method)}_{group}"
        found[name] = float(rows["generalization_em_tf"].sum() / len(rows))
    return found


def key_geometry(run: Manifest) -> Numbers:
    plain = own(run, "distances").query("not covariance")
    found = Numbers()
    for group, rows in plain.groupby(plain["case_id"].map(fates(table(run)))):
        for column in ("cosine", "distance"):
            found |= bounded(f"{column}_{group}{{}}", np.median, rows[column], seed=run.parameters["seed"])
        found[f"{group}_cases"] = len(rows)
    return found


def why_first_token(run: Manifest) -> Numbers:
    asked, cases, found = run.parameters, table(run), Numbers()
    opening = cases[cases["kind"] == "one token, first"]
    mine = opening[(opening["model"] == asked["model"]) & (opening["condition"] == "Original")]
    hard = set(mine.query("perplexity_ratio >= @TIMES")["case_id"])
    for role in ("model", "control", "rotary"):
        for name, condition in {"original": "Original", "swapped": "Second2First"}.items():
            rows = opening[(opening["condition"] == condition) & (opening["model"] == asked[role])]
            if not len(rows):
                continue
            share = binomtest(broken(rows), len(rows)).proportion_ci(method="wilson")
            found |= {f"collapsed_{name}_{role}": broken(rows) / len(rows)}
            found |= {f"collapsed_{name}_{role}_low": share.low, f"collapsed_{name}_{role}_high": share.high}
            among = rows.loc[rows["case_id"].isin(hard), "perplexity_mean"]
            found |= bounded(f"mean_{name}_{role}{{}}", np.mean, among, seed=asked["seed"])
            found[f"unedited_{name}_{role}"] = unedited(rows)
    return found | told_apart(run) | {"first": opening["case_id"].nunique()}


def told_apart(run: Manifest) -> Numbers:
    """How well a line tells keys at the start from later ones: at the edited layer, in an encoder at the last."""
    at, found = table(run, "separability").set_index(["model", "layer"]), Numbers()
    for role in ("model", "control", "rotary", "encoder"):
        if name := run.parameters[role]:
            layer = run.hparams[name]["rome"]["layer"] if name in run.hparams else at.loc[name].index.max()
            found |= {f"auc_{role}": at.at[(name, layer), "auc"], f"gap_{role}": at.at[(name, layer), "gap"]}
            found[f"auc_tokens_{role}"] = at.at[(name, -1), "auc"]
    return found
