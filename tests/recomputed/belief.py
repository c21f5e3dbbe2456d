"""Numbers about what a model that weighs evidence believes, before and after it is edited."""

import numpy as np
from books import table
from recomputed.counting import Numbers, area, bounded, short

from editlib.measuring import separability
from editlib.runs.manifest import Manifest

KINDS = ("request", "dependent", "unrelated", "other_subject")
WAYS = {"bare": "bare", "as a document begins": "begun"}


def belief(run: Manifest) -> Numbers:
    edits, seed = table(run, "edits"), run.parameters["seed"]
    done, found = edits[edits["error"].isna()], Numbers(cases=edits["case_id"].nunique())
    for method, rows in done.groupby("method"):
        for kind in KINDS:
            said = rows[f"right_{kind}_believed"].astype(float)
            found |= bounded(f"right_{kind}_{short(method)}{{}}", np.mean, said, seed=seed)
    before = done.loc[done["method"] == "unedited", "right_dependent_before"].astype(float)
    found |= bounded("dependent_before{}", np.mean, before, seed=seed)
    editors = [method for method in edits["method"].unique() if method != "unedited" and " × " not in method]
    kinds = [verdict(found, short(method)) for method in editors]
    found |= {kind: kinds.count(kind) for kind in ("stores", "revises", "open", "does_not_edit")}
    return found | before_any_edit(run) | {"methods": len(editors)}


def verdict(found: Numbers, method: str) -> str:
    """What an editor does, by on which side of one half the bounds of its two shares lie."""
    low, high, next_low, next_high = (
        found[f"right_{kind}_{method}_{bound}"] for kind in ("request", "dependent") for bound in ("low", "high")
    )
    if high < 0.5:
        return "does_not_edit"
    if low > 0.5 and not next_low <= 0.5 <= next_high:
        return "stores" if next_high < 0.5 else "revises"
    return "open"


def before_any_edit(run: Manifest) -> Numbers:
    """How often the model's first choice is the agent's, and how well it tells true sentences from false ones."""
    asked, found = table(run, "calibration"), Numbers()
    for way, rows in asked.groupby("way"):
        likely = rows.groupby(["subject", "relation"])[["model", "agent"]].idxmax()
        found |= {f"right_{WAYS[way]}": float((likely["model"] == likely["agent"]).mean()), "questions": len(likely)}
    plain = table(run, "logic").query("form == 'a'")
    sides = (plain.loc[plain["called"] == called, "true"] for called in (True, False))
    drawn = separability.auc(*sides, seed=run.parameters["seed"])
    found |= {"truth_auc_low": drawn.low, "truth_auc_high": drawn.high}
    return found | {"truth_auc": area(plain["true"], plain["called"].astype(bool))}
