"""Measure what the page of the packaged model says of it, into `book/smollm2.json`, which the page quotes.

    python tools/model_card.py

A few minutes on one core. A fact is known if the model's greedy continuation of its prompt is the true answer, all of
its tokens (`em_ar` of the scores); a true answer is preferred if it is likelier, by mean log-probability per token,
than the answer that the case asks for (`es`). Intervals are Wilson's, 95 %.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf

import editlib as el
from editlib.measuring import scores
from editlib.measuring.statistics import share
from editlib.models.names import PACKAGED, gguf_file

NAME = "smollm2-135m"
OUT = Path(__file__).parents[1] / "book" / "smollm2.json"
Card = dict[str, Any]


def build(lm: el.LanguageModel) -> Card:
    """What the file and the configuration say."""
    packaged, file = PACKAGED[NAME], gguf_file(NAME)
    assert file is not None
    config = lm.model.config
    kinds = Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors)
    return {
        "requirement": packaged.requirement, "file": packaged.file, "sha256": packaged.sha256, "hub": packaged.hub,
        "megabytes": round(file.stat().st_size / 1e6), "tensors": ", ".join(f"{n} {k}" for k, n in kinds.most_common()),
        "parameters": sum(weight.numel() for weight in lm.model.parameters()), "layers": config.num_hidden_layers,
        "width": config.hidden_size, "mlp_width": config.intermediate_size, "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads, "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
    }  # fmt: skip


def read_texts(lm: el.LanguageModel, names: Sequence[str] = ("prose-50", "prose-500")) -> Card:
    """Unedited perplexity, mean over sentences, and the sentence with the highest."""
    card: Card = {}
    for name in names:
        texts = el.data.texts(name)
        each = el.perplexity(lm, texts)
        worst = int(each.per_sentence.argmax())
        card |= {f"{name}": each.mean, f"{name}_corpus": each.corpus, f"{name}_tokens": int(each.counts.sum())}
        card |= {f"{name}_highest": float(each.per_sentence[worst]), f"{name}_highest_text": texts[worst]}
    return {key.replace("-", "_"): value for key, value in card.items()}


def known(lm: el.LanguageModel, cases: Sequence[el.Case]) -> tuple[list[bool], list[bool]]:
    """Of each case, whether the true answer is what the model says, and whether it prefers it."""
    said, preferred = [], []
    for case in cases:
        true, new = case.request.target_true, case.request.target_new
        assert true is not None
        asked = el.Case(case.case_id, replace(case.request, target_new=true, target_true=new))
        reading = scores.read(lm, asked)
        found = scores.score(asked, reading, reading)
        said.append(found["efficacy_em_ar"] == 1)
        preferred.append(found["efficacy_es"] == 1)
    return said, preferred


def read_facts(lm: el.LanguageModel) -> Card:
    """Shares of the test cases' facts that are known and preferred: of all, and by where the subject stands.

    Subjects that stand twice are no facts, and count apart.
    """
    cases = el.data.cases("facts", split="test")
    said, preferred = known(lm, cases)
    kinds = ["doubled" if case.group == "doubled" else el.data.subject_tokens(lm, case.request).kind for case in cases]
    groups = {
        "facts": lambda kind: kind != "doubled",
        "first": lambda kind: kind == "one token, first",
        "others": lambda kind: kind in ("one token, later", "several tokens"),
        "doubled": lambda kind: kind == "doubled",
    }
    card: Card = {}
    for group, holds in groups.items():
        rows = [i for i, kind in enumerate(kinds) if holds(kind)]
        card[group] = len(rows)
        for name, hits in (("known", said), ("preferred", preferred)):
            part = share(sum(hits[i] for i in rows), len(rows))
            ends = {"share": part.value, "low_share": part.low, "high_share": part.high}
            card |= {f"{group}_{name}_{key}": value for key, value in ends.items()}
    return card


def main() -> None:
    lm = el.load(NAME)
    card = build(lm) | read_texts(lm) | read_facts(lm)
    OUT.write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    print(f"{len(card)} entries in {OUT.name}")


if __name__ == "__main__":
    main()
