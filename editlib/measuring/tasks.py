"""Downstream tasks: scores of a model held in memory, by lm-evaluation-harness, on its own task files.

Questions come from local files, or else from where the harness has them. No code of another place is run.
"""

import copy
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tokenizers.processors import TemplateProcessing

from editlib.errors import EditlibError, unknown
from editlib.measuring.questions import Record, questions
from editlib.models.language_model import LanguageModel

TESTBED = Path(__file__).parents[1] / "testbed" / "tasks"
FACTS = Path(__file__).parents[1] / "data" / "shipped"
TESTBED_TASKS = ("testbed-choice", "testbed-cloze", "testbed-qa")
FACTS_TASKS = ("facts-choice", "facts-cloze", "facts-qa")
BATCH = 32  # questions run together
COLUMNS = ("task", "metric", "value", "stderr", "n", "chance")


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
    left as it was. Raises `EditlibError` for an unknown task, no harness, or questions that cannot be had, read, or
    asked of this model: of all tasks, before any is run.
    """
    lm.require_causal()
    check_tasks(names, limit=limit, files=files or {})
    with _quiet():
        model = _wrapped(lm, batch)
        loaded = [_loaded(model, name, (files or {}).get(name), limit) for name in names]
        return pd.DataFrame(map(partial(_scored, model, limit=limit), names, loaded), columns=COLUMNS)


def check_tasks(names: Sequence[str], *, limit: int | None, files: Mapping[str, str | Path]) -> None:
    """Raise `EditlibError` for what `evaluate` could not do with any model."""
    if not names:
        raise EditlibError(f"no tasks to evaluate; give some of {', '.join(TASKS)}")
    if limit is not None and limit < 1:
        raise EditlibError(f"limit {limit} is out of range; evaluate 1 question or more")
    for name in (*names, *files):
        if name not in TASKS:
            raise unknown("task", name, TASKS)
    stray = next((name for name in files if name not in names), None)
    if stray is not None:
        raise EditlibError(f"a file is given for task {stray}, which is not evaluated; name that task, too")


def form(task: str) -> str:
    """What a task asks for, whatever about: `choice` for `testbed-choice` and `facts-choice`; its name for others."""
    return task.split("-", 1)[1] if task in (*TESTBED_TASKS, *FACTS_TASKS) else task


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
    """The model as the harness has them; the tokenizer is a copy, which closes no text, for answers follow."""
    try:
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        raise EditlibError(f"tasks need {error.name}; install it with: pip install 'editlib[tasks]'") from error
    tokenizer = copy.deepcopy(lm.tokenizer)  # the harness also gives it a padding token
    encoding = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoding["input_ids"], encoding["special_tokens_mask"]
    if special[-1] and 0 in special:
        opening = list(zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True))[: special.index(0)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[*(token for token, _ in opening), "$A"], special_tokens=opening
        )
    bare = tokenizer.bos_token_id is None and tokenizer.eos_token_id is None  # then an answer needs a text before it
    return HFLM(
        pretrained=lm.model, tokenizer=tokenizer, batch_size=batch, max_length=lm.max_length,
        prefix_token_id=0 if bare else None,
    )  # fmt: skip


def _scored(model: Any, name: str, loaded: Record, *, limit: int | None) -> tuple[object, ...]:
    """A row of the table."""
    from lm_eval.evaluator import evaluate as run

    task, results = TASKS[name], run(model, loaded, limit=limit, log_samples=False, bootstrap_iters=0)
    value = next(float(v) for key, v in results["results"][name].items() if key.startswith(f"{task.metric},"))
    n = sum(samples["effective"] for samples in results["n-samples"].values())
    stderr = math.sqrt(value * (1 - value) / (n - 1)) if n > 1 else math.nan
    return name, task.metric, value, stderr, n, task.chance


def _loaded(model: Any, name: str, file: str | Path | None, limit: int | None) -> Record:
    """The harness's tasks by name, with questions that this model can be asked."""
    folder = TASKS[name].folder
    shipped = folder / f"{name}.jsonl" if isinstance(folder, Path) else None
    path = shipped if file is None else Path(file)
    asked = questions(name, path, limit=limit) if path else None
    loaded: Record = _from_file(name, [question.fields for question in asked]) if asked else _from_hub(name)
    for task in loaded["tasks"].values():
        task.build_all_requests(limit=limit)
        for request in task.instances:
            if reason := _unfit(model, request):
                number = request.doc_id
                where = f"{path}, line {asked[number].line}" if asked else f"question {number + 1}"
                raise EditlibError(f"task {name}: {where}: {reason}")
    return loaded


def _unfit(model: Any, request: Any) -> str | None:
    """Why the harness could not ask a model this, or None."""
    if request.request_type == "generate_until":
        most = request.args[1].get("max_gen_toks", model.max_gen_toks)
        if model.eot_token_id is None:
            return (
                "the tokenizer has no end-of-text token to end an answer with; set its eos_token or leave the task out"
            )
        if most >= model.max_length:
            return f"answers may have {most} tokens, the model takes {model.max_length} in all; leave the task out"
        return None
    context, answer = request.args
    tokens = model._encode_pair(context, answer)[1] if context else model.tok_encode(answer)
    if not tokens:
        return f"answer {answer!r} has no token of its own, one spans it and the text before; leave the question out"
    if len(tokens) > model.max_length:
        return f"an answer has {len(tokens)} tokens, the model takes {model.max_length}; leave the question out"
    return None


def _from_file(name: str, rows: Sequence[Record]) -> Record:
    """The harness's task with questions from a file."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    task = TASKS[name]
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

    folder = Path(lm_eval.tasks.__file__).parent / task.folder  # an absolute one stays as it is
    return lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False)


SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


# -- tasks ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A task: the metric that the papers report, and what guessing scores.

    `folder` of the harness, or of this package as a path, has the task file, of which `base` is the name and `changes`
    replace entries when questions come from a file.
    """

    metric: str
    chance: float
    folder: str | Path
    base: str | None = None
    hub: bool = True
    changes: Record = field(default_factory=dict)


SHORT = {"max_gen_toks": 32, "do_sample": False}  # no answer is longer, and small models have short contexts
PASSAGE = "{% if title %}Title: {{title}}\n\n{% endif %}Background: {{context}}\n\nQuestion: {{question}}\n\nAnswer:"

TASKS = {
    "testbed-choice": Task("acc", 0.25, TESTBED),
    "testbed-cloze": Task("acc", 0.0, TESTBED),
    "testbed-qa": Task("exact_match", 0.0, TESTBED),
    "facts-choice": Task("acc", 0.25, FACTS),
    "facts-cloze": Task("acc", 0.0, FACTS),
    "facts-qa": Task("exact_match", 0.0, FACTS),
    "piqa": Task("acc", 0.5, "piqa"),
    "hellaswag": Task("acc", 0.25, "hellaswag"),
    "lambada_standard": Task("acc", 0.0, "lambada"),
    "nq_open": Task(
        "exact_match", 0.0, "nq_open", changes={"generation_kwargs": {"until": ["\n", ".", ","], **SHORT}}
    ),
    "squadv2": Task(
        "exact_match", 0.0, "nq_open", "nq_open", hub=False,
        changes={
            "description": "", "doc_to_text": PASSAGE, "doc_to_target": "answer",
            "generation_kwargs": {"until": ["\n"], **SHORT},
        },
    ),
    "mmlu": Task("acc", 0.25, "mmlu/default", "mmlu_abstract_algebra"),
}  # fmt: skip
