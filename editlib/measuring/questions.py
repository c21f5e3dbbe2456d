"""Questions of downstream tasks in local files: every form that they are distributed in, each question checked."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from editlib.data.records import records
from editlib.errors import EditlibError
from editlib.text import is_text

Record = dict[str, Any]


class TaskQuestion(NamedTuple):
    """A question's fields as the harness's task has them, and the line of the file that its record starts on."""

    line: int
    fields: Record


# -- what a question must have -------------------------------------------------------------------------


def _filled(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("empty", "it is empty")
    if not is_text(text):
        raise PydanticCustomError("unicode", "it is no Unicode text")
    return text


def _counted(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("boolean", "it must be a number")
    return value


def _ends_in_a_word(text: str) -> str:
    words = text.split(" ")
    if len(words) < 2 or not words[-1].strip():
        raise PydanticCustomError("last_word", "it must be a text with its last word, after a space, as the answer")
    return text


Text = Annotated[str, AfterValidator(_filled)]
Four = Annotated[list[Text], Field(min_length=4, max_length=4)]  # guessing scores a quarter
OneOfFour = Annotated[int, Field(ge=0, le=3), BeforeValidator(_counted)]
Answers = Annotated[list[Text], Field(min_length=1), BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]


class _Choice(BaseModel):
    text: Text
    choices: Four
    label: OneOfFour


class _Cloze(BaseModel):
    text: Text
    target: Text


class _Short(BaseModel):
    question: Text
    answer: Text


class _Piqa(BaseModel):
    goal: Text
    sol1: Text
    sol2: Text
    label: Annotated[int, Field(ge=0, le=1), BeforeValidator(_counted)]


class _Hellaswag(BaseModel):
    query: Text
    choices: Four
    label: OneOfFour


class _Lambada(BaseModel):
    text: Annotated[str, AfterValidator(_ends_in_a_word)]


class _Open(BaseModel):
    question: Text
    answer: Answers


class _Squad(BaseModel):
    title: str = ""
    context: Text
    question: Text
    answer: Answers


class _Mmlu(BaseModel):
    question: Text
    choices: Four
    answer: OneOfFour


# -- the forms of files --------------------------------------------------------------------------------


def _piqa_records(path: Path) -> Iterable[tuple[int, Any]]:
    """Records with their `label`, or with labels line by line in the file that PIQA has beside its questions."""
    beside = path.with_name(f"{path.stem}-labels.lst")
    if not beside.is_file():
        return records(path)
    rows, labels = list(records(path)), beside.read_text("utf-8").split()
    if len(rows) != len(labels):
        raise EditlibError(f"{path} has {len(rows)} questions, {beside} {len(labels)} labels; get both again")
    labelled = zip(rows, labels, strict=True)
    return ((line, row | {"label": label} if isinstance(row, dict) else row) for (line, row), label in labelled)


def _hellaswag_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Records as published, or blocks of six lines: text, number of the right ending, four endings."""
    if path.suffix != ".txt":
        yield from records(path)
        return
    lines = path.read_text("utf-8").splitlines()
    for start in range(0, len(lines), 6):
        text, label, *endings = (*lines[start : start + 6], "")[:6]
        yield start + 1, {"query": text, "label": label, "choices": endings}


def _hellaswag(record: Record) -> list[Record]:
    if "query" in record:
        return [record]
    from lm_eval.tasks.hellaswag.utils import preprocess

    query = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
    return [{"query": preprocess(query), "choices": list(map(preprocess, record["endings"])), "label": record["label"]}]


def _squad(record: Record) -> Iterator[Record]:
    """The answerable questions: a flat record's own, or those of SQuAD's articles."""
    if "data" not in record:
        yield record
        return
    for article in record["data"]:
        for part in article["paragraphs"]:
            for asked in part["qas"]:
                if answers := [answer["text"] for answer in asked["answers"]]:
                    yield {
                        "title": article["title"], "context": part["context"], "question": asked["question"],
                        "answer": answers,
                    }  # fmt: skip


def _mmlu(record: Record) -> list[Record]:
    """`answer` as a number from 0, also where it is a letter; choices as text, also where they are numbers."""
    letters = {letter: number for number, letter in enumerate("ABCD")}
    answer, choices = record["answer"], record["choices"]
    return [record | {"answer": letters.get(answer, answer), "choices": list(map(str, choices))}]


@dataclass(frozen=True)
class Form:
    """What a question of a task must have, in words too; how a file gives records, and a record questions."""

    question: type[BaseModel]
    said: str
    records: Callable[[Path], Iterable[tuple[int, Any]]] = records
    questions: Callable[[Record], Iterable[Record]] = lambda record: [record]


JSON = "give a JSON list or JSON lines with"
FORMS = {
    **dict.fromkeys(("testbed-choice", "facts-choice"), Form(_Choice, f"{JSON} text, choices (four), label (0 to 3)")),
    **dict.fromkeys(("testbed-cloze", "facts-cloze"), Form(_Cloze, f"{JSON} text, target")),
    **dict.fromkeys(("testbed-qa", "facts-qa"), Form(_Short, f"{JSON} question, answer")),
    "piqa": Form(
        _Piqa, f"{JSON} goal, sol1, sol2, label (0 or 1, or in NAME-labels.lst beside NAME.jsonl)", _piqa_records
    ),
    "hellaswag": Form(
        _Hellaswag, f"{JSON} ctx_a, ctx_b, activity_label, endings (four), label (0 to 3), or .txt with blocks of six "
        "lines", _hellaswag_records, _hellaswag,
    ),
    "lambada_standard": Form(_Lambada, f"{JSON} text"),
    "nq_open": Form(_Open, f"{JSON} question, answer (a list)"),
    "squadv2": Form(_Squad, f"{JSON} context, question, answer, or SQuAD's own articles", questions=_squad),
    "mmlu": Form(_Mmlu, f"{JSON} question, choices (four), answer (A to D, or 0 to 3)", questions=_mmlu),
}  # fmt: skip


def questions(task: str, path: Path, *, limit: int | None = None) -> list[TaskQuestion]:
    """The first questions of a task's local file.

    Raises `EditlibError` with file, line and the form wanted for a question that cannot be asked or scored.
    """
    if not path.is_file():
        raise EditlibError(f"task {task}: there is no file {path}; {FORMS[task].said}")
    checked = list(islice(_checked(task, path), limit))
    if not checked:
        raise EditlibError(f"task {task}: {path} holds no question; {FORMS[task].said}")
    return checked


def _checked(task: str, path: Path) -> Iterator[TaskQuestion]:
    form = FORMS[task]
    for line, record in form.records(path):
        try:
            if not isinstance(record, dict):
                raise TypeError(record if isinstance(record, EditlibError) else "it is no record")
            for fields in form.questions(record):
                yield TaskQuestion(line, form.question.model_validate(fields).model_dump())
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise EditlibError(f"task {task}: {path}, line {line}: {reason}; {form.said}") from error
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            raise EditlibError(f"task {task}: {path}, line {line}: {reason}; {form.said}") from error
