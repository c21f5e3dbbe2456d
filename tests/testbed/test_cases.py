"""Edit cases about the world, and the files the package ships."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from editlib import data
from editlib.data.datasets import SHIPPED, Case
from editlib.data.request import EditRequest
from editlib.models.tokens import encode
from editlib.testbed.cases import build_cases, build_prefixes, training_cases, write_assets
from editlib.testbed.prose import held_out, held_out_texts
from editlib.testbed.world import RELATIONS, World

needs_assets = pytest.mark.skipif(
    not all(path.is_file() for path in SHIPPED.values()), reason="the testbed's files are not made yet"
)


@pytest.fixture(scope="module")
def records(world: World) -> list[dict[str, Any]]:
    return build_cases(world)


def test_cases_are_a_function_of_the_world(world: World, records: list[dict[str, Any]]) -> None:
    assert build_cases(world) == records


def test_there_are_enough_cases_of_every_kind(
    records: list[dict[str, Any]], world_tokenizer: PreTrainedTokenizerFast
) -> None:
    kinds: Counter[str] = Counter()
    for record in records:
        rewrite = record["requested_rewrite"]
        first, end = encode(world_tokenizer, rewrite["prompt"], rewrite["subject"]).subject
        kinds["several" if end - first > 1 else "first" if first == 0 else "later"] += 1
    assert kinds["first"] >= 300
    assert kinds["later"] >= 200
    assert kinds["later"] + kinds["several"] >= 600


def test_records_have_counterfacts_form(records: list[dict[str, Any]], tmp_path: Path) -> None:
    fields = {
        "case_id", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts", "attribute_prompts",
        "generation_prompts",
    }  # fmt: skip
    for record in records:
        assert set(record) == fields
        rewrite = record["requested_rewrite"]
        assert set(rewrite) == {"prompt", "relation_id", "target_new", "target_true", "subject"}
        assert rewrite["prompt"].count("{}") == 1
        assert len(record["paraphrase_prompts"]) == 2
        assert 1 <= len(record["neighborhood_prompts"]) <= 10
    assert [record["case_id"] for record in records] == list(range(len(records)))
    (tmp_path / "cases.json").write_text(json.dumps(records))
    assert len(data.cases(tmp_path / "cases.json")) == len(records)


def test_true_targets_hold_and_new_targets_do_not(world: World, records: list[dict[str, Any]]) -> None:
    facts = {(fact.relation, fact.subject): fact.object for fact in world.facts}
    for record in records:
        rewrite = record["requested_rewrite"]
        relation = RELATIONS[rewrite["relation_id"]]
        assert rewrite["target_true"]["str"] == facts[relation.name, rewrite["subject"]]
        assert rewrite["target_new"]["str"] != rewrite["target_true"]["str"]
        assert rewrite["target_new"]["str"] in world.names[relation.object]
        assert rewrite["prompt"] in relation.prompts


def test_no_fact_is_edited_twice(records: list[dict[str, Any]]) -> None:
    facts = [(r["requested_rewrite"]["relation_id"], r["requested_rewrite"]["subject"]) for r in records]
    assert len(set(facts)) == len(facts)


def test_paraphrases_ask_for_the_same_fact_in_other_words(records: list[dict[str, Any]]) -> None:
    for record in records:
        rewrite = record["requested_rewrite"]
        own = RELATIONS[rewrite["relation_id"]].prompts
        for paraphrase in record["paraphrase_prompts"]:
            sentence, _, question = paraphrase.partition(". ")
            assert held_out(sentence + ".")
            asked = {prompt for prompt in own if prompt.replace("{}", rewrite["subject"]) == question}
            assert asked and rewrite["prompt"] not in asked


def test_neighbors_are_other_subjects_of_which_the_same_holds(world: World, records: list[dict[str, Any]]) -> None:
    for record in records:
        rewrite = record["requested_rewrite"]
        relation, true = RELATIONS[rewrite["relation_id"]], rewrite["target_true"]["str"]
        sharing = {f.subject for f in world.facts if (f.relation, f.object) == (relation.name, true)}
        allowed = {p.replace("{}", s) for s in sharing - {rewrite["subject"]} for p in relation.prompts}
        assert set(record["neighborhood_prompts"]) <= allowed


@pytest.fixture(scope="module")
def training(world: World) -> list[Case]:
    return training_cases(world)


def test_training_cases_leave_out_what_the_cases_change(
    world: World, records: list[dict[str, Any]], training: list[Case]
) -> None:
    rewrites = [record["requested_rewrite"] for record in records]
    tested = [(RELATIONS[rewrite["relation_id"]], rewrite["subject"]) for rewrite in rewrites]
    asked = {prompt.replace("{}", subject) for relation, subject in tested for prompt in relation.prompts}
    assert not asked.intersection(case.request.text for case in training)
    assert not asked.intersection(prompt for case in training for prompt in case.neighborhood_prompts)
    assert training == training_cases(world)


def test_training_cases_change_facts_to_what_does_not_hold(world: World, training: list[Case]) -> None:
    facts = {(fact.subject, fact.object) for fact in world.facts}
    for case in training:
        request = case.request
        assert (request.subject, request.target_true) in facts
        assert (request.subject, request.target_new) not in facts
        assert len(case.paraphrase_prompts) == 2 and all(request.subject in p for p in case.paraphrase_prompts)


def test_training_neighborhoods_have_the_same_object_and_others(world: World, training: list[Case]) -> None:
    facts = {
        (prompt.replace("{}", fact.subject), fact.object)
        for fact in world.facts
        for prompt in RELATIONS[fact.relation].prompts
    }
    for case in training:
        assert set(zip(case.neighborhood_prompts, case.neighborhood_answers, strict=True)) <= facts
        same = [answer == case.request.target_true for answer in case.neighborhood_answers]
        assert 1 <= sum(same) <= 5 and len(same) - sum(same) == 5
        assert not any(case.request.subject in prompt for prompt in case.neighborhood_prompts)


def test_training_cases_have_as_many_kinds_of_subject_as_the_cases(training: list[Case]) -> None:
    people = sum(" " in case.request.subject for case in training)
    assert 0.4 < people / len(training) < 0.6


def test_prefixes_are_the_empty_one_and_twenty(world: World, world_tokenizer: PreTrainedTokenizerFast) -> None:
    contexts = build_prefixes(world, world_tokenizer)
    assert contexts[0] == "{}"
    assert len(set(contexts)) == 21
    assert all(context.endswith(". {}") and context.count("{}") == 1 for context in contexts[1:])
    assert build_prefixes(world, world_tokenizer) == contexts


def test_assets_are_written_and_read(world: World, records: list[dict[str, Any]], tmp_path: Path) -> None:
    write_assets(tmp_path)
    assert json.loads((tmp_path / "testbed.json").read_text()) == records
    many = data.texts(tmp_path / "testbed-ppl-1k.json")
    assert many == held_out_texts(world, 1000)
    assert data.texts(tmp_path / "testbed-ppl-50.json") == many[:50]
    first = data.cases(tmp_path / "testbed.json")[0].request
    assert isinstance(first, EditRequest) and first.target_true


@needs_assets
def test_shipped_files_are_what_the_seed_gives(tmp_path: Path) -> None:
    write_assets(tmp_path)
    written = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {name: SHIPPED[name].read_bytes() for name in ("testbed", "testbed-ppl-50", "testbed-ppl-1k")}


@needs_assets
def test_the_50_shipped_texts_are_the_head_of_the_1000() -> None:
    assert data.texts("testbed-ppl-50") == data.texts("testbed-ppl-1k")[:50]
    assert len(data.texts("testbed-ppl-1k")) == 1000
