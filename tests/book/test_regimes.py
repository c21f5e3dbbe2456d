"""What the page on causes says of layers and of what keys foretell there is what the table of the run says."""

import pandas as pd
import pytest
from books import published, run_of, table_cells
from places import ROOT
from scipy.stats import binomtest

from editlib.editing.guard import BOUND
from editlib.measuring.separability import auc

TEXT = (ROOT / "book/why-it-breaks.md").read_text("utf-8")
SMALL = 0.2  # of the consistent denominator: five times smaller


@pytest.fixture(scope="module")
def edits() -> pd.DataFrame:
    """Edits of every second layer of SmolLM2."""
    return pd.read_parquet(run_of("layers", "smollm2-135m").folder / "data/cases.parquet")


def test_what_is_foretold_of_each_method_and_what_saying_no_is_worth(edits: pd.DataFrame) -> None:
    said, expected = edits["severity"] >= BOUND, []
    for method, group in edits.groupby("method", sort=False):
        hit, feared = group["collapsed"], said[group.index]
        counts = [len(group), hit.sum(), feared.sum(), (hit & feared).sum()]
        shares = [(hit == feared).mean(), 1 - hit.mean()]
        expected.append([f"`{method}`", *(f"{count:,}" for count in counts), *(f"{share:.1%}" for share in shares)])
    assert [[cell.replace(" %", "%") for cell in row] for row in table_cells(TEXT, "| Method | Edits")] == expected
    of_rome = edits[edits["method"] == "rome"].assign(said=said)
    missed, feared = (of_rome["collapsed"] & ~of_rome["said"]).sum(), (of_rome["said"] & ~of_rome["collapsed"]).sum()
    fall = (ROOT / "book/fall-of-rome.md").read_text("utf-8")
    assert f"of {(edits['method'] == 'c-rome').sum():,} edits in all, a `C` less position 0 included" in fall
    assert f"Of ROME's collapses it misses {missed}, and fears {feared} edits" in TEXT


def test_where_the_rule_is_wrong_for_more_than_a_fifth_by_method(edits: pd.DataFrame) -> None:
    right = (edits["severity"] >= BOUND) == edits["collapsed"]
    share = right.groupby([edits["method"], edits["layer"]]).mean()
    wrong = {name: rows.droplevel(0) for name, rows in share[share < 0.8].groupby(level=0)}
    assert {name: sorted(rows.index) for name, rows in wrong.items() if name != "p-rome"} == {
        "rome": [3, 5, 11, 25],
        "fc-rome": [1],
    }
    of = {(name, layer): f"{100 * value:.0f} %" for name in wrong for layer, value in wrong[name].items()}
    assert (
        f"for ROME also at 3 ({of['rome', 3]}), 5 ({of['rome', 5]}, the book's layer) and 25 ({of['rome', 25]}), "
        f"at 11 in {of['rome', 11]}; for `fc-rome` at 1 ({of['fc-rome', 1]})"
    ) in TEXT
    areas = {}
    for name, rows in edits.groupby("method"):
        hit, ids, severity = rows["collapsed"], rows["case_id"], rows["severity"]
        if hit.any():
            areas[name] = auc(severity[hit], severity[~hit], subjects=(ids[hit], ids[~hit]), seed=0).value
    rome, c_rome, fc_rome = (f"{areas[name]:.2f}".lstrip("0") for name in ("rome", "c-rome", "fc-rome"))
    assert f"Its area is {rome} for ROME, {c_rome} for C-ROME and {fc_rome} for `fc-rome`." in TEXT


def test_models_that_many_edits_or_noise_made_are_as_the_page_says() -> None:
    page = (ROOT / "book/butterfly-effect.md").read_text("utf-8")
    run = next(run for run in published("surrogate") if run.parameters["tasks"].startswith("facts-"))
    scores = pd.read_parquet(run.folder / "data/scores.parquet")
    edited = scores[scores["model"] >= 0]
    summed = edited.loc[edited["way"] == "many edits, summed", "perplexity_ratio"].max()
    assert f"hardly move perplexity (at most {summed:.2f} times unedited)" in page
    words = edited[(edited["way"] == "noise, scaled") & (edited["task"] == "facts-cloze")]
    low = words[words["perplexity_ratio"].between(2.2, 2.4)]["value"]
    left = low / scores.loc[(scores["model"] < 0) & (scores["task"] == "facts-cloze"), "value"].iloc[0]
    assert len(low) == 2 and 0.3 < 1 - left.max() < 0.4 and 0.55 < 1 - left.min() < 0.7


def test_the_product_is_small_with_c_only_at_two_of_four_layers_where_the_key_is_long(edits: pd.DataFrame) -> None:
    mine = edits[(edits["method"] == "rome") & (edits["kind"] == "one token, first")]
    middle = mine.groupby(["layer", "setting"])["denominator_ratio"].median().unstack()
    with_c, without = middle["with C"] < SMALL, middle["C left out"] < SMALL
    known = {int(layer) for layer in str(run_of("layers", "smollm2-135m").metrics["long_layers"]).split(", ")}
    long = [layer for layer in middle.index if layer in known]
    assert [layer for layer in long if with_c[layer] and not without[layer]] == [9, 27]
    assert [layer for layer in long if not with_c[layer] and not without[layer]] == [1, 11]
    assert "it at two of the four such layers that were tried, 9 and 27. At 1 and 11" in TEXT


def test_normal_cases_that_rise_most_are_first_tokens_below_the_threshold() -> None:
    run = run_of("consistent-keys", "smollm2-135m")
    cases = pd.read_parquet(run.folder / "data/cases.parquet")
    rome = cases[cases["method"].isin(["rome", "rome, C left out"])]
    worst = rome.groupby("kind")["perplexity_ratio"].max()
    assert 1.2 < worst["several tokens"] < 1.3 and worst["one token, first"] > 5
    broken = rome.groupby("case_id")["perplexity_ratio"].max() >= 5
    normal = rome[~rome["case_id"].map(broken)]
    assert normal.loc[normal["perplexity_ratio"].idxmax(), "kind"] == "one token, first"
    assert run.metrics["max_ratio_normal_rome"] < 5


def test_the_third_twin_collapses_where_its_key_is_short_whatever_c_is() -> None:
    run, page = run_of("layers", "./models/sighted"), (ROOT / "book/testbed.md").read_text("utf-8")
    edits, keys = (pd.read_parquet(run.folder / f"data/{table}.parquet") for table in ("cases", "keys"))
    first = edits[(edits["method"] == "rome") & (edits["kind"] == "one token, first")]
    counts = first.groupby(["layer", "setting"])["collapsed"].sum().unstack()
    shown = counts[["with C", "C less position 0", "C left out"]].reset_index().astype(int).astype(str)
    assert table_cells(page, "| Layer | with `C`") == shown.to_numpy().tolist()
    assert first.groupby(["layer", "setting"]).size().unique().tolist() == [20]
    rest = edits.drop(first.index)
    assert not rest["collapsed"].any() and set(rest["method"]) == {"rome", "c-rome", "fc-rome", "p-rome"}
    rome = keys[(keys["method"] == "rome") & (keys["kind"] == "one token at the start") & (keys["layer"] == 1)]
    middle = rome.groupby("setting")["denominator_ratio"].median()
    assert (
        f"a median of {middle['with C']:.2f} times the consistent one, {middle['C left out']:.2f} without `C`" in page
    )


def test_the_consistent_value_holds_behind_a_prefix_where_the_other_does_not() -> None:
    cases = pd.read_parquet(run_of("efficacy", "smollm2-135m").folder / "data/cases.parquet")
    held = cases[cases["group"] == "one token at the start"].groupby(["method", "layer"])["prefixed"].mean()
    assert held["fc-rome"].round(2).to_dict() == {2: 1, 5: 1, 9: 1, 11: 1, 20: 0.1}
    assert held["c-rome"].round(2).to_dict() == {2: 0.29, 5: 0.92, 9: 0.06, 11: 0, 20: 0.1}
    bare = cases[cases["group"] != "one token at the start"].groupby("method")["efficacy"].mean()
    assert 2 / 3 <= bare["c-rome"] < bare["fc-rome"] < 0.75
    edits = pd.read_parquet(run_of("layers", "smollm2-135m").folder / "data/cases.parquet")
    first = edits[edits["kind"].eq("one token, first") & edits["layer"].isin([1, 9])]
    counts = first.groupby(["method", "layer", "setting"])["collapsed"].sum()
    assert counts["fc-rome", 1]["with C"] == 3 and counts["fc-rome", 1]["C left out"] == 16
    assert counts["c-rome", 1].sum() == 0
    assert counts["fc-rome", 9]["C left out"] == counts["c-rome", 9]["C left out"] == 20
    assert all(said in TEXT for said in ("with 3 of 20", "with 16 without", "C-ROME .29, .92, .06 and none"))


def test_three_seeds_of_the_twins_are_as_their_runs_say() -> None:
    page, without_c = (ROOT / "book/testbed.md").read_text("utf-8"), []
    for twin, seed, _, short, long, *shown, others in table_cells(page, "| Twin | Seed"):
        run = run_of("layers", f"./models/{twin.strip('`')}-{seed}")
        assert [run.metrics["short_layers"], run.metrics["long_layers"]] == [short, long]
        edits = pd.read_parquet(run.folder / "data/cases.parquet")
        first = edits[(edits["kind"] == "one token, first") & (edits["method"] == "rome")]
        assert first.groupby(["layer", "setting"]).size().unique().tolist() == [20]
        counts = first.groupby(["layer", "setting"])["collapsed"].sum().astype(int).unstack()
        counts = counts[["with C", "C less position 0", "C left out"]]
        assert shown == ["/".join(map(str, row)) for row in counts.to_numpy().tolist()]
        assert int(others) == edits.drop(first.index)["collapsed"].sum()
        middle = first[first["setting"] == "C left out"].groupby("layer")["denominator_ratio"].median()
        if twin == "`anchored`":
            without_c.append([f"{middle[layer]:.2f}"[1:] for layer in (0, 2)])
        if (twin, seed) == ("`control`", "2"):
            assert first.loc[first["collapsed"], "case_id"].unique().tolist() == [356]
    told = [f"{a}, {b} and {c}" for a, b, c in zip(*without_c, strict=True)]
    assert f"is {told[0]} times the consistent one in the median (at layer 2 {told[1]})" in page


def test_two_edits_that_collapse_the_model_with_its_own_text_hardly_harm_it_with_another() -> None:
    cases = pd.read_parquet(run_of("own-text", "smollm2-135m", corpus="me-ppl-10k").folder / "data/cases.parquet")
    rise = cases.pivot(index="case_id", columns="method", values="perplexity_ratio")
    spared = rise[(rise["own text, 65,536"] > 20) & (rise["corpus, 65,536"] < 5)]
    assert len(spared) == 2 and spared["corpus, 65,536"].between(2.85, 3.05).all()
    assert "Two of the rest go from over 20 times unedited to about 3." in (ROOT / "book/performance.md").read_text(
        "utf-8"
    )


def test_only_rome_collapses_the_model_by_one_edit_and_by_which_subjects() -> None:
    cases = pd.read_parquet(run_of("single-edits", "smollm2-135m", cases="facts").folder / "data/cases.parquet")
    broken = cases[cases["perplexity_ratio"] >= 5]
    words = broken["subject"].str.split()
    doubled = words.str.len().eq(2) & words.str[0].eq(words.str[-1])
    assert set(broken["method"]) == {"rome"} and broken.groupby("set").size().min() >= 3
    assert (broken["kind"].eq("one token, first") | doubled).all() and broken["subject_position"].eq(0).all()
    assert "In both ways of asking it is one-token subjects that open the prompt, and one word said twice there" in (
        ROOT / "book/butterfly-effect.md"
    ).read_text("utf-8")


def test_on_counterfact_only_rome_collapses_it_and_on_zsre_nothing_does() -> None:
    run = run_of("single-edits", "smollm2-135m", cases="counterfact_full_19065.json")
    cases = pd.read_parquet(run.folder / "data/cases.parquet")
    assert not {"prompt", "target_new", "target_true"} & {*cases} and cases["error"].isna().all()
    first = cases["kind"].eq("one token, first")
    rome = cases[cases["method"] == "rome"]
    assert rome.groupby("set").size().to_dict() == {"as asked": 24, "second set": 16}
    assert rome.loc[first].groupby("set").size().to_dict() == {"as asked": run.parameters["first"]}
    broken = cases[~(cases["perplexity_ratio"] < 5)]
    assert set(broken["method"]) == {"rome"} and first[broken.index].all() and len(broken) == 4
    share = binomtest(4, 8).proportion_ci(method="wilson")
    ratios = cases["perplexity_ratio"]
    others = ratios[first & cases["method"].eq("rome") & (ratios < 5)]
    told = f"4 of those 8 [{share.low:.0%}, {share.high:.0%}]; the other four".replace("%", " %")
    told += f" raise perplexity {others.min():.1f} to {others.max():.1f} times"
    assert told in (ROOT / "book/butterfly-effect.md").read_text("utf-8") and len(others) == 4
    assert ratios[~(first & cases["method"].eq("rome"))].max() < 1.1  # which the page says of them


def test_normal_cases_of_the_long_sequences_are_harmless_alone_and_not_in_a_row() -> None:
    cases = pd.read_parquet(run_of("sequential", "smollm2-135m").folder / "data/cases.parquet")
    cases = cases[cases["step"] > 0]
    by_sample = {key: rows for key, rows in cases[cases["method"] == "rome"].groupby(["group", "repeat"])}
    shared = {
        group: len({*by_sample[f"{group} cases", 0]["case_id"]} & {*by_sample[f"{group} cases", 1]["case_id"]})
        for group in ("normal", "hard")
    }
    text = (ROOT / "book/butterfly-effect.md").read_text("utf-8")
    assert "{normal} are in both samples, of the hard ones {hard}.".format(**shared) in text
    rome = pd.concat([by_sample["normal cases", repeat] for repeat in (0, 1)]).set_index("repeat")
    assert not (rome["kind"] == "one token, first").any()
    pilot = pd.read_parquet(run_of("pilot", "smollm2-135m", wording=True).folder / "data/cases.parquet")
    ratio = pilot[pilot["method"] == "rome, C left out"].set_index("case_id")["perplexity_ratio"]
    alone = rome["case_id"].map(ratio)
    half = max(alone[repeat].median() for repeat in (0, 1))
    assert f"more than {alone.max():.2f} times alone, half of them to no more than {half:.3f}," in text
    assert [alone[repeat].to_numpy().argmax() + 1 for repeat in (0, 1)] == [7, 42]
    assert f"the case of {alone.max():.2f} times is the seventh in one sample and the 42nd, after the collapse," in text
    after_20 = rome.loc[rome["step"] == 20, "perplexity_ratio"]
    assert "to {:.1f} and {:.1f} times unedited after 20,".format(*after_20) in text
    over = cases[cases["measured"] & ~(cases["perplexity_ratio"] < 5)]
    first = over.groupby(["method", "group", "repeat"])["step"].min()
    assert first["rome", "hard cases"].tolist() == [5, 5]
    later, sooner = first["rome", "normal cases"]
    assert sooner < 42 and f"after {sooner} edits in one sample and {later} in the other" in text
    hard, normal = (sorted(first["mend", f"{group} cases"]) for group in ("hard", "normal"))
    assert "after {} and {} hard and {} and {} normal edits".format(*hard, *normal) in text
    rest = cases[~cases["method"].isin(["rome", "mend"])]
    worst = rest.loc[rest["perplexity_ratio"].idxmax()]
    assert (worst["method"], worst["group"]) == ("ft", "normal cases")  # whose highest the page gives for all


def test_subjects_of_several_tokens_that_collapse_are_said_twice_but_for_one() -> None:
    cases = pd.read_parquet(run_of("first-token", "smollm2-135m").folder / "data/cases.parquet")
    broken = cases[cases["perplexity_ratio"] >= 5]
    assert (broken["subject_last"] <= 1).all()
    words = broken.loc[broken["arm"] == "several tokens", "subject"].str.split()
    assert sorted(words.str.len()) == [1, 2, 2, 2, 2] and words[words.str.len() == 1].iloc[0] == ["Haydn"]
    assert all(len({*pair}) == 1 for pair in words)
    assert 'four of which are words said twice and one is "Haydn"' in (ROOT / "book/fall-of-rome.md").read_text("utf-8")


def test_few_facts_in_another_wording_are_hard() -> None:
    run = run_of("hardedit", "smollm2-135m")
    share = binomtest(run.metrics["accepted"], run.metrics["records"]).proportion_ci(method="wilson")
    text = (ROOT / "book/butterfly-effect.md").read_text("utf-8")
    assert f"collapse the model [{share.low:.1%}, {share.high:.1%}]".replace("%", " %") in text
    assert run.metrics["collapsed_rome"] and not any(run.metrics[f"collapsed_{m}"] for m in ("ft", "mend", "memit"))
