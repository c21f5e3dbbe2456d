"""Numbers about remedies beside the methods that they are to better: alone, and many edits in a row."""

import numpy as np
import pandas as pd
from books import table
from recomputed.counting import TIMES, Numbers, broken, collapses, short

from editlib.measuring import statistics
from editlib.runs.manifest import Manifest

GROUPS = {"hard cases": "hard", "normal cases": "normal"}
SUCCESS = "efficacy_em_tf"
CASE = ["group", "repeat", "case_id"]
CLAIMS = {  # of a remedy: the method that it betters, and in what
    "c-rome": "rome: alone later", "fc-rome": "rome: alone later", "rome+rect": "rome: later held",
    "rome+revive": "rome: later held", "rome+1-li": "rome: alone held", "rome+prune": "rome: later held",
    "memit-seq": "memit: kept", "encore": "memit: later kept", "alphaedit": "memit: later kept",
    "alphaedit+sphere": "alphaedit: later kept", "nas": "alphaedit: later kept", "rlsedit": "memit: later kept",
    "d4s": "memit: later kept", "locft-bf": "ft: together", "coachhook": "memit: later kept",
    "grace": "rome: harmless kept", "serac": "rome: harmless kept", "skeme": "rome: harmless kept",
    "ike": "rome: harmless",
}  # fmt: skip


def remedies(run: Manifest) -> Numbers:
    alone, steps, after = (table(run, name) for name in ("alone", "sequences", "after"))
    found = Numbers(repeats=steps["repeat"].nunique(), methods=alone["method"].nunique())
    for (group, method), rows in alone[alone["error"].isna()].groupby(["group", "method"]):
        found |= collapses(rows, f"collapsed_{GROUPS[group]}_{short(method)}")
        found[f"alone_efficacy_{GROUPS[group]}_{short(method)}"] = float(np.mean(rows[SUCCESS]))
    for (group, method), rows in after.groupby(["group", "method"]):
        found[f"kept_{GROUPS[group]}_{short(method)}"] = float(np.mean(rows[SUCCESS]))
        found[f"locality_{GROUPS[group]}_{short(method)}"] = float(np.mean(rows["locality_em_tf"]))
    shown = Tables(run)
    for group, name in GROUPS.items():
        found[f"cases_alone_{name}"] = alone.loc[alone["group"] == group, "case_id"].nunique()
        found[f"size_{name}"] = int(steps.loc[steps["group"] == group, "step"].max())
        found |= {f"first_{name}_{short(method)}": shown.told(method, group) for method in shown.methods}
    lasting = [method for method in shown.methods if {shown.told(method, group) for group in GROUPS} == {"never"}]
    return found | verdicts(shown) | {"lasting": ", ".join(lasting) or "none"}


def verdicts(shown: "Tables") -> Numbers:
    """Of how many remedies the tables bear out all that is claimed, and of how many they contradict something."""
    found = Numbers()
    for remedy, claim in CLAIMS.items():
        base, _, tests = claim.partition(": ")
        if {remedy, base} <= set(shown.methods):
            answers = [getattr(shown, test)(remedy, base) for test in tests.split()]
            if False in answers:
                found[f"verdict_{short(remedy)}"] = "does not hold"
            else:
                found[f"verdict_{short(remedy)}"] = "open" if None in answers else "holds"
    said = list(found.values())
    return found | {
        "claims": len(said),
        "claims_hold": said.count("holds"),
        "claims_fail": said.count("does not hold"),
    }


class Tables:
    """A run's tables, asked what a remedy betters: yes, no, or None where they cannot tell."""

    def __init__(self, run: Manifest) -> None:
        self.seed = run.parameters["seed"]
        alone = table(run, "alone")
        self.alone_done = alone[alone["error"].isna()].assign(repeat=0)
        self.steps, self.after, self.batches = table(run, "sequences"), table(run, "after"), table(run, "at-once")
        self.methods = list(alone["method"].unique())

    def better(self, mine: pd.Series, theirs: pd.Series, bound: float = 0) -> bool | None:
        """Cases are resampled as if all were independent, also those that come in several orders, as the run did."""
        gaps = (mine - theirs.reindex(mine.index)).dropna()
        drawn = statistics.bootstrap(np.mean, gaps, seed=self.seed)
        return True if drawn.low > bound else False if drawn.high < bound else None

    def scores(self, rows: pd.DataFrame, method: str, column: str = SUCCESS) -> pd.Series:
        return rows[rows["method"] == method].set_index(CASE)[column].astype(float)

    def alone(self, remedy: str, base: str) -> bool | None:
        hard = self.alone_done[self.alone_done["group"] == "hard cases"]
        hard = hard.assign(whole=hard["perplexity_ratio"] < TIMES)
        return self.better(*(self.scores(hard, method, "whole") for method in (remedy, base)))

    def held(self, remedy: str, base: str) -> bool | None:
        normal = self.alone_done[self.alone_done["group"] == "normal cases"]
        return self.better(*(self.scores(normal, method) for method in (remedy, base)), bound=-0.1)

    def kept(self, remedy: str, base: str) -> bool | None:
        return self.better(*(self.scores(self.after, method) for method in (remedy, base)))

    def together(self, remedy: str, base: str) -> bool | None:
        """All requests at once, beside the base one by one."""
        return self.better(self.scores(self.batches, remedy), self.scores(self.after, base))

    def later(self, remedy: str, base: str) -> bool | None:
        """The remedy collapses later, in the order in the middle, wherever the base does at all."""
        pairs = [[self.firsts(method, group)[1] for method in (remedy, base)] for group in GROUPS]
        fair = [mine > theirs for mine, theirs in pairs if theirs < np.inf]
        return all(fair) if fair else None

    def firsts(self, method: str, group: str) -> tuple[float, float, float]:
        """After how many edits the model first collapses: in the first order, the middle one and the last that do."""
        rows = self.steps[self.steps["measured"] & (self.steps["method"] == method) & (self.steps["group"] == group)]
        over = rows["step"].where(~(rows["perplexity_ratio"] < TIMES), np.inf)
        orders = sorted(over.groupby(rows["repeat"]).min())
        return orders[0], orders[(len(orders) - 1) // 2], orders[-1]

    def told(self, method: str, group: str) -> str:
        low, middle, high = ("never" if edits == np.inf else f"{edits:.0f}" for edits in self.firsts(method, group))
        return middle if low == high else f"{middle} ({low} to {high})"

    def harmless(self, remedy: str, base: str) -> bool:
        """The model never collapses, whatever the base does."""
        mine = (rows[rows["method"] == remedy] for rows in (self.alone_done, self.steps[self.steps["measured"]]))
        return not any(map(broken, mine))
