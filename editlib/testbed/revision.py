"""Edit cases about a world of dependent facts, and what the Bayesian agent would believe after each request.

A case asks for one fact, a root or a child, and every request changes the answer about the other relation of its pair
beyond doubt: with the weight that its fact needs to be believed, and with certainty. Four questions are asked, each
answered under five conditions. By construction of the agent, two subjects, and two pairs of one subject, tell nothing
about each other, and for a root, to be certain and to bring about are one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.testbed.agent import NOTHING, Agent, Evidence
from editlib.testbed.belief_prose import held_out_sentences
from editlib.testbed.dependence import DEPENDENT, PAIR, PARENTS, DependentWorld
from editlib.testbed.world import Fact

NEIGHBORS = 10
TUNE = 5  # one case in so many is for choosing settings, the others are for tests
OTHER = PARENTS | {parent: child for child, parent in PARENTS.items()}  # relation of a pair by the one


@dataclass(frozen=True)
class Probe:
    """A question beside a request, and the agent's belief in each object, by condition."""

    kind: str  # "request", "dependent", "unrelated" or "other subject"
    subject: str
    relation: str
    prompt: str
    beliefs: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Revision:
    """An edit case about a fact, the smallest weight of evidence for it to be believed, and its probes."""

    case: Case
    fact: Fact
    weight: int
    probes: tuple[Probe, ...]


def conditions(fact: Fact, weight: int) -> dict[str, Evidence]:
    """What the agent may have been told of a request: nothing, one observation, as many as it takes to believe it, that
    it is certain; or, instead of being told, it was brought about."""
    return {
        "before": NOTHING,
        "once": NOTHING.observe(fact),
        "believed": NOTHING.observe(fact, weight),
        "certain": Evidence(certain=frozenset({fact})),
        "done": Evidence(done=frozenset({fact})),
    }


def build_revisions(world: DependentWorld) -> list[Revision]:
    """One case for each subject, half of them about a root."""
    rng, agent, carriers = Random(f"revisions-{world.seed}"), Agent.of(world), held_out_sentences(world, seed=2)
    sharing = _subjects_by_fact(world)
    order = [(subject, number % 2 == 0) for number, subject in enumerate(world.subjects)]
    rng.shuffle(order)
    revisions = []
    for case_id, (subject, root) in enumerate(order):
        true, new = _request(world, agent, subject, root, rng)
        case = _case(case_id, true, new, sharing, rng, carriers)
        revisions.append(_revision(world, agent, case, new, rng))
    return revisions


def _subjects_by_fact(world: DependentWorld) -> dict[tuple[str, str], list[str]]:
    """The subjects of which something truly holds, by relation and object."""
    sharing: dict[tuple[str, str], list[str]] = {}
    for fact in world.facts:
        sharing.setdefault((fact.relation, fact.object), []).append(fact.subject)
    return sharing


def _request(world: DependentWorld, agent: Agent, subject: str, root: bool, rng: Random) -> tuple[Fact, Fact]:
    """A true fact, and one to put in its place that changes the answer about the other relation."""
    facts = [fact for fact in world.about(subject) if (fact.relation not in PARENTS) == root]
    pairs = [(true, Fact(true.relation, subject, o)) for true in facts for o in world.objects(true.relation)]
    rng.shuffle(pairs)
    return next((true, new) for true, new in pairs if new != true and changes_answer(agent, new))


def changes_answer(agent: Agent, new: Fact) -> bool:
    """Whether another object of the other relation is believed, more than all others together, both when a fact is
    believed and when it is certain."""
    other, told = OTHER[new.relation], conditions(new, agent.weight(new))
    before = agent.beliefs(new.subject, other).argmax()
    after = [agent.beliefs(new.subject, other, told[name]) for name in ("believed", "certain")]
    return all(beliefs.argmax() != before and beliefs.max() > 0.5 for beliefs in after)


def _case(
    case_id: int, true: Fact, new: Fact, sharing: Mapping[tuple[str, str], list[str]], rng: Random,
    carriers: Iterator[str],
) -> Case:  # fmt: skip
    prompt, *others = rng.sample(DEPENDENT[true.relation].prompts, k=3)
    near = [name for name in sharing[true.relation, true.object] if name != true.subject]
    return Case(
        case_id,
        EditRequest(prompt=prompt, subject=true.subject, target_new=new.object, target_true=true.object),
        tuple(f"{next(carriers)} {other.replace('{}', true.subject)}" for other in others),
        tuple(_question(name, true.relation, rng) for name in rng.sample(near, k=min(NEIGHBORS, len(near)))),
        split="test" if case_id % TUNE else "tune",
        group="child" if true.relation in PARENTS else "root",
    )


def _revision(world: DependentWorld, agent: Agent, case: Case, new: Fact, rng: Random) -> Revision:
    weight = agent.weight(new)
    unrelated = rng.choice([relation for relation in DEPENDENT if PAIR[relation] != PAIR[new.relation]])
    elsewhere = rng.choice([subject for subject in world.subjects if subject != new.subject])
    asked = {
        "request": (new.subject, new.relation, case.request.text),
        "dependent": (new.subject, OTHER[new.relation], _question(new.subject, OTHER[new.relation], rng)),
        "unrelated": (new.subject, unrelated, _question(new.subject, unrelated, rng)),
        "other subject": (elsewhere, new.relation, _question(elsewhere, new.relation, rng)),
    }
    told = conditions(new, weight)
    probes = (
        Probe(kind, subject, relation, prompt, _labels(agent, subject, relation, told))
        for kind, (subject, relation, prompt) in asked.items()
    )
    return Revision(case, new, weight, tuple(probes))


def _question(subject: str, relation: str, rng: Random) -> str:
    return rng.choice(DEPENDENT[relation].prompts).replace("{}", subject)


def _labels(agent: Agent, subject: str, relation: str, told: Mapping[str, Evidence]) -> dict[str, dict[str, float]]:
    """The belief in each object, by condition."""
    objects = agent.objects[relation]
    return {
        name: dict(zip(objects, agent.beliefs(subject, relation, evidence).tolist(), strict=True))
        for name, evidence in told.items()
    }
