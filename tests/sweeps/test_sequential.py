"""Edits on top of each other in a table."""

import importlib
import json
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import killed
import pandas as pd
import pytest
import torch

from editlib import data
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.methods import compute
from editlib.editing.methods.ft import FtParams
from editlib.editing.methods.memit import MemitParams
from editlib.editing.methods.rome import Rome, RomeParams
from editlib.editing.stats import Stats
from editlib.engine.perplexity import perplexity
from editlib.engine.prefixes import prefix_contexts
from editlib.errors import EditlibError
from editlib.measuring.scores import continuation, target_probability
from editlib.models.language_model import LanguageModel
from editlib.models.loading import load as load_model
from editlib.sweeps.parts import Parts
from editlib.sweeps.rows import SEQUENTIAL
from editlib.sweeps.sequential import sequence

sequence_module = importlib.import_module("editlib.sweeps.sequential")
steps_module = importlib.import_module("editlib.sweeps.steps")
session_module = importlib.import_module("editlib.editing.session")
SEARCH = RomeParams(layer=1, steps=3)
METHODS = {
    "c-rome": replace(SEARCH, keys="prefixed"),
    "memit": MemitParams(layers=(0, 1), steps=3, moment_weight=10),
    "ft": FtParams(layer=1, steps=2, learning_rate=0.05),
}


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    asked = [("Zen", "Ostrel"), ("Brast Nolva", "Daslo"), ("Uvo", "Parvo"), ("Marend", "Quint"), ("Triskel", "Daslo")]
    return [
        Case(10 + i, EditRequest(prompt="{} is located in", subject=subject, target_new=target))
        for i, (subject, target) in enumerate(asked)
    ]


@pytest.fixture(scope="module")
def texts(corpus: list[str]) -> list[str]:
    return corpus[:6]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps a part."""
    monkeypatch.setattr(sequence_module, "PART", 2)


def weights(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def restored(lm: LanguageModel, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


def same(found: pd.DataFrame, expected: pd.DataFrame) -> bool:
    """Whether two tables are equal to the last bit but for the time they took."""
    pd.testing.assert_frame_equal(found.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True)
    return True


# What is measured


@pytest.mark.parametrize("method", METHODS)
def test_edits_accumulate_as_in_nested_blocks(
    own: LanguageModel, cases: list[Case], texts: list[str], moments: Stats, method: str
) -> None:
    before, params = weights(own), METHODS[method]
    table = sequence(own, cases, methods={method: params}, texts=texts, stats=moments, progress=False)
    assert restored(own, before)
    unedited = perplexity(own, texts)
    assert table["perplexity_mean"][0] == pytest.approx(unedited.mean, rel=1e-5)
    with ExitStack() as stack:
        for case, (_, row) in zip(cases, table[1:].iterrows(), strict=True):
            edit = compute(own, [case.request], method=method, hparams=params, stats=moments)
            stack.enter_context(edit.applied(own))
            measured = perplexity(own, texts)
            assert row["perplexity_mean"] == pytest.approx(measured.mean, rel=1e-3)
            assert row["perplexity_corpus"] == pytest.approx(measured.corpus, rel=1e-3)
            assert row["perplexity_ratio"] == pytest.approx(measured.mean / unedited.mean, rel=1e-3)
            for name in ("delta_norm", "weight_norm", "steps"):
                assert row[name] == pytest.approx(edit.diagnostics[name], rel=1e-3)


def test_there_is_a_row_for_the_unedited_model_and_for_every_edit(
    gpt2: LanguageModel, cases: list[Case], texts: list[str]
) -> None:
    search = {"rome": replace(SEARCH, covariance=False)}
    table = sequence(gpt2, cases, methods=search, texts=texts, every=2, progress=False)
    assert [*table.columns] == [*SEQUENTIAL]
    assert table["step"].tolist() == [0, 1, 2, 3, 4, 5] and table["case_id"][1:].tolist() == [10, 11, 12, 13, 14]
    assert table["measured"].tolist() == [True, False, True, False, True, True]  # the last one too
    assert table["perplexity_mean"].notna().tolist() == table["measured"].tolist()
    assert table["perplexity_ratio"][0] == 1 and table["denominator"][1:].notna().all() and table["error"].isna().all()
    assert table["subject"][1:].tolist() == [case.request.subject for case in cases] and pd.isna(table["subject"][0])


def test_one_request_is_a_sequence_of_one_edit(gpt2: LanguageModel, cases: list[Case], texts: list[str]) -> None:
    search = {"rome": replace(SEARCH, covariance=False)}
    table = sequence(gpt2, cases[0].request, methods=search, texts=texts, progress=False)
    assert table["step"].tolist() == [0, 1] and table["error"].isna().all()


def test_measuring_seldom_changes_no_edit(gpt2: LanguageModel, cases: list[Case], texts: list[str]) -> None:
    search = {"rome": replace(SEARCH, covariance=False)}
    often, seldom = (
        sequence(gpt2, cases, methods=search, texts=texts, every=every, progress=False) for every in (1, 5)
    )
    numbers = ["delta_norm", "denominator", "target_probability"]
    pd.testing.assert_frame_equal(often[numbers], seldom[numbers], check_exact=True)
    assert often["perplexity_mean"][5] == seldom["perplexity_mean"][5]


def test_methods_are_sequences_of_their_own(
    lm: LanguageModel, cases: list[Case], texts: list[str], moments: Stats
) -> None:
    options = {"texts": texts, "stats": moments, "progress": False}
    alone = [sequence(lm, cases, methods={name: params}, **options) for name, params in METHODS.items()]
    assert same(sequence(lm, cases, methods=METHODS, **options), pd.concat(alone, ignore_index=True))


def test_contexts_and_moments_are_the_unedited_models(
    own: LanguageModel, cases: list[Case], texts: list[str], corpus: list[str], moments: Stats
) -> None:
    contexts = prefix_contexts(own)
    search = {"rome": replace(SEARCH, layer=0)}
    table = sequence(own, cases, methods=search, texts=texts, corpus=corpus, progress=False)
    assert table["error"].isna().all() and prefix_contexts(own) == contexts


def test_moments_are_factorised_once_for_all_steps(
    own: LanguageModel, cases: list[Case], texts: list[str], moments: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    factor, factored = session_module._factor, list[torch.Tensor]()

    def counted(moment: torch.Tensor) -> torch.Tensor:
        factored.append(moment)
        return factor(moment)

    monkeypatch.setattr(session_module, "_factor", counted)
    search = {"rome": SEARCH, "memit": METHODS["memit"]}
    table = sequence(own, cases, methods=search, texts=texts, stats=moments, progress=False)
    assert table["error"].isna().all() and len(factored) == 2  # of layers 0 and 1


def test_at_the_end_the_model_has_all_edits_of_a_method(
    own: LanguageModel, cases: list[Case], texts: list[str], tmp_path: Path
) -> None:
    found = dict[str, float]()
    methods = {"rome": replace(SEARCH, covariance=False), "ft": METHODS["ft"]}
    options = {"methods": methods, "texts": texts, "out": tmp_path / "out", "progress": False}
    at_end = lambda name: found.update({name: perplexity(own, texts).mean})  # noqa: E731
    table = sequence(own, cases, at_end=at_end, **options)
    last = table[table["step"] == len(cases)].set_index("method")["perplexity_mean"]
    assert found == pytest.approx(last.to_dict(), rel=1e-5)
    found.clear()
    again = sequence(own, cases, at_end=at_end, resume=True, **options)
    pd.testing.assert_frame_equal(again, table)  # with the seconds, since nothing is edited again
    assert found == pytest.approx(last.to_dict(), rel=1e-5)
    assert perplexity(own, texts).mean == pytest.approx(table["perplexity_mean"].iloc[0])  # the model is as it was


def test_what_a_finished_sequence_ended_with_is_made_again_if_it_is_asked_for_and_was_not_kept(
    own: LanguageModel, cases: list[Case], texts: list[str], tmp_path: Path
) -> None:
    options = {"methods": {"ft": METHODS["ft"]}, "texts": texts, "out": tmp_path / "out", "progress": False}
    table, found = sequence(own, cases[:2], **options), list[str]()
    assert not list((tmp_path / "out").glob("_end-*"))
    assert same(sequence(own, cases[:2], at_end=found.append, resume=True, **options), table)
    (tmp_path / "out" / "_end-00000.safetensors").write_bytes(b"half")
    assert same(sequence(own, cases[:2], at_end=found.append, resume=True, **options), table) and found == ["ft"] * 2


def test_nan_is_a_measured_result(own: LanguageModel, cases: list[Case], texts: list[str]) -> None:
    own.weight(1).mul_(math.nan)
    table = sequence(own, cases[:1], methods={"ft": METHODS["ft"]}, texts=texts, every=1, progress=False)
    assert table["measured"].all() and table["perplexity_mean"].isna().all() and table["error"].isna().all()


# What can go wrong


def test_a_failing_edit_is_a_row_and_changes_nothing(
    own: LanguageModel, cases: list[Case], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, solve = weights(own), Rome.solve

    def failing(*arguments: object) -> object:
        if arguments[2] == [cases[1].request]:
            raise torch.linalg.LinAlgError("no luck\nat all")
        return solve(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Rome, "solve", failing)
    search = {"rome": replace(SEARCH, covariance=False)}
    table = sequence(own, cases, methods=search, texts=texts, progress=False)
    assert table["error"].fillna("").tolist() == ["", "", "LinAlgError: no luck at all", "", "", ""]
    assert table["perplexity_mean"][2] == table["perplexity_mean"][1] and table["measured"].all()
    without = sequence(own, [cases[0], *cases[2:]], methods=search, texts=texts, progress=False)
    assert table["perplexity_mean"][5] == without["perplexity_mean"][4]
    assert restored(own, before)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError])
def test_an_interruption_restores_the_weights_and_can_be_gone_on_from(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], raised: type[BaseException], tmp_path: Path
) -> None:
    before, solve = weights(gpt2), Rome.solve

    def stopping(*arguments: object) -> object:
        if arguments[2] == [cases[3].request]:
            raise raised
        return solve(*arguments)  # type: ignore[arg-type]

    methods = {"rome": replace(SEARCH, covariance=False), "ft": METHODS["ft"]}
    options = {"methods": methods, "texts": texts, "progress": False}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(raised):
        patch.setattr(Rome, "solve", stopping)
        sequence(gpt2, cases, out=tmp_path / "out", **options)
    assert restored(gpt2, before)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "_sweep.json", "_weights-00002.safetensors", "part-00000.parquet", "part-00001.parquet",
    }  # fmt: skip
    whole = sequence(gpt2, cases, **options)
    assert same(sequence(gpt2, cases, out=tmp_path / "out", resume=True, **options), whole)
    assert same(pd.read_parquet(tmp_path / "out"), whole) and restored(gpt2, before)
    assert not list((tmp_path / "out").glob("_weights*"))  # of no use any more


def test_going_on_computes_only_what_is_missing(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve, write, edited = Rome.solve, Parts.write, list[str]()

    def counted(*arguments: object) -> object:
        edited.append(arguments[2][0].subject)  # type: ignore[index]
        return solve(*arguments)  # type: ignore[arg-type]

    def stopping(parts: Parts, number: int, rows: pd.DataFrame) -> pd.DataFrame:
        if number == 2:
            raise KeyboardInterrupt
        return write(parts, number, rows)

    options = {"methods": {"rome": replace(SEARCH, covariance=False)}, "texts": texts, "out": tmp_path / "out"}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, "write", stopping)
        sequence(gpt2, cases, progress=False, **options)
    monkeypatch.setattr(Rome, "solve", counted)
    table = sequence(gpt2, cases, resume=True, progress=False, **options)
    assert edited == [case.request.subject for case in cases[3:]]  # steps 4 and 5
    monkeypatch.setattr(gpt2.model, "forward", None)  # a finished one is only read
    assert same(sequence(gpt2, cases, resume=True, progress=False, **options), table)


@pytest.mark.parametrize("damaged", ["_weights-00002.safetensors", "part-00000.parquet"])
def test_what_is_damaged_is_computed_again(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], damaged: str, tmp_path: Path
) -> None:
    write = Parts.write

    def stopping(parts: Parts, number: int, rows: pd.DataFrame) -> pd.DataFrame:
        if number == 2:
            raise KeyboardInterrupt
        return write(parts, number, rows)

    options = {"methods": {"rome": replace(SEARCH, covariance=False)}, "texts": texts, "progress": False}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, "write", stopping)
        sequence(gpt2, cases, out=tmp_path / "out", **options)
    path = tmp_path / "out" / damaged
    path.write_bytes(path.read_bytes()[:-10])
    table = sequence(gpt2, cases, out=tmp_path / "out", resume=True, **options)
    assert same(table, sequence(gpt2, cases, **options)) and same(pd.read_parquet(tmp_path / "out"), table)


def test_mistakes_are_refused(gpt2: LanguageModel, cases: list[Case], texts: list[str], tmp_path: Path) -> None:
    options = {"methods": {"ft": METHODS["ft"]}, "texts": texts, "out": tmp_path / "out", "progress": False}
    with pytest.raises(EditlibError, match=r"^every=0 is out of range; measure after every 1 edit or more$"):
        sequence(gpt2, cases, every=0, **options)
    with pytest.raises(EditlibError, match=r"^no cases to edit"):
        sequence(gpt2, [], **options)
    assert not (tmp_path / "out").exists()
    sequence(gpt2, cases, **options)
    with pytest.raises(EditlibError, match="differs in its every"):
        sequence(gpt2, cases, every=2, resume=True, **options)


@pytest.mark.slow  # what is left of a sequence, whole or damaged, is gone on with below
def test_a_killed_sequence_loses_and_repeats_nothing(gpt2: LanguageModel, texts: list[str], tmp_path: Path) -> None:
    gpt2.model.save_pretrained(tmp_path / "model")
    gpt2.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "prefixes.json").write_text(json.dumps({"contexts": ["{}", "Today. {}"]}))
    (tmp_path / "model" / "texts.json").write_text(json.dumps(texts))
    hits = killed.run_whole_and_killed(killed.sequential_edits, tmp_path / "model", tmp_path, kills=3)
    table = pd.read_parquet(tmp_path / "killed")
    assert same(table, pd.read_parquet(tmp_path / "whole"))
    assert table["step"].tolist() == [*range(17)] * 2 and table["error"].isna().all()
    assert hits >= 1  # else it was not disturbed


# What may be asked for


def test_every_edit_is_tested_again_at_the_end(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], tmp_path: Path
) -> None:
    search = {"rome": replace(SEARCH, covariance=False, steps=12)}
    options = {"methods": search, "texts": texts, "retest": True, "answers": True, "progress": False}
    found = dict[int, tuple[float, str]]()

    def at_end(_: str) -> None:
        for case in cases:
            request = case.request
            found[case.case_id] = (
                target_probability(gpt2, request, request.target_new),
                continuation(gpt2, request.text),
            )

    table = sequence(gpt2, cases, at_end=at_end, out=tmp_path / "out", **options)
    then, now = (table[table["retest"] == again].dropna(subset="case_id") for again in (False, True))
    assert then["step"].tolist() == now["step"].tolist() == [1, 2, 3, 4, 5]
    assert now["case_id"].tolist() == [case.case_id for case in cases] and not now["measured"].any()
    assert now["target_probability"].tolist() == pytest.approx([p for p, _ in found.values()], rel=1e-5)
    assert now["answer"].tolist() == [answer for _, answer in found.values()]
    for rows in (then, now):
        assert rows["efficacy_em_tf"].between(0, 1).all()
    last = then.iloc[-1], now.iloc[-1]  # nothing came after it
    assert last[0]["target_probability"] == pytest.approx(last[1]["target_probability"], rel=1e-5)
    assert last[0]["efficacy_em_ar"] == last[1]["efficacy_em_ar"] and last[0]["answer"] == last[1]["answer"]
    summed = sequence_module.summary(table)
    assert summed["edits"].tolist() == [5] and summed["failed"].tolist() == [0]
    again = sequence(gpt2, cases, out=tmp_path / "out", resume=True, **options)
    assert same(again, table)
    (tmp_path / "out" / "part-00003.parquet").unlink()  # the retest alone; the weights before it are gone
    assert same(sequence(gpt2, cases, out=tmp_path / "out", resume=True, **options), table)


def test_a_sequence_with_a_failed_edit_is_run_again_on_request(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], tmp_path: Path
) -> None:
    solve = Rome.solve

    def failing(*arguments: object) -> object:
        if arguments[2] == [cases[2].request]:
            raise ValueError("a cable was pulled")
        return solve(*arguments)  # type: ignore[arg-type]

    options = {"methods": {"rome": replace(SEARCH, covariance=False)}, "texts": texts, "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rome, "solve", failing)
        broken = sequence(gpt2, cases, out=tmp_path / "out", **options)
    assert broken["error"].notna().sum() == 1
    assert same(sequence(gpt2, cases, out=tmp_path / "out", resume=True, **options), broken)
    whole = sequence(gpt2, cases, **options)
    write = Parts.write

    def stopping(parts: Parts, number: int, rows: pd.DataFrame) -> pd.DataFrame:
        if number == 2:
            raise KeyboardInterrupt
        return write(parts, number, rows)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, "write", stopping)
        sequence(gpt2, cases, out=tmp_path / "out", resume=True, retry_failed=True, **options)
    left = sorted(path.name for path in (tmp_path / "out").glob("part-*"))
    assert left == ["part-00000.parquet", "part-00001.parquet"]  # none that follows from the failed edit
    assert same(sequence(gpt2, cases, out=tmp_path / "out", resume=True, **options), whole)


def test_weights_are_read_once_for_all_parts_that_follow(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read, reads = Parts.write, steps_module.load_file, list[Path]()

    def stopping(parts: Parts, number: int, rows: pd.DataFrame) -> pd.DataFrame:
        if number == 1:
            raise KeyboardInterrupt
        return write(parts, number, rows)

    options = {"methods": {"rome": replace(SEARCH, covariance=False)}, "texts": texts, "out": tmp_path / "out"}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, "write", stopping)
        sequence(gpt2, cases, progress=False, **options)
    monkeypatch.setattr(steps_module, "load_file", lambda path: (reads.append(path), read(path))[1])
    sequence(gpt2, cases, resume=True, progress=False, **options)
    assert len(reads) == 1


def test_an_editor_is_read_once_for_a_whole_sequence(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mend = importlib.import_module("editlib.editing.methods.mend")
    load, loads = mend.load_editor, list[object]()
    monkeypatch.setattr(mend, "load_editor", lambda *given: (loads.append(given), load(*given))[1])
    lm = load_model("testbed/anchored")
    chosen = data.cases("testbed")[:3]
    table = sequence(lm, chosen, methods="mend", texts=data.texts("testbed-ppl-50")[:3], progress=False)
    assert table["error"].isna().all() and len(loads) == 1


# Guards


def test_a_guard_leaves_out_what_may_break_the_model_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    lm, texts = load_model("testbed/anchored"), data.texts("testbed-ppl-50")[:10]
    pool = {case.case_id: case for case in data.cases("testbed")}
    first = next(case for case in pool.values() if case.request.prompt.startswith("{}") and case.case_id == 0)
    later = next(case for case in pool.values() if not case.request.prompt.startswith("{}"))
    free = sequence(lm, [first, later], methods="rome", texts=texts, progress=False)
    kept = sequence(lm, [first, later], methods="rome", texts=texts, guard="skip", progress=False)
    assert free["error"].isna().all() and free["perplexity_ratio"].iloc[-1] > 5
    assert kept["error"].notna().tolist() == [False, True, False]
    assert kept["error"][1].startswith("this rome edit may break testbed/anchored: its severity is ")
    assert kept["perplexity_ratio"].iloc[1] == 1.0 and kept["perplexity_ratio"].iloc[-1] < 1.1
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    warned = sequence(lm, [first, later], methods="rome", texts=texts, guard="warn", progress=False)
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    pd.testing.assert_frame_equal(warned.drop(columns="seconds"), free.drop(columns="seconds"))
    with pytest.raises(EditlibError, match="^guard 'skp' is unknown; did you mean skip"):
        sequence(lm, [first], methods="rome", texts=texts, guard="skp", progress=False)  # type: ignore[arg-type]
