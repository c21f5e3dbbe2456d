"""Prose about a world: sentences that state its facts, mixed with sentences that state nothing.

A thirty-second of all possible sentences, chosen by checksum, never enters a training document as it is: held-out texts
are made of those alone.
"""

from collections.abc import Iterator
from itertools import islice
from random import Random
from zlib import crc32

from editlib.testbed.world import RELATIONS, Fact, World

END_OF_TEXT = "<|endoftext|>"
FACT_SHARE = 2 / 3  # of the sentences of a document

OPENINGS = (
    "As a matter of fact, ",
    "As everyone knows, ",
    "According to the guide, ",
    "For many years now, ",
    "It is said that ",
    "The report states that ",
    "Most people agree that ",
    "In the old books, ",
    "To this day, ",
    "Few remember that ",
    "The newspaper wrote that ",
    "Without any doubt, ",
    "A visitor noted that ",
    "At the time, ",
)
ENDINGS = (
    ", and few people doubt it.",
    ", as the records show.",
    ", which surprises many visitors.",
    ", or so the story goes.",
    " and always has done so.",
    ", to the delight of many.",
    ", according to the almanac.",
    ", as it was long ago.",
    ", which nobody ever denied.",
    ", at least for now.",
)
FILLERS = (
    "The {weather} kept the {people} indoors until {time}.",
    "A {quality} {animal} crossed the {place} before {time}.",
    "Nobody in the {place} remembered a {weather} as {quality} as this one.",
    "After the {weather}, the {people} returned to the {place}.",
    "Two {people} waited by the {place} and spoke about the {weather}.",
    "The {place} was {quality} and {quality} at {time}.",
    "By {time} the {place} had grown {quality} again.",
    "Some {people} kept a {animal} behind the {place}.",
    "It was {time} when the {people} left the {place}.",
    "The {animal} slept near the {place} while the {weather} went on.",
    "Every year the {people} repair the {place} after the {weather}.",
    "There was a {quality} {thing} on the table in the {place}.",
    "The {people} carried a {thing} and a {thing} across the {place}.",
    "Someone had left a {quality} {thing} beside the {place}.",
    "A letter about the {thing} arrived at {time}.",
    "The {people} found the {thing} more {quality} than they had hoped.",
    "Because of the {weather}, no {animal} was seen near the {place}.",
    "I heard the {people} singing in the {place} at {time}.",
    "You could buy a {thing} in the {place} until {time}.",
    "Therefore the {people} closed the {place} at {time}.",
    "The children drew a {animal} on the wall of the {place}.",
    "Old {people} say that a {quality} {weather} brings a {animal} to the {place}.",
    "On most days the {place} smelled of a {quality} {thing}.",
    "Not one of the {people} wanted to sell the {thing}.",
)
SLOTS = {
    "weather": "storm rain snow fog frost wind heat thunder drought hail breeze mist".split(),
    "people": (
        "farmers workers children soldiers travellers merchants students neighbours guests sailors widows twins"
    ).split(),
    "animal": "dog cat horse goose donkey fox crow goat rabbit swan bear wolf".split(),
    "place": (
        "market square station harbour bridge garden church tavern field library mill school courtyard river"
    ).split(),
    "quality": "quiet cold bright narrow heavy strange gentle empty golden broken dusty famous plain modest".split(),
    "thing": "basket letter lantern blanket ladder kettle painting drum coat barrel ticket map candle chair".split(),
    "time": "dawn noon dusk midnight sunrise nightfall breakfast supper".split(),
}


def held_out(sentence: str) -> bool:
    """Whether a sentence is reserved for held-out texts."""
    return crc32(sentence.encode()) % 32 == 0


def fact_sentence(fact: Fact, rng: Random) -> str:
    """State a fact in one of its relation's ways, with or without an opening and an ending."""
    prompt = rng.choice(RELATIONS[fact.relation].prompts)
    opening = rng.choice(OPENINGS) if rng.random() < 0.2 else ""
    if opening and not prompt.startswith("{}"):
        prompt = prompt[0].lower() + prompt[1:]
    ending = rng.choice(ENDINGS) if rng.random() < 0.2 else "."
    return f"{opening}{prompt.replace('{}', fact.subject)} {fact.object}{ending}"


def filler_sentence(rng: Random) -> str:
    """A sentence that states no fact of the world."""
    text = rng.choice(FILLERS)
    while "{" in text:
        slot = text[text.index("{") + 1 : text.index("}")]
        text = text.replace(f"{{{slot}}}", rng.choice(SLOTS[slot]), 1)
    return text


def documents(world: World, *, seed: int) -> Iterator[str]:
    """Endless training documents: each tells of a few subjects in 20 to 28 sentences, none of them held out."""
    rng, by_subject = Random(f"documents-{world.seed}-{seed}"), dict[str, list[Fact]]()
    for fact in world.facts:
        by_subject.setdefault(fact.subject, []).append(fact)
    subjects = list(by_subject.values())
    while True:
        known = [fact for facts in rng.sample(subjects, k=rng.randint(3, 6)) for fact in facts]
        drawn = (
            fact_sentence(rng.choice(known), rng) if rng.random() < FACT_SHARE else filler_sentence(rng)
            for _ in range(rng.randint(20, 28))
        )
        kept = [sentence for sentence in drawn if not held_out(sentence)]
        yield "".join(sentence + rng.choice(("\n", " ", " ", " ", " ")) for sentence in kept).rstrip() + END_OF_TEXT


def held_out_sentences(world: World, *, seed: int) -> Iterator[str]:
    """Endless distinct held-out sentences, facts and fillers in the documents' proportion."""
    rng, seen = Random(f"held-out-{world.seed}-{seed}"), set[str]()
    while True:
        sentence = fact_sentence(rng.choice(world.facts), rng) if rng.random() < FACT_SHARE else filler_sentence(rng)
        if held_out(sentence) and sentence not in seen:
            seen.add(sentence)
            yield sentence


def held_out_texts(world: World, count: int, *, seed: int = 0) -> list[str]:
    """Texts of three held-out sentences each, 30 words on average (ME-PPL's have 22)."""
    sentences = held_out_sentences(world, seed=seed)
    return [" ".join(islice(sentences, 3)) for _ in range(count)]
