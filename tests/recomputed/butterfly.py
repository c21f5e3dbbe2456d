"""Numbers about whether an edit, or many, break the model: what the first paper measured."""

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
    gap,
    own,
    short,
    spearman,
    task_of,
    unedited,
)

from editlib.measuring import statistics
from editlib.runs.manifest import Manifest


def pilot(run: Manifest) -> Numbers:
    cases, found = own(run), Numbers()
    for method, rows in cases.groupby("method"):
        by_kind = dict(list(rows.groupby("subject_kind")))
        for kind, of_kind in [*by_kind.items(), ("others", rows[rows["subject_kind"] != "one token"])]:
            name = ("first" if kind == "one token" else kind.replace(" ", "_")) + ending(method)
            found |= {f"cases_{name.removesuffix(ending(method))}": len(of_kind)}
            found |= collapses(of_kind, f"collapsed_{name}") | {
                f"median_ratio_{name}": float(np.median(of_kind["perplexity_ratio"])),
                f"max_ratio_{name}": float(np.max(of_kind["perplexity_ratio"])),
            }
        found |= collapses(rows, f"collapsed{ending(method)}") | gap(rows, f"gap{ending(method)}")
    main = cases[cases["method"] == ("rome" if run.parameters["covariance"] else "rome, C left out")]
    for name, hit in {"first": main["kind"] == "one token, first", "late": main["subject_last"] > 2}.items():
        found[f"collapsed_{name}_share"] = broken(main[hit]) / int(hit.sum())
    return found | asked_of_the_worst(run) | {"cases": cases["case_id"].nunique(), "unedited": unedited(cases)}


def asked_of_the_worst(run: Manifest) -> Numbers:
    """What the unedited model and the edited ones of highest perplexity score on tasks."""
    asked = table(run, "tasks")
    asked["task"] = asked["task"].map(task_of)
    models = asked["case_id"].isna().map({True: "unedited", False: "worst"})
    means = asked.groupby([models, "task"])["value"].mean()
    found = {f"{model}_{task}": float(value) for (model, task), value in means.items()}
    return found | {"worst_models": asked["case_id"].nunique()}


def single_edits(run: Manifest) -> Numbers:
    cases, found = own(run), Numbers()
    for (method, asked), rows in cases.groupby(["method", "set"]):
        name = f"{method.replace('-', '_')}_model_{'asked' if asked == 'as asked' else 'second'}"
        found |= collapses(rows, f"collapsed_{name}") | {f"max_ratio_{name}": float(rows["perplexity_ratio"].max())}
    every = table(run)  # hard is a case that collapses any of the models
    hard = every[~(every["perplexity_ratio"] < TIMES)].drop_duplicates(["set", "case_id"])
    return found | {"cases": cases.loc[cases["set"] == "as asked", "case_id"].nunique(), "hard": len(hard)}


def surrogate(run: Manifest) -> Numbers:
    scores, found = table(run, "scores"), Numbers()
    once = scores.drop_duplicates(["task", "model"]).assign(way="all ways")
    for (way, task), rows in pd.concat([scores, once]).groupby(["way", "task"]):
        name = f"{way.split(',')[0].replace(' ', '_')}_{task_of(task)}"
        pairs = rows["perplexity_ratio"].fillna(np.inf).to_numpy(), rows["value"].to_numpy()
        found[f"rho_{name}"] = spearman(*pairs)
        drawn = statistics.bootstrap(statistics.spearman, *pairs, seed=run.parameters["seed"], paired=True)
        found |= {f"low_{name}": drawn.low, f"high_{name}": drawn.high}
    asked = scores[scores["model"] == -1].drop_duplicates("task").set_index("task")["value"]
    found |= {f"unedited_{task_of(task)}": float(value) for task, value in asked.items()}
    return found | {"models": scores["model"].nunique(), "questions": int(scores["n"].max())}


def sequential(run: Manifest) -> Numbers:
    cases, found = table(run), Numbers()
    after = table(run, "after")
    for (group, method), rows in cases[cases["measured"]].groupby(["group", "method"]):
        name = f"{group.split()[0]}_{method.replace('-', '_')}"
        last = rows.sort_values("step").groupby("repeat")["perplexity_ratio"].last()
        found[f"last_ratio_{name}"] = float(last.quantile(0.5, interpolation="nearest"))
        found |= ruined(rows, name)
        found[f"max_ratio_{name}"] = float(rows["perplexity_ratio"].max())
        kept = after[(after["group"] == group) & (after["method"] == method)]
        found |= {f"{score}_{name}": float(kept[f"{score}_em_tf"].mean()) for score in SCORES}
    return found | tasks_after_many(run) | {"cases": int(cases["step"].max()), "repeats": cases["repeat"].nunique()}


def ruined(measured: pd.DataFrame, name: str) -> Numbers:
    """How many sequences of edits ever collapse the model, and after how many edits the first of them does."""
    over = measured[~(measured["perplexity_ratio"] < TIMES)]
    first = int(over["step"].min()) if len(over) else "never"
    return {f"collapsed_{name}": over["repeat"].nunique(), f"first_{name}": first}


def tasks_after_many(run: Manifest) -> Numbers:
    """Mean score over the tasks, unedited, by chance, and after the last edit of each group and method."""
    asked = table(run, "tasks").pivot(index="task", columns="status", values=["value", "chance"])
    found = Numbers(tasks_chance=float(np.mean(asked["chance", "unedited"])))
    for status in asked["value"]:
        name = short(status.replace(" cases", ""))
        found[f"tasks_{name}"] = float(np.mean(asked["value", status]))
    return found


def weight_change(run: Manifest) -> Numbers:
    cases, values = table(run), table(run, "spectra")
    rome = cases[cases["method"] == "rome"]
    middle = rome.groupby(rome["perplexity_ratio"] >= TIMES)["relative_change"].median()
    names = ("relative_change_median_stable_rome", "relative_change_median_collapsing_rome")
    worst = rome.loc[rome["perplexity_ratio"].idxmax(), "relative_change"]
    order = rome[["relative_change", "perplexity_ratio"]].rank().corr().iloc[0, 1]
    found = {"cases": len(rome), "relative_change_worst": float(worst), "rank_correlation_rome": float(order)}
    pairs = rome["relative_change"], rome["perplexity_ratio"].fillna(np.inf)
    found |= bounded("rank_correlation_rome{}", spearman, *pairs, seed=run.parameters["seed"], paired=True)
    squares = (values["value"] ** 2).groupby(values["matrix"]).sum()  # of singular values: the norm's square
    largest = values.groupby("matrix")["value"].max()
    found |= {"singular_value_weight": largest["W unedited"], "singular_value_stable": largest["Δ of the stable edit"]}
    stable = rome[rome["perplexity_ratio"] < TIMES].sort_values("perplexity_ratio")["relative_change"]
    found["relative_change_stable"] = float(stable.iloc[len(stable) // 2])  # of the edit in the middle
    found["norm_ratio_worst_stable"] = float((squares["Δ of the worst edit"] / squares["Δ of the stable edit"]) ** 0.5)
    return found | dict(zip(names, map(float, middle), strict=True))


def hardedit(run: Manifest) -> Numbers:
    written, found = table(run, "written"), Numbers()
    if (run.folder / "data/cases.parquet").exists():  # no hard case, no sequence
        measured = table(run).query("measured")
        for method, rows in measured.groupby("method"):
            found |= ruined(rows, short(method))
    return found | {"records": len(written), "accepted": broken(written.dropna(subset="perplexity_ratio"))}
