"""Prefix contexts are stored data: sampled once, then read."""

import json
from pathlib import Path

import pytest

from editlib import prefixes
from editlib.errors import EditlibError
from editlib.model import LanguageModel
from editlib.prefixes import prefix_contexts, sample


def in_folder(lm: LanguageModel, folder: Path, content: str) -> LanguageModel:
    (folder / "prefixes.json").write_text(content)
    return LanguageModel(lm.model, lm.tokenizer, folder=folder)


def test_there_are_the_empty_one_and_twenty_sampled_ones(lm: LanguageModel) -> None:
    contexts = prefix_contexts(lm)
    assert contexts[0] == "{}"
    assert len(contexts) == 21
    assert all(context.count("{") == context.count("}") == context.count("{}") == 1 for context in contexts)
    assert all(context.endswith(". {}") for context in contexts[1:])


def test_two_contexts_of_each_opener_and_length(gpt2: LanguageModel) -> None:
    contexts = sample(gpt2, seed=0)
    for opener in prefixes.OPENERS:
        assert sum(context.startswith(opener) for context in contexts[:10]) >= 2
        assert sum(context.startswith(opener) for context in contexts[10:]) >= 2


def test_samples_are_a_function_of_model_and_seed(gpt2: LanguageModel) -> None:
    assert sample(gpt2, seed=0) == sample(gpt2, seed=0)
    assert sample(gpt2, seed=0) != sample(gpt2, seed=1)


def test_they_are_sampled_once_and_then_read(
    own: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path))
    first = prefix_contexts(own)
    monkeypatch.setattr(prefixes, "sample", lambda *_, **__: pytest.fail("sampled again"))
    assert prefix_contexts(own) == first
    (file,) = (tmp_path / "prefixes").iterdir()
    assert json.loads(file.read_text()) == {"model": own.fingerprint, "seed": 0, "contexts": first}


def test_those_of_the_model_folder_come_first(gpt2: LanguageModel, tmp_path: Path) -> None:
    lm = in_folder(gpt2, tmp_path, '{"contexts": ["{}", "Indeed. {}"]}')
    assert prefix_contexts(lm) == ["{}", "Indeed. {}"]


@pytest.mark.parametrize(
    "content",
    [
        '{"contexts": []}',
        '{"contexts": ["Indeed. {}"]}',
        '{"contexts": ["{}", "Indeed."]}',
        '{"contexts": ["{}", "{} {}"]}',
        '{"contexts": [',
        "{}",
        "[]",
    ],
)
def test_a_damaged_file_is_refused(gpt2: LanguageModel, tmp_path: Path, content: str) -> None:
    with pytest.raises(EditlibError, match=r"prefixes\.json must list templates with one {} each, the empty one first"):
        prefix_contexts(in_folder(gpt2, tmp_path, content))
