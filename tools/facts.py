"""Write `facts.jsonl`, edit cases about the real world in COUNTERFACT's form, from the tables in `facts.yaml`.

    python tools/facts.py            # writes editlib/data/shipped/facts.jsonl

A case asks for another answer of its relation. Its paraphrases are the relation's other prompts, its neighborhood is
the same prompt about subjects with the same true answer. A fifth of every relation is for tuning.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import yaml

HERE = Path(__file__).parent
OUT = HERE.parent / "editlib" / "data" / "shipped" / "facts.jsonl"
NEIGHBORS, PARAPHRASES = 8, 4
Case = dict[str, Any]


def cases(relation: dict[str, Any], rng: Random) -> Iterator[Case]:
    """Every fact of a relation, then those whose subject stands twice; without id and split."""
    objects = {answer: names.split("; ") for answer, names in relation["objects"].items()}
    twice = relation.get("doubled", "").split("; ")
    start, inside = relation["start"], relation["inside"]
    facts = [(subject, answer) for answer, subjects in objects.items() for subject in subjects]
    doubles = []
    for i, (subject, answer) in enumerate(facts):
        turns = [start[0], inside[0], *relation.get("end", [])]
        first = subject.endswith(".") or subject in twice or len(subject) < 9
        prompt = start[0] if first else turns[i % len(turns)]
        neighbors = [other for other in objects[answer] if other != subject]
        request = {
            "prompt": prompt,
            "subject": subject,
            "target_new": {"str": rng.choice([other for other in objects if other != answer])},
            "target_true": {"str": answer},
        }
        others = [template for template in (start[1], start[0], inside[1], inside[0]) if template != prompt]
        case = {
            "relation": relation["relation"],
            "group": "full stop" if subject.endswith(".") else "plain",
            "requested_rewrite": request,
            "paraphrase_prompts": [template.replace("{}", subject) for template in others[:PARAPHRASES]],
            "neighborhood_prompts": [
                prompt.replace("{}", other) for other in rng.sample(neighbors, min(NEIGHBORS, len(neighbors)))
            ],
        }
        yield case
        if subject in twice:
            double = f"{subject} {subject}"
            asked = [prompt.replace(subject, double, 1) for prompt in case["paraphrase_prompts"]]
            doubles.append(case | {"group": "doubled", "requested_rewrite": request | {"subject": double},
                                   "paraphrase_prompts": asked})  # fmt: skip
    yield from doubles


def main() -> None:
    """Number and split the cases of all relations, and write them."""
    rng, written = Random(0), list[Case]()
    for relation in yaml.safe_load((HERE / "facts.yaml").read_text("utf-8")):
        found = list(cases(relation, rng))
        tune = set(rng.sample(range(len(found)), len(found) // 5))
        for i, case in enumerate(found):
            written.append({"case_id": len(written) + 1, "split": "tune" if i in tune else "test"} | case)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("".join(json.dumps(case, ensure_ascii=False) + "\n" for case in written), "utf-8")
    print(f"{len(written)} cases in {OUT.name}")


if __name__ == "__main__":
    main()
