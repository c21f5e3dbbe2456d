"""What pages grant a sceptical reader, in numbers that no metric has, is what the runs' tables say."""

import pandas as pd
import pytest
from books import run_of, table
from places import ROOT
from scipy.stats import fisher_exact

from editlib.editing.guard import BOUND
from editlib.measuring import statistics
from editlib.runs.manifest import Manifest

FIRST = "one token, first"


def page(name: str) -> str:
    return (ROOT / f"book/{name}.md").read_text("utf-8")


def short(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".lstrip("0")


@pytest.fixture(scope="module")
def screened() -> pd.DataFrame:
    """Edits of SmolLM2 that the run of `screen` judged the rules by."""
    edits = table(run_of("screen", "smollm2-135m"), "edits")
    return edits[(edits["model"] == "smollm2-135m") & (edits["part"] == "judge")]


@pytest.fixture(scope="module")
def remedies() -> Manifest:
    return run_of("remedies", "testbed/anchored")


def test_methods_hold_normal_test_cases_with_the_presets_as_the_page_says() -> None:
    said = []
    for wording, name in ((True, "facts"), (False, "COUNTERFACT")):
        edits = table(run_of("single-edits", "smollm2-135m", wording=wording))
        normal = edits[(edits["set"] == "as asked") & (edits["kind"] != FIRST)]
        held = (
            normal.groupby("method")["efficacy_em_tf"]
            .agg(["mean", "size"])
            .loc[["memit", "rome", "ft", "ft-l", "mend"]]
        )
        assert set(held["size"]) == {{"facts": 12, "COUNTERFACT": 16}[name]}
        said.append([f"{share:.2f}".removeprefix("0") for share in held["mean"]])
    facts, counterfact = said
    assert "MEMIT holds {}, ROME {}, FT {}, FT-L {}, MEND {}; of 16".format(*facts) in page("methods")
    assert "of 16 of COUNTERFACT {}, {}, {}, {}, {} (".format(*counterfact) in page("methods")


def test_a_small_denominator_goes_with_every_collapse_and_does_not_make_one() -> None:
    edits = table(run_of("denominator", "smollm2-135m"))
    edits["size"] = edits["denominator"].abs()
    means = []
    for _, setting in edits.groupby("arm", sort=False):
        by = setting[setting["kind"] == FIRST].groupby("group")["size"]
        means.append([short(by.mean()[group], 3) for group in ("collapse", "normal")])
        assert by.size().to_dict() == {"collapse": 32, "normal": 28}
        assert f"{by.mean()['normal'] / by.mean()['collapse']:.1f}" == "1.6"
        rest = setting[setting["kind"] != FIRST]
        assert (rest["size"] < 0.2).sum() == (rest["group"] == "collapse").sum() == 3
        assert rest.loc[rest["group"] == "normal", "size"].min() > 0.2
    (low, high), (low_out, high_out) = means
    assert f"(means of {low} and {high} with `C`, {low_out} and {high_out} without)" in page("fall-of-rome")


def test_the_same_token_twice_collapses_more_often_than_two_words_and_neither_change_alone_does_it() -> None:
    metrics, said = run_of("first-token", "smollm2-135m").metrics, page("fall-of-rome")

    def chance(*kinds: str) -> float:
        hits, of = ([int(metrics[f"{name}_{kind}"]) for kind in kinds] for name in ("collapsed", "cases"))
        pairs = [[hit, every - hit] for hit, every in zip(hits, of, strict=True)]
        return float(fisher_exact(pairs).pvalue)

    both = chance("the_word_twice_no_space", "two_words")
    word, space = chance("the_word_twice", "two_words"), chance("the_word_twice_no_space", "the_word_twice")
    assert f"(Fisher's exact test, p = {short(both, 3)})" in said
    assert f"against two words p = {short(word, 2)}, without a space against with one p = {short(space, 2)}." in said


def test_the_records_that_are_missing_collapse_the_model_more_often(screened: pd.DataFrame) -> None:
    edits = screened[(screened["data"] != "facts") & (screened["kind"] == FIRST)]
    pilot = table(run_of("pilot", "smollm2-135m", wording=False))
    missing = edits[~edits["case_id"].isin(pilot["case_id"])]
    hits = missing.groupby("setting")["collapsed"].agg(["sum", "size"]).loc[["with C", "C left out"]]
    (inside, count), (outside, _) = hits.to_numpy().tolist()
    said = page("butterfly-effect")
    assert f"hold {count} more such subjects" in said and f"({inside} with `C` and {outside} without, among" in said
    out = missing[missing["setting"] == "C left out"]
    assert out[out["subject"] == "Chicago"]["collapsed"].tolist() == [True] * 5
    spans = []
    for setting in ("with C", "C left out"):
        hit = edits.loc[edits["setting"] == setting, "collapsed"]
        share = statistics.share(int(hit.sum()), len(hit))
        spans.append(f"{hit.sum()} {{}} [{share.low:.0%}, {share.high:.0%}]".replace("%", " %"))
    assert f"of all 47 it is {spans[0].format('with `C`')} and {spans[1].format('without')}." in said


def test_what_the_rule_said_of_edits_that_were_new_to_it(screened: pd.DataFrame) -> None:
    pilot = set(table(run_of("pilot", "smollm2-135m", wording=True))["case_id"])
    assert set(screened.loc[screened["data"] == "facts", "case_id"]) < pilot
    new = screened[screened["data"] != "facts"].assign(said=lambda t: t["severity"] >= BOUND)
    assert not (new["collapsed"] & ~new["said"]).any()
    by = {name: rows for name, rows in new.groupby("setting")}
    hits = {name: rows["collapsed"].sum() for name, rows in by.items()}
    right = {name: short(rows.loc[rows["said"], "collapsed"].mean(), 2) for name, rows in by.items()}
    assert (
        f"none of {sum(hits.values())} collapses in {len(new)} edits of layer 5 was missed, {hits['with C']} with `C` "
        f"at a precision of {right['with C']} and {hits['C left out']} without at {right['C left out']}."
    ) in page("why-it-breaks")
    for rows in by.values():
        assert (rows["said"] == rows["collapsed"]).mean() < 1 - rows["collapsed"].mean()


def test_where_the_rule_for_rome_is_worse_than_saying_no_and_how_few_first_edits_hold() -> None:
    edits = table(run_of("layers", "smollm2-135m"))
    rome = edits[(edits["method"] == "rome") & (edits["setting"] == "with C")]
    by = rome.assign(right=(rome["severity"] >= BOUND) == rome["collapsed"]).groupby("layer")
    assert by.size()[by["right"].mean() < 1 - by["collapsed"].mean()].index.tolist() == [11, 25]
    first = edits[(edits["kind"] == FIRST) & (edits["setting"] == "with C")]
    held = first.groupby(["method", "layer"])["efficacy_em_tf"].mean()
    best = held.groupby("method").mean().idxmax()
    said = f"ROME's, at single layers up to {short(held.max(), 2)}"
    assert best == "rome" and said in page("why-it-breaks")


def test_the_change_of_the_weight_orders_edits_within_both_kinds_of_subject() -> None:
    edits = table(run_of("weight-change", "smollm2-135m"))
    rome = edits[edits["method"] == "rome"]
    for kind in (FIRST, "several tokens"):
        mine = rome[rome["kind"] == kind]
        assert short(mine["relative_change"].corr(mine["perplexity_ratio"], method="spearman"), 2) == ".75"
    assert "and .75 among subjects of one token at the start" in page("butterfly-effect")


def test_a_twin_that_hardly_sees_the_first_token_lets_some_methods_edit_it(remedies: Manifest) -> None:
    alone = table(remedies, "alone")
    held = alone.groupby(["group", "method"])["efficacy_em_tf"].mean()
    hard, normal = held["hard cases"], held["normal cases"]
    assert (hard[["ft", "lora", "grace"]] == 1).all()
    solved = hard.drop(["ft", "locft-bf", "lora", "grace", "serac", "skeme", "ike"])
    assert 0.5 <= solved.max() < 0.52
    assert (normal[["serac", "skeme", "ike"]] == 0).all()


def test_two_verdicts_on_remedies_are_a_matter_of_one_measurement(remedies: Manifest) -> None:
    assert remedies.parameters["every"] == 5 and "after every fifth edit" in page("remedies")
    steps = table(remedies, "sequences")
    over = steps[steps["measured"] & (steps["group"] == "hard cases") & (steps["perplexity_ratio"] >= 5)]
    first = over.groupby(["method", "repeat"])["step"].min()
    assert sorted(first["memit"]) == [45, 50, 55]
    assert sorted(first["alphaedit"]) == [45, 45, 45] and sorted(first["alphaedit+sphere"]) == [45, 50, 50]
    kept = table(remedies, "after").groupby(["group", "method"])["efficacy_em_tf"].mean()
    named = ["encore", "alphaedit", "rlsedit", "coachhook"]
    assert (kept["normal cases"][named] > kept["normal cases"]["memit"]).all()
    assert (kept["hard cases"][named] <= kept["hard cases"]["memit"]).all()
