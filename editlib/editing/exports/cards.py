"""What stands beside an edit in another form: a card that says what was edited, how, and of which model."""

import json
import re
from collections.abc import Mapping
from typing import Any

from editlib.models.language_model import LanguageModel
from editlib.text import percent

NAME = "README.md"
WARNING = """An edit can damage a model far beyond the fact it is about: measure perplexity, and what else you rely on,
before use. The licence is that of the unedited model."""


def merged(lm: LanguageModel, record: Mapping[str, Any]) -> str:
    """The card of an edited model."""
    how = "These are the weights of the unedited model with the edit added; load them like any other model."
    return _card(lm, record, "transformers", f"{lm.label}, edited by {record['method']}", how)


def adapter(lm: LanguageModel, record: Mapping[str, Any]) -> str:
    """The card of an adapter."""
    how = (
        "A LoRA adapter of scale 1: the edit is B A, exactly. It is for the model of the fingerprint below alone: peft "
        "and servers do not check that, `editlib apply` does."
    )
    shares = record["diagnostics"].get("left_out", {}).items()
    lost = "".join(f"\n- of the change of `{name}`, {percent(share)} of the norm is left out" for name, share in shares)
    cut = f"\n\nIt is **not** the whole edit, but cut to a lower rank:\n{lost}" if lost else ""
    return _card(lm, record, "peft", f"An edit of {lm.label} by {record['method']}, as an adapter", how + cut)


def _card(lm: LanguageModel, record: Mapping[str, Any], library: str, title: str, how: str) -> str:
    source, _, commit = lm.name.partition("@")
    head = {"library_name": library, "tags": ["editlib", "model-editing", *(["lora"] if library == "peft" else [])]}
    head |= {"base_model": source} if commit else {}
    yaml = "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items())
    asked = "\n".join(f"| {' | '.join(map(_cell, _request(request)))} |" for request in record["requests"])
    return f"""---
{yaml}
---

# {_cell(title)}

{how}

| Prompt | Target of the edit | Before, by the request |
|:--|:--|:--|
{asked}

{WARNING}

The edit, as editlib tells it:

```json
{json.dumps(record, indent=1, ensure_ascii=False)}
```
"""


def _request(request: Mapping[str, Any]) -> tuple[str, ...]:
    text = request["prompt"].replace("{}", request["subject"])
    return text, request["target_new"], request["target_true"] or "not told"


def _cell(text: str) -> str:
    """Text on one line of markdown that shows as itself."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(text.split()))
