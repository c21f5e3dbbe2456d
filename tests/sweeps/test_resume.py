"""A sweep's folder: however often it is interrupted, the table in the end is that of an undisturbed sweep."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import killed
import pandas as pd
import pytest

from editlib.data.datasets import Case
from editlib.editing.methods.rome import Rome
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.sweeps.parts import Parts
from editlib.sweeps.single import sweep

sweep_module = importlib.import_module("editlib.sweeps.single")
VARIANTS = {"rome": killed.SEARCH, "c-rome": replace(killed.SEARCH, keys="prefixed")}


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return killed.cases(5)


@pytest.fixture(scope="module")
def texts(corpus: list[str]) -> list[str]:
    return corpus[:6]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cases a part."""
    monkeypatch.setattr(sweep_module, "PART", 2)


@pytest.fixture
def swept(gpt2: LanguageModel, cases: list[Case], texts: list[str], tmp_path: Path) -> Path:
    """The folder of a finished sweep of three parts."""
    sweep(gpt2, cases, methods=VARIANTS, texts=texts, out=tmp_path / "swept", per_sentence=True, progress=False)
    return tmp_path / "swept"


@pytest.fixture(scope="module")
def model(gpt2: LanguageModel, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, with texts beside it."""
    folder = tmp_path_factory.mktemp("model")
    gpt2.model.save_pretrained(folder)
    gpt2.tokenizer.save_pretrained(folder)
    (folder / "prefixes.json").write_text(json.dumps({"contexts": ["{}", "Today. {}"]}))
    (folder / "texts.json").write_text(json.dumps(texts))
    return folder


def same(found: pd.DataFrame, expected: pd.DataFrame) -> bool:
    """Whether two tables are equal to the last bit but for the time they took."""
    pd.testing.assert_frame_equal(found.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True)
    return True


def test_rows_are_the_same_with_a_folder_and_without(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], swept: Path
) -> None:
    table = sweep(gpt2, cases, methods=VARIANTS, texts=texts, per_sentence=True, progress=False)
    assert same(pd.read_parquet(swept), table)
    assert sorted(path.name for path in swept.iterdir()) == [
        "_sweep.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet",
    ]  # fmt: skip


def test_a_finished_sweep_is_only_read(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(gpt2.model, "forward", work)
    options = {"methods": VARIANTS, "texts": texts, "per_sentence": True, "progress": False}
    table = sweep(gpt2, cases, out=swept, resume=True, **options)
    pd.testing.assert_frame_equal(table, pd.read_parquet(swept), check_exact=True)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_an_interrupted_sweep_goes_on(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], swept: Path, before: int, tmp_path: Path
) -> None:
    write, written = Parts.write, list[int]()

    def interrupted(parts: Parts, number: int, rows: object) -> object:
        if len(written) == before:
            raise KeyboardInterrupt
        written.append(number)
        return write(parts, number, rows)  # type: ignore[arg-type]

    options = {"methods": VARIANTS, "texts": texts, "per_sentence": True, "progress": False, "out": tmp_path / "new"}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, "write", interrupted)
        sweep(gpt2, cases, **options)
    assert len(list((tmp_path / "new").glob("part-*"))) == before
    assert same(sweep(gpt2, cases, resume=True, **options), pd.read_parquet(swept))
    assert same(pd.read_parquet(tmp_path / "new"), pd.read_parquet(swept))


def test_only_what_is_missing_or_damaged_is_computed(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, solve, solved = pd.read_parquet(swept), Rome.solve, list[str]()

    def counted(*arguments: object) -> object:
        solved.append(arguments[2][0].subject)  # type: ignore[index]
        return solve(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Rome, "solve", counted)
    (swept / "part-00001.parquet").write_bytes((swept / "part-00001.parquet").read_bytes()[:-100])
    (swept / ".part-00001.parquet.1234.writing").write_text("cut off")
    options = {"methods": VARIANTS, "texts": texts, "per_sentence": True, "progress": False}
    table = sweep(gpt2, cases, out=swept, resume=True, **options)
    assert same(table, before) and same(pd.read_parquet(swept), before)
    assert solved == [case.request.subject for case in cases[2:4] for _ in VARIANTS]
    assert not list(swept.glob("*.writing"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"methods": dict(reversed(VARIANTS.items()))}, "methods"),
        ({"methods": VARIANTS | {"rome": replace(killed.SEARCH, steps=3)}}, "methods"),
        ({"texts": ["Zen is located in Daslo."]}, "texts"),
        ({"cases": killed.cases(4)}, "cases"),
        ({"corpus": ["Zen"]}, "moments"),
        ({"prefixes": ["Yes. {}"]}, "prefixes"),
        ({"scores": False}, "scores"),
        ({"per_sentence": False}, "sentences"),
    ],
)
def test_another_sweep_is_refused(
    gpt2: LanguageModel, cases: list[Case], texts: list[str], swept: Path, changes: dict[str, object], named: str
) -> None:
    options = {"cases": cases, "methods": VARIANTS, "texts": texts, "per_sentence": True, "progress": False} | changes
    with pytest.raises(EditlibError, match=f"holds a sweep that differs in its {named}; choose another"):
        sweep(gpt2, options.pop("cases"), out=swept, resume=True, **options)  # type: ignore[arg-type]


@pytest.mark.slow  # what is left of a sweep, whole or damaged, is gone on with above
def test_a_killed_sweep_loses_and_repeats_nothing(model: Path, tmp_path: Path) -> None:
    hits = killed.run_whole_and_killed(killed.single_edits, model, tmp_path, kills=10)
    table = pd.read_parquet(tmp_path / "killed")
    assert same(table, pd.read_parquet(tmp_path / "whole"))
    assert table["case_id"].tolist() == list(range(200)) and table["error"].isna().all()
    assert hits >= 3  # else it was not disturbed
