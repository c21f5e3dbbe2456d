"""Cases and texts from files, drawn with a seed."""

import hashlib
import json
from pathlib import Path

import pytest

from editlib import data
from editlib.data import Case, SubjectTokens, subject_tokens
from editlib.edit import EditRequest
from editlib.errors import EditlibError
from editlib.model import LanguageModel

RECORD = {
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


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def some(count: int) -> list[Case]:
    request = EditRequest(prompt="{} is", subject="Zen", target_new="Daslo")
    return [Case(i, request) for i in range(count)]


def test_cases_are_read_in_counterfacts_form(tmp_path: Path) -> None:
    (case,) = data.cases(write(tmp_path / "cases.json", [RECORD]))
    request = EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo", target_true="Quint")
    assert case == Case(7, request, ("The town of Zen lies in",), ("Brast is located in", "Nolva lies in"))


@pytest.mark.parametrize("field", ["case_id", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    record = {key: value for key, value in RECORD.items() if key != field}
    with pytest.raises(EditlibError, match=f"is not in COUNTERFACT's form: '{field}' is missing$"):
        data.cases(write(tmp_path / "cases.json", [record]))


def test_a_prompt_without_braces_is_refused(tmp_path: Path) -> None:
    rewrite = RECORD["requested_rewrite"] | {"prompt": "Zen is in"}  # type: ignore[operator]
    with pytest.raises(EditlibError, match="prompt 'Zen is in' must hold {} once"):
        data.cases(write(tmp_path / "cases.json", [RECORD | {"requested_rewrite": rewrite}]))


def test_a_list_of_strings_is_no_list_of_cases(tmp_path: Path) -> None:
    with pytest.raises(EditlibError, match="is not in COUNTERFACT's form"):
        data.cases(write(tmp_path / "cases.json", ["Zen"]))


def test_texts_are_plain_or_in_me_ppls_form(tmp_path: Path) -> None:
    assert data.texts(write(tmp_path / "a.json", ["One.", "Two."])) == ["One.", "Two."]
    records = [{"Corpus": "x", "Text": "One."}, {"Corpus": "y", "Text": "Zwölf."}]
    assert data.texts(write(tmp_path / "b.json", records)) == ["One.", "Zwölf."]


def test_records_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EditlibError, match="Text"):
        data.texts(write(tmp_path / "texts.json", [{"Corpus": "x"}]))


@pytest.mark.parametrize("content", ["[]", "{}", '"x"'])
def test_a_file_without_records_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(EditlibError, match="must hold a JSON list with at least one record$"):
        data.texts(write(tmp_path / "texts.json", content))


@pytest.mark.parametrize("content", ["", "[1,", "\udce4"])
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "texts.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(EditlibError, match="is no JSON"):
        data.texts(path)


def test_unknown_data_is_refused() -> None:
    with pytest.raises(EditlibError) as caught:
        data.cases("counterfact")
    assert str(caught.value) == (
        "data 'counterfact' is neither a file nor one of testbed, testbed-ppl-50, testbed-ppl-1k"
    )


def test_fingerprint_is_the_files_sha256(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.json", ["One."])
    assert data.fingerprint(path) == hashlib.sha256(path.read_bytes()).hexdigest()


# Drawing


def test_a_draw_is_a_function_of_the_seed_and_keeps_file_order() -> None:
    pool = some(50)
    drawn = data.draw(pool, 10, seed=3)
    assert drawn == data.draw(pool, 10, seed=3)
    assert drawn != data.draw(pool, 10, seed=4)
    assert [case.case_id for case in drawn] == sorted({case.case_id for case in drawn})
    assert len(drawn) == 10


def test_all_cases_can_be_drawn() -> None:
    pool = some(5)
    assert data.draw(pool, 5, seed=0) == pool


@pytest.mark.parametrize("n", [-1, 0, 6])
def test_a_number_beyond_the_cases_is_refused(n: int) -> None:
    with pytest.raises(EditlibError, match=f"^n={n} is out of range; there are 5 cases, so choose 1 to 5$"):
        data.draw(some(5), n, seed=0)


# Subjects


@pytest.mark.parametrize(
    ("prompt", "subject", "expected", "kind"),
    [
        ("{} is in", "Zen", SubjectTokens(1, 0, 0), "one token, first"),
        ("In {} it", "Zen", SubjectTokens(1, 1, 1), "one token, later"),
        ("{} is in", "Zen Brast", SubjectTokens(2, 0, 1), "several tokens"),
    ],
)
def test_subject_tokens_do_not_count_special_tokens(
    lm: LanguageModel, prompt: str, subject: str, expected: SubjectTokens, kind: str
) -> None:
    found = subject_tokens(lm, EditRequest(prompt=prompt, subject=subject, target_new="Daslo"))
    length = len(lm.tokenizer(prompt.split("{}")[0].rstrip(), add_special_tokens=False)["input_ids"])
    assert found.first == length
    assert (found.count, found.kind) == (expected.count, kind)
    assert found.last == found.first + found.count - 1
