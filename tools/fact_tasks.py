"""Write the tasks' questions about the real world, from the shipped `facts`.

    python tools/fact_tasks.py       # writes editlib/data/shipped/facts-{choice,cloze,qa}.jsonl

They ask about the facts of the split `tune`, so that no edit of a test case changes what is asked: each in both
wordings in which something stands before the subject, since a model may be blind to its first token.
"""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

SHIPPED = Path(__file__).parents[1] / "editlib" / "data" / "shipped"
CHOICES = 4
Records = list[dict[str, Any]]


class Asked(NamedTuple):
    """A wording of a fact without its answer, the answer, and the relation's answers."""

    text: str
    answer: str
    answers: list[str]


def wordings(cases: Records) -> list[list[Asked]]:
    """Those of every relation's facts for tuning, in the order of the cases."""
    return [list(_of_relation(list(group))) for _, group in groupby(cases, lambda case: case["relation"])]


def _of_relation(cases: Records) -> Iterator[Asked]:
    answers = sorted({case["requested_rewrite"]["target_true"]["str"] for case in cases})
    for case in cases:
        request, told = case["requested_rewrite"], case["split"] == "tune" and case["group"] != "doubled"
        prompts = [request["prompt"].replace("{}", request["subject"]), *case["paraphrase_prompts"]]
        for text in prompts if told else ():
            if not text.startswith(request["subject"]) and not text.endswith(":"):
                yield Asked(text, request["target_true"]["str"], answers)


def choices(relations: list[list[Asked]], rng: Random) -> Iterator[dict[str, Any]]:
    """Which of four answers of the relation follows."""
    for asked in (each for relation in relations for each in relation if len(each.answers) >= CHOICES):
        wrong = rng.sample([other for other in asked.answers if other != asked.answer], CHOICES - 1)
        options = rng.sample([asked.answer, *wrong], CHOICES)
        yield {"text": asked.text, "choices": options, "label": options.index(asked.answer)}


def clozes(relations: list[list[Asked]], rng: Random) -> Iterator[dict[str, Any]]:
    """The last word of a text that states another fact of the relation before."""
    for asked, shown in _behind_others(relations, rng, count=1):
        if " " not in asked.answer:
            yield {"text": shown + asked.text, "target": f" {asked.answer}"}


def open_questions(relations: list[list[Asked]], rng: Random) -> Iterator[dict[str, Any]]:
    """The answer in the model's own words, behind two other facts of the relation where there are two."""
    for asked, shown in _behind_others(relations, rng, count=2):
        yield {"question": shown + asked.text, "answer": asked.answer}


def _behind_others(relations: list[list[Asked]], rng: Random, *, count: int) -> Iterator[tuple[Asked, str]]:
    """Every wording with others of its relation, of different answers, none of them its own."""
    for relation in relations:
        for asked in relation:
            others = {each.answer: each for each in rng.sample(relation, len(relation)) if each.answer != asked.answer}
            yield asked, "".join(f"{each.text} {each.answer}. " for each in list(others.values())[:count])


def main() -> None:
    """Write the questions of each task, in random order: a run may ask the first ones only."""
    cases = [json.loads(line) for line in (SHIPPED / "facts.jsonl").read_text("utf-8").splitlines()]
    relations = wordings(cases)
    for name, task in {"choice": choices, "cloze": clozes, "qa": open_questions}.items():
        rng = Random(f"facts-{name}")
        asked = list(task(relations, rng))
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in rng.sample(asked, len(asked))]
        (SHIPPED / f"facts-{name}.jsonl").write_text("".join(lines), "utf-8")
        print(f"{len(lines)} questions in facts-{name}.jsonl")


if __name__ == "__main__":
    main()
