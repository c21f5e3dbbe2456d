"""Independent single edits in a table."""

import importlib
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

import editlib
from editlib.data import Case
from editlib.edit import EditRequest
from editlib.errors import EditlibError
from editlib.methods import compute
from editlib.methods.rome import RomeParams
from editlib.model import LanguageModel
from editlib.perplexity import perplexity
from editlib.stats import second_moments_of
from editlib.sweep import sweep

sweep_module = importlib.import_module("editlib.sweep")  # `editlib.sweep` itself is the function
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
    assert tuple(table.columns) == sweep_module.COLUMNS


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

    subject_tokens = sweep_module.subject_tokens
    monkeypatch.setattr(sweep_module, "subject_tokens", located)
    table = sweep(lm, cases, methods=VARIANTS, texts=texts, corpus=corpus, progress=False)
    assert table["method"].tolist() == ["rome", "c-rome"] * 2
    failed, fine = table[table["case_id"] == 10], table[table["case_id"] == 11]
    assert (failed["error"] == "the tokens of subject 'Zen' cannot be located").all()
    assert failed["perplexity_mean"].isna().all()
    assert fine["error"].isna().all()
    assert fine["perplexity_mean"].notna().all()


def test_columns_are_there_even_if_every_case_fails(
    gpt2: LanguageModel,
    cases: list[Case],
    texts: list[str],
    corpus: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere(lm: LanguageModel, request: EditRequest) -> object:
        raise EditlibError("nowhere")

    monkeypatch.setattr(sweep_module, "subject_tokens", nowhere)
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
