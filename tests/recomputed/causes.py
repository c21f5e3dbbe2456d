"""Numbers about position 0, and about what its keys foretell."""

import numpy as np
import pandas as pd
from books import table
from recomputed.counting import SCORES, TIMES, Numbers, area, bounded, broken, called, layer_of, short, spearman

from editlib.editing.guard import BOUND
from editlib.measuring import separability
from editlib.runs.manifest import Manifest

MASSIVE = 100  # times the median entry, from which on an activation is massive (Sun et al., COLM 2024)


def anatomy(run: Manifest) -> Numbers:
    found, opens = Numbers(), table(run, "anatomy").query("position == 0")
    mine = called(run.parameters["model"])
    for model, layers in table(run, "layers").groupby("model"):
        numbers = inside(layers.set_index("layer"))
        numbers["key_cosine_first"] = float(np.mean(opens.loc[opens["model"] == model, "key_cosine"]))
        found |= {name if model == mine else f"{name}_control": number for name, number in numbers.items()}
    return found


def inside(layers: pd.DataFrame) -> Numbers:
    """What is peculiar about position 0, layer by layer."""
    ratio = layers["key_norm"] / layers["key_norm_later"]
    norms = layers["residual_norm"] / layers["residual_norm_later"]
    extremes = {"spike": layers["spike"].nlargest(1), "norm_ratio": norms.nlargest(1)}
    extremes |= {"damping": layers["damping"].nlargest(1)}
    extremes |= {"key_ratio_most": ratio.nlargest(1), "key_ratio_least": ratio.nsmallest(1)}
    found = Numbers({name: float(one.iloc[0]) for name, one in extremes.items()})
    found |= {f"{name}_layer": int(one.index[0]) for name, one in extremes.items()}
    found |= {"layers": len(layers), "layers_short_key": int((2 * ratio < 1).sum()), "sink": layers["sink"].max()}
    return found | {"onset": min(layers.index[layers["spike"] > MASSIVE], default="none")}


def twins(run: Manifest) -> Numbers:
    cases, doses, found = table(run), table(run, "doses"), Numbers(cases=table(run)["case_id"].nunique())
    first = cases[cases["kind"] == "one token, first"]
    for role, end in {"model": "", "control": "_control"}.items():
        mine = first[first["model"] == run.parameters[role]]
        found |= {"cases_first": len(mine), f"collapsed_first{end}": broken(mine)}
        rows = doses[doses["scaled"] & (doses["model"] == run.parameters[role])]
        for name, length in {"shortest": rows["length"].min(), "longest": rows["length"].max()}.items():
            edits = rows[rows["length"] == length]
            found[f"dose_{name}{end}"] = length
            found[f"dose_{name}_collapsed_share{end}"] = broken(edits) / len(edits)
            found[f"dose_{name}_denominator_ratio{end}"] = float(edits["denominator_ratio"].median())
    return found


def sink(run: Manifest) -> Numbers:
    lengths = {"first": "position 0", "full_stop": "first full stop", "line_break": "first line break"}
    found = Numbers({f"length_{name}": np.max(table(run, "places")[place]) for name, place in lengths.items()})
    for (condition, setting, kind), rows in table(run, "edits").groupby(["condition", "setting", "kind"]):
        place = "first" if kind == "one token at the start" else "others"
        left_out = "_no_covariance" if setting == "C left out" and condition != "C less position 0" else ""
        name = f"{place}_{short(condition)}{left_out}"
        found |= {f"edits_{name}": len(rows), f"collapsed_{name}": broken(rows)}
        found[f"denominator_ratio_{name}"] = float(rows["denominator_ratio"].median())
    return found | {"layer": layer_of(run)}


def layers(run: Manifest) -> Numbers:
    cases, found = table(run), Numbers()
    settings = {"with C": "", "C less position 0": "_less_first", "C left out": "_no_covariance"}
    for (method, setting, group), rows in cases.groupby(["method", "setting", "group"]):
        place = "first" if group == "one token at the start" else "others"
        name = f"{place}_{short(method)}{settings[setting]}"
        found |= {f"collapsed_{name}": broken(rows), f"edits_{name}": len(rows)}
        found |= {f"{score}_{name}": float(rows[f"{score}_em_tf"].mean()) for score in SCORES}
        where = sorted(set(rows.loc[~(rows["perplexity_ratio"] < TIMES), "layer"]))
        found[f"layers_{name}"] = ", ".join(map(str, where)) or "none"
    for method, rows in cases.groupby("method"):
        found[f"max_ratio_{short(method)}"] = rows["perplexity_ratio"].max()
        found[f"collapsed_{short(method)}"] = broken(rows)
    found |= {
        "edits": len(cases),
        "cases_edited": cases["case_id"].nunique(),
        "layers_edited": cases["layer"].nunique(),
    }
    return found | foretold_at_all_layers(cases, run.parameters["seed"])


def foretold_at_all_layers(cases: pd.DataFrame, seed: int) -> Numbers:
    """How well severity tells edits that collapse the model from the others, by the book's bootstrap too."""
    hit, severity, subjects = ~(cases["perplexity_ratio"] < TIMES), cases["severity"], cases["case_id"]
    of_sides = subjects[hit], subjects[~hit]
    drawn = separability.auc(severity[hit], severity[~hit], subjects=of_sides, seed=seed)
    right = (hit == (severity >= BOUND)).groupby(cases["layer"]).mean()
    failing = ", ".join(map(str, right.index[right < 0.8])) or "none"
    return {"auc": area(severity, hit), "auc_low": drawn.low, "auc_high": drawn.high, "layers_failing": failing}


def screen(run: Manifest) -> Numbers:
    edits = table(run, "edits").query("part == 'judge'")
    mine, other = edits["model"] == run.parameters["model"], run.parameters["other"]
    here = edits[mine & (edits["data"] == run.parameters["cases"])]
    found = Numbers(cases=here["case_id"].nunique(), edits=len(here)) | judged(here, here["severity"] >= BOUND, "{}")
    rules = {"plain": ("severity", BOUND), "own": (f"fitted on {run.parameters['model']}", 0.5)}
    rules |= {"carried": (f"fitted on {other}", 0.5)}
    for (data, setting), rows in edits[mine].groupby(["data", "setting"]):
        end = "_elsewhere" * (data != run.parameters["cases"]) + "_no_covariance" * (setting == "C left out")
        for name, (column, bound) in rules.items():
            if rows[column].notna().all() and (name != "plain" or "elsewhere" in end):
                found |= judged(rows, rows[column] >= bound, f"{{}}_{name}{end}")
                found[f"area_{name}{end}"] = area(rows[column], ~(rows["perplexity_ratio"] < TIMES))
    return found | {"area": area(here["severity"], ~(here["perplexity_ratio"] < TIMES))}


def judged(rows: pd.DataFrame, said: pd.Series, name: str) -> Numbers:
    """Of the edits that a rule foretells to collapse the model, the share that does; of those that do, it foretells."""
    right = broken(rows[said])
    return {name.format("precision"): right / int(said.sum()), name.format("recall"): right / broken(rows)}


def aftermath(run: Manifest) -> Numbers:
    edits = table(run, "edits")
    edits["group"] = (edits["perplexity_ratio"] < TIMES).map({True: "sound", False: "collapse"})
    losses = table(run, "positions").pivot(index=["case_id", "method"], columns="position", values="loss")
    found = Numbers(cases=edits["case_id"].nunique(), edits=len(edits), collapsed=broken(edits))
    for group, rows in edits.groupby("group"):
        found |= {f"{name}_{group}": float(rows[name].median()) for name in ("sink", "length", "entropy")}
        of_group = losses.loc[list(zip(rows["case_id"], rows["method"], strict=True))]
        found[f"loss_first_{group}"] = float(of_group[0].median())
        found[f"loss_later_{group}"] = float(of_group[range(1, run.parameters["positions"])].mean(axis=1).median())
    pairs = edits["entropy"], edits["perplexity_ratio"]
    found |= bounded("rho{}_entropy", spearman, *pairs, seed=run.parameters["seed"], paired=True)
    return found | written(edits[edits["method"] == run.parameters["method"]]) | {"layer": layer_of(run)}


def written(edits: pd.DataFrame) -> Numbers:
    """How far the perplexity rises by the edits of which continuations are shown."""
    ruined = np.sort(edits.loc[edits["perplexity_ratio"] >= TIMES, "perplexity_ratio"])
    whole = edits[(edits["perplexity_ratio"] < TIMES) & (edits["subject"] != "one token")]
    middle = {"median": ruined, "whole": np.sort(whole["perplexity_ratio"])}
    found = {f"sample_{name}_ratio": float(ratios[len(ratios) // 2]) for name, ratios in middle.items()}
    return found | {"sample_mildest_ratio": ruined[0], "sample_worst_ratio": ruined[-1]}
