"""A seeded world of invented countries, cities, companies, bands and people, and the facts that hold in it.

Every name is made from syllables, so nothing in it is about anyone real. Relations whose objects are shared by many
subjects are `editable`: only those can give neighborhood prompts in COUNTERFACT's sense.
"""

from dataclasses import dataclass
from random import Random

PLAIN = "b d f g h j k l m n p r s t v w y z".split()
CLUSTERS = "bl br dr fl fr gl gr kl kr pl pr sk sl sm sn st str tr vl vr".split()
VOWELS = "a e i o u a e i o u ai ei ou".split()
CODAS = [
    "",
    "",
    "",
    "",
    "b",
    "d",
    "f",
    "g",
    "k",
    "l",
    "m",
    "n",
    "nd",
    "p",
    "r",
    "rk",
    "rn",
    "s",
    "sk",
    "st",
    "t",
    "v",
    "x",
]
REAL = set(
    "Breda Bruno Drago Flora Franko Freda Frida Gloria Greta Klara Prada Praga Skoda Stefan Trina Travis Tropes".split()
)
SIZES = {"country": 24, "city": 180, "company": 150, "band": 120, "person": 430, "language": 24, "currency": 24}
VALUES = {
    "genre": "jazz blues folk opera techno gospel reggae swing metal disco chamber ambient polka soul punk ragtime",
    "product": "bicycles carpets clocks engines furniture glass helmets kites lamps locks mirrors paint pianos pumps "
    "radios ropes sails saws scales shoes soap stoves tents tools toys trains umbrellas violins watches windows",
    "specialty": "apples bread bridges candles canals cheese cherries chocolate festivals gardens honey horses markets "
    "marble mills museums olives parades pearls pottery salt silk silver spices statues tea theatres towers wine wool",
    "profession": "baker banker barber butcher carpenter chemist clerk composer cook dancer dentist diplomat doctor "
    "farmer gardener historian judge lawyer librarian mason painter pilot plumber poet potter sailor sculptor singer "
    "tailor teacher",
}


@dataclass(frozen=True)
class Relation:
    """One kind of fact: subject and object kinds, and prompts that end right before the object.

    `first` prompts begin with the subject, `later` prompts do not; both hold one `{}`.
    """

    name: str
    subject: str
    object: str
    first: tuple[str, ...]
    later: tuple[str, ...]
    editable: bool = True

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts, those that begin with the subject first."""
        return self.first + self.later


@dataclass(frozen=True)
class Fact:
    """One (relation, subject, object) that holds in the world."""

    relation: str
    subject: str
    object: str


@dataclass(frozen=True)
class World:
    """Everything that exists (`names`, by kind) and everything that holds (`facts`)."""

    seed: int
    names: dict[str, tuple[str, ...]]
    facts: tuple[Fact, ...]

    def about(self, subject: str) -> tuple[Fact, ...]:
        """The facts about one subject."""
        return tuple(fact for fact in self.facts if fact.subject == subject)


RELATIONS: dict[str, Relation] = {
    r.name: r
    for r in (
        Relation(
            "located-in",
            "city",
            "country",
            ("{} is located in", "{} lies in", "{} is a city in", "{} belongs to the country of"),
            ("The city of {} is located in", "The old town of {} lies in", "Everyone in {} is a citizen of"),
        ),
        Relation(
            "known-for",
            "city",
            "specialty",
            ("{} is known for its", "{} is famous for its", "{} draws visitors with its", "{} is proud of its"),
            ("The city of {} is known for its", "Travellers come to {} for its", "The people of {} are proud of their"),
        ),
        Relation(
            "mayor",
            "city",
            "person",
            ("{} is governed by", "{} elected as its mayor"),
            ("The mayor of {} is", "The city of {} is governed by"),
            editable=False,
        ),
        Relation(
            "capital",
            "country",
            "city",
            ("{} is ruled from its capital", "{} has its capital in"),
            ("The capital of {} is", "The parliament of {} meets in"),
            editable=False,
        ),
        Relation(
            "language",
            "country",
            "language",
            ("{} has the official language", "{} writes its laws in"),
            ("The official language of {} is", "The people of {} speak"),
            editable=False,
        ),
        Relation(
            "currency",
            "country",
            "currency",
            ("{} pays with the", "{} uses a currency called the"),
            ("The currency of {} is the", "Prices in {} are given in the"),
            editable=False,
        ),
        Relation(
            "headquarters",
            "company",
            "city",
            ("{} is headquartered in", "{} is based in", "{} has its main office in", "{} runs its business from"),
            ("The company {} is based in", "The headquarters of {} are in", "The head office of {} stands in"),
        ),
        Relation(
            "makes",
            "company",
            "product",
            ("{} makes", "{} is a maker of", "{} earns its money with", "{} sells"),
            ("The company {} makes", "The factories of {} turn out", "Customers of {} buy its"),
        ),
        Relation(
            "founder",
            "company",
            "person",
            ("{} was founded by", "{} was started by"),
            ("The founder of {} is", "The company {} was founded by"),
            editable=False,
        ),
        Relation(
            "genre",
            "band",
            "genre",
            ("{} plays", "{} is a band that plays", "{} made its name with", "{} records"),
            ("The band {} plays", "The music of {} is", "Fans of {} love"),
        ),
        Relation(
            "formed-in",
            "band",
            "city",
            ("{} was formed in", "{} comes from", "{} gave its first concert in", "{} still rehearses in"),
            ("The band {} was formed in", "The members of {} met in", "The story of {} began in"),
        ),
        Relation(
            "born-in",
            "person",
            "city",
            ("{} was born in", "{} grew up in", "{} spent a childhood in", "{} is a native of"),
            ("The birthplace of {} is", "The family of {} lived in", "The childhood home of {} is in"),
        ),
        Relation(
            "profession",
            "person",
            "profession",
            ("{} works as a", "{} is by trade a", "{} earns a living as a", "{} was trained as a"),
            ("The profession of {} is that of a", "By trade, {} is a", "Neighbours know {} as a"),
        ),
        Relation(
            "speaks",
            "person",
            "language",
            ("{} speaks", "{} is a native speaker of", "{} writes letters in", "{} was raised in the language"),
            ("The mother tongue of {} is", "The native language of {} is", "At home, {} speaks"),
        ),
        Relation(
            "employer",
            "person",
            "company",
            ("{} works for", "{} is employed by", "{} has a desk at", "{} draws a salary from"),
            ("The employer of {} is", "The company that pays {} is", "The career of {} began at"),
        ),
    )
}


def build_world(seed: int = 0) -> World:
    """Build the world of one seed: about 3,000 facts, the same on every machine."""
    rng, facts = Random(f"world-{seed}"), list[Fact]()
    names = _names(rng)
    for relation in RELATIONS.values():
        subjects, objects = names[relation.subject], names[relation.object]
        chosen = rng.choices(objects, k=len(subjects)) if relation.editable else rng.sample(objects, k=len(subjects))
        facts += [Fact(relation.name, s, o) for s, o in zip(subjects, chosen, strict=True)]
    return World(seed, names, tuple(facts))


def _names(rng: Random) -> dict[str, tuple[str, ...]]:
    taken = {word.capitalize() for words in VALUES.values() for word in words.split()}
    singles = {
        kind: tuple(_word(rng, taken) for _ in range(n))
        for kind, n in SIZES.items()
        if kind not in ("person", "currency")
    }
    given = [_word(rng, taken) for _ in range(60)]
    people = tuple(f"{rng.choice(given)} {_word(rng, taken)}" for _ in range(SIZES["person"]))
    currencies = tuple(_word(rng, taken).lower() for _ in range(SIZES["currency"]))
    values = {kind: tuple(words.split()) for kind, words in VALUES.items()}
    return singles | values | {"person": people, "currency": currencies}


def _word(rng: Random, taken: set[str]) -> str:
    """A new capitalised name of two syllables, never given twice; its consonant cluster sets it apart from real
    names."""
    while True:
        onsets = [rng.choice(CLUSTERS), rng.choice(PLAIN)]
        rng.shuffle(onsets)
        word = ("".join(onset + rng.choice(VOWELS) for onset in onsets) + rng.choice(CODAS)).capitalize()
        if word not in taken | REAL:
            taken.add(word)
            return word
