"""Independent single edits in a table."""

import importlib
import math
import pickle
from dataclasses import replace
from pathlib import Path
from weakref import ref

import killed
import pandas as pd
import pytest
import torch

import editlib
from editlib.data.datasets import Case
from editlib.data.for_models import subject_tokens
from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.methods import compute
from editlib.editing.methods.ft import FtParams
from editlib.editing.methods.rome import Rome, RomeParams
from editlib.editing.session import Session
from editlib.editing.stats import MomentOptions, second_moments_of
from editlib.engine.perplexity import perplexity
from editlib.errors import EditlibError
from editlib.measuring.scores import continuation
from editlib.models.language_model import LanguageModel
from editlib.sweeps.parts import Parts, collect
from editlib.sweeps.single import sweep

sweep_module = importlib.import_module("editlib.sweeps.single")
rows_module = importlib.import_module("editlib.sweeps.rows")
COLUMNS = (  # design.md, section 6
    "case_id method subject prompt target_new subject_tokens subject_position perplexity_mean "
    "perplexity_corpus perplexity_ratio numerator denominator denominator_consistent delta_norm weight_norm "
    "seconds error"
).split()
SEARCH = RomeParams(layer=1, steps=3)
VARIANTS = {"rome": SEARCH, "c-rome": replace(SEARCH, keys="prefixed")}


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """A subject of one token at the start, and one of several tokens."""
    requests = [
        EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel", target_true="Quint"),
        EditRequest(prompt="The town of {} is located in", subject="Brast Nolva", target_new="Daslo"),
    ]
    return [Case(10 + i, request) for i, request in enumerate(requests)]


@pytest.fixture(scope="module")
def texts(corpus: list[str]) -> list[str]:
    return corpus[:6]


@pytest.fixture(scope="module")
def table(lm: LanguageModel, cases: list[Case], texts: list[str], corpus: list[str]) -> pd.DataFrame:
    return sweep(lm, cases, methods=VARIANTS, texts=texts, corpus=corpus, progress=False)


def test_there_is_a_row_for_every_case_and_method(table: pd.DataFrame) -> None:
    rows = list(zip(table["case_id"], table["method"], strict=True))
    assert rows == [(10, "rome"), (10, "c-rome"), (11, "rome"), (11, "c-rome")]
    assert table["error"].isna().all()


def test_columns_are_the_agreed_ones(table: pd.DataFrame) -> None:
    assert set(COLUMNS) <= set(table.columns)
    assert [*table.columns] == [*rows_module.SINGLE]


def test_a_row_is_what_the_single_steps_give(
    lm: LanguageModel, table: pd.DataFrame, cases: list[Case], texts: list[str], corpus: list[str]
) -> None:
    stats = second_moments_of(lm, [1], corpus=corpus)
    unedited = perplexity(lm, texts).mean
    for _, row in table.iterrows():
        request = cases[row["case_id"] - 10].request
        edit = compute(lm, [request], method=row["method"], hparams=SEARCH, stats=stats)
        with edit.applied(lm):
            edited = perplexity(lm, texts)
        assert row["perplexity_mean"] == pytest.approx(edited.mean, rel=1e-4)
        assert row["perplexity_corpus"] == pytest.approx(edited.corpus, rel=1e-4)
        assert row["perplexity_ratio"] == pytest.approx(edited.mean / unedited, rel=1e-4)
        for name in (
            "numerator",
            "denominator",
            "denominator_consistent",
            "delta_norm",
            "weight_norm",
            "steps",
        ):
            assert row[name] == pytest.approx(edit.diagnostics[name], rel=1e-3)
        assert (row["subject"], row["prompt"], row["target_new"]) == (
            request.subject, request.prompt, request.target_new,
        )  # fmt: skip


def test_subjects_are_described(table: pd.DataFrame) -> None:
    rows = table.drop_duplicates("case_id")
    assert rows["subject_tokens"].tolist()[0] == 1
    assert rows["subject_position"].tolist()[0] == 0
    assert rows["kind"].tolist() == ["one token, first", "several tokens"]


def test_weights_are_unchanged_afterwards(
    own: LanguageModel, cases: list[Case], texts: list[str], corpus: list[str]
) -> None:
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    sweep(own, cases, methods=VARIANTS, texts=texts, corpus=corpus, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in own.model.state_dict().items())


def test_methods_by_name_run_with_their_presets(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], corpus: list[str]
) -> None:
    table = sweep(gpt2, cases[:1], methods=["rome", "p-rome"], texts=texts, corpus=corpus, progress=False)
    assert table["method"].tolist() == ["rome", "p-rome"]
    assert (table["steps"] == 20).all()


def test_a_failing_case_is_a_row_with_its_error(
    lm: LanguageModel, cases: list[Case], texts: list[str], corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def located(lm: LanguageModel, request: EditRequest) -> object:
        if request.subject == "Zen":
            raise EditlibError("the tokens of subject 'Zen' cannot be located")
        return subject_tokens(lm, request)

    subject_tokens = rows_module.subject_tokens
    monkeypatch.setattr(rows_module, "subject_tokens", located)
    table = sweep(lm, cases, methods=VARIANTS, texts=texts, corpus=corpus, progress=False)
    assert table["method"].tolist() == ["rome", "c-rome"] * 2
    failed, fine = table[table["case_id"] == 10], table[table["case_id"] == 11]
    assert (failed["error"] == "the tokens of subject 'Zen' cannot be located").all()
    assert failed["perplexity_mean"].isna().all()
    assert fine["error"].isna().all()
    assert fine["perplexity_mean"].notna().all()


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (EditlibError("the subject is lost"), "the subject is lost"),
        (RuntimeError("no luck\nat all"), "RuntimeError: no luck at all"),
        (torch.linalg.LinAlgError("singular"), "LinAlgError: singular"),
    ],
)
@pytest.mark.parametrize(
    ("owner", "name"),
    [(Rome, "solve"), (Session, "prepare"), (sweep_module.scoring, "target_probability")],
)
def test_whatever_one_case_raises_is_its_error_alone(
    gpt2: LanguageModel,
    cases: list[Case],
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    said: str,
    owner: object,
    name: str,
) -> None:
    work = getattr(owner, name)

    def failing(*arguments: object, **more: object) -> object:
        if cases[0].request in arguments or any(cases[0].request in a for a in arguments if isinstance(a, list)):
            raise raised
        return work(*arguments, **more)

    variants = {name: replace(params, covariance=False) for name, params in VARIANTS.items()}
    expected = sweep(gpt2, cases[1:], methods=variants, texts=texts, progress=False)
    monkeypatch.setattr(owner, name, failing)
    table = sweep(gpt2, cases, methods=variants, texts=texts, progress=False)
    assert table["error"][:2].tolist() == [said] * 2 and table["error"][2:].isna().all()
    numbers = ["perplexity_mean", "target_probability", "denominator", "steps"]
    pd.testing.assert_frame_equal(table[2:].reset_index()[numbers], expected[numbers], rtol=1e-3)


def test_an_edit_that_cannot_be_measured_leaves_the_others_alone(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = sweep_module.Session.perplexities

    def failing(space: object, edits: list[Edit], texts: list[str]) -> object:
        if any(edit.requests[0].subject == "Zen" and edit.method == "rome" for edit in edits):
            raise ValueError("too large")
        return measure(space, edits, texts)

    monkeypatch.setattr(sweep_module.Session, "perplexities", failing)
    variants = {name: replace(params, covariance=False) for name, params in VARIANTS.items()}
    table = sweep(gpt2, cases, methods=variants, texts=texts, progress=False)
    assert table["error"].fillna("").tolist() == ["ValueError: too large", "", "", ""]
    assert table["perplexity_mean"].notna().tolist() == [False, True, True, True]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError])
def test_what_is_no_cases_fault_stops_the_sweep(
    gpt2: LanguageModel,
    cases: list[Case],
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    raised: type[BaseException],
) -> None:
    def stop(*_: object) -> None:
        raise raised

    monkeypatch.setattr(Rome, "solve", stop)
    with pytest.raises(raised):
        sweep(gpt2, cases, methods={"rome": replace(SEARCH, covariance=False)}, texts=texts, progress=False)


def test_scores_may_be_left_out(
    lm: LanguageModel, table: pd.DataFrame, cases: list[Case], texts: list[str], corpus: list[str]
) -> None:
    bare = sweep(lm, cases, methods=VARIANTS, texts=texts, corpus=corpus, scores=False, progress=False)
    left_out = [*rows_module.SCORES]
    assert bare[left_out].isna().all(axis=None) and table["efficacy_es"].notna().any()
    others = [name for name in table.columns if name not in (*left_out, "seconds")]
    pd.testing.assert_frame_equal(bare[others], table[others], check_exact=True)


def test_every_sentences_perplexity_is_there_if_wanted(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"methods": {"rome": replace(SEARCH, covariance=False)}, "texts": texts, "progress": False}
    plain = sweep(gpt2, cases, **options)
    monkeypatch.setattr(rows_module, "subject_tokens", lambda lm, request: _only("Zen", lm, request))
    table = sweep(gpt2, cases, per_sentence=True, **options)
    sentences, failed = table["perplexity_sentences"]
    assert len(sentences) == len(texts) and failed is None
    assert sentences.mean() == table["perplexity_mean"][0] == pytest.approx(plain["perplexity_mean"][0], rel=1e-3)
    assert "perplexity_sentences" not in plain


def _only(subject: str, lm: LanguageModel, request: EditRequest) -> object:
    if request.subject != subject:
        raise EditlibError("nowhere")
    return subject_tokens(lm, request)


def test_edits_of_full_rank_are_measured_a_few_at_a_time(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"methods": {"ft": FtParams(layer=1, steps=2)}, "texts": texts, "progress": False}
    together = sweep(gpt2, cases, **options)
    measure, sizes = sweep_module.Session.perplexities, list[int]()
    monkeypatch.setattr(sweep_module, "HELD", 0)
    monkeypatch.setattr(sweep_module.Session, "perplexities", lambda *a: (sizes.append(len(a[1])), measure(*a))[1])
    table = sweep(gpt2, cases, **options)
    assert max(sizes) == 1 < len(cases)
    assert table["perplexity_mean"].tolist() == pytest.approx(together["perplexity_mean"].tolist(), rel=1e-4)


def test_nothing_of_a_part_is_kept_for_the_next(
    gpt2: LanguageModel, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edits, alive, forget = list[ref[Edit]](), list[int](), sweep_module.Session.forget_requests

    def made(*arguments: object, **options: object) -> Edit:
        edits.append(ref(edit := make(*arguments, **options)))  # type: ignore[arg-type]
        return edit

    def forgetting(space: Session) -> None:
        forget(space)
        alive.append(len(space._found) + sum(edit() is not None for edit in edits))

    make = Session.edit
    monkeypatch.setattr(sweep_module, "PART", 2)
    monkeypatch.setattr(Session, "edit", made)
    monkeypatch.setattr(sweep_module.Session, "forget_requests", forgetting)
    methods = {"rome": replace(SEARCH, covariance=False), "ft": FtParams(layer=1, steps=1)}
    sweep(gpt2, killed.cases(7), methods=methods, texts=texts, progress=False)
    assert len(edits) == 14 and alive == [0, 0, 0, 0]


def test_a_summary_counts_failures_and_collapses() -> None:
    nothing = {"perplexity_ratio": math.nan, "seconds": 1.0}
    rows = [
        {"method": "rome", "perplexity_ratio": 1.0, "seconds": 2.0, "error": None},
        {"method": "rome", "perplexity_ratio": 5.0, "seconds": 2.0, "error": None},
        {"method": "rome", **nothing, "error": None},  # a result: the model is beyond numbers
        {"method": "rome", **nothing, "error": "nowhere"},
        {"method": "ft", **nothing, "error": "nowhere"},
    ]
    found = sweep_module.summary(pd.DataFrame(rows), collapse_ratio=5.0).to_dict("records")
    assert found[0] == {
        "method": "rome", "edits": 4, "failed": 1, "median_ratio": 5.0, "max_ratio": math.inf, "collapsed": 2,
        "seconds_per_edit": 1.5,
    }  # fmt: skip
    assert (found[1]["failed"], found[1]["collapsed"]) == (1, 0) and math.isnan(found[1]["median_ratio"])


def test_columns_are_there_even_if_every_case_fails(
    gpt2: LanguageModel,
    cases: list[Case],
    texts: list[str],
    corpus: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere(lm: LanguageModel, request: EditRequest) -> object:
        raise EditlibError("nowhere")

    monkeypatch.setattr(rows_module, "subject_tokens", nowhere)
    table = sweep(gpt2, cases, methods=VARIANTS, texts=texts, corpus=corpus, progress=False)
    assert set(COLUMNS) <= set(table.columns)
    assert len(table) == 4


def test_a_collapse_beyond_numbers_is_a_row_like_any_other(
    own: LanguageModel, cases: list[Case], texts: list[str], corpus: list[str]
) -> None:
    norm = own.model.get_submodule({"gpt2": "transformer.ln_f", "llama": "model.norm"}[own.model.config.model_type])
    norm.weight.mul_(1e5)  # type: ignore[operator]
    search = {"rome": replace(SEARCH, steps=1)}
    table = sweep(own, cases, methods=search, texts=texts, corpus=corpus, progress=False)
    assert table["perplexity_mean"].tolist() == [math.inf, math.inf]
    assert table["error"].isna().all()


def test_unknown_methods_no_cases_and_no_texts_are_refused(gpt2: LanguageModel, cases: list[Case]) -> None:
    with pytest.raises(EditlibError, match="^method 'x' is unknown"):
        sweep(gpt2, cases, methods=["x"], texts=["Zen is"])
    with pytest.raises(EditlibError, match="^no cases to edit; give at least one$"):
        sweep(gpt2, [], methods=["rome"], texts=["Zen is"])
    with pytest.raises(EditlibError, match="^no texts to measure perplexity on; give at least one$"):
        sweep(gpt2, cases, methods={"rome": replace(SEARCH, covariance=False)}, texts=[])


def test_names_shared_by_a_module_and_its_function_are_the_function() -> None:
    assert all(callable(getattr(editlib, name)) for name in ("sweep", "perplexity", "trace"))


# What may be asked for


def test_answers_are_kept_if_wanted(gpt2: LanguageModel, cases: list[Case], texts: list[str]) -> None:
    search = replace(SEARCH, covariance=False, steps=15)
    table = sweep(gpt2, cases, methods={"rome": search}, texts=texts, answers=True, progress=False)
    for case, (_, row) in zip(cases, table.iterrows(), strict=True):
        assert row["answer_before"] == continuation(gpt2, case.request.text)
        assert math.exp(sum(row["target_logprobs"])) == pytest.approx(row["target_probability"])
        ids = gpt2.tokenizer(f"{case.request.text} {case.request.target_new}")["input_ids"]
        tokens = ids[-len(row["target_logprobs_before"]) :]
        with torch.no_grad():
            logs = gpt2.model(torch.tensor([ids])).logits[0].log_softmax(-1)[-len(tokens) - 1 : -1]
        expected = logs[range(len(tokens)), tokens].tolist()
        assert row["target_logprobs_before"] == pytest.approx(expected, rel=1e-4)
        with compute(gpt2, case.request, method="rome", hparams=search).applied(gpt2):
            assert row["answer"] == continuation(gpt2, case.request.text)
    assert (table["answer"] != table["answer_before"]).any()


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at alloc_cpu.cpp:83] DefaultCPUAllocator: can't allocate memory",
        "CUDA error: device-side assert triggered",
    ],
)
def test_what_a_machine_lacks_is_no_cases_fault(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(Rome, "solve", failing)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator|CUDA error"):
        sweep(gpt2, cases, methods={"rome": replace(SEARCH, covariance=False)}, texts=texts, progress=False)


def test_failed_rows_are_made_again_on_request_and_the_others_stay(
    gpt2: LanguageModel, texts: list[str], tmp_path: Path
) -> None:
    variants = {name: replace(params, covariance=False) for name, params in VARIANTS.items()}
    options = {"methods": variants, "texts": texts, "out": tmp_path / "out", "per_sentence": True, "progress": False}
    chosen, solve, edited = killed.cases(5), Rome.solve, list[str]()

    def failing(*arguments: object) -> object:
        if arguments[2] == [chosen[3].request] and arguments[3].keys == "prefixed":  # type: ignore[attr-defined]
            raise ValueError("a cable was pulled")
        return solve(*arguments)  # type: ignore[arg-type]

    def counted(*arguments: object) -> object:
        edited.append(arguments[2][0].subject)  # type: ignore[index]
        return solve(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_module, "PART", 2)
        patch.setattr(Rome, "solve", failing)
        broken = sweep(gpt2, chosen, **options)
        assert broken["error"].notna().tolist() == [i == 7 for i in range(10)]
        patch.setattr(Rome, "solve", counted)
        still = sweep(gpt2, chosen, resume=True, **options)
        assert not edited and still["error"].notna().sum() == 1
        mended = sweep(gpt2, chosen, resume=True, retry_failed=True, **options)
        assert edited == [chosen[3].request.subject] * 2
    assert mended["error"].isna().all() and mended["method"].tolist() == broken["method"].tolist()
    others = mended.drop(index=7)
    pd.testing.assert_frame_equal(others, broken.drop(index=7), check_exact=True)
    options["out"] = None
    whole = sweep(gpt2, chosen, **options)
    assert mended["perplexity_mean"][7] == pytest.approx(whole["perplexity_mean"][7], rel=1e-4)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out"), mended, check_exact=True)


def test_parts_can_be_run_by_others_and_collected(
    gpt2: LanguageModel, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process gets the plan, a session of its own and a number."""
    monkeypatch.setattr(sweep_module, "PART", 2)
    variants = {name: replace(params, covariance=False) for name, params in VARIANTS.items()}
    plan = sweep_module.plan_sweep(Session(gpt2), killed.cases(5), methods=variants, texts=texts)
    sent = pickle.loads(pickle.dumps(plan))
    parts = Parts.of(tmp_path / "out", plan.record, plan.columns, resume=False)
    with parts.working():
        for number in (2, 0, 1):
            parts.write(number, sweep_module.run_part(Session(gpt2), sent, number))
    whole = sweep(gpt2, killed.cases(5), methods=variants, texts=texts, progress=False)
    pd.testing.assert_frame_equal(
        collect(tmp_path / "out").drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True
    )
    again = sweep(gpt2, killed.cases(5), methods=variants, texts=texts, out=tmp_path / "out", resume=True)
    pd.testing.assert_frame_equal(again, collect(tmp_path / "out"))


def test_rows_say_how_many_tokens_their_second_moments_are_of(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], corpus: list[str]
) -> None:
    options = {"texts": texts, "corpus": corpus, "moment_options": MomentOptions(tokens=640), "progress": False}
    variants = {"rome": SEARCH, "without": replace(SEARCH, covariance=False)}
    table = sweep(gpt2, cases[:1], methods=variants, **options)
    assert table["moment_tokens"].tolist() == [640, pd.NA]
    edit = compute(
        gpt2, cases[0].request, method="rome", hparams=SEARCH, corpus=corpus, moment_options=MomentOptions(tokens=640)
    )
    assert edit.diagnostics["moment_tokens"] == 640
    assert edit.diagnostics["moment_tokens_per_dimension"] == pytest.approx(640 / 24)


def test_a_single_request_and_records_are_cases(gpt2: LanguageModel, cases: list[Case], texts: list[str]) -> None:
    search = {"rome": replace(SEARCH, covariance=False)}
    record = {"prompt": "{} is located in", "subject": "Zen", "target_new": "Ostrel", "target_true": "Quint"}
    tables = [
        sweep(gpt2, given, methods=search, texts=texts, progress=False)
        for given in (cases[0].request, [record], pd.DataFrame([record]))
    ]
    for table in tables:
        assert table["case_id"].tolist() == [0] and table["error"].isna().all()
        pd.testing.assert_frame_equal(table.drop(columns="seconds"), tables[0].drop(columns="seconds"))


def test_code_that_changed_is_another_sweep(
    gpt2: LanguageModel, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"methods": {"rome": replace(SEARCH, covariance=False)}, "texts": texts, "out": tmp_path / "out"}
    sweep(gpt2, killed.cases(1), progress=False, **options)
    monkeypatch.setattr("editlib.sweeps.plan.rows_hash", lambda: "of tomorrow")
    with pytest.raises(EditlibError, match="holds a sweep that differs in its code; choose another"):
        sweep(gpt2, killed.cases(1), progress=False, resume=True, **options)
