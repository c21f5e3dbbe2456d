"""Write `croissant.json`, which describes the shipped data sets as ML Croissant 1.0 for search engines and loaders.

python tools/croissant.py        # writes editlib/data/shipped/croissant.json
"""

import hashlib
import json
from datetime import datetime
from pathlib import Path

import mlcroissant as mlc

SHIPPED = Path(__file__).parents[1] / "editlib" / "data" / "shipped"
OUT = SHIPPED / "croissant.json"
TEXT, NUMBER = mlc.DataType.TEXT, mlc.DataType.INTEGER
FACTS = {  # column of a case: where it stands, type, what it is, whether it is a list
    "case_id": ("case_id", NUMBER, "Number of the case.", False),
    "split": ("split", TEXT, "`tune` for settings to be chosen on, `test` for measurements.", False),
    "relation": ("relation", TEXT, "What the fact is about.", False),
    "group": ("group", TEXT, "`plain`, or what is special about the subject.", False),
    "prompt": ("requested_rewrite.prompt", TEXT, "The prompt, with {} for the subject.", False),
    "subject": ("requested_rewrite.subject", TEXT, "The subject.", False),
    "target_new": ("requested_rewrite.target_new.str", TEXT, "The answer that is asked for.", False),
    "target_true": ("requested_rewrite.target_true.str", TEXT, "The true answer.", False),
    "paraphrase_prompts": ("paraphrase_prompts", TEXT, "Other prompts for the same fact.", True),
    "neighborhood_prompts": ("neighborhood_prompts", TEXT, "Prompts about subjects of the true answer.", True),
}
TASKS = {  # file: its columns
    "facts-choice": {"text": "A question.", "choices": "Its answers.", "label": "The right one, from 0."},
    "facts-cloze": {"text": "A text without its last word.", "target": "That word."},
    "facts-qa": {"question": "Two examples and a question.", "answer": "Its answer."},
}
PROSE = ("prose-50", "prose-500")  # a sentence a line, as a JSON string


def described() -> mlc.Metadata:
    """All shipped sets; a record set for each file of objects, which those of prose are not."""
    records = [
        mlc.RecordSet(id="facts", name="facts", description="Edit cases about the real world, in COUNTERFACT's form.",
                      fields=[field("facts", name, *about) for name, about in FACTS.items()])
    ]  # fmt: skip
    for file, columns in TASKS.items():
        fields = [
            field(file, name, name, NUMBER if name == "label" else TEXT, text, name == "choices")
            for name, text in columns.items()
        ]
        records.append(mlc.RecordSet(id=file, name=file, description="Questions about the same facts.", fields=fields))
    return mlc.Metadata(
        name="editlib-data",
        description="Edit cases about the real world, questions about the same facts, and prose for perplexity.",
        license=["https://opensource.org/licenses/MIT"],
        version="1.0.0",
        date_published=datetime(2026, 11, 26),
        cite_as="editlib contributors (2026). When one edit breaks a model.",
        distribution=[file_object(name) for name in (*(record.name for record in records), *PROSE)],
        record_sets=records,
    )


def field(file: str, name: str, path: str, kind: object, text: str, several: bool) -> mlc.Field:
    """A column of a file of JSON lines, or what stands in one."""
    column, _, inside = path.partition(".")
    steps = [mlc.Transform(json_path=inside)] if inside else []
    source = mlc.Source(file_object=f"{file}.jsonl", extract=mlc.Extract(column=column), transforms=steps)
    return mlc.Field(
        id=f"{file}/{name}", name=name, description=text, data_types=[kind], source=source, repeated=several
    )


def file_object(name: str) -> mlc.FileObject:
    """A shipped file, by its place beside the description."""
    content = (SHIPPED / f"{name}.jsonl").read_bytes()
    return mlc.FileObject(
        id=f"{name}.jsonl", name=f"{name}.jsonl", content_url=f"{name}.jsonl", content_size=f"{len(content)} B",
        encoding_formats=["application/jsonlines"], sha256=hashlib.sha256(content).hexdigest(),
    )  # fmt: skip


if __name__ == "__main__":
    OUT.write_text(json.dumps(described().to_json(), ensure_ascii=False, indent=1, default=str) + "\n", "utf-8")
