"""Edit cases about dependent facts, and the labels of their probes."""

import json
from collections import Counter
from dataclasses import asdict

import pytest

from editlib import data
from editlib.testbed.agent import NOTHING, Agent
from editlib.testbed.dependence import DEPENDENT, PAIR, PARENTS, DependentWorld
from editlib.testbed.prose import held_out
from editlib.testbed.revision import Probe, Revision, build_revisions

CONDITIONS = ["before", "once", "believed", "certain", "done"]


@pytest.fixture(scope="module")
def revisions(dependent: DependentWorld) -> list[Revision]:
    return build_revisions(dependent)


def probe(revision: Revision, kind: str) -> Probe:
    return next(probe for probe in revision.probes if probe.kind == kind)


def answer(probe: Probe, condition: str) -> str:
    return max(probe.beliefs[condition], key=probe.beliefs[condition].__getitem__)


def test_a_seed_gives_the_same_cases_every_time(dependent: DependentWorld, revisions: list[Revision]) -> None:
    assert build_revisions(dependent) == revisions


def test_every_subject_has_one_case_and_half_of_each_kind_are_about_a_root(
    dependent: DependentWorld, revisions: list[Revision]
) -> None:
    assert sorted(revision.fact.subject for revision in revisions) == sorted(dependent.subjects)
    kinds = Counter((revision.case.group, " " in revision.fact.subject) for revision in revisions)
    assert set(kinds.values()) == {250} and len(kinds) == 4
    assert Counter(revision.case.split for revision in revisions) == {"tune": 200, "test": 800}
    assert all((r.fact.relation in PARENTS) == (r.case.group == "child") for r in revisions)


def test_cases_are_what_the_package_edits(dependent: DependentWorld, revisions: list[Revision]) -> None:
    facts = {(fact.subject, fact.relation): fact.object for fact in dependent.facts}
    assert len(data.cases([revision.case for revision in revisions])) == 1000
    for revision in revisions:
        fact, request = revision.fact, revision.case.request
        prompts = DEPENDENT[fact.relation].prompts
        assert request.prompt in prompts and (request.subject, request.target_new) == (fact.subject, fact.object)
        assert facts[fact.subject, fact.relation] == request.target_true != request.target_new
        assert request.target_new in dependent.objects(fact.relation)
        own = {prompt.replace("{}", fact.subject) for prompt in prompts if prompt != request.prompt}
        assert len(revision.case.paraphrase_prompts) == 2
        for sentence, _, question in (text.partition(". ") for text in revision.case.paraphrase_prompts):
            assert held_out(f"{sentence}.") and question in own
        sharing = {s for (s, relation), o in facts.items() if (relation, o) == (fact.relation, request.target_true)}
        near = {prompt.replace("{}", s) for s in sharing - {fact.subject} for prompt in prompts}
        assert 1 <= len(set(revision.case.neighborhood_prompts) & near) == len(revision.case.neighborhood_prompts)


def test_probes_ask_of_the_fact_what_depends_on_it_and_what_does_not(
    dependent: DependentWorld, revisions: list[Revision]
) -> None:
    for revision in revisions:
        request, near, far, other = revision.probes
        fact = revision.fact
        assert [each.kind for each in revision.probes] == ["request", "dependent", "unrelated", "other subject"]
        assert request.prompt == revision.case.request.text
        assert {request.subject, near.subject, far.subject} == {fact.subject} != {other.subject}
        assert request.relation == other.relation == fact.relation
        assert {near.relation, fact.relation} in [{*pair} for pair in PARENTS.items()]
        assert PAIR[far.relation] != PAIR[fact.relation]
        for each in revision.probes:
            assert each.prompt in [p.replace("{}", each.subject) for p in DEPENDENT[each.relation].prompts]
            assert list(each.beliefs) == CONDITIONS
            for beliefs in each.beliefs.values():
                assert tuple(beliefs) == dependent.objects(each.relation)
                assert sum(beliefs.values()) == pytest.approx(1, abs=1e-12)


def test_every_request_changes_the_answer_that_depends_on_it(revisions: list[Revision]) -> None:
    for revision in revisions:
        for kind in ("request", "dependent"):
            before, *after = (answer(probe(revision, kind), name) for name in ("before", "believed", "certain"))
            assert before not in after
            assert min(max(probe(revision, kind).beliefs[name].values()) for name in ("believed", "certain")) > 0.5
        assert answer(probe(revision, "request"), "before") == revision.case.request.target_true
        assert {answer(probe(revision, "request"), name) for name in ("believed", "certain", "done")} == {
            revision.fact.object
        }


def test_what_is_done_to_a_child_leaves_its_parent_and_to_a_root_is_as_if_certain(revisions: list[Revision]) -> None:
    for revision in revisions:
        beliefs = probe(revision, "dependent").beliefs
        as_in = "before" if revision.case.group == "child" else "certain"
        assert list(beliefs["done"].values()) == pytest.approx(list(beliefs[as_in].values()), abs=1e-12)


def test_unrelated_facts_and_other_subjects_are_believed_as_before(revisions: list[Revision]) -> None:
    for revision in revisions:
        for kind in ("unrelated", "other subject"):
            beliefs = probe(revision, kind).beliefs
            assert all(beliefs[name] == beliefs["before"] for name in CONDITIONS)


def test_weights_are_the_smallest_that_make_a_request_believed(
    dependent: DependentWorld, revisions: list[Revision]
) -> None:
    agent = Agent.of(dependent)
    for revision in revisions:
        believed = probe(revision, "request").beliefs["believed"][revision.fact.object]
        short = agent.belief(revision.fact, NOTHING.observe(revision.fact, revision.weight - 1))
        assert short < 0.95 - 1e-12 <= believed


def test_revisions_are_written_as_json(revisions: list[Revision]) -> None:
    assert json.loads(json.dumps(asdict(revisions[0])))["weight"] == revisions[0].weight
