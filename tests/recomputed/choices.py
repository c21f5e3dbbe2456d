"""Numbers about what is chosen: methods, their strengths and layers, settings, and the precision of the model."""

import pandas as pd
from books import table
from recomputed.counting import SCORES, TIMES, Numbers, broken, collapses, gap, short

from editlib.runs.manifest import Manifest

FLAVOURS = ", "  # of a method's name, before the lineage whose settings it has


def methods(run: Manifest) -> Numbers:
    found, cases = Numbers(), table(run)
    for method, rows in cases.groupby("method"):
        name = short(method)
        found |= {f"{name}_{score}_em_tf": float(rows[f"{score}_em_tf"].mean()) for score in SCORES}
        for what in ("max", "median"):
            rise = 100 * float(rows["perplexity_ratio"].agg(what) - 1)
            found[f"{name}_{'worst' if what == 'max' else what}_rise_percent"] = round(rise, 2)
    found = {name: value for name, value in found.items() if name in run.metrics}  # of flavours not all are kept
    own = cases[~cases["method"].str.contains(FLAVOURS)].groupby("method")["efficacy_em_tf"].mean()
    few = own.index[own < run.parameters["wanted"]]
    missed = ", ".join(method for method in cases["method"].unique() if method in few) or "none"
    found |= {"methods": len(own), "reached": len(own) - len(few), "short": missed}
    return found | {"cases": cases["case_id"].nunique()}


def strengths(run: Manifest) -> Numbers:
    cases = table(run)
    found = Numbers(cases=cases["case_id"].nunique())
    for name, rows in cases.groupby("name"):
        means = rows.groupby("value", sort=False)[[f"{score}_em_tf" for score in SCORES]].mean()
        reached = means.index[means["efficacy_em_tf"] >= run.parameters["wanted"]]
        value = reached[0] if len(reached) else means["efficacy_em_tf"].idxmax()
        found |= {f"value_{short(name)}": float(value)}
        found |= {f"{score}_{short(name)}": float(means.at[value, f"{score}_em_tf"]) for score in SCORES}
    return found


def presets(run: Manifest) -> Numbers:
    cases = table(run)
    found, normal = Numbers(cases=cases["case_id"].nunique()), cases[cases["kind"] != "one token, first"]
    for name, rows in normal.groupby("name"):
        means = rows.groupby("layer")[[f"{score}_es" for score in SCORES] + ["efficacy_em_tf"]].mean()
        score = 3 / (1 / means.filter(like="_es")).sum(axis=1)  # 0 where one of them is
        layer = max(score.index[score >= score.max() - 0.02])
        found |= {f"layer_{short(name)}": layer, f"score_{short(name)}": score[layer]}
        found[f"efficacy_em_tf_{short(name)}"] = means.at[layer, "efficacy_em_tf"]
    return found


def efficacy(run: Manifest) -> Numbers:
    cases = table(run)
    found = Numbers(layers=", ".join(map(str, sorted(cases["layer"].unique()))))
    for (method, group), rows in cases.groupby(["method", "group"]):
        place = "first" if group == "one token at the start" else "others"
        found |= {f"cases_{place}": rows["case_id"].nunique(), f"collapsed_{place}_{short(method)}": broken(rows)}
        found |= {f"{score}_{place}_{short(method)}": float(rows[score].mean()) for score in (*SCORES, "prefixed")}
    return found


def settings(run: Manifest) -> Numbers:
    cases = table(run).assign(size=lambda rows: rows["denominator"].abs())
    cases["free"] = cases["size"] / cases["denominator_consistent"].abs()
    readings = {choice: (choice, TIMES, "perplexity_ratio") for choice in cases["choice"].unique()}
    for name, *how in (
        ("perplexity over the corpus", TIMES, "corpus"),
        *((f"collapse from {times:,} times on", times, "perplexity_ratio") for times in (2, 20, 1000)),
        ("collapse from a perplexity of 1,000 on", 1000, "perplexity_mean"),
    ):
        readings[name] = ("as in the formula", *how)
    found = {name: findings(cases[cases["choice"] == choice], *how) for name, (choice, *how) in readings.items()}
    numbers = Numbers(cases=cases["case_id"].nunique(), choices=len(readings))
    for name, values in found.items():
        numbers |= {f"{short(name)}_{finding}": value for finding, value in values.items()}
    for choice, rows in cases[cases["method"] == "rome"].groupby("choice"):
        for opens, kind in rows.groupby(rows["kind"] == "one token, first"):
            numbers |= collapses(kind, f"collapsed_{short(choice)}_{'first' if opens else 'others'}")
    plain = cases[(cases["choice"] == "as in the formula") & (cases["method"] == "rome")]
    return numbers | held(pd.DataFrame(found).T) | gap(plain, "gap")


def findings(rows: pd.DataFrame, times: float, column: str) -> Numbers:
    """What is measured of the papers' six findings under one choice, with a threshold on one of the perplexities."""
    rome, c_rome = (rows[rows["method"] == method] for method in ("rome", "c-rome"))
    opens, rest = (rome[(rome["kind"] == "one token, first") == first] for first in (True, False))
    sides = {"first": opens, "others": rest, "c_rome": c_rome}
    return {name: broken(side, times, column) / len(side) for name, side in sides.items()} | {
        "smaller": rest["size"].mean() / opens["size"].mean(),
        "smaller_free": rest["free"].median() / opens["free"].median(),
        "efficacy": c_rome.loc[c_rome["kind"] == "one token, first", "efficacy_em_tf"].mean(),
    }


def held(found: pd.DataFrame) -> Numbers:
    """Under how many choices each finding holds, and all of them."""
    holds = found >= [0.5, 0, 0, 30, 30, 0]
    holds &= found <= [1, 0.05, 0, float("inf"), float("inf"), 0.5]
    holds["efficacy"] &= found["efficacy"] != 0.5  # below one half
    return {f"holds_{name}": int(holds[name].sum()) for name in holds} | {
        "choices_all_hold": int(holds.all(axis=1).sum())
    }


def precision(run: Manifest) -> Numbers:
    cases, losses = table(run), table(run, "losses")
    found = Numbers(cases=cases["case_id"].nunique(), steps=losses["step"].nunique())
    for name, arm in {"single": "float32, engine", "plain": "float32, plain path", "half": "bfloat16, engine"}.items():
        rows = cases[cases["arm"] == arm]
        found[f"loss_error_{name}"] = float(losses.query("arm == @arm and step == step.max()")["error"].max())
        same = (rows["perplexity_ratio"] >= TIMES) == (rows["exact"] >= TIMES)
        found[f"same_verdict_{name}_share"] = float(same.mean())
        for method, of_method in rows.groupby("method"):
            off = (of_method["perplexity_ratio"] - of_method["exact"]).abs() / of_method["exact"]
            found[f"median_change_{method.replace('-', '_')}_{name}"] = float(of_method["change"].median())
            found[f"median_ratio_{method.replace('-', '_')}_{name}"] = float(off.median())
    return found
