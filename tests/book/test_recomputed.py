"""Numbers of the real model's runs that pages quote, worked out again from the runs' tables by other means."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from books import published, table
from places import ROOT
from scipy.stats import binomtest, spearmanr

from editlib.measuring import statistics
from editlib.runs.manifest import Manifest

MODEL, TIMES = "smollm2-135m", 5  # unedited, from which on a model has collapsed
SCORES = ("efficacy", "generalization", "locality")
Numbers = dict[str, float]


def broken(rows: pd.DataFrame, times: float = TIMES) -> int:
    """How many edits collapse the model; a perplexity that is no number is none a model should have."""
    return int((~(rows["perplexity_ratio"] < times)).sum())


def collapses(rows: pd.DataFrame, name: str) -> Numbers:
    """How many edits collapse the model by each of the three thresholds, and the bounds of these shares."""
    found = Numbers()
    hits = {"": broken(rows), "_20x": broken(rows, 20), "_1000": int((~(rows["perplexity_mean"] < 1000)).sum())}
    for threshold, count in hits.items():
        share = binomtest(count, len(rows)).proportion_ci(method="wilson")
        found |= {f"{name}{threshold}": count}
        if len(rows) > 2:
            found |= {f"{name}_low{threshold}": share.low, f"{name}_high{threshold}": share.high}
    return found


def ending(method: str) -> str:
    name, _, left_out = method.partition(", ")
    return ("" if name == "rome" else f"_{name.replace('-', '_')}") + ("_no_covariance" if left_out else "")


def pilot(run: Manifest) -> Numbers:
    cases, found = table(run), Numbers()
    for method, rows in cases.groupby("method"):
        by_kind = dict(list(rows.groupby("subject_kind")))
        for kind, of_kind in [*by_kind.items(), ("others", rows[rows["subject_kind"] != "one token"])]:
            name = ("first" if kind == "one token" else kind.replace(" ", "_")) + ending(method)
            found |= {f"cases_{name.removesuffix(ending(method))}": len(of_kind)}
            found |= collapses(of_kind, f"collapsed_{name}") | {
                f"median_ratio_{name}": float(np.median(of_kind["perplexity_ratio"]))
            }
    return found | {"cases": cases["case_id"].nunique()}


def single_edits(run: Manifest) -> Numbers:
    cases, found = table(run), Numbers()
    for (method, asked), rows in cases.groupby(["method", "set"]):
        name = f"{method.replace('-', '_')}_model_{'asked' if asked == 'as asked' else 'second'}"
        found |= collapses(rows, f"collapsed_{name}") | {f"max_ratio_{name}": float(rows["perplexity_ratio"].max())}
    return found | {"cases": cases.loc[cases["set"] == "as asked", "case_id"].nunique()}


def surrogate(run: Manifest) -> Numbers:
    scores, found = table(run, "scores"), Numbers()
    once = scores.drop_duplicates(["task", "model"]).assign(way="all ways")
    for (way, task), rows in pd.concat([scores, once]).groupby(["way", "task"]):
        name = f"{way.split(',')[0].replace(' ', '_')}_{task.removeprefix('facts-')}"
        pairs = rows["perplexity_ratio"].fillna(np.inf).to_numpy(), rows["value"].to_numpy()
        found[f"rho_{name}"] = float(spearmanr(*pairs).statistic)
        drawn = statistics.bootstrap(statistics.spearman, *pairs, seed=run.parameters["seed"], paired=True)
        found |= {f"low_{name}": drawn.low, f"high_{name}": drawn.high}
    unedited = scores[scores["model"] == -1].drop_duplicates("task").set_index("task")["value"]
    found |= {f"unedited_{task.removeprefix('facts-')}": float(value) for task, value in unedited.items()}
    return found | {"models": scores["model"].nunique(), "questions": int(scores["n"].max())}


def layers(run: Manifest) -> Numbers:
    cases, found = table(run), Numbers()
    settings = {"with C": "", "C less position 0": "_less_first", "C left out": "_no_covariance"}
    for (method, setting, group), rows in cases.groupby(["method", "setting", "group"]):
        place = "first" if group == "one token at the start" else "others"
        name = f"{place}_{method.replace('-', '_')}{settings[setting]}"
        found |= {f"collapsed_{name}": broken(rows), f"edits_{name}": len(rows)}
        found |= {f"{score}_{name}": float(rows[f"{score}_em_tf"].mean()) for score in SCORES}
    largest = {
        f"max_ratio_{m.replace('-', '_')}": rows["perplexity_ratio"].max() for m, rows in cases.groupby("method")
    }
    return found | largest | {"edits": len(cases), "layers_edited": cases["layer"].nunique()}


def methods(run: Manifest) -> Numbers:
    found = Numbers()
    for method, rows in table(run).groupby("method"):
        name = re.sub(r"[-+]", "_", method)
        found |= {f"{name}_{score}_em_tf": float(rows[f"{score}_em_tf"].mean()) for score in SCORES}
        for what in ("max", "median"):
            rise = 100 * float(rows["perplexity_ratio"].agg(what) - 1)
            found[f"{name}_{'worst' if what == 'max' else what}_rise_percent"] = round(rise, 2)
    return {name: value for name, value in found.items() if name in run.metrics}  # of flavours not all are kept


def consistent_keys(run: Manifest) -> Numbers:
    cases, found = table(run), Numbers()
    worst = cases[cases["method"].str.startswith("rome")].groupby("case_id")["perplexity_ratio"].max()
    for (method, collapse), rows in cases.groupby(["method", cases["case_id"].map(worst) >= TIMES]):
        group = "collapse" if collapse else "normal"
        found[f"max_ratio_{group}{ending(method) if method[:4] != 'rome' else '_rome' + ending(method)}"] = float(
            rows["perplexity_ratio"].max()
        )
    return found | {"collapse_cases": int((worst >= TIMES).sum()), "normal_cases": int((worst < TIMES).sum())}


def denominator(run: Manifest) -> Numbers:
    cases, found = table(run), Numbers()
    for method, rows in cases.groupby("method"):
        middle = rows.groupby("group")[["denominator", "numerator"]].agg(lambda values: float(values.abs().mean()))
        for column in middle:
            found |= {f"{column}_{group}{ending(method)}": middle.at[group, column] for group in middle.index}
        found[f"denominator_ratio{ending(method)}"] = (
            middle.at["normal", "denominator"] / middle.at["collapse", "denominator"]
        )
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


def own_text(run: Manifest) -> Numbers:
    cases, found = table(run), Numbers()
    told = cases[cases["method"] == "own text, 65,536"].set_index("case_id")
    for (method, group), rows in cases.groupby(["method", "group"]):
        name = f"{method.replace(', ', '_').replace(',', '').replace(' ', '_')}_{group.replace(' ', '_')}"
        beside = told.loc[rows["case_id"]]
        times = (rows["denominator"].to_numpy() / beside["denominator"].to_numpy()).__abs__()
        same = (rows["perplexity_ratio"].to_numpy() >= TIMES) == (beside["perplexity_ratio"].to_numpy() >= TIMES)
        found |= {f"denominator_{name}": float(np.median(times)), f"same_verdict_{name}": int(same.sum())}
    return found


def prefix_at_test(run: Manifest) -> Numbers:
    found = Numbers()
    for (method, group, prefix), rows in table(run, "prefixes").groupby(["method", "group", "prefix"]):
        name = f"em_tf_{method}_{group}_{prefix}".replace("-", "_")
        by_case = rows.groupby("case_id")[[f"{score}_em_tf" for score in SCORES]].mean().mean()
        found |= {f"{score}_{name}": float(by_case[f"{score}_em_tf"]) for score in SCORES}
    return found


def sequential(run: Manifest) -> Numbers:
    cases, found = table(run), Numbers()
    after = table(run, "after")
    for (group, method), rows in cases[cases["measured"]].groupby(["group", "method"]):
        name = f"{group.split()[0]}_{method.replace('-', '_')}"
        last = rows.sort_values("step").groupby("repeat")["perplexity_ratio"].last()
        found[f"last_ratio_{name}"] = float(last.quantile(0.5, interpolation="nearest"))
        over = rows.loc[~(rows["perplexity_ratio"] < TIMES), "step"]
        found |= {f"first_{name}": float(over.min())} if len(over) else {}
        found[f"max_ratio_{name}"] = float(rows["perplexity_ratio"].max())
        kept = after[(after["group"] == group) & (after["method"] == method)]
        found |= {f"{score}_{name}": float(kept[f"{score}_em_tf"].mean()) for score in SCORES}
    return found | {"cases": int(cases["step"].max())}


def sink(run: Manifest) -> Numbers:
    found = Numbers()
    for (condition, setting, kind), rows in table(run, "edits").groupby(["condition", "setting", "kind"]):
        place = "first" if kind == "one token at the start" else "others"
        left_out = "_no_covariance" if setting == "C left out" and condition != "C less position 0" else ""
        name = f"{place}_{condition.lower().replace(': ', '_').replace(' ', '_')}{left_out}"
        found |= {
            f"collapsed_{name}": broken(rows),
            f"denominator_ratio_{name}": float(rows["denominator_ratio"].median()),
        }
    return found


def weight_change(run: Manifest) -> Numbers:
    cases = table(run)
    rome = cases[cases["method"] == "rome"]
    middle = rome.groupby(rome["perplexity_ratio"] >= TIMES)["relative_change"].median()
    names = ("relative_change_median_stable_rome", "relative_change_median_collapsing_rome")
    worst = rome.loc[rome["perplexity_ratio"].idxmax(), "relative_change"]
    order = rome[["relative_change", "perplexity_ratio"]].rank().corr().iloc[0, 1]
    found = {"cases": len(rome), "relative_change_worst": float(worst), "rank_correlation_rome": float(order)}
    return found | dict(zip(names, map(float, middle), strict=True))


def strengths(run: Manifest) -> Numbers:
    cases = table(run)
    found = Numbers(cases=cases["case_id"].nunique())
    for name, rows in cases.groupby("name"):
        means = rows.groupby("value", sort=False)[[f"{score}_em_tf" for score in SCORES]].mean()
        reached = means.index[means["efficacy_em_tf"] >= run.parameters["wanted"]]
        value = reached[0] if len(reached) else means["efficacy_em_tf"].idxmax()
        short = name.replace("-", "_")
        found |= {f"value_{short}": float(value)}
        found |= {f"{score}_{short}": float(means.at[value, f"{score}_em_tf"]) for score in SCORES}
    return found


def efficacy(run: Manifest) -> Numbers:
    found = Numbers()
    for (method, group), rows in table(run).groupby(["method", "group"]):
        name = f"{'first' if group == 'one token at the start' else 'others'}_{method.replace('-', '_')}"
        found[f"collapsed_{name}"] = broken(rows)
        found |= {f"{score}_{name}": float(rows[score].mean()) for score in (*SCORES, "prefixed")}
    return found


def aftermath(run: Manifest) -> Numbers:
    edits, losses = table(run, "edits"), table(run, "positions")
    found = Numbers(cases=edits["case_id"].nunique(), edits=len(edits), collapsed=broken(edits))
    for group, rows in edits.groupby("group"):
        found |= {f"{name}_{group}": float(rows[name].median()) for name in ("sink", "length", "entropy")}
        of_group = losses[losses["group"] == group].pivot(
            index=["case_id", "method"], columns="position", values="loss"
        )
        found[f"loss_first_{group}"] = float(of_group[0].median())
        found[f"loss_later_{group}"] = float(of_group[range(1, run.parameters["positions"])].mean(axis=1).median())
    return found | {"rho_entropy": float(spearmanr(edits["perplexity_ratio"], edits["entropy"]).statistic)}


def anatomy(run: Manifest) -> Numbers:
    layers, first = table(run, "layers").set_index("layer"), table(run, "anatomy").query("position == 0")
    ratio = layers["key_norm"] / layers["key_norm_later"]
    extremes = {"spike": layers["spike"].nlargest(1), "damping": layers["damping"].nlargest(1)}
    extremes |= {"key_ratio_most": ratio.nlargest(1), "key_ratio_least": ratio.nsmallest(1)}
    found = Numbers({name: float(one.iloc[0]) for name, one in extremes.items()})
    found |= {f"{name}_layer": int(one.index[0]) for name, one in extremes.items()}
    found |= {"layers": len(layers), "layers_short_key": int((2 * ratio < 1).sum()), "sink": layers["sink"].max()}
    return found | {"key_cosine_first": float(np.mean(first["key_cosine"]))}


def key_geometry(run: Manifest) -> Numbers:
    plain = table(run, "distances").query("not covariance")
    found = Numbers()
    for group, rows in plain.groupby("group"):
        drawn = statistics.bootstrap(np.median, rows["cosine"], seed=run.parameters["seed"])
        found |= {f"{group}_cases": len(rows), f"cosine_{group}": float(rows["cosine"].median())}
        found |= {f"cosine_{group}_low": drawn.low, f"cosine_{group}_high": drawn.high}
    return found


def settings(run: Manifest) -> Numbers:
    cases = table(run)
    found = Numbers(cases=cases["case_id"].nunique())
    rome = cases[cases["method"] == "rome"].assign(size=lambda t: t["denominator"].abs())
    rome["free"] = rome["size"] / rome["denominator_consistent"].abs()
    for choice, rows in rome.groupby(rome["choice"].str.lower().str.replace(r"\W+", "_", regex=True)):
        opens, rest = rows[rows["opens"]], rows[~rows["opens"]]
        found |= {f"{choice}_first": broken(opens) / len(opens), f"{choice}_others": broken(rest) / len(rest)}
        found |= {f"collapsed_{choice}_first": broken(opens)}
        found[f"{choice}_smaller"] = rest["size"].mean() / opens["size"].mean()
        found[f"{choice}_smaller_free"] = rest["free"].median() / opens["free"].median()
    return found


def why_first_token(run: Manifest) -> Numbers:
    cases, found = table(run), Numbers()
    opening = cases[cases["kind"] == "one token, first"]
    hard = set(opening.query("condition == 'Original' and perplexity_ratio >= @TIMES")["case_id"])
    for name, condition in {"original": "Original", "swapped": "Second2First"}.items():
        rows = opening[opening["condition"] == condition]
        share = binomtest(broken(rows), len(rows)).proportion_ci(method="wilson")
        found |= {f"collapsed_{name}_model": broken(rows) / len(rows)}
        found |= {f"collapsed_{name}_model_low": share.low, f"collapsed_{name}_model_high": share.high}
        found[f"mean_{name}_model"] = float(rows.loc[rows["case_id"].isin(hard), "perplexity_mean"].mean())
    return found | {"first": opening["case_id"].nunique()}


def precision(run: Manifest) -> Numbers:
    cases, losses = table(run), table(run, "losses")
    found = Numbers(cases=cases["case_id"].nunique())
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


def hardedit(run: Manifest) -> Numbers:
    written = table(run, "written")
    return Numbers(records=len(written), accepted=int((written["perplexity_ratio"] >= TIMES).sum()))


WORKED_OUT = (
    pilot, layers, methods, consistent_keys, denominator, first_token, own_text, prefix_at_test, sequential, sink,
    weight_change, strengths, efficacy, single_edits, surrogate, aftermath, anatomy, key_geometry, settings,
    why_first_token, precision, hardedit,
)  # fmt: skip
AGAIN: dict[str, Callable[[Manifest], Numbers]] = {each.__name__.replace("_", "-"): each for each in WORKED_OUT}


def runs_of(analysis: str) -> list[Manifest]:
    """The published runs of an analysis on the real model."""
    runs = [run for run in published(analysis) if run.parameters["model"] == MODEL]
    return runs or pytest.skip(f"no published run of {analysis} on {MODEL}")


@cache
def worked_out(analysis: str) -> list[tuple[Manifest, Numbers]]:
    return [(run, AGAIN[analysis](run)) for run in runs_of(analysis)]


@pytest.mark.parametrize("analysis", AGAIN)
def test_numbers_are_those_of_the_runs_tables(analysis: str) -> None:
    for run, again in worked_out(analysis):
        assert again.keys() <= run.metrics.keys(), again.keys() - run.metrics.keys()
        told = {name: run.metrics[name] for name in again}
        assert again == pytest.approx(told, rel=1e-9, nan_ok=True), run.run


@pytest.mark.parametrize("analysis", AGAIN)
def test_most_numbers_that_pages_quote_of_an_analysis_are_worked_out_again(analysis: str) -> None:
    text = "".join(path.read_text("utf-8") for path in Path(ROOT, "book").glob("*.md"))
    quoted = set(re.findall(r"\{\{ smollm2_(\w+?)(?:\.percent)? \}\}", text))
    short = f"{analysis.replace('-', '_')}_"
    mine = {name.removeprefix(short) for name in quoted if name.startswith(short)}
    for run, again in worked_out(analysis):
        numbers = {name for name in mine if isinstance(run.metrics.get(name), float | int)}
        left = numbers - again.keys()
        assert len(left) <= len(numbers) / 2, (run.run, sorted(left))
