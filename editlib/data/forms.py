"""Published forms of edit cases and texts: what tells a record's form, and how it is read and checked."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from editlib.data.request import EditRequest
from editlib.errors import EditlibError
from editlib.text import is_text, visible

MARKS = {  # a form's own field
    "counterfact": "requested_rewrite", "zsre": "src", "known": "attribute", "easyedit": "prompt", "texts": "Text",
}  # fmt: skip
KINDS = {dict: "an object", list: "a list", str: "a string", int: "an integer", float: "a number", bool: "a boolean"}

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One edit request with its test prompts.

    `neighborhood_answers` are the answers to the neighborhood prompts, one each; none means that
    `request.target_true` answers them all. `split` and `group` are the file's own names for its parts, where it has
    any: `facts` is split into `tune` and `test`, and groups its subjects into `plain`, `full stop` and `doubled`.
    """

    case_id: int
    request: EditRequest
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    neighborhood_answers: tuple[str, ...] = ()
    split: str | None = None
    group: str | None = None


def form_of(value: Any, forms: Sequence[str]) -> str:
    """The first of `forms` that a record's own field tells, where a plain string is a text; raises
    `EditlibError` if it is in none."""
    if isinstance(value, str) and "texts" in forms:
        return "texts"
    form = next((form for form in forms if isinstance(value, dict) and MARKS[form] in value), None)
    if form is None:
        raise EditlibError(f"it is no object with a field {' or '.join(MARKS[form] for form in forms)}")
    return form


def parse(value: Any, form: str, position: int) -> Case | str:
    """The case or text of a record at a position in its file; raises `EditlibError` with the reason if it is
    malformed."""
    if form == "texts" and isinstance(value, str):
        return _clean("the text", value)
    if not isinstance(value, dict):
        raise EditlibError(f"it is {_kind(value)}, not an object")
    parsed = PARSERS[form](value, position)
    if isinstance(parsed, str):
        return parsed
    return replace(parsed, **{key: value[key] for key in ("split", "group") if isinstance(value.get(key), str)})


def _counterfact(record: dict[str, Any], position: int) -> Case:
    """ROME's form of COUNTERFACT (Meng et al., 2022)."""
    rewrite = record.get("requested_rewrite")
    request = EditRequest(
        prompt=_text(record, "requested_rewrite", "prompt"),
        subject=_text(record, "requested_rewrite", "subject"),
        target_new=_text(record, "requested_rewrite", "target_new", "str"),
        target_true=_answer(rewrite, "target_true") if isinstance(rewrite, dict) else None,
    )
    paraphrases, neighbors = (_texts(record, key) for key in ("paraphrase_prompts", "neighborhood_prompts"))
    return Case(_field(record, int, "case_id"), request, paraphrases, neighbors)


def _easyedit(record: dict[str, Any], position: int) -> Case:
    """EasyEdit's form of COUNTERFACT (Wang et al., 2023), also HardCF's, HardEdit's and KnowEdit's, and the names of
    `EditRequest` and `Case`; all but prompt, subject and new target may be missing."""
    prompt, subject = _text(record, "prompt"), _text(record, "subject")
    if "{}" not in prompt or subject in prompt:
        prompt, subject = template(prompt, subject)
    request = EditRequest(
        prompt=prompt,
        subject=subject,
        target_new=_text(record, "target_new"),
        target_true=_answer(record, "target_true") or _answer(record, "ground_truth"),
        separator=_field(record, str, "separator") if record.get("separator") is not None else None,
    )
    case_id = _field(record, int, "case_id") if "case_id" in record else position
    paraphrases = [_text(record, "rephrase_prompt")] if record.get("rephrase_prompt") else []
    paraphrases += _texts(record, "paraphrase_prompts") if record.get("paraphrase_prompts") else ()
    neighbors = _neighbors(record)
    prompts, answers = tuple(text for text, _ in neighbors), tuple(answer or "" for _, answer in neighbors)
    return Case(case_id, request, tuple(paraphrases), prompts, answers if any(answers) else ())


def _neighbors(record: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Test prompts of other facts with their answers: EasyEdit's one, KnowEdit's lists by kind, or our own names."""
    neighbors: list[tuple[str, str | None]] = []
    if record.get("locality_prompt"):
        neighbors += [(_text(record, "locality_prompt"), _text(record, "locality_ground_truth"))]
    for kind in _field(record, dict, "locality") if record.get("locality") else ():
        neighbors += [(_text(item, "prompt"), _answer(item, "ground_truth")) for item in record["locality"][kind]]
    if record.get("neighborhood_prompts"):
        texts = _texts(record, "neighborhood_prompts")
        answers = _texts(record, "neighborhood_answers") if "neighborhood_answers" in record else (None,) * len(texts)
        if len(answers) != len(texts):
            raise EditlibError(f"it has {len(texts)} neighborhood_prompts and {len(answers)} neighborhood_answers")
        neighbors += zip(texts, answers, strict=True)
    return neighbors


def _zsre(record: dict[str, Any], position: int) -> Case:
    """MEND's form of ZsRE (Mitchell et al., 2022): `alt` is the new target, `answers` are true ones, and `loc`
    is an unrelated question, which keeps its prefix "nq question: "."""
    prompt, subject = template(_text(record, "src"), _text(record, "subject"))
    request = EditRequest(
        prompt=prompt, subject=subject, target_new=_text(record, "alt"), target_true=_answer(record, "answers")
    )
    return Case(
        position, request, (_text(record, "rephrase"),), (_text(record, "loc"),), (_text(record, "loc_ans").strip(),)
    )


def _known(record: dict[str, Any], position: int) -> Case:
    """ROME's facts that GPT-2 XL knows: the true answer is asked for, as there is no other."""
    prompt, subject = template(_text(record, "prompt"), _text(record, "subject"))
    answer = _text(record, "attribute")
    return Case(position, EditRequest(prompt=prompt, subject=subject, target_new=answer, target_true=answer))


def _me_ppl(record: dict[str, Any], position: int) -> str:
    """ME-PPL's form (Yang et al., 2024)."""
    return _text(record, "Text")


PARSERS: Mapping[str, Callable[[dict[str, Any], int], Case | str]] = {
    "counterfact": _counterfact, "zsre": _zsre, "known": _known, "easyedit": _easyedit, "texts": _me_ppl,
}  # fmt: skip


def template(sentence: str, subject: str) -> tuple[str, str]:
    """The sentence with `{}` for its subject, and the subject as the sentence spells it.

    Where the subject occurs more than once, the first place counts where it is a word of its own: there the
    sentence names what it is about. Upper and lower case only matter if that finds it. Raises `EditlibError`
    if the subject does not occur.
    """
    if sentence.count(subject) == 1:
        return sentence.replace(subject, "{}"), subject
    exact = re.escape(subject)
    for flag in (re.NOFLAG, re.IGNORECASE):
        for pattern in (rf"(?<!\w){exact}(?!\w)", exact):
            if matched := re.search(pattern, sentence, flag):
                return f"{sentence[: matched.start()]}{{}}{sentence[matched.end() :]}", matched.group()
    raise EditlibError(visible(f"subject {subject!r} does not occur in {sentence!r}"))


def _field(record: dict[str, Any], kind: type[T], *keys: str) -> T:
    """The value at a path of keys, of the given JSON type."""
    value: Any = record
    for depth, key in enumerate(keys, start=1):
        if not isinstance(value, dict) or key not in value:
            raise EditlibError(f"{'.'.join(keys[:depth])} is missing")
        value = value[key]
    if type(value) is not kind:  # a boolean is no integer
        raise EditlibError(f"{'.'.join(keys)} is {_kind(value)}, not {KINDS[kind]}")
    typed: T = value
    return typed


def _kind(value: Any) -> str:
    return KINDS.get(type(value), "null")


def _text(record: dict[str, Any], *keys: str) -> str:
    return _clean(".".join(keys), _field(record, str, *keys))


def _answer(record: dict[str, Any], key: str) -> str | None:
    """A true answer: a string, the first of a list, or that of `{"str": ...}`; None where there is none."""
    value = record.get(key)
    while isinstance(value, list | dict) and value:
        value = value[0] if isinstance(value, list) else value.get("str")
    if value is None or value == []:
        return None
    if not isinstance(value, str):
        raise EditlibError(f"{key} is {_kind(value)}, not a string")
    return _clean(key, value).strip() if value else None


def _texts(record: dict[str, Any], key: str) -> tuple[str, ...]:
    values = _field(record, list, key)
    if not all(isinstance(value, str) for value in values):
        raise EditlibError(f"{key} holds something else than strings")
    return tuple(_clean(f"a string of {key}", value) for value in values)


def _clean(what: str, text: str) -> str:
    """The text, which must have something in it and be Unicode: no tokenizer takes half a surrogate pair."""
    if not text.strip():
        raise EditlibError(f"{what} is empty")
    if not is_text(text):
        raise EditlibError(f"{what} is no Unicode text: {ascii(next(c for c in text if not is_text(c)))}")
    return text
