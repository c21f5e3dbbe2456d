"""Records of each published form, good and malformed."""

from dataclasses import replace
from typing import Any

import pytest

from editlib.data.forms import MARKS, Case, form_of, parse, template
from editlib.data.request import EditRequest
from editlib.errors import EditlibError

COUNTERFACT: dict[str, Any] = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} is located in",
        "subject": "Zen",
        "target_new": {"str": "Daslo"},
        "target_true": {"str": "Quint"},
        "relation_id": "located-in",
    },
    "paraphrase_prompts": ["The town of Zen lies in"],
    "neighborhood_prompts": ["Brast is located in", "Nolva lies in"],
    "attribute_prompts": [],
    "generation_prompts": [],
}
EASYEDIT: dict[str, Any] = {
    "case_id": 7,
    "prompt": "Zen is located in",
    "subject": "Zen",
    "target_new": "Daslo",
    "ground_truth": "Quint",
    "rephrase_prompt": "The town of Zen lies in",
    "locality_prompt": "Brast is located in",
    "locality_ground_truth": "Parvo",
}
ZSRE: dict[str, Any] = {
    "subject": "Zen",
    "src": "Where is Zen located?",
    "pred": "Brast",
    "rephrase": "What country is Zen in?",
    "alt": " Daslo",
    "answers": ["Quint", "the Quint"],
    "loc": "nq question: who sang it first",
    "loc_ans": "Marend",
    "cond": "Brast >> Daslo || Where is Zen located?",
}
KNOWN: dict[str, Any] = {
    "known_id": 3,
    "subject": "Zen",
    "attribute": "Quint",
    "template": "{} is located in",
    "prediction": " Quint, near the sea",
    "prompt": "Zen is located in",
    "relation_id": "P30",
}
RECORDS = {"counterfact": COUNTERFACT, "easyedit": EASYEDIT, "zsre": ZSRE, "known": KNOWN}

REQUEST = EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo", target_true="Quint")


def changed(record: dict[str, Any], *keys: str, to: object) -> dict[str, Any]:
    """A copy with another value at a path of keys."""
    key, *more = keys
    return record | {key: changed(record[key], *more, to=to) if more else to}


def reason(record: object, form: str) -> str:
    with pytest.raises(EditlibError) as caught:
        parse(record, form, 3)
    return str(caught.value)


def test_romes_form_of_counterfact() -> None:
    expected = Case(7, REQUEST, ("The town of Zen lies in",), ("Brast is located in", "Nolva lies in"))
    assert parse(COUNTERFACT, "counterfact", 3) == expected


def test_easyedits_form_of_counterfact() -> None:
    expected = Case(7, REQUEST, ("The town of Zen lies in",), ("Brast is located in",), ("Parvo",))
    assert parse(EASYEDIT, "easyedit", 3) == expected


def test_mends_form_of_zsre_has_new_target_in_alt_and_position_as_id() -> None:
    request = EditRequest(prompt="Where is {} located?", subject="Zen", target_new="Daslo", target_true="Quint")
    expected = Case(3, request, ("What country is Zen in?",), ("nq question: who sang it first",), ("Marend",))
    assert parse(ZSRE, "zsre", 3) == expected


def test_easyedits_form_may_lack_id_and_test_prompts() -> None:
    record = {key: EASYEDIT[key] for key in ("prompt", "subject", "target_new", "ground_truth")}
    assert parse(record, "easyedit", 3) == Case(3, REQUEST)


def test_romes_known_facts_ask_for_the_true_answer() -> None:
    assert parse(KNOWN, "known", 3) == Case(3, replace(REQUEST, target_new="Quint"))


def test_knowedits_form_has_lists_of_answers_and_of_other_facts() -> None:
    others = {"Relation": [{"prompt": "Brast is in", "ground_truth": [["Parvo", "the Parvo"]]}], "Forgetful": []}
    record = {key: EASYEDIT[key] for key in ("prompt", "subject", "target_new", "rephrase_prompt")}
    expected = Case(3, REQUEST, ("The town of Zen lies in",), ("Brast is in",), ("Parvo",))
    assert parse(record | {"ground_truth": ["Quint"], "locality": others, "portability": {}}, "easyedit", 3) == expected


def test_our_own_names_are_a_form_too() -> None:
    record = {"prompt": "{} is located in", "subject": "Zen", "target_new": "Daslo", "target_true": "Quint"}
    tests = {"paraphrase_prompts": ["Zen lies in"], "neighborhood_prompts": ["Brast is in"]}
    assert parse(record | tests, "easyedit", 3) == Case(3, REQUEST, ("Zen lies in",), ("Brast is in",))
    answered = record | tests | {"neighborhood_answers": ["Parvo"], "separator": ""}
    expected = Case(3, replace(REQUEST, separator=""), ("Zen lies in",), ("Brast is in",), ("Parvo",))
    assert parse(answered, "easyedit", 3) == expected
    wrong = answered | {"neighborhood_answers": ["a", "b"]}
    assert reason(wrong, "easyedit") == "it has 1 neighborhood_prompts and 2 neighborhood_answers"


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("counterfact", {"requested_rewrite": COUNTERFACT["requested_rewrite"] | {"target_true": None}}),
        ("easyedit", {"ground_truth": None}),
        ("easyedit", {"ground_truth": []}),
        ("easyedit", {"ground_truth": ""}),
        ("zsre", {"answers": []}),
    ],
)
def test_a_true_answer_may_be_missing(form: str, answer: dict[str, Any]) -> None:
    case = parse(RECORDS[form] | answer, form, 3)
    assert isinstance(case, Case) and case.request.target_true is None and case.request.target_new == "Daslo"


@pytest.mark.parametrize("record", ["One. ", {"Corpus": "C4", "Text": "One. "}])
def test_texts_are_plain_or_in_me_ppls_form(record: object) -> None:
    assert parse(record, "texts", 3) == "One. "


# What tells a form


@pytest.mark.parametrize("form", RECORDS)
def test_a_record_tells_its_form(form: str) -> None:
    assert form_of(RECORDS[form], tuple(MARKS)) == form


@pytest.mark.parametrize("record", ["One.", {"Text": "One."}])
def test_a_text_tells_its_form(record: object) -> None:
    assert form_of(record, tuple(MARKS)) == "texts"


@pytest.mark.parametrize("record", ["One.", {"Text": "One."}, {}, 3, None, ["a"]])
def test_what_is_in_none_of_the_forms_is_refused(record: object) -> None:
    with pytest.raises(EditlibError, match="^it is no object with a field requested_rewrite or src$"):
        form_of(record, ("counterfact", "zsre"))


# Malformed records

REQUIRED = {
    "counterfact": "case_id requested_rewrite paraphrase_prompts neighborhood_prompts",
    "easyedit": "prompt subject target_new locality_ground_truth",
    "zsre": "src subject alt rephrase loc loc_ans",
}


@pytest.mark.parametrize(("form", "field"), [(form, field) for form in REQUIRED for field in REQUIRED[form].split()])
def test_a_missing_field_is_named(form: str, field: str) -> None:
    record = {key: value for key, value in RECORDS[form].items() if key != field}
    assert reason(record, form) == f"{field} is missing"


@pytest.mark.parametrize("field", ["prompt", "subject", "target_new"])
def test_a_missing_field_of_the_rewrite_is_named_with_its_path(field: str) -> None:
    rewrite = {key: value for key, value in COUNTERFACT["requested_rewrite"].items() if key != field}
    assert (
        reason(COUNTERFACT | {"requested_rewrite": rewrite}, "counterfact") == f"requested_rewrite.{field} is missing"
    )


@pytest.mark.parametrize(
    ("form", "keys", "value", "expected"),
    [
        ("counterfact", ["case_id"], "7", "case_id is a string, not an integer"),
        ("counterfact", ["case_id"], True, "case_id is a boolean, not an integer"),
        ("counterfact", ["paraphrase_prompts"], "x", "paraphrase_prompts is a string, not a list"),
        ("counterfact", ["neighborhood_prompts"], ["x", 3], "neighborhood_prompts holds something else than strings"),
        ("counterfact", ["neighborhood_prompts"], ["x", ""], "a string of neighborhood_prompts is empty"),
        ("counterfact", ["requested_rewrite", "subject"], None, "requested_rewrite.subject is null, not a string"),
        ("counterfact", ["requested_rewrite", "target_new"], "x", "requested_rewrite.target_new.str is missing"),
        ("counterfact", ["requested_rewrite", "target_new", "str"], " ", "requested_rewrite.target_new.str is empty"),
        ("easyedit", ["target_new"], ["Daslo"], "target_new is a list, not a string"),
        ("easyedit", ["rephrase_prompt"], 2.5, "rephrase_prompt is a number, not a string"),
        ("easyedit", ["subject"], "Uvo", "subject 'Uvo' does not occur in 'Zen is located in'"),
        ("easyedit", ["ground_truth"], "a\udce4", r"ground_truth is no Unicode text: '\udce4'"),
        ("easyedit", ["ground_truth"], [3], "ground_truth is an integer, not a string"),
        ("easyedit", ["separator"], 3, "separator is an integer, not a string"),
        ("easyedit", ["neighborhood_prompts"], "x", "neighborhood_prompts is a string, not a list"),
        ("easyedit", ["locality"], {"kind": ["x"]}, "prompt is missing"),
        ("easyedit", ["locality"], ["x"], "locality is a list, not an object"),
        ("known", ["attribute"], " ", "attribute is empty"),
        ("zsre", ["alt"], "", "alt is empty"),
        ("texts", ["Text"], "", "Text is empty"),
    ],
)
def test_each_mistake_has_its_reason(form: str, keys: list[str], value: object, expected: str) -> None:
    record = RECORDS.get(form, {"Text": "One."})
    assert reason(changed(record, *keys, to=value), form) == expected


@pytest.mark.parametrize("record", ["Zen", 3, None, ["Zen"]])
def test_a_record_that_is_no_object_is_refused(record: object) -> None:
    assert reason(record, "counterfact").endswith(", not an object")


def test_a_prompt_without_braces_is_refused() -> None:
    record = changed(COUNTERFACT, "requested_rewrite", "prompt", to="Zen is in")
    assert reason(record, "counterfact").startswith("prompt 'Zen is in' must hold {} once")


# Templates


@pytest.mark.parametrize(
    ("sentence", "subject", "expected"),
    [
        ("Zen is located in", "Zen", ("{} is located in", "Zen")),
        ("The zen town lies in", "Zen", ("The {} town lies in", "zen")),
        ("Zen, the twin town of Zen, is", "Zen", ("{}, the twin town of Zen, is", "Zen")),  # the first
        ("Artists call Art the", "Art", ("Artists call {} the", "Art")),  # a word of its own
        ("Artistry and Artists", "Art", ("{}istry and Artists", "Art")),  # else any
        ("artists call ART art, an", "Art", ("artists call {} art, an", "ART")),
        ("Where is C++ (language) used?", "C++ (language)", ("Where is {} used?", "C++ (language)")),
    ],
)
def test_the_subject_of_a_sentence_is_found(sentence: str, subject: str, expected: tuple[str, str]) -> None:
    found, spelled = template(sentence, subject)
    assert (found, spelled) == expected
    assert EditRequest(prompt=found, subject=spelled, target_new="x").text == sentence


def test_a_sentence_that_holds_braces_is_refused() -> None:
    assert "must hold {} once" in reason(EASYEDIT | {"prompt": "Zen {} is"}, "easyedit")
