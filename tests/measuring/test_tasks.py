"""Downstream tasks: scores of models in memory, questions from local files, and every mistake in one line."""

import copy
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from places import SHARED
from tokenizers.processors import TemplateProcessing

import editlib as el
from editlib.cli import run_app
from editlib.editing.change import LowRank
from editlib.errors import EditlibError
from editlib.measuring import tasks
from editlib.measuring.questions import questions
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


def fields(task: str, path: Path) -> list[dict[str, Any]]:
    return [question.fields for question in questions(task, path)]


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


@pytest.mark.slow
def test_a_real_model_knows_facts_about_the_real_world() -> None:
    try:
        lm = el.load("smollm2-135m")
    except EditlibError as error:
        pytest.skip(str(error))
    choice, cloze, qa = tasks.evaluate(lm, tasks.FACTS_TASKS, limit=40)["value"]
    assert choice > 0.5 and cloze > 0.2 and qa > 0.3


@pytest.mark.parametrize(
    ("task", "form"), [("testbed-qa", "qa"), ("facts-choice", "choice"), ("nq_open", "nq_open"), ("piqa", "piqa")]
)
def test_a_task_is_told_by_what_it_asks_for(task: str, form: str) -> None:
    assert tasks.form(task) == form


@pytest.mark.parametrize(("name", "chance"), [("testbed-choice", 0.25), ("testbed-cloze", 0), ("testbed-qa", 0)])
def test_a_model_that_knows_nothing_scores_by_chance(name: str, chance: float, gpt2: LanguageModel) -> None:
    found = tasks.evaluate(gpt2, [name]).iloc[0]
    assert found["n"] == 200
    assert abs(found["value"] - chance) <= 4 * math.sqrt(chance * (1 - chance) / 200)
    assert found["stderr"] == pytest.approx(math.sqrt(found["value"] * (1 - found["value"]) / 199))


def test_an_applied_edit_changes_scores_and_nothing_else(anchored: LanguageModel) -> None:
    name, generator = f"{anchored.layout.name(2)}.weight", torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, 1, generator=generator) for size in anchored.weight(2).shape)
    edit = el.Edit("noise", (), {name: LowRank(left, right)}, {}, anchored.fingerprint)
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


@pytest.mark.parametrize("change", ["closes every text", "has neither start nor end"])
def test_a_tokenizers_special_tokens_change_no_score(anchored: LanguageModel, change: str) -> None:
    other = LanguageModel(anchored.model, copy.deepcopy(anchored.tokenizer))
    if change == "closes every text":
        end, number = other.tokenizer.eos_token, other.tokenizer.eos_token_id
        template = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, number)])
        other.tokenizer.backend_tokenizer.post_processor = template
        assert other.tokenizer("Zen")["input_ids"][-1] == number
    else:
        for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
            setattr(other.tokenizer, name, None)
    names = [name for name in tasks.TESTBED_TASKS if other.tokenizer.eos_token or name != "testbed-qa"]
    assert tasks.evaluate(other, names, limit=20).equals(tasks.evaluate(anchored, names, limit=20))


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
    assert fields("piqa", within) == fields("piqa", bare)
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
    published = fields("hellaswag", jsonl(record, record))
    assert published[0]["query"] == "Roofs: A man sits. He"
    assert [row | {"query": ""} for row in published] == [row | {"query": ""} for row in fields("hellaswag", blocks)]
    assert tasks.evaluate(lm, ["hellaswag"], files={"hellaswag": blocks})["chance"].item() == 0.25


def test_squad_comes_flat_or_in_articles_and_without_unanswerable_questions(lm: LanguageModel, jsonl: Jsonl) -> None:
    flat = {"context": "Zen lies in Daslo.", "question": "Where is Zen?", "answer": "Daslo"}
    asked = [{"question": flat["question"], "answers": [{"text": "Daslo"}]}, {"question": "Who?", "answers": []}]
    articles = {"data": [{"title": "Zen", "paragraphs": [{"context": flat["context"], "qas": asked}]}]}
    (first,), (second,) = fields("squadv2", jsonl(flat)), fields("squadv2", jsonl(articles))
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
    first, second = fields("mmlu", path)
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
    counts = {name: len(questions(name, path)) for name, path in files.items()}
    assert counts == {"piqa": 1838, "hellaswag": 10042, "lambada_standard": 5153, "nq_open": 3610, "squadv2": 1978}
    found = tasks.evaluate(anchored, list(files), files=files, limit=2)
    assert found["n"].tolist() == [2] * 5 and found["value"].between(0, 1).all()


# -- mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        ([], {}, "no tasks"),
        (["piqua"], {}, r"task 'piqua' is unknown; did you mean piqa\? use one of testbed-choice"),
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


MMLU = {"question": "Where is Zen?", "choices": ["Daslo", "Quint", "Parvo", "Ostrel"], "answer": 0}
CHOICE = {"text": "Zen is in", "choices": ["Daslo", "Quint", "Parvo", "Ostrel"], "label": 0}


@pytest.mark.parametrize(
    ("task", "record", "reason"),
    [
        ("piqa", {"text": "of another task"}, "goal: Field required"),
        ("piqa", PIQA[0] | {"label": "first"}, "label: Input should be a valid integer"),
        ("piqa", PIQA[0] | {"label": 2}, "label: Input should be less than or equal to 1"),
        ("piqa", PIQA[0] | {"label": 0.5}, "label: Input should be a valid integer"),
        ("piqa", PIQA[0] | {"sol2": " "}, "sol2: it is empty"),
        ("piqa", ["no", "record"], "it is no record"),
        ("hellaswag", {"ctx_a": "A man sits."}, "there is no 'activity_label'"),
        ("squadv2", {"data": [{"paragraphs": [3]}]}, ""),
        ("squadv2", {"context": "Zen", "question": "Who?", "answer": []}, "answer: List should have at least 1 item"),
        ("lambada_standard", {"text": "Zen"}, "its last word, after a space"),
        ("lambada_standard", {"text": "Zen is "}, "its last word, after a space"),
        ("testbed-choice", CHOICE | {"choices": []}, "choices: List should have at least 4 items"),
        ("testbed-choice", CHOICE | {"choices": ["a", "", "b", "c"]}, "choices.1: it is empty"),
        ("testbed-choice", CHOICE | {"label": -1}, "label: Input should be greater than or equal to 0"),
        ("testbed-choice", CHOICE | {"label": 4}, "label: Input should be less than or equal to 3"),
        ("mmlu", MMLU | {"answer": "AB"}, "answer: Input should be a valid integer"),
        ("mmlu", MMLU | {"answer": ""}, "answer: Input should be a valid integer"),
        ("mmlu", MMLU | {"choices": 7}, "object is not iterable"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_with_its_line_and_the_forms_known(
    task: str, record: object, reason: str, jsonl: Jsonl
) -> None:
    good = {"piqa": PIQA[0], "testbed-choice": CHOICE, "mmlu": MMLU}.get(task)
    path = jsonl(*filter(None, [good, record]))
    line = 2 if good else 1
    with pytest.raises(
        EditlibError, match=rf"task {task}: .*questions.jsonl, line {line}: .*{reason}.*; give a"
    ) as error:
        questions(task, path)
    assert "\n" not in str(error.value)


def test_a_file_without_questions_is_refused(jsonl: Jsonl) -> None:
    with pytest.raises(EditlibError, match="holds no question"):
        questions("lambada_standard", jsonl())


def test_labels_beside_must_be_as_many_as_questions(jsonl: Jsonl) -> None:
    path = jsonl(*PIQA)
    path.with_name("questions-labels.lst").write_text("0\n")
    with pytest.raises(EditlibError, match="has 4 questions, .*questions-labels.lst 1 labels; get both again"):
        questions("piqa", path)


def test_blocks_of_other_than_six_lines_are_refused(tmp_path: Path) -> None:
    (tmp_path / "blocks.txt").write_text("Roofs: he\n3\nsings.\nsleeps.\nskis.\npulls.\n" + "Roofs: he\n3\nsings.\n")
    with pytest.raises(EditlibError, match=r"blocks.txt, line 7: choices.*give a JSON list"):
        questions("hellaswag", tmp_path / "blocks.txt")


# -- what a model cannot be asked ----------------------------------------------------------------------


@pytest.fixture
def passes(lm: LanguageModel) -> Iterator[list[int]]:
    """One entry for every forward pass of the model."""
    made = list[int]()
    hook = lm.model.register_forward_pre_hook(lambda *_: made.append(1))
    yield made
    hook.remove()


def test_an_answer_longer_than_the_context_is_refused(lm: LanguageModel, jsonl: Jsonl, passes: list[int]) -> None:
    path = jsonl(PIQA[0], PIQA[0] | {"sol2": "stay here " * 128})
    with pytest.raises(EditlibError, match="line 2: an answer has .* tokens, the model takes 128; leave"):
        tasks.evaluate(lm, ["testbed-choice", "piqa"], files={"piqa": path}, limit=2)
    assert not passes  # the task before it was not run either


def test_an_answer_whose_only_token_spans_the_join_is_refused_for_that(lm: LanguageModel, jsonl: Jsonl) -> None:
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_tokens(["going home"])  # as one token, which holds the end of the text and all of the answer
    model = copy.deepcopy(lm.model)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    spanning = LanguageModel(model, tokenizer)
    path = jsonl({"text": "Zen is going", "target": " home"})
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(EditlibError, match="line 1: answer ' home' has no token of its own, one spans it"):
        tasks.evaluate(spanning, ["testbed-cloze"], files={"testbed-cloze": path})


def test_answers_that_need_room_or_an_end_the_model_has_not_are_refused(
    lm: LanguageModel, jsonl: Jsonl, passes: list[int]
) -> None:
    path = jsonl({"question": "who", "answer": ["Zen"]})
    endless = LanguageModel(lm.model, copy.deepcopy(lm.tokenizer))
    endless.tokenizer.eos_token = None
    with pytest.raises(EditlibError, match="line 1: the tokenizer has no end-of-text token to end an answer with"):
        tasks.evaluate(endless, ["nq_open"], files={"nq_open": path})
    assert tasks.evaluate(endless, ["testbed-choice"], limit=1)["n"].item() == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS["nq_open"].changes, "generation_kwargs", {"until": ["."], "max_gen_toks": 128})
        passes.clear()
        with pytest.raises(EditlibError, match="answers may have 128 tokens, the model takes 128 in all"):
            tasks.evaluate(lm, ["nq_open"], files={"nq_open": path})
    assert not passes


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


def test_a_model_of_another_world_is_asked_about_the_real_one(
    gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["tasks", "--model", str(gpt2_folder), "--limit", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["task"] for row in rows] == list(tasks.FACTS_TASKS) and [row["chance"] for row in rows] == [0.25, 0, 0]


def test_the_command_takes_files(gpt2_folder: Path, jsonl: Jsonl, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["tasks", "--model", str(gpt2_folder), "--file", f"piqa={jsonl(*PIQA)}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["n"] == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "piqua"], "'piqua' is unknown"),
        (["--file", "piqa"], "--file TASK=PATH"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], said: str, gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["tasks", "--model", str(gpt2_folder), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and said in printed.err
