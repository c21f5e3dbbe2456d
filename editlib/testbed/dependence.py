"""A world in which facts depend on facts, after Hase et al. (2024): eight relations in four pairs.

Of each pair one relation is a root, p(o2 | s), and the other its child, p(o | o2): who lives in a city pays taxes in
the country that most of its people do. A subject's true object of a root is drawn, that of a child is the mode given
the true parent. All that is told of the world are draws of pairs (o2, o), ten for each subject and pair, with the true
objects in the majority; they are kept, so that what a reader should believe is known exactly.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random

from editlib.testbed.world import Fact, Relation, World, build_world

MODE = 0.6  # the least probability of a true object of a root, and of a child's mode
DRAWS = 10  # of a subject and pair
RARE = 2  # objects of a child that share what its mode leaves
SUBJECTS = 500  # of one token, and as many of several
PARENTS = {"taxes": "home", "pay": "label", "tongue": "style", "collection": "trade"}  # by child
PAIR = {relation: child for child, parent in PARENTS.items() for relation in (child, parent)}  # by its child
SIZES = {"city": 20, "company": 20, "genre": 16, "profession": 20, "country": 12, "currency": 12, "language": 12}
SIZES |= {"product": 12}
NAMED = ("city", "company", "band", "country")  # kinds of an invented world whose names are one token

DEPENDENT: dict[str, Relation] = {
    r.name: r
    for r in (
        Relation(
            "home", "artist", "city",
            ("{} lives in", "{} owns a house in"),
            ("The home of {} is in", "The neighbours of {} are proud of"),
        ),
        Relation(
            "taxes", "artist", "country",
            ("{} pays taxes in", "{} votes in"),
            ("The passport of {} was issued in", "The taxes of {} are due in"),
        ),
        Relation(
            "label", "artist", "company",
            ("{} records for", "{} is under contract with"),
            ("The records of {} are sold by", "The label of {} is"),
        ),
        Relation(
            "pay", "artist", "currency",
            ("{} is paid in the", "{} counts money in the"),
            ("The fees of {} are given in the", "The tickets of {} are sold for the"),
        ),
        Relation(
            "style", "artist", "genre",
            ("{} plays", "{} became famous with"),
            ("The music of {} is", "Fans of {} love"),
        ),
        Relation(
            "tongue", "artist", "language",
            ("{} sings in", "{} writes songs in"),
            ("The songs of {} are in", "The lyrics of {} are written in"),
        ),
        Relation(
            "trade", "artist", "profession",
            ("{} used to work as a", "{} was trained as a"),
            ("The first job of {} was that of a", "By trade, {} is a"),
        ),
        Relation(
            "collection", "artist", "product",
            ("{} collects", "{} has a room full of"),
            ("The collection of {} consists of", "The hobby of {} is the care of"),
        ),
    )
}  # fmt: skip

Pair = tuple[str, str]  # a parent's object and its child's


@dataclass(frozen=True)
class Root:
    """A two-point distribution: the true object with probability `p`, else the other one."""

    true: str
    other: str
    p: float


@dataclass(frozen=True)
class DependentWorld(World):
    """A world with what its facts are drawn from, and what was drawn.

    `roots` are by subject and root, `tables` by child, the parent's object and the child's, `draws` by subject and
    child.
    """

    roots: Mapping[tuple[str, str], Root]
    tables: Mapping[str, Mapping[str, Mapping[str, float]]]
    draws: Mapping[tuple[str, str], tuple[Pair, ...]]

    @property
    def subjects(self) -> tuple[str, ...]:
        """Those of one token, then those of several."""
        return self.names["band"] + self.names["person"]

    def objects(self, relation: str) -> tuple[str, ...]:
        """All objects that a relation can have."""
        return self.names[DEPENDENT[relation].object]


def build_dependent_world(seed: int = 0) -> DependentWorld:
    """Build the world of one seed: 1,000 subjects with 8 facts each, and 80,000 drawn facts, the same everywhere."""
    rng, names = Random(f"dependent-{seed}"), _names(seed)
    kinds = {relation: names[DEPENDENT[relation].object] for relation in DEPENDENT}
    tables = {child: _table(kinds[parent], kinds[child], rng) for child, parent in PARENTS.items()}
    roots, draws, facts = dict[tuple[str, str], Root](), dict[tuple[str, str], tuple[Pair, ...]](), list[Fact]()
    for subject in names["band"] + names["person"]:
        for child, parent in PARENTS.items():
            likely, other = rng.sample(kinds[parent], k=2)
            root, row = Root(likely, other, rng.uniform(MODE, 1)), tables[child][likely]
            true = max(row, key=row.__getitem__)
            roots[subject, parent], draws[subject, child] = root, _draws(root, true, tables[child], rng)
            facts += [Fact(parent, subject, root.true), Fact(child, subject, true)]
    return DependentWorld(seed, names, tuple(facts), roots, tables, draws)


def _names(seed: int) -> dict[str, tuple[str, ...]]:
    """Objects by kind, and subjects, from the names of two invented worlds: one has too few. No two share a word."""
    first, second = build_world(seed).names, build_world(seed + 1).names
    names = {kind: first[kind][:size] for kind, size in SIZES.items()}
    taken = {word for kind in SIZES for word in names[kind]}
    single = [name for kind in NAMED for name in first[kind] + second[kind]]
    band = _first(SUBJECTS, (name for name in single if name not in taken))
    people = (name for name in first["person"] + second["person"] if taken.union(band).isdisjoint(name.split()))
    return names | {"band": band, "person": _first(SUBJECTS, people)}


def _first(count: int, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))[:count]


def _table(parents: tuple[str, ...], children: tuple[str, ...], rng: Random) -> dict[str, dict[str, float]]:
    """p(o | o2): every object of the child is the mode of some parent's, many of more than one."""
    modes, table = rng.sample(children, k=len(children)), dict[str, dict[str, float]]()
    for number, parent in enumerate(rng.sample(parents, k=len(parents))):
        mode, p = modes[number % len(modes)], rng.uniform(MODE, 1)
        shares = [rng.random() for _ in range(RARE)]
        rare = rng.sample([child for child in children if child != mode], k=RARE)
        table[parent] = {mode: p} | {o: (1 - p) * share / sum(shares) for o, share in zip(rare, shares, strict=True)}
    return table


def _draws(root: Root, true: str, table: Mapping[str, Mapping[str, float]], rng: Random) -> tuple[Pair, ...]:
    """Draw pairs from root and table, all anew until both true objects have more than half."""
    while True:
        parents = [root.true if rng.random() < root.p else root.other for _ in range(DRAWS)]
        pairs = tuple((o2, rng.choices(list(table[o2]), list(table[o2].values()))[0]) for o2 in parents)
        if all(sum(pair[i] == o for pair in pairs) > DRAWS / 2 for i, o in enumerate((root.true, true))):
            return pairs
