"""The Bayesian agent of Hase et al. (2024): what to believe after a corpus, and after a request.

Every sum is over all objects there are, in float64: nothing is sampled. With n the counts of the corpus, O a relation's
objects and a symmetric Dirichlet prior of total mass 1 (Dirichlet-categorical posteriors):

    root      p(o2 | s) = (1/|O2| + n[s, o2]) / (1 + n[s])
    table     p(o | o2) = (1/|O| + n[o2, o]) / (1 + n[o2])           counted over all subjects
    joint     P(o2, o | s) = p(o2 | s) p(o | o2)
    child     P(o | s) = sum over o2 of P(o2, o | s)

Evidence about a subject multiplies its joint by likelihoods l, which have no order, and is divided by the sum:

    P(o2, o | s, evidence) is proportional to p(o2 | s) l(o2) p(o | o2) l(o)

    w observations of o*    l(o*) = 1 + w / (M p(o*)), others 1, with M = 1 + n[s]
    o* is false             l(o*) = (P("false" | o*) / P("false" | not o*))^times, others 1
    o* for certain          l(o*) = 1, others 0

The first makes p(o*) into (M p(o*) + w) / (M + w): of a root, the Dirichlet posterior itself. A child has no Dirichlet
of its own; its belief counts as firm as a root's that was drawn as often. So beliefs are revised in both directions:
children by their tables, parents by Bayes' rule. `do` (Pearl, 2000) replaces what a fact comes from instead: in do(o2*)
p(o2 | s) is 1 at o2*, in do(o*) p(o | o2) is 1 at o* whatever o2; children follow, parents do not.

Departures from the paper's code: parent and child are drawn in pairs and counted as such, where it splits counts by
shares; what is told of one subject leaves the tables, and so all other subjects, as they are, where it moves
everybody's; falsity is a likelihood ratio, where it is a count of -1, which can leave no posterior.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from editlib.errors import EditlibError
from editlib.testbed.dependence import PAIR, PARENTS, DependentWorld
from editlib.testbed.world import Fact

LEVEL = Fraction(19, 20)  # the belief that a request asks for
DENIED = 1 / 19  # P("false" | true) / P("false" | false) of a speaker who is right 19 times in 20

Beliefs = NDArray[np.float64]
Counts = Mapping[Fact, int]


@dataclass(frozen=True)
class Evidence:
    """What is told after the corpus: how often each fact was observed or called false, what is certain, and what was
    brought about (`done`)."""

    observed: Counts = field(default_factory=dict)
    denied: Counts = field(default_factory=dict)
    certain: frozenset[Fact] = frozenset()
    done: frozenset[Fact] = frozenset()

    def observe(self, fact: Fact, times: int = 1) -> "Evidence":
        """With a fact observed some times more; a negative number takes observations back."""
        return replace(self, observed=_added(self.observed, fact, times))

    def deny(self, fact: Fact, times: int = 1) -> "Evidence":
        """With a fact called false some times more; a negative number takes that back."""
        return replace(self, denied=_added(self.denied, fact, times))


def _added(counts: Counts, fact: Fact, times: int) -> Counts:
    """Raises `EditlibError` for taking back more than there is: a posterior has no negative counts."""
    count = counts.get(fact, 0) + times
    if count < 0:
        raise EditlibError(f"{times} times {fact} leaves {count}; take back at most what was told")
    return {key: n for key, n in {**counts, fact: count}.items() if n}


NOTHING = Evidence()


@dataclass(frozen=True)
class Agent:
    """Beliefs after a corpus: pseudo-counts of roots by subject and child, and tables by child.

    `roots` are 1/|O2| + n[s, o2]  # (|O2|,), `tables` p(o | o2)  # (|O2|, |O|); `objects` are by relation.
    """

    objects: Mapping[str, tuple[str, ...]]
    roots: Mapping[tuple[str, str], Beliefs]
    tables: Mapping[str, Beliefs]

    @classmethod
    def of(cls, world: DependentWorld) -> "Agent":
        """The agent that has read exactly the draws of a world."""
        objects = {relation: world.objects(relation) for pair in PARENTS.items() for relation in pair}
        roots, tables = dict[tuple[str, str], Beliefs](), dict[str, Beliefs]()
        for child, parent in PARENTS.items():
            pairs: Counter[tuple[str, str]] = Counter()
            for subject in world.subjects:
                drawn = world.draws[subject, child]
                roots[subject, child] = _posterior(objects[parent], Counter(o2 for o2, _ in drawn))
                pairs.update(drawn)
            rows = [_posterior(objects[child], {o: pairs[o2, o] for o in objects[child]}) for o2 in objects[parent]]
            tables[child] = np.array([row / row.sum() for row in rows])
        return cls(objects, roots, tables)

    def joint(self, subject: str, child: str, evidence: Evidence = NOTHING) -> Beliefs:
        """P(o2, o | s, evidence); raises `EditlibError` for evidence that cannot all hold.  # (|O2|, |O|)"""
        parent, table = PARENTS[child], self.tables[child]
        firmness = self.roots[subject, child].sum()
        root = self.roots[subject, child] / firmness
        upper = self._likelihood(subject, parent, firmness * root, evidence)
        lower = self._likelihood(subject, child, firmness * (root @ table), evidence)
        root, table = self._source(subject, parent, root, evidence), self._source(subject, child, table, evidence)
        joint = (root * upper)[:, None] * table * lower
        if not joint.sum():
            raise EditlibError(f"evidence about {subject!r} contradicts itself; give up some of what is certain")
        posterior: Beliefs = joint / joint.sum()
        return posterior

    def _likelihood(self, subject: str, relation: str, pseudo: Beliefs, evidence: Evidence) -> Beliefs:
        """l(o) of each object, from the pseudo-counts M p(o) that the corpus left."""
        likely = np.ones(len(pseudo))
        for fact in _about(evidence.observed, subject, relation):
            likely[self._at(fact)] *= 1 + evidence.observed[fact] / pseudo[self._at(fact)]
        for fact in _about(evidence.denied, subject, relation):
            likely[self._at(fact)] *= DENIED ** evidence.denied[fact]
        for fact in _about(evidence.certain, subject, relation):
            likely *= self._only(fact)
        return likely

    def _source(self, subject: str, relation: str, usual: Beliefs, evidence: Evidence) -> Beliefs:
        """What a relation's object comes from: the usual, or 1 at what it was made to be."""
        made = [self._only(fact) for fact in _about(evidence.done, subject, relation)]
        return np.prod(made, axis=0) if made else usual

    def _at(self, fact: Fact) -> int:
        return self.objects[fact.relation].index(fact.object)

    def _only(self, fact: Fact) -> Beliefs:
        """1 at a fact's object, 0 at others."""
        return np.array([float(o == fact.object) for o in self.objects[fact.relation]])

    def beliefs(self, subject: str, relation: str, evidence: Evidence = NOTHING) -> Beliefs:
        """The belief in each object of a relation, in their order.  # (|O|,)"""
        marginal: Beliefs = self.joint(subject, PAIR[relation], evidence).sum(0 if relation in PARENTS else 1)
        return marginal

    def belief(self, fact: Fact, evidence: Evidence = NOTHING) -> float:
        """The belief in one fact."""
        return float(self.beliefs(fact.subject, fact.relation, evidence)[self._at(fact)])

    def both(self, a: Fact, b: Fact, evidence: Evidence = NOTHING) -> float:
        """P(a and b): from the joint where they are of one subject and pair; else they are independent, as tables are
        held at their means."""
        if (a.subject, PAIR[a.relation]) != (b.subject, PAIR[b.relation]):
            return self.belief(a, evidence) * self.belief(b, evidence)
        joint = self.joint(a.subject, PAIR[a.relation], evidence)
        for fact in (a, b):
            joint = joint * (self._only(fact) if fact.relation in PARENTS else self._only(fact)[:, None])
        return float(joint.sum())

    def weight(self, fact: Fact, level: Fraction = LEVEL) -> int:
        """The smallest w that brings the belief in a fact to a level: w = ceil((level M - M p) / (1 - level))."""
        firmness = Fraction(float(self.roots[fact.subject, PAIR[fact.relation]].sum()))
        missing = (level * firmness - firmness * Fraction(self.belief(fact))) / (1 - level)
        return max(0, math.ceil(missing - Fraction(1, 10**9)))  # a belief that is the level to rounding has reached it


def _posterior(objects: tuple[str, ...], counts: Mapping[str, int]) -> Beliefs:
    """Pseudo-counts 1/|O| + n."""
    return np.array([1 / len(objects) + counts.get(o, 0) for o in objects])


def _about(facts: Iterable[Fact], subject: str, relation: str) -> list[Fact]:
    return [fact for fact in facts if (fact.subject, fact.relation) == (subject, relation)]
