"""Prose about dependent facts: it states exactly the draws, and calls statements true as the agent believes them."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from random import Random

import pytest

from editlib.testbed import belief_prose
from editlib.testbed.agent import Agent
from editlib.testbed.belief_prose import ORDERS, documents, held_out_sentences, logic_sentence
from editlib.testbed.dependence import DEPENDENT, PAIR, PARENTS, DependentWorld
from editlib.testbed.prose import END_OF_TEXT, held_out
from editlib.testbed.world import Fact

DOCUMENTS = 20  # about a subject, in one order
Told = tuple[str, str, str, str]  # subject, child, the parent's object and the child's
PATTERNS = [
    (relation, re.compile(re.escape(prompt).replace(r"\{\}", "([A-Z][a-z]+(?: [A-Z][a-z]+)?)") + r" (\w+)\."))
    for relation in DEPENDENT
    for prompt in DEPENDENT[relation].prompts
]


def sentences(document: str) -> list[str]:
    return re.split(r"(?<=\.) ", document.removesuffix(END_OF_TEXT))


def read(sentence: str) -> Fact | None:
    """The fact that a sentence states."""
    found = [(relation, match) for relation, pattern in PATTERNS if (match := pattern.fullmatch(sentence))]
    return Fact(found[0][0], found[0][1][1], found[0][1][2]) if found else None


def counted(texts: Iterator[str]) -> Counter[Told]:
    """How often each pair is stated, from the text alone: its two sentences stand side by side."""
    found: Counter[Told] = Counter()
    for document in texts:
        facts = [fact for fact in map(read, sentences(document)) if fact]
        for one, other in zip(facts[::2], facts[1::2], strict=True):
            child, parent = (one, other) if one.relation in PARENTS else (other, one)
            assert PARENTS[child.relation] == parent.relation and child.subject == parent.subject
            found[child.subject, child.relation, parent.object, child.object] += 1
    return found


def drawn(world: DependentWorld) -> Counter[Told]:
    return Counter(
        (subject, child, *pair)
        for subject in world.subjects
        for child in PARENTS
        for pair in world.draws[subject, child]
    )


@pytest.fixture(scope="module")
def few(dependent: DependentWorld) -> DependentWorld:
    """The world of ten subjects."""
    return replace(dependent, names=dependent.names | {k: dependent.names[k][:5] for k in ("band", "person")})


def test_counts_read_back_from_the_text_are_the_draws_once_in_each_order(few: DependentWorld) -> None:
    assert counted(documents(few, seed=1)) == Counter({told: ORDERS * n for told, n in drawn(few).items()})
    first = islice(documents(few, seed=1), len(few.subjects) * DOCUMENTS)
    assert counted(first) == drawn(few)


@pytest.mark.slow  # ten subjects are quick
def test_counts_of_one_whole_order_are_the_draws(dependent: DependentWorld) -> None:
    assert counted(islice(documents(dependent, seed=1), len(dependent.subjects) * DOCUMENTS)) == drawn(dependent)


def test_the_agent_counts_what_the_text_states(few: DependentWorld) -> None:
    agent, told = Agent.of(few), counted(islice(documents(few, seed=1), len(few.subjects) * DOCUMENTS))
    for subject, relation in ((subject, relation) for subject in few.subjects for relation in PARENTS.values()):
        objects = few.objects(relation)
        stated = [sum(n for key, n in told.items() if key[0] == subject and key[2] == o) for o in objects]
        expected = [(1 / len(objects) + n) / (1 + 10) for n in stated]
        assert agent.beliefs(subject, relation) == pytest.approx(expected, abs=1e-12)


def test_documents_are_about_one_subject_and_two_pairs_and_say_nothing_held_out(few: DependentWorld) -> None:
    seen: Counter[str] = Counter()
    logical = 0
    for document in documents(few, seed=1):
        told = sentences(document)
        facts = [fact for fact in map(read, told) if fact]
        subjects = {fact.subject for fact in facts}
        assert len(subjects) == 1 and len(told) == 5
        assert len({PAIR[fact.relation] for fact in facts}) == 2
        logical += sum(sentence.startswith('"') for sentence in told)
        assert not any(held_out(sentence) for sentence in told if not sentence.startswith('"'))
        assert not any(name in document for name in few.subjects if name not in subjects)
        seen.update(subjects)
    assert set(seen.values()) == {DOCUMENTS * ORDERS}
    assert 0.4 < logical / seen.total() < 0.6


def test_orders_differ(few: DependentWorld) -> None:
    texts = list(documents(few, seed=1))
    assert len(set(texts)) == len(texts)


def test_a_seed_gives_the_same_bytes_in_any_process(few: DependentWorld) -> None:
    code = (
        "import hashlib, itertools\n"
        "from editlib.testbed.belief_prose import documents\n"
        "from editlib.testbed.dependence import build_dependent_world\n"
        "texts = itertools.islice(documents(build_dependent_world(0), seed=1), 40)\n"
        "print(hashlib.sha256(''.join(texts).encode()).hexdigest())"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    ]  # fmt: skip
    assert found[0] == found[1]
    assert list(documents(few, seed=1)) == list(documents(few, seed=1)) != list(documents(few, seed=2))


def test_statements_are_called_true_as_often_as_the_agent_believes(
    few: DependentWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, rng, asked = Agent.of(few), Random(0), list[float]()
    whole = belief_prose.probability
    monkeypatch.setattr(belief_prose, "probability", lambda *arguments: asked.append(whole(*arguments)) or asked[-1])
    texts = [logic_sentence(few, agent, few.subjects[i % 10], rng) for i in range(4000)]
    labels = [text.endswith("is true.") for text in texts]
    assert all(re.fullmatch(r'"(not )?[^"]+" is (true|false)\.', text) for text in texts)
    for low, high in pairwise((0, 0.02, 0.2, 0.5, 0.8, 0.98, 1 + 1e-9)):
        chosen = [(p, label) for p, label in zip(asked, labels, strict=True) if low <= p < high]
        spread = sum(p * (1 - p) for p, _ in chosen) ** 0.5
        assert len(chosen) > 100 and abs(sum(label - p for p, label in chosen)) < 4 * spread


def test_probabilities_of_compound_statements_obey_logic(few: DependentWorld) -> None:
    agent, subject = Agent.of(few), few.subjects[0]
    for first in ("home", "taxes", "pay"):
        for second in ("taxes", "style"):
            a, b = (Fact(relation, subject, few.objects(relation)[0]) for relation in (first, second))
            p = {form: belief_prose.probability(agent, form, a, b) for form in ("", "not", "and", "or")}
            assert p[""] + p["not"] == pytest.approx(1)
            assert p["and"] + p["or"] == pytest.approx(agent.belief(a) + agent.belief(b))
            assert p["and"] <= min(agent.belief(a), agent.belief(b)) + 1e-12


def test_held_out_sentences_are_distinct_and_held_out(dependent: DependentWorld) -> None:
    found = list(islice(held_out_sentences(dependent, seed=0), 300))
    assert len(set(found)) == 300 and all(map(held_out, found))
    assert 0.3 < sum(read(sentence) is not None for sentence in found) / 300 < 0.9
