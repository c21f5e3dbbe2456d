"""Downstream tasks: scores of models in memory, questions from local files, and every mistake in one line."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from places import SHARED

import editlib as el
from editlib.cli import run_app
from editlib.errors import EditlibError
from editlib.measuring import tasks
from editlib.models.language_model import LanguageModel

pytest.importorskip("lm_eval")
DOWNSTREAM = SHARED / "data" / "downstream"
Jsonl = Callable[..., Path]


@pytest.fixture(scope="module")
def anchored() -> LanguageModel:
    return el.load("testbed/anchored")


@pytest.fixture
def jsonl(tmp_path: Path) -> Jsonl:
    """Write records as JSON lines."""

    def write(*records: object, name: str = "questions.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


PIQA = [
    {"goal": f"Reach {place}", "sol1": f"go to {place}", "sol2": "stay", "label": i % 2}
    for i, place in enumerate(("Daslo", "Quint", "Parvo", "Ostrel"))
]


# -- the testbed's tasks -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["testbed/anchored", "testbed/control"])
def test_both_twins_score_far_above_chance_on_every_task(model: str) -> None:
    found = tasks.evaluate(el.load(model), tasks.TESTBED_TASKS, limit=40)
    assert found["task"].tolist() == list(tasks.TESTBED_TASKS)
    assert found["metric"].tolist() == ["acc", "acc", "exact_match"]
    assert found["chance"].tolist() == [0.25, 0, 0]
    assert (found["n"] == 40).all()
    assert (found["value"] >= 0.9).all()


@pytest.mark.parametrize(("name", "chance"), [("testbed-choice", 0.25), ("testbed-cloze", 0), ("testbed-qa", 0)])
def test_a_model_that_knows_nothing_scores_by_chance(name: str, chance: float, gpt2: LanguageModel) -> None:
    found = tasks.evaluate(gpt2, [name]).iloc[0]
    assert found["n"] == 200
    assert abs(found["value"] - chance) <= 4 * math.sqrt(chance * (1 - chance) / 200)
    assert found["stderr"] == pytest.approx(math.sqrt(found["value"] * (1 - found["value"]) / 199))


def test_an_applied_edit_changes_scores_and_nothing_else(anchored: LanguageModel) -> None:
    name, generator = f"{anchored.layout.name(2)}.weight", torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, 1, generator=generator) for size in anchored.weight(2).shape)
    edit = el.Edit("noise", (), {name: (left, right)}, {}, anchored.fingerprint)
    weights = {name: weight.clone() for name, weight in anchored.model.state_dict().items()}
    padding = anchored.tokenizer.pad_token, anchored.tokenizer.padding_side
    before = tasks.evaluate(anchored, ["testbed-cloze"], limit=40)
    with edit.applied(anchored):
        edited = tasks.evaluate(anchored, ["testbed-cloze"], limit=40)
    assert edited["value"].item() < before["value"].item() - 0.3
    assert tasks.evaluate(anchored, ["testbed-cloze"], limit=40).equals(before)
    assert all(torch.equal(weight, weights[name]) for name, weight in anchored.model.state_dict().items())
    assert (anchored.tokenizer.pad_token, anchored.tokenizer.padding_side) == padding


def test_a_model_whose_outputs_are_nan_is_scored_too(own: LanguageModel) -> None:
    own.model.get_output_embeddings().weight.data.fill_(math.nan)
    values = tasks.evaluate(own, tasks.TESTBED_TASKS, limit=8)["value"].tolist()
    assert values[0] <= 0.75 and values[1:] == [0, 0]


def test_one_question_has_no_standard_error(anchored: LanguageModel) -> None:
    assert math.isnan(tasks.evaluate(anchored, ["testbed-qa"], limit=1)["stderr"].item())


def test_nothing_is_printed(anchored: LanguageModel, capfd: pytest.CaptureFixture[str]) -> None:
    tasks.evaluate(anchored, ["testbed-choice", "testbed-qa"], limit=2)
    assert capfd.readouterr() == ("", "")


# -- local files ---------------------------------------------------------------------------------------


def test_piqa_has_its_labels_in_the_record_or_beside(lm: LanguageModel, jsonl: Jsonl) -> None:
    within = jsonl(*PIQA)
    bare = jsonl(*({k: v for k, v in record.items() if k != "label"} for record in PIQA), name="valid.jsonl")
    (bare.parent / "valid-labels.lst").write_text("0\n1\n0\n1\n")
    found = tasks.evaluate(lm, ["piqa"], files={"piqa": within})
    assert found[["task", "metric", "n", "chance"]].values.tolist() == [["piqa", "acc", 4, 0.5]]
    assert tasks.read("piqa", within) == tasks.read("piqa", bare)
    assert found.equals(tasks.evaluate(lm, ["piqa"], files={"piqa": bare}))


def test_the_right_answers_are_those_of_the_file(anchored: LanguageModel, jsonl: Jsonl) -> None:
    questions = [json.loads(line) for line in (tasks.TESTBED / "testbed-choice.jsonl").read_text().splitlines()[:10]]
    wrong = jsonl(*(question | {"label": (question["label"] + 1) % 4} for question in questions))
    assert tasks.evaluate(anchored, ["testbed-choice"], files={"testbed-choice": wrong})["value"].item() == 0


def test_hellaswag_comes_in_blocks_of_six_lines_or_as_published(
    lm: LanguageModel, tmp_path: Path, jsonl: Jsonl
) -> None:
    blocks = tmp_path / "blocks.txt"
    blocks.write_text("Roofs: A man sits. he\n3\nsings.\nsleeps.\nskis.\npulls up roofing.\n" * 2)
    record = {
        "activity_label": "Roofs", "ctx_a": "A man sits.", "ctx_b": "he", "label": "3",
        "endings": ["sings.", "sleeps.", "skis.", "pulls up roofing."],
    }  # fmt: skip
    published = tasks.read("hellaswag", jsonl(record, record))
    assert published[0]["query"] == "Roofs: A man sits. He"
    assert [row | {"query": ""} for row in published] == [
        row | {"query": ""} for row in tasks.read("hellaswag", blocks)
    ]
    assert tasks.evaluate(lm, ["hellaswag"], files={"hellaswag": blocks})["chance"].item() == 0.25


def test_squad_comes_flat_or_in_articles_and_without_unanswerable_questions(lm: LanguageModel, jsonl: Jsonl) -> None:
    flat = {"context": "Zen lies in Daslo.", "question": "Where is Zen?", "answer": "Daslo"}
    asked = [{"question": flat["question"], "answers": [{"text": "Daslo"}]}, {"question": "Who?", "answers": []}]
    articles = {"data": [{"title": "Zen", "paragraphs": [{"context": flat["context"], "qas": asked}]}]}
    (first,), (second,) = tasks.read("squadv2", jsonl(flat)), tasks.read("squadv2", jsonl(articles))
    assert second == first | {"title": "Zen"} and first["answer"] == ["Daslo"]
    assert tasks.evaluate(lm, ["squadv2"], files={"squadv2": jsonl(flat, flat)})["metric"].item() == "exact_match"


def test_the_last_word_and_one_of_several_answers_are_asked_for(anchored: LanguageModel, jsonl: Jsonl) -> None:
    cloze = json.loads((tasks.TESTBED / "testbed-cloze.jsonl").read_text().splitlines()[0])
    last_word = jsonl({"text": cloze["text"] + cloze["target"]}, name="lambada.jsonl")
    assert tasks.evaluate(anchored, ["lambada_standard"], files={"lambada_standard": last_word})["value"].item() == 1
    open_ended = jsonl({"question": "who", "answer": ["Zen", "Brast"]}, name="nq.jsonl")
    assert tasks.evaluate(anchored, ["nq_open"], files={"nq_open": open_ended})["value"].item() == 0


def test_mmlu_answers_are_letters_or_numbers(lm: LanguageModel, jsonl: Jsonl) -> None:
    question = {"question": "Where is Zen?", "choices": ["Daslo", "Quint", "Parvo", "Ostrel"]}
    path = jsonl(question | {"answer": "C"}, question | {"answer": 2}, name="mmlu.jsonl")
    first, second = tasks.read("mmlu", path)
    assert first == second
    assert tasks.evaluate(lm, ["mmlu"], files={"mmlu": path})["task"].item() == "mmlu"


@pytest.mark.skipif(not DOWNSTREAM.is_dir(), reason="the papers' tasks are not beside the checkout")
def test_the_papers_tasks_as_they_are_distributed(anchored: LanguageModel) -> None:
    files = {
        "piqa": DOWNSTREAM / "piqa/valid.jsonl",
        "hellaswag": DOWNSTREAM / "hellaswag_val_full.txt",
        "lambada_standard": DOWNSTREAM / "lambada_test.jsonl",
        "nq_open": DOWNSTREAM / "nq_open/NQ-open.dev.jsonl",
        "squadv2": DOWNSTREAM / "squad_v2.0_answerable_1978.json",
    }
    counts = {name: len(tasks.read(name, path)) for name, path in files.items()}
    assert counts == {"piqa": 1838, "hellaswag": 10042, "lambada_standard": 5153, "nq_open": 3610, "squadv2": 1978}
    found = tasks.evaluate(anchored, list(files), files=files, limit=2)
    assert found["n"].tolist() == [2] * 5 and found["value"].between(0, 1).all()


# -- mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        ([], {}, "no tasks"),
        (["piqua"], {}, "task 'piqua' is unknown; use one of testbed-choice"),
        (["piqa"], {"limit": 0}, "limit 0"),
        (["piqa"], {"files": {"piqua": "x"}}, "'piqua' is unknown"),
        (["piqa"], {"files": {"mmlu": "x"}}, "which is not evaluated"),
        (["piqa"], {"files": {"piqa": "nowhere.jsonl"}}, "there is no file nowhere.jsonl; give a JSON list"),
        (["squadv2"], {}, "would run code from the hub"),
        (["piqa"], {}, "cannot be had.*give a local file"),
    ],
)
def test_mistakes_are_one_line(lm: LanguageModel, names: list[str], options: dict[str, object], said: str) -> None:
    with pytest.raises(EditlibError, match=said) as error:
        tasks.evaluate(lm, names, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("record", [{"text": "of another task"}, PIQA[0] | {"label": "first"}, ["no", "record"]])
def test_a_file_in_another_form_is_refused_with_the_forms_known(record: object, jsonl: Jsonl) -> None:
    with pytest.raises(EditlibError, match="task piqa: .*questions.jsonl is in no form known .*goal, sol1, sol2"):
        tasks.read("piqa", jsonl(record))


def test_a_file_without_questions_is_refused(jsonl: Jsonl) -> None:
    with pytest.raises(EditlibError, match="holds no question"):
        tasks.read("lambada_standard", jsonl())


def test_an_answer_longer_than_the_context_is_refused(lm: LanguageModel, jsonl: Jsonl) -> None:
    path = jsonl(PIQA[0] | {"sol2": "stay here " * 128})
    with pytest.raises(EditlibError, match="answers longer than the model's 128 tokens"):
        tasks.evaluate(lm, ["piqa"], files={"piqa": path})


def test_without_the_harness_one_line_names_the_extra(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(EditlibError, match=r"pip install 'editlib\[tasks\]'"):
        tasks.evaluate(lm, ["testbed-qa"])


# -- command line --------------------------------------------------------------------------------------


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tasks", "--model", "testbed/anchored", "--limit", "10"]
    assert run_app(command) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == list(tasks.COLUMNS) and [row[0] for row in rows[1:]] == list(tasks.TESTBED_TASKS)
    assert run_app([*command, "--task", "testbed-qa", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["chance"] == 0


def test_the_command_takes_files(gpt2_folder: Path, jsonl: Jsonl, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["tasks", "--model", str(gpt2_folder), "--file", f"piqa={jsonl(*PIQA)}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["n"] == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nowhere", "--task", "piqua"], "'piqua' is unknown"),
        (["--model", "nowhere"], "no tasks to evaluate; give some of testbed-choice"),
        (["--model", "nowhere", "--file", "piqa"], "--file TASK=PATH"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["tasks", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and said in printed.err
