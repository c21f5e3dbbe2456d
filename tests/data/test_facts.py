"""The shipped facts about the real world: what the table that they are written from has to give."""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from places import ROOT, SHARED

import editlib as el
from editlib import data
from editlib.data.for_models import subject_tokens
from editlib.data.sources import SHIPPED
from editlib.measuring.questions import questions
from editlib.measuring.tasks import FACTS, FACTS_TASKS

COUNTERFACT = SHARED / "data" / "counterfact" / "counterfact_easyedit_21919.json"


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in SHIPPED["facts"].read_text("utf-8").splitlines()]


def test_every_record_is_a_case_with_tests_of_its_own(records: list[dict[str, Any]]) -> None:
    cases = data.cases("facts")
    assert len(cases) == len(records) >= 1000 and len({case.case_id for case in cases}) == len(cases)
    for case in cases:
        assert case.request.target_new != case.request.target_true
        assert 2 <= len(case.paraphrase_prompts) <= 4 and len(case.neighborhood_prompts) >= 5
        assert any(prompt.startswith(case.request.subject) for prompt in case.paraphrase_prompts)
        assert case.request.text not in (*case.paraphrase_prompts, *case.neighborhood_prompts)


def test_subjects_are_of_every_kind(records: list[dict[str, Any]]) -> None:
    assert len({record["relation"] for record in records}) >= 25
    groups = Counter(record["group"] for record in records)
    assert groups["doubled"] >= 40 and groups["full stop"] >= 40
    prompts = [record["requested_rewrite"]["prompt"] for record in records]
    assert sum(prompt.startswith("{}") for prompt in prompts) >= 500
    assert sum(not prompt.startswith("{}") and not prompt.endswith("{}:") for prompt in prompts) >= 100
    assert sum(prompt.endswith("{}:") for prompt in prompts) >= 30
    for record in records:
        first, _, second = record["requested_rewrite"]["subject"].partition(" ")
        assert (first == second) == (record["group"] == "doubled")


def test_subjects_of_one_token_and_of_one_word_in_several_are_many_for_the_real_model() -> None:
    lm, requests = el.load("smollm2-135m"), data.requests("facts")
    tokens = [subject_tokens(lm, request) for request in requests]
    assert sum(place.count == 1 and place.first == 0 for place in tokens) >= 150
    words = [len(request.subject.split()) for request in requests]
    assert sum(word == 1 and place.count > 1 for word, place in zip(words, tokens, strict=True)) >= 40


def test_a_fifth_of_every_relation_is_for_tuning(records: list[dict[str, Any]]) -> None:
    sizes = Counter(record["relation"] for record in records)
    tune = Counter(record["relation"] for record in records if record["split"] == "tune")
    assert all(tune[relation] == size // 5 for relation, size in sizes.items())


def test_a_subject_has_one_true_answer_in_a_relation(records: list[dict[str, Any]]) -> None:
    requests = [(record["relation"], record["requested_rewrite"]["subject"]) for record in records]
    assert len(set(requests)) == len(requests)


def test_the_file_is_what_its_table_gives(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    for name in ("facts.py", "facts.yaml", "fact_tasks.py"):
        (tmp_path / "tools" / name).write_bytes((ROOT / "tools" / name).read_bytes())
    (tmp_path / "editlib" / "data").mkdir(parents=True)
    for tool in ("facts", "fact_tasks"):
        subprocess.run([sys.executable, f"tools/{tool}.py"], cwd=tmp_path, check=True, capture_output=True)
    for name in ("facts", *FACTS_TASKS):
        file = f"{name}.jsonl"
        assert (tmp_path / "editlib/data/shipped" / file).read_bytes() == (FACTS / file).read_bytes()


def test_tasks_ask_about_facts_that_no_test_case_edits(records: list[dict[str, Any]]) -> None:
    """Each question ends in a prompt about a fact for tuning, and its answer is that fact's; at least 300 a task."""
    told = defaultdict(set)
    for record in records:
        request = record["requested_rewrite"]
        for text in [request["prompt"].replace("{}", request["subject"]), *record["paraphrase_prompts"]]:
            told[text].add((request["target_true"]["str"], record["split"]))
    for name in FACTS_TASKS:
        asked = [question.fields for question in questions(name, FACTS / f"{name}.jsonl")]
        assert len(asked) >= 300
        for row in asked:
            answer = row.get("answer") or row.get("target") or row["choices"][row["label"]]
            text = row.get("question") or row["text"]
            ends = [told[text[start:]] for start in range(len(text)) if text[start:] in told]
            assert ends == [{(answer.strip(), "tune")}], text
            assert len(set(row.get("choices", "four"))) == 4


@pytest.mark.skipif(not COUNTERFACT.is_file(), reason="the authors' files are not beside the checkout")
def test_no_prompt_is_counterfacts() -> None:
    theirs = {case.request.text for case in data.cases(COUNTERFACT)}
    assert not [case.request.text for case in data.cases("facts") if case.request.text in theirs]
