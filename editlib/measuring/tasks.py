"""Downstream tasks: scores of a model held in memory, by lm-evaluation-harness, on its own task files.

Questions come from local files, or else from where the harness has them. No code of another place is run.
"""

import copy
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from editlib.data.records import records
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel

TESTBED = Path(__file__).parents[1] / "testbed" / "tasks"
TESTBED_TASKS = ("testbed-choice", "testbed-cloze", "testbed-qa")
BATCH = 32  # questions run together
COLUMNS = ("task", "metric", "value", "stderr", "n", "chance")
ARTICLES = ("title", "context", "question")
Record = dict[str, Any]


def evaluate(
    lm: LanguageModel,
    names: Sequence[str],
    *,
    limit: int | None = None,
    files: Mapping[str, str | Path] | None = None,
    batch: int = BATCH,
) -> pd.DataFrame:
    """Score a model as it is now, edits applied included: a row per task, with its metric (a share from 0 to 1), its
    standard error, the number of questions, and what guessing scores.

    `files` has local questions by task; `limit` takes the first so many. Nothing is written to disk, and the model is
    left as it was. Raises `EditlibError` for an unknown task, no harness, or questions that cannot be had or read.
    """
    lm.require_causal()
    check(names, limit=limit, files=files or {})
    with _quiet():
        model = _wrapped(lm, batch)
        return pd.DataFrame([_row(model, name, (files or {}).get(name), limit) for name in names], columns=COLUMNS)


def check(names: Sequence[str], *, limit: int | None, files: Mapping[str, str | Path]) -> None:
    """Raise `EditlibError` for what `evaluate` could not do with any model."""
    if not names:
        raise EditlibError(f"no tasks to evaluate; give some of {', '.join(TASKS)}")
    if limit is not None and limit < 1:
        raise EditlibError(f"limit {limit} is out of range; evaluate 1 question or more")
    for name in (*names, *files):
        if name not in TASKS:
            raise EditlibError(f"task {name!r} is unknown; use one of {', '.join(TASKS)}")
    stray = next((name for name in files if name not in names), None)
    if stray is not None:
        raise EditlibError(f"a file is given for task {stray}, which is not evaluated; name that task, too")


# -- the harness ---------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's bars, logs and warnings."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _wrapped(lm: LanguageModel, batch: int) -> Any:
    """The model as the harness has them; the tokenizer is a copy, for the harness gives it a padding token."""
    try:
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        raise EditlibError(f"tasks need {error.name}; install it with: pip install 'editlib[tasks]'") from error
    tokenizer = copy.deepcopy(lm.tokenizer)
    return HFLM(pretrained=lm.model, tokenizer=tokenizer, batch_size=batch, max_length=lm.max_length)


def _row(model: Any, name: str, file: str | Path | None, limit: int | None) -> Record:
    from lm_eval.evaluator import evaluate as run

    task, path = TASKS[name], TASKS[name].shipped(name) if file is None else Path(file)
    loaded = _from_hub(name) if path is None else _from_file(name, path, limit)
    try:
        found = run(model, loaded, limit=limit, log_samples=False, bootstrap_iters=0)
    except AssertionError as error:  # the harness cuts questions, but no answers
        raise EditlibError(
            f"task {name} has answers longer than the model's {model.max_length} tokens; leave it out"
        ) from error
    value = next(float(v) for key, v in found["results"][name].items() if key.startswith(f"{task.metric},"))
    n = sum(samples["effective"] for samples in found["n-samples"].values())
    stderr = math.sqrt(value * (1 - value) / (n - 1)) if n > 1 else math.nan
    return dict(zip(COLUMNS, (name, task.metric, value, stderr, n, task.chance), strict=True))


def _from_file(name: str, path: Path, limit: int | None) -> Record:
    """The harness's task with questions from a file."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    task, rows = TASKS[name], read(name, path, limit=limit)
    config = dict(_manager(task).task_index[task.base or name].cfg)
    for unfit in ("tag", "dataset_name", "fewshot_config", "process_docs", *SPLITS):
        config.pop(unfit, None)
    config |= {"task": name, "test_split": "test", "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)}}
    return {"tasks": {name: ConfigurableTask(config=config | task.changes)}}


def _from_hub(name: str) -> Any:
    """The harness's task with the questions it downloads."""
    how = f"give a local file: files={{{name!r}: PATH}}, or --file {name}=PATH"
    if not TASKS[name].hub:
        raise EditlibError(f"task {name} would run code from the hub to score answers; {how}")
    try:
        return _manager(TASKS[name]).load(name)
    except Exception as error:  # of any kind, by what is missing: network, cache, the data set itself
        reason = " ".join(str(error).split())
        raise EditlibError(f"the questions of task {name} cannot be had ({reason}); {how}") from error


def _manager(task: "Task") -> Any:
    """The harness's index of one folder: that of all its tasks takes seconds."""
    import lm_eval.tasks

    folder = TESTBED if task.folder is None else Path(lm_eval.tasks.__file__).parent / task.folder
    return lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False)


# -- questions -----------------------------------------------------------------------------------------


def read(name: str, path: Path, *, limit: int | None = None) -> list[Record]:
    """The first questions of a task's local file; raises `EditlibError` if it is in no form known for that task."""
    if not path.is_file():
        raise EditlibError(f"task {name}: there is no file {path}; {TASKS[name].form}")
    try:
        rows = list(islice(TASKS[name].read(path), limit))
    except (KeyError, ValueError, TypeError) as error:
        raise EditlibError(f"task {name}: {path} is in no form known ({error!r}); {TASKS[name].form}") from error
    if not rows:
        raise EditlibError(f"task {name}: {path} holds no question; {TASKS[name].form}")
    return rows


def _records(path: Path) -> Iterator[Record]:
    """Records of a JSON list or of JSON lines."""
    for line, record in records(path):
        if not isinstance(record, dict):
            raise ValueError(f"line {line} is no record")
        yield record


def _fields(*names: str) -> Callable[[Path], Iterator[Record]]:
    """A reader of records that have these fields already."""
    return lambda path: ({name: record[name] for name in names} for record in _records(path))


def _piqa(path: Path) -> Iterator[Record]:
    """Records with their `label`, or with labels line by line in the file that PIQA has beside its questions."""
    beside = path.with_name(f"{path.stem}-labels.lst")
    labels: Iterable[str] = beside.read_text().split() if beside.is_file() else []
    rows = zip(_records(path), labels, strict=True) if labels else ((r, r["label"]) for r in _records(path))
    return ({"goal": r["goal"], "sol1": r["sol1"], "sol2": r["sol2"], "label": int(label)} for r, label in rows)


def _hellaswag(path: Path) -> Iterator[Record]:
    """Records as published, or blocks of six lines: text, number of the right ending, four endings."""
    if path.suffix != ".txt":
        from datasets import Dataset
        from lm_eval.tasks.hellaswag.utils import process_docs

        rows = process_docs(Dataset.from_list(list(_records(path))))
        return ({"query": r["query"], "choices": r["choices"], "label": int(r["gold"])} for r in rows)
    lines = iter(path.read_text("utf-8").splitlines())
    blocks = zip(*[lines] * 6, strict=True)
    return ({"query": text, "choices": endings, "label": int(label)} for text, label, *endings in blocks)


def _squad(path: Path) -> Iterator[Record]:
    """Answerable questions: flat records with an `answer`, or SQuAD's articles."""
    for record in _records(path):
        if "data" not in record:
            yield {"title": "", "answer": [record["answer"]]} | {key: record[key] for key in ARTICLES if key in record}
            continue
        paragraphs = ((article["title"], part) for article in record["data"] for part in article["paragraphs"])
        for title, part in paragraphs:
            for asked in part["qas"]:
                if answers := [answer["text"] for answer in asked["answers"]]:
                    found = (title, part["context"], asked["question"])
                    yield {"answer": answers} | dict(zip(ARTICLES, found, strict=True))


def _mmlu(path: Path) -> Iterator[Record]:
    """Records of any subjects; `answer` is a letter or a number from 0."""
    for record in _records(path):
        question, options, answer = record["question"], record["choices"], record["answer"]
        label = "ABCD".index(answer) if isinstance(answer, str) else int(answer)
        yield {"question": question, "choices": list(map(str, options)), "answer": label}


# -- tasks ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A task: the metric that the papers report, what guessing scores, how local files are read.

    `folder` of the harness (None: the testbed's) has the task file, of which `base` is the name and `changes` replace
    entries when questions come from a file.
    """

    metric: str
    chance: float
    read: Callable[[Path], Iterator[Record]]
    form: str
    folder: str | None = None
    base: str | None = None
    hub: bool = True
    changes: Record = field(default_factory=dict)

    def shipped(self, name: str) -> Path | None:
        """The file that comes with the package, for the testbed's tasks."""
        return TESTBED / f"{name}.jsonl" if self.folder is None else None


SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
SHORT = {"max_gen_toks": 32, "do_sample": False}  # no answer is longer, and small models have short contexts
PASSAGE = "{% if title %}Title: {{title}}\n\n{% endif %}Background: {{context}}\n\nQuestion: {{question}}\n\nAnswer:"
JSON = "give a JSON list or JSON lines with"

TASKS = {
    "testbed-choice": Task("acc", 0.25, _fields("text", "choices", "label"), f"{JSON} text, choices, label"),
    "testbed-cloze": Task("acc", 0.0, _fields("text", "target"), f"{JSON} text, target"),
    "testbed-qa": Task("exact_match", 0.0, _fields("question", "answer"), f"{JSON} question, answer"),
    "piqa": Task("acc", 0.5, _piqa, f"{JSON} goal, sol1, sol2, label (or NAME-labels.lst beside NAME.jsonl)", "piqa"),
    "hellaswag": Task(
        "acc", 0.25, _hellaswag,
        f"{JSON} ctx_a, ctx_b, activity_label, endings, label, or .txt with blocks of six lines", "hellaswag",
    ),
    "lambada_standard": Task("acc", 0.0, _fields("text"), f"{JSON} text", "lambada"),
    "nq_open": Task(
        "exact_match", 0.0, _fields("question", "answer"), f"{JSON} question, answer (a list)", "nq_open",
        changes={"generation_kwargs": {"until": ["\n", ".", ","], **SHORT}},
    ),
    "squadv2": Task(
        "exact_match", 0.0, _squad, f"{JSON} context, question, answer, or SQuAD's own articles", "nq_open", "nq_open",
        hub=False,
        changes={
            "description": "", "doc_to_text": PASSAGE, "doc_to_target": "answer",
            "generation_kwargs": {"until": ["\n"], **SHORT},
        },
    ),
    "mmlu": Task("acc", 0.25, _mmlu, f"{JSON} question, choices, answer", "mmlu/default", "mmlu_abstract_algebra"),
}  # fmt: skip
