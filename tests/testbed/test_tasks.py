"""Downstream tasks about the world, and the files the package ships."""

import json
from pathlib import Path

import pytest

from editlib.measuring.tasks import TESTBED, TESTBED_TASKS
from editlib.testbed.prose import held_out
from editlib.testbed.tasks import CHOICES, COUNT, Records, build_tasks, write_tasks
from editlib.testbed.world import RELATIONS, Fact, World


@pytest.fixture(scope="module")
def built(world: World) -> dict[str, Records]:
    return build_tasks(world)


def stated(prompt: str, answer: str, world: World) -> Fact | None:
    """The fact that a question ends in asking about, if it holds."""
    return next(
        (
            fact
            for fact in world.facts
            if fact.object == answer
            and any(prompt.endswith(f". {p.replace('{}', fact.subject)}") for p in RELATIONS[fact.relation].prompts)
        ),
        None,
    )


def test_the_shipped_files_are_those_of_the_seed(tmp_path: Path) -> None:
    write_tasks(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == set(TESTBED_TASKS)
    for path in tmp_path.iterdir():
        assert (TESTBED / path.name).read_bytes() == path.read_bytes()
        assert (TESTBED / f"{path.stem}.yaml").is_file()


def test_another_world_has_other_questions(built: dict[str, Records], tmp_path: Path) -> None:
    write_tasks(tmp_path, seed=1)
    for name in TESTBED_TASKS:
        other = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert len(other) == len(built[name]) == COUNT and not [row for row in other if row in built[name]]


def test_every_question_is_about_a_fact_behind_another_sentence(built: dict[str, Records], world: World) -> None:
    choices = [(row["text"], row["choices"][row["label"]]) for row in built["testbed-choice"]]
    clozes = [(row["text"], row["target"].strip()) for row in built["testbed-cloze"]]
    questions = [(row["question"], row["answer"]) for row in built["testbed-qa"]]
    for asked in (choices, clozes, questions):
        facts = [stated(prompt, answer, world) for prompt, answer in asked]
        assert None not in facts and len(set(facts)) == COUNT


def test_one_of_four_different_choices_of_a_kind_is_right(built: dict[str, Records], world: World) -> None:
    kinds = {name: kind for kind, names in world.names.items() for name in names}
    for row in built["testbed-choice"]:
        assert len(set(row["choices"])) == CHOICES and len({kinds[choice] for choice in row["choices"]}) == 1
    assert {row["label"] for row in built["testbed-choice"]} == set(range(CHOICES))


def test_cloze_sentences_are_held_out_and_end_in_one_word(built: dict[str, Records]) -> None:
    for row in built["testbed-cloze"]:
        text = row["text"] + row["target"]
        assert row["target"].count(" ") == 1 and row["target"].startswith(" ")
        assert any(held_out(f"{text[start + 2 :]}.") for start in range(len(text)) if text.startswith(". ", start))
