"""The Bayesian agent against enumeration of everything that may hold, and against the Dirichlet integral."""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import product
from random import Random

import numpy as np
import pytest

from editlib.errors import EditlibError
from editlib.testbed.agent import LEVEL, NOTHING, Agent, Evidence
from editlib.testbed.dependence import DEPENDENT, PAIR, PARENTS, DependentWorld
from editlib.testbed.world import Fact

SUBJECT = "Ann"
Assignment = dict[str, str]  # an object for each relation


@pytest.fixture(scope="module")
def small() -> DependentWorld:
    """Two subjects, three objects of every root and two of every child, drawn without regard to anything."""
    rng, parents = Random(0), set(PARENTS.values())
    names = {DEPENDENT[name].object: tuple(f"{name}{i}" for i in range(2 + (name in parents))) for name in DEPENDENT}
    names |= {"band": (SUBJECT,), "person": ("Bob Bee",)}
    kinds = {relation: names[DEPENDENT[relation].object] for relation in DEPENDENT}
    draws = {
        (subject, child): tuple((rng.choice(kinds[parent]), rng.choice(kinds[child])) for _ in range(4))
        for subject in (SUBJECT, "Bob Bee")
        for child, parent in PARENTS.items()
    }
    return DependentWorld(0, names, (), {}, {}, draws)


@pytest.fixture(scope="module")
def agent(small: DependentWorld) -> Agent:
    return Agent.of(small)


def everything(world: DependentWorld) -> list[tuple[Assignment, float]]:
    """All that may hold of the subject, with probabilities counted from the draws one by one."""
    found = []
    for objects in product(*(world.objects(relation) for relation in DEPENDENT)):
        held, p = dict(zip(DEPENDENT, objects, strict=True)), 1.0
        for child, parent in PARENTS.items():
            o2, o = held[parent], held[child]
            own = [pair[0] for pair in world.draws[SUBJECT, child]]
            row = [
                pair[1] for (_, name), pairs in world.draws.items() if name == child for pair in pairs if pair[0] == o2
            ]
            p *= (1 / 3 + own.count(o2)) / (1 + len(own)) * (1 / 2 + row.count(o)) / (1 + len(row))
        found.append((held, p))
    return found


def share(weighed: list[tuple[Assignment, float]], *facts: Fact) -> float:
    total = sum(p for _, p in weighed)
    return sum(p for held, p in weighed if all(held[fact.relation] == fact.object for fact in facts)) / total


def facts_of(world: DependentWorld) -> list[Fact]:
    return [Fact(relation, SUBJECT, o) for relation in DEPENDENT for o in world.objects(relation)]


def after(weighed: list[tuple[Assignment, float]], fact: Fact, times: int) -> Callable[[Assignment], float]:
    """By how much observations change what holds: to the posterior of a Dirichlet of five pseudo-counts, the rest of
    the world in proportion (Jeffrey's rule)."""
    p = share(weighed, fact)
    return lambda held: (5 * p + times) / (5 + times) / p if held[fact.relation] == fact.object else 5 / (5 + times)


def test_posterior_sums_to_1(agent: Agent) -> None:
    told = NOTHING.observe(Fact("home", SUBJECT, "home1"), 3).deny(Fact("taxes", SUBJECT, "taxes0"))
    for evidence in (NOTHING, told):
        for relation in DEPENDENT:
            assert agent.beliefs(SUBJECT, relation, evidence).sum() == pytest.approx(1, abs=1e-12)


def test_brute_force_enumeration_of_the_joint_equals_beliefs(agent: Agent, small: DependentWorld) -> None:
    weighed = everything(small)
    assert sum(p for _, p in weighed) == pytest.approx(1)
    for a in facts_of(small):
        assert agent.belief(a) == pytest.approx(share(weighed, a), abs=1e-12)
        for b in facts_of(small):
            assert agent.both(a, b) == pytest.approx(share(weighed, a, b), abs=1e-12)


@pytest.mark.parametrize("relation", ["home", "taxes"])
@pytest.mark.parametrize("times", [1, 7])
def test_revision_equals_enumeration_in_both_directions(
    agent: Agent, small: DependentWorld, relation: str, times: int
) -> None:
    weighed, told = everything(small), Fact(relation, SUBJECT, f"{relation}1")
    change = after(weighed, told, times)
    revised = [(held, p * change(held)) for held, p in weighed]
    assert sum(p for _, p in revised) == pytest.approx(1)
    for fact in facts_of(small):
        assert agent.belief(fact, NOTHING.observe(told, times)) == pytest.approx(share(revised, fact), abs=1e-12)


def test_evidence_of_all_kinds_equals_enumeration(agent: Agent, small: DependentWorld) -> None:
    weighed = everything(small)
    observed, denied, certain = (
        Fact("home", SUBJECT, "home2"),
        Fact("taxes", SUBJECT, "taxes0"),
        Fact("pay", SUBJECT, "pay1"),
    )
    change = after(weighed, observed, 2)
    revised = [
        (held, p * change(held) * (1 / 19**2 if held["taxes"] == "taxes0" else 1) * (held["pay"] == "pay1"))
        for held, p in weighed
    ]
    evidence = replace(NOTHING.observe(observed, 2).deny(denied, 2), certain=frozenset({certain}))
    for fact in facts_of(small):
        assert agent.belief(fact, evidence) == pytest.approx(share(revised, fact), abs=1e-12)


def test_beliefs_in_a_root_are_the_dirichlet_integral(agent: Agent, small: DependentWorld) -> None:
    def evidence(counts: list[int]) -> float:  # log of the integral of a product of powers over the simplex
        return sum(math.lgamma(1 / 3 + n) for n in counts) - math.lgamma(1 + sum(counts))

    counts = [[o2 for o2, _ in small.draws[SUBJECT, "taxes"]].count(o) for o in small.objects("home")]
    told = [n + 4 * (i == 1) for i, n in enumerate(counts)]
    nexts = [[n + (i == j) for i, n in enumerate(told)] for j in range(3)]
    expected = [math.exp(evidence(after) - evidence(told)) for after in nexts]
    found = agent.beliefs(SUBJECT, "home", NOTHING.observe(Fact("home", SUBJECT, "home1"), 4))
    assert found == pytest.approx(expected, abs=1e-12)


def test_no_evidence_is_identity(agent: Agent, small: DependentWorld) -> None:
    for fact in facts_of(small):
        assert NOTHING.observe(fact, 0) == NOTHING
        assert agent.belief(fact, Evidence({fact: 0}, {fact: 0})) == agent.belief(fact)


def test_order_of_updates_is_irrelevant(agent: Agent, small: DependentWorld) -> None:
    steps: list[Callable[[Evidence], Evidence]] = [
        lambda evidence: evidence.observe(Fact("home", SUBJECT, "home0"), 3),
        lambda evidence: evidence.observe(Fact("taxes", SUBJECT, "taxes1")),
        lambda evidence: evidence.deny(Fact("home", SUBJECT, "home1")),
        lambda evidence: evidence.observe(Fact("home", SUBJECT, "home0"), 2),
    ]
    forwards, backwards = NOTHING, NOTHING
    for step, other in zip(steps, reversed(steps), strict=True):
        forwards, backwards = step(forwards), other(backwards)
    for fact in facts_of(small):
        assert agent.belief(fact, forwards) == pytest.approx(agent.belief(fact, backwards), abs=1e-15)
    assert agent.belief(Fact("home", SUBJECT, "home0"), forwards) != agent.belief(Fact("home", SUBJECT, "home0"))


def test_add_then_remove_is_identity(agent: Agent, small: DependentWorld) -> None:
    for fact in facts_of(small):
        told = NOTHING.observe(fact, 3).deny(fact, 2)
        assert agent.belief(fact, told) != pytest.approx(agent.belief(fact), abs=1e-3)
        back = told.deny(fact, -2).observe(fact, -3)
        assert [agent.belief(f, back) for f in facts_of(small)] == pytest.approx(
            [agent.belief(f) for f in facts_of(small)], abs=1e-12
        )


def test_counts_are_never_negative() -> None:
    fact = Fact("home", SUBJECT, "home0")
    with pytest.raises(EditlibError, match="-3 times .* leaves -1; take back at most what was told"):
        NOTHING.observe(fact, 2).observe(fact, -3)
    with pytest.raises(EditlibError, match="leaves -1"):
        NOTHING.deny(fact, -1)


def test_what_is_called_false_is_believed_less_and_never_below_0(agent: Agent) -> None:
    fact = Fact("home", SUBJECT, "home0")
    ps = [agent.belief(fact, NOTHING.deny(fact, times)) for times in range(30)]
    assert all(0 < less < more for more, less in zip(ps, ps[1:], strict=False))


def test_a_deterministic_child_has_the_probability_of_its_parent(agent: Agent) -> None:
    turn = np.roll(np.eye(3), 1, axis=1)  # home0 to taxes1, and so on
    sure = replace(
        agent,
        objects={**agent.objects, "taxes": ("taxes0", "taxes1", "taxes2")},
        tables={**agent.tables, "taxes": turn},
    )
    for evidence in (
        NOTHING,
        NOTHING.observe(Fact("home", SUBJECT, "home2"), 5),
        NOTHING.deny(Fact("taxes", SUBJECT, "taxes0")),
    ):
        homes, taxes = sure.beliefs(SUBJECT, "home", evidence), sure.beliefs(SUBJECT, "taxes", evidence)
        assert taxes == pytest.approx(np.roll(homes, 1), abs=1e-12)


def test_weight_is_the_smallest_that_brings_belief_to_the_level(agent: Agent, small: DependentWorld) -> None:
    for fact in facts_of(small):
        for level in (LEVEL, Fraction(4, 5)):
            weight = agent.weight(fact, level)
            assert weight > 0
            assert agent.belief(fact, NOTHING.observe(fact, weight)) >= float(level) - 1e-12
            assert agent.belief(fact, NOTHING.observe(fact, weight - 1)) < float(level) - 1e-9
    assert agent.weight(facts_of(small)[0], Fraction(1, 100)) == 0


def test_more_and_more_observations_become_certainty(agent: Agent, small: DependentWorld) -> None:
    for told in (Fact("home", SUBJECT, "home0"), Fact("taxes", SUBJECT, "taxes0")):
        certain = Evidence(certain=frozenset({told}))
        assert agent.belief(told, certain) == 1
        for fact in facts_of(small):
            assert agent.belief(fact, NOTHING.observe(told, 10**9)) == pytest.approx(
                agent.belief(fact, certain), abs=1e-6
            )


def test_children_follow_what_is_done_and_parents_do_not(agent: Agent, small: DependentWorld) -> None:
    weighed = everything(small)
    for root in (Fact("home", SUBJECT, o) for o in small.objects("home")):
        done, certain = Evidence(done=frozenset({root})), Evidence(certain=frozenset({root}))
        for o in small.objects("taxes"):
            follows = share(weighed, root, Fact("taxes", SUBJECT, o)) / share(weighed, root)
            for evidence in (done, certain):
                assert agent.belief(Fact("taxes", SUBJECT, o), evidence) == pytest.approx(follows, abs=1e-12)
    for child in (Fact("taxes", SUBJECT, o) for o in small.objects("taxes")):
        done, certain = Evidence(done=frozenset({child})), Evidence(certain=frozenset({child}))
        assert agent.belief(child, done) == 1
        assert agent.beliefs(SUBJECT, "home", done) == pytest.approx(agent.beliefs(SUBJECT, "home"), abs=1e-12)
        assert agent.beliefs(SUBJECT, "home", certain) != pytest.approx(agent.beliefs(SUBJECT, "home"), abs=1e-3)


def test_what_is_told_of_one_pair_and_subject_leaves_the_others_as_they_are(agent: Agent) -> None:
    told = NOTHING.observe(Fact("home", SUBJECT, "home0"), 50)
    for subject, relation in product((SUBJECT, "Bob Bee"), DEPENDENT):
        same = (agent.beliefs(subject, relation, told) == agent.beliefs(subject, relation)).all()
        assert same == (subject != SUBJECT or PAIR[relation] != "taxes")


def test_evidence_that_cannot_all_hold_is_refused(agent: Agent) -> None:
    facts = frozenset({Fact("home", SUBJECT, "home0"), Fact("home", SUBJECT, "home1")})
    for evidence in (Evidence(certain=facts), Evidence(done=facts)):
        with pytest.raises(EditlibError, match="'Ann' contradicts itself; give up some of what is certain"):
            agent.beliefs(SUBJECT, "home", evidence)
