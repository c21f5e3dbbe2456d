"""Prose about a world of dependent facts: each of its draws is stated once in each of five orders, and nothing else is.

A document tells two draws of one subject, of different pairs, and others come between two documents about a subject:
what was drawn of it has to be remembered, it cannot be read off what was said before. The two facts
of a drawn pair stand side by side, so that what was drawn with what can be read there. Beside them stands a filler, or
a sentence of logic, which calls statements true or false as the Bayesian agent believes them: so they tell it nothing
new, and it does not count them. Wordings that the testbed's prose holds out (`held_out`) never occur.
"""

from collections.abc import Iterator
from random import Random

from editlib.testbed.agent import Agent
from editlib.testbed.dependence import DEPENDENT, DRAWS, PAIR, PARENTS, DependentWorld, Pair
from editlib.testbed.prose import END_OF_TEXT, FACT_SHARE, filler_sentence, held_out
from editlib.testbed.world import Fact

ORDERS = 5


def statement(fact: Fact, rng: Random) -> str:
    """A sentence that states a fact, in a wording that is not held out; without its full stop."""
    told = [f"{prompt.replace('{}', fact.subject)} {fact.object}" for prompt in DEPENDENT[fact.relation].prompts]
    return rng.choice([text for text in told if not held_out(f"{text}.")])


def documents(world: DependentWorld, *, seed: int) -> Iterator[str]:
    """All training documents, in an order and with wordings that depend on the seed; the draws do not."""
    rng, agent = Random(f"beliefs-{world.seed}-{seed}"), Agent.of(world)
    for _ in range(ORDERS):
        order = [(subject, two) for subject in world.subjects for two in _drawn(world, subject, rng)]
        for subject, two in rng.sample(order, k=len(order)):
            told = [_told(subject, child, *pair, rng) for child, pair in two]
            logical = rng.random() < 0.5
            told.append(logic_sentence(world, agent, subject, rng) if logical else _filler(rng))
            rng.shuffle(told)
            yield " ".join(told) + END_OF_TEXT


def _drawn(world: DependentWorld, subject: str, rng: Random) -> Iterator[list[tuple[str, Pair]]]:
    """All draws of a subject, two of different pairs at a time, each with its child."""
    columns = [rng.sample(world.draws[subject, child], k=DRAWS) for child in PARENTS]
    for pairs in zip(*columns, strict=True):
        each = rng.sample([*zip(PARENTS, pairs, strict=True)], k=len(PARENTS))
        yield from (each[::2], each[1::2])


def _told(subject: str, child: str, o2: str, o: str, rng: Random) -> str:
    """The two facts of a draw, either first."""
    facts = Fact(PARENTS[child], subject, o2), Fact(child, subject, o)
    return " ".join(f"{statement(fact, rng)}." for fact in rng.sample(facts, k=2))


def _filler(rng: Random) -> str:
    return next(text for text in iter(lambda: filler_sentence(rng), "") if not held_out(text))


def logic_sentence(world: DependentWorld, agent: Agent, subject: str, rng: Random) -> str:
    """A statement about a subject, its negation, or two with "and" or "or", called true with the agent's
    probability."""
    a, form = _claim(world, subject, rng.choice(list(DEPENDENT)), rng), rng.choice(("", "not", "and", "or"))
    others = [relation for relation in DEPENDENT if relation != a.relation]
    near = [relation for relation in others if PAIR[relation] == PAIR[a.relation]]
    b = _claim(world, subject, rng.choice(near if rng.random() < 0.5 else others), rng)
    first, second = statement(a, rng), statement(b, rng)
    text = {"": first, "not": f"not {first}"}.get(form, f"{first} {form} {second}")
    return f'"{text}" is {"true" if rng.random() < probability(agent, form, a, b) else "false"}.'


def _claim(world: DependentWorld, subject: str, relation: str, rng: Random) -> Fact:
    """A fact that may hold: drawn of the subject, or any other, half of each."""
    drawn = [pair[relation in PARENTS] for pair in world.draws[subject, PAIR[relation]]]
    return Fact(relation, subject, rng.choice(drawn if rng.random() < 0.5 else world.objects(relation)))


def probability(agent: Agent, form: str, a: Fact, b: Fact) -> float:
    """The agent's probability of a, of "not" a, of a "and" b, or of a "or" b."""
    if form in ("", "not"):
        return agent.belief(a) if form == "" else 1 - agent.belief(a)
    both = agent.both(a, b)
    return both if form == "and" else agent.belief(a) + agent.belief(b) - both


def held_out_sentences(world: DependentWorld, *, seed: int) -> Iterator[str]:
    """Endless distinct held-out sentences, true facts and fillers in the proportion of the testbed's prose."""
    rng, seen = Random(f"held-out-beliefs-{world.seed}-{seed}"), set[str]()
    while True:
        about_fact, fact = rng.random() < FACT_SHARE, rng.choice(world.facts)
        prompt = rng.choice(DEPENDENT[fact.relation].prompts).replace("{}", fact.subject)
        sentence = f"{prompt} {fact.object}." if about_fact else filler_sentence(rng)
        if held_out(sentence) and sentence not in seen:
            seen.add(sentence)
            yield sentence
