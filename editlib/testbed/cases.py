"""Edit cases about a world in COUNTERFACT's form, and the files the package ships."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerBase

from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.testbed.prose import held_out_sentences, held_out_texts
from editlib.testbed.world import RELATIONS, Fact, World, build_world

FIRST, LATER, SEVERAL = 360, 240, 400  # cases by subject: one token at position 0, one token later, several tokens
NEIGHBORS = 10
COPIES, COPIES_ONE_TOKEN = 4, 32  # of a fact in the training cases; facts with one-token subjects are a tenth


def build_cases(world: World) -> list[dict[str, Any]]:
    """1,000 cases: one editable fact each, a false target of the same kind, two paraphrases, up to ten
    neighborhood prompts."""
    rng, carriers = Random(f"cases-{world.seed}"), held_out_sentences(world, seed=2)
    facts = [fact for fact in world.facts if RELATIONS[fact.relation].editable and _neighbors(world, fact)]
    rng.shuffle(facts)
    singles = [fact for fact in facts if RELATIONS[fact.relation].subject != "person"]
    people = [fact for fact in facts if RELATIONS[fact.relation].subject == "person"][:SEVERAL]
    chosen = [
        *((fact, "first") for fact in singles[:FIRST]),
        *((fact, "later") for fact in singles[FIRST : FIRST + LATER]),
        *((fact, "first" if i % 2 else "later") for i, fact in enumerate(people)),
    ]
    rng.shuffle(chosen)
    return [_record(i, world, fact, position, rng, carriers) for i, (fact, position) in enumerate(chosen)]


def training_cases(world: World) -> list[Case]:
    """Cases to train an editor on: what `build_cases` asks to change is neither changed here nor asked about nearby.

    Every other editable fact that has neighbors is changed several times, each time with prompts and a false target
    drawn anew; half of the prompts begin with the subject. Half of a neighborhood has the same object, half another
    one. Subjects of `build_cases` occur, with other relations: without them only a sixth of the one-token names would
    be left to learn from.
    """
    tested = {(r["relation_id"], r["subject"]) for r in (case["requested_rewrite"] for case in build_cases(world))}
    rest = replace(world, facts=tuple(fact for fact in world.facts if (fact.relation, fact.subject) not in tested))
    rng, carriers = Random(f"training-cases-{world.seed}"), cycle(islice(held_out_sentences(world, seed=4), 1000))
    facts = [fact for fact in rest.facts if RELATIONS[fact.relation].editable and _neighbors(rest, fact)]
    copies = [COPIES if RELATIONS[fact.relation].subject == "person" else COPIES_ONE_TOKEN for fact in facts]
    drawn = [(f, position) for f, n in zip(facts, copies, strict=True) for position in ("first", "later") * (n // 2)]
    return [_training_case(i, rest, fact, position, rng, carriers) for i, (fact, position) in enumerate(drawn)]


def _training_case(case_id: int, world: World, fact: Fact, position: str, rng: Random, carriers: Iterator[str]) -> Case:
    record = _record(case_id, world, fact, position, rng, carriers)
    rewrite, relation = record["requested_rewrite"], RELATIONS[fact.relation]
    others = [f for f in world.facts if f.relation == fact.relation and f.object != fact.object]
    far = [
        (rng.choice(relation.prompts).replace("{}", f.subject), f.object) for f in rng.sample(others, k=NEIGHBORS // 2)
    ]
    near = [(prompt, fact.object) for prompt in record["neighborhood_prompts"][: NEIGHBORS // 2]]
    prompts, answers = zip(*near, *far, strict=True)
    request = EditRequest(
        prompt=rewrite["prompt"], subject=fact.subject, target_new=rewrite["target_new"]["str"], target_true=fact.object
    )
    return Case(case_id, request, tuple(record["paraphrase_prompts"]), prompts, answers)


def _neighbors(world: World, fact: Fact) -> list[str]:
    """Other subjects of which the same holds."""
    return [
        f.subject
        for f in world.facts
        if f.relation == fact.relation and f.object == fact.object and f.subject != fact.subject
    ]


def _record(
    case_id: int, world: World, fact: Fact, position: str, rng: Random, carriers: Iterator[str]
) -> dict[str, Any]:
    relation = RELATIONS[fact.relation]
    prompt = rng.choice(getattr(relation, position))
    false = rng.choice([name for name in world.names[relation.object] if name != fact.object])
    others = rng.sample([p for p in relation.prompts if p != prompt], k=2)
    near = [p.replace("{}", subject) for subject in _neighbors(world, fact) for p in relation.prompts]
    return {
        "case_id": case_id,
        "requested_rewrite": {
            "prompt": prompt,
            "relation_id": fact.relation,
            "target_new": {"str": false},
            "target_true": {"str": fact.object},
            "subject": fact.subject,
        },
        "paraphrase_prompts": [f"{next(carriers)} {p.replace('{}', fact.subject)}" for p in others],
        "neighborhood_prompts": rng.sample(near, k=min(NEIGHBORS, len(near))),
        "attribute_prompts": [],
        "generation_prompts": [],
    }


def build_prefixes(
    world: World, tokenizer: PreTrainedTokenizerBase, held_out: Callable[..., Iterator[str]] = held_out_sentences
) -> list[str]:
    """Prefix contexts for both twins: the first 5 tokens of ten held-out sentences, the first 10 of ten others."""
    encoded = (tokenizer(sentence)["input_ids"] for sentence in held_out(world, seed=3))
    rows = islice((ids for ids in encoded if len(ids) > 12), 20)
    return ["{}", *(f"{tokenizer.decode(ids[:n])}. {{}}" for ids, n in zip(rows, [5] * 10 + [10] * 10, strict=True))]


def write_assets(folder: Path, *, seed: int = 0) -> None:
    """Write `testbed.json`, `testbed-ppl-50.json` and `testbed-ppl-1k.json` of a world."""
    world = build_world(seed)
    texts = [{"Corpus": "testbed", "Text": text} for text in held_out_texts(world, 1000)]
    _write(folder / "testbed.json", build_cases(world))
    _write(folder / "testbed-ppl-1k.json", texts)
    _write(folder / "testbed-ppl-50.json", texts[:50])


def _write(path: Path, records: Sequence[Any]) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n", "utf-8")
