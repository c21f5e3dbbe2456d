"""Cases and texts from files, drawn with a seed."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest
from places import SHARED

from editlib import data
from editlib.data.datasets import Case, Rejected
from editlib.data.for_models import SubjectTokens, subject_tokens
from editlib.data.request import EditRequest
from editlib.data.sources import SOURCES, Source
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel

DATA = SHARED / "data"

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


def record(case_id: int, **changes: object) -> dict[str, object]:
    """RECORD with another id and other changes."""
    return RECORD | {"case_id": case_id} | changes


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder for every test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EDITLIB_CACHE", str(folder))
    return folder / "data"


def test_cases_are_read_in_counterfacts_form(tmp_path: Path) -> None:
    (case,) = data.cases(write(tmp_path / "cases.json", [RECORD]))
    request = EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo", target_true="Quint")
    assert case == Case(7, request, ("The town of Zen lies in",), ("Brast is located in", "Nolva lies in"))


def test_texts_are_plain_or_in_me_ppls_form(tmp_path: Path) -> None:
    assert data.texts(write(tmp_path / "a.json", ["One.", "Two."])) == ["One.", "Two."]
    records = [{"Corpus": "x", "Text": "One."}, {"Corpus": "y", "Text": "Zwölf."}]
    assert data.texts(write(tmp_path / "b.json", records)) == ["One.", "Zwölf."]


def test_json_lines_are_read_as_a_list_is(tmp_path: Path) -> None:
    records = [record(1), record(2)]
    lines = "".join(f"{json.dumps(item)}\n" for item in records)
    assert data.cases(write(tmp_path / "a.jsonl", lines)) == data.cases(write(tmp_path / "b.json", records))


# Malformed records


def test_malformed_records_are_left_out_with_line_and_reason(tmp_path: Path) -> None:
    records = [record(1), record(2, requested_rewrite=3), "Zen", record(1), record(4)]
    path = write(tmp_path / "cases.json", ",\n".join(map(json.dumps, records)).join("[]"))
    reading = data.read_cases(path)
    assert [case.case_id for case in reading.cases] == [1, 4]
    assert reading.rejected == (
        Rejected(2, 1, "requested_rewrite.prompt is missing"),
        Rejected(3, 2, "it is a string, not an object"),
        Rejected(4, 3, "case_id 1 is that of record 0"),
    )
    assert (reading.form, reading.records) == ("counterfact", 5)


def test_a_damaged_line_is_left_out(tmp_path: Path) -> None:
    reading = data.read_texts(write(tmp_path / "texts.jsonl", '"One."\n"Two.\n"Three."\n'))
    assert reading.texts == ("One.", "Three.")
    assert str(reading.rejected[0]).startswith("record 1 (line 2): it is no JSON: ")


def test_the_first_record_in_a_form_decides(tmp_path: Path) -> None:
    records = [{}, {"src": "Where is Zen?"}, RECORD]
    with pytest.raises(EditlibError, match=r"has no good record: record 0 \(line 1\): it is no object with a field"):
        data.read_cases(write(tmp_path / "cases.json", records))


def test_texts_are_no_cases_and_cases_no_texts(tmp_path: Path) -> None:
    with pytest.raises(EditlibError, match="a field requested_rewrite or src or attribute or prompt$"):
        data.cases(write(tmp_path / "texts.json", ["Zen"]))
    with pytest.raises(EditlibError, match="it is no object with a field Text$"):
        data.texts(write(tmp_path / "cases.json", [RECORD]))


@pytest.mark.parametrize("content", ["", "[]"])
def test_a_file_without_records_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(EditlibError, match="has no good record: it is empty$"):
        data.texts(write(tmp_path / "texts.json", content))


@pytest.mark.parametrize("content", ["[1,", "Zen", "\udce4"])
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "texts.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(EditlibError, match="is no JSON at line 1"):
        data.texts(path)


# The authors' files


@pytest.mark.skipif(not DATA.is_dir(), reason="the authors' files are not beside the checkout")
@pytest.mark.parametrize(
    ("path", "form", "good", "reasons"),
    [
        ("counterfact/counterfact_full_19065.json", "counterfact", 19_065, {}),
        ("counterfact/counterfact_easyedit_21919.json", "easyedit", 21_919, {}),
        ("counterfact/hardcf_candidates_gpt2tok.json", "easyedit", 80, {}),
        ("zsre/zsre_mend_eval_19086_shuffled.json", "zsre", 19_009, {"alt is empty": 77}),
        ("zsre/zsre_mend_train-1k.json", "zsre", 998, {"alt is empty": 2}),
        ("me_ppl/ME-PPL.json", "texts", 10_000, {}),
    ],
)
def test_the_authors_files_are_read(path: str, form: str, good: int, reasons: dict[str, int]) -> None:
    reading = data.read(DATA / path)
    found = [item.reason for item in reading.rejected]
    assert (reading.form, len(reading.cases) + len(reading.texts)) == (form, good)
    assert {reason: found.count(reason) for reason in found} == reasons


@pytest.mark.skipif(not DATA.is_dir(), reason="the authors' files are not beside the checkout")
@pytest.mark.parametrize(
    ("name", "file"), [("me-ppl-50", "ME-PPL_50"), ("me-ppl-1k", "ME-PPL_1k"), ("me-ppl-10k", "ME-PPL")]
)
def test_me_ppl_is_known_by_its_sha256(name: str, file: str) -> None:
    assert data.import_file(name, DATA / "me_ppl" / f"{file}.json").records == SOURCES[name].records


@pytest.mark.skipif(not DATA.is_dir(), reason="the authors' files are not beside the checkout")
def test_both_forms_of_counterfact_are_the_same_requests() -> None:
    full = data.cases(DATA / "counterfact" / "counterfact_full_19065.json")
    easyedit = data.cases(DATA / "counterfact" / "counterfact_easyedit_21919.json")
    requests = {case.case_id: case.request for case in easyedit}
    assert all(requests[case.case_id] == case.request for case in full)


# Names


def test_unknown_data_is_refused() -> None:
    with pytest.raises(EditlibError) as caught:
        data.cases("nothing")
    assert str(caught.value) == (
        "data 'nothing' is neither a file nor one of testbed, testbed-ppl-50, testbed-ppl-1k, facts, prose-50, "
        "prose-500, counterfact, counterfact-easyedit, zsre, hardcf, hardedit, me-ppl-50, me-ppl-1k, me-ppl-10k"
    )


@pytest.mark.parametrize("name", ["counterfact", "hardcf"])
def test_absent_data_tells_how_to_get_it(name: str) -> None:
    with pytest.raises(EditlibError) as caught:
        data.cases(name)
    assert str(caught.value) == f"data {name!r} is not here yet; {SOURCES[name].how}"
    assert name not in data.present()


def test_fingerprint_is_the_files_sha256(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.json", ["One."])
    assert data.fingerprint(path) == hashlib.sha256(path.read_bytes()).hexdigest()


# Import


def test_an_imported_file_is_used_by_its_name(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "mine.json", [RECORD, {}])
    reading = data.import_file("counterfact", path)
    assert (len(reading.cases), reading.records) == (1, 2)
    assert data.cases("counterfact") == data.cases(path)
    assert data.fingerprint("counterfact") == data.fingerprint(path)
    assert data.check("counterfact") == reading
    assert "counterfact" in data.present()
    assert [file.name for file in cache.iterdir()] == ["counterfact.json"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("counterfact", ["One."], "is not counterfact: its form is texts, not counterfact"),
        ("counterfact", "[", "is damaged or cut off"),
        ("counterfact", [{}], "has no good record"),
        ("me-ppl-50", ["One."], "is not me-ppl-50: its sha256 begins with"),
        ("mine", ["One."], "data 'mine' is unknown; use one of counterfact, "),
    ],
)
def test_an_unfit_file_is_not_imported(tmp_path: Path, cache: Path, name: str, content: object, reason: str) -> None:
    with pytest.raises(EditlibError, match=reason):
        data.import_file(name, write(tmp_path / "mine.json", content))
    assert not cache.exists() or not list(cache.iterdir())


def test_a_file_is_not_replaced_by_one_that_has_less(tmp_path: Path, cache: Path) -> None:
    whole, part = (write(tmp_path / f"{n}.json", [RECORD, {}][:n]) for n in (2, 1))
    data.import_file("counterfact", whole)
    with pytest.raises(EditlibError, match="1.json has 1 records, and counterfact is here with 2; remove .*, if that"):
        data.import_file("counterfact", part)
    assert data.fingerprint("counterfact") == data.fingerprint(whole)
    (cache / "counterfact.json").write_text("[")  # damaged, and so nothing that would be lost
    data.import_file("counterfact", part)


def test_a_file_changed_after_its_import_is_found(cache: Path, tmp_path: Path) -> None:
    data.import_file("counterfact", write(tmp_path / "mine.json", [RECORD]))
    write(cache / "counterfact.json", ["One."])
    with pytest.raises(EditlibError, match="its form is texts"):
        data.check("counterfact")


# Download


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """The source of a file that a local server serves from `tmp_path`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    write(tmp_path / "tiny.json", ["One.", "Two."])
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/tiny.json"
        yield Source(name="tiny", form="texts", licence="MIT", about="tiny", page=url, records=2, url=url)
        server.shutdown()
        thread.join()


def test_data_are_downloaded_once(served: Source, tmp_path: Path) -> None:
    assert data.get(served, progress=False).texts == ("One.", "Two.")
    (tmp_path / "tiny.json").unlink()
    assert data.get(served, progress=False).texts == ("One.", "Two.")


def test_an_incomplete_file_is_downloaded_again(served: Source) -> None:
    write(served.path, ["One."])
    assert data.get(served, progress=False).records == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [(["One."], "holds 1 records, not 2$"), ([RECORD, RECORD], "its form is counterfact"), ('["One.", ', "cut off")],
)
def test_a_wrong_download_is_refused_and_not_kept(
    served: Source, tmp_path: Path, cache: Path, content: object, reason: str
) -> None:
    write(tmp_path / "tiny.json", content)
    with pytest.raises(EditlibError, match=f"gave a file that is refused: .*{reason}"):
        data.get(served, progress=False)
    assert list(cache.iterdir()) == []


def test_data_without_an_address_are_not_downloaded() -> None:
    with pytest.raises(EditlibError, match="data 'hardcf' has no public address; download it from https://"):
        data.get("hardcf")


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
    assert data.draw(pool[::-1], 5, seed=0) == pool[::-1]  # in the file's order, whatever the numbers are


@pytest.mark.parametrize("n", [-1, 0, 6])
def test_a_number_beyond_the_cases_is_refused(n: int) -> None:
    with pytest.raises(EditlibError, match=f"^n={n} is out of range; there are 5 cases, so choose 1 to 5$"):
        data.draw(some(5), n, seed=0)


# Whatever holds cases

PLAIN = {"prompt": "{} is located in", "subject": "Zen", "target_new": "Daslo"}
ASKED = EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo")


@pytest.mark.parametrize(
    "given",
    [
        Case(0, ASKED),
        ASKED,
        PLAIN,
        [PLAIN],
        (ASKED,),
        [Case(0, ASKED)],
        {"prompt": "Zen is located in", "subject": "Zen", "target_new": "Daslo", "case_id": 0},
        pd.DataFrame([PLAIN | {"target_true": None}]),
        pd.DataFrame([PLAIN | {"paraphrase_prompts": []}]),
    ],
)
def test_cases_come_from_whatever_holds_them(given: object) -> None:
    assert data.cases(given) == [Case(0, ASKED)]
    assert data.requests(given) == [ASKED]


def test_a_table_with_empty_cells_is_read_row_by_row() -> None:
    frame = pd.DataFrame([PLAIN | {"case_id": 4}, PLAIN | {"case_id": 9, "target_true": "Quint"}], index=[7, 7])
    assert data.cases(frame) == [Case(4, ASKED), Case(9, replace(ASKED, target_true="Quint"))]


def test_a_row_of_a_table_is_a_case() -> None:
    frame = pd.DataFrame([PLAIN | {"case_id": 4}, PLAIN | {"case_id": 9, "target_true": "Quint"}])
    assert data.cases(frame.iloc[0]) == [Case(4, ASKED)]


def test_a_csv_file_is_read_as_the_same_records(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    pd.DataFrame([PLAIN | {"case_id": 4}]).to_csv(path, index=False)
    assert data.cases(path) == [Case(4, ASKED)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "case 0: '3' is no case; give a Case, an EditRequest or a record$"),
        ([ASKED, "Zen"], "case 1: 'Zen' is no case"),
        ([PLAIN, {"subject": "Zen"}], "case 1: it is no object with a field requested_rewrite or src or attribute or"),
        ([Case(1, ASKED), ASKED], "case 1: case_id 1 is given twice$"),
        ([PLAIN | {"subject": "Uvo", "prompt": "Zen is"}], "case 0: subject 'Uvo' does not occur in 'Zen is'$"),
        (pd.DataFrame([PLAIN | {"target_new": 3}]), "case 0: target_new is an integer, not a string$"),
    ],
)
def test_what_is_no_case_is_named(given: object, message: str) -> None:
    with pytest.raises(EditlibError, match=f"^{message}"):
        data.cases(given)


def test_data_is_read_without_torch() -> None:
    program = "import sys, editlib.data.datasets as d; d.cases('testbed'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


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


# -- splits and groups ---------------------------------------------------------------------------------


def test_cases_of_one_split_are_read_and_keep_their_split_and_group() -> None:
    parts = {split: data.cases("facts", split=split) for split in ("tune", "test")}
    assert all({case.split for case in part} == {split} for split, part in parts.items())
    together = sorted(parts["tune"] + parts["test"], key=lambda case: case.case_id)
    assert together == data.cases("facts") and len(parts["tune"]) * 4 <= len(parts["test"]) < len(together)
    assert {case.group for case in together} == {"plain", "full stop", "doubled"}
    assert data.requests("facts", split="tune") == [case.request for case in parts["tune"]]


def test_splits_are_taken_from_records_and_cases_too() -> None:
    records = [record(1, split="tune"), record(2, split="test"), record(3, split=4)]
    assert [(case.case_id, case.split) for case in data.cases(records)] == [(1, "tune"), (2, "test"), (3, None)]
    for source in (records, data.cases(records), pd.DataFrame(records)):
        assert [case.case_id for case in data.cases(source, split="test")] == [2]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("testbed", "split 'tune' is not there: these cases have no splits; leave split out"),
        ([record(1, split="dev")], "split 'tune' is unknown; use one of dev"),
    ],
)
def test_a_split_that_is_not_there_is_refused(source: object, reason: str) -> None:
    with pytest.raises(EditlibError, match=f"^{reason}$"):
        data.cases(source, split="tune")
