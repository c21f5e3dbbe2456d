"""Prefix contexts are stored data: sampled once, then read."""

import copy
import json
from itertools import combinations
from pathlib import Path

import pytest
import torch

from editlib.engine import prefixes
from editlib.engine.passes import Passes
from editlib.engine.prefixes import prefix_contexts, sample
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.loading import load
from editlib.models.positions import later_by_one, placed
from editlib.models.tokens import prompt_ids


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
    for opener in prefixes.OPENERS["yang-2024"]:
        assert sum(context.startswith(opener) for context in contexts[:10]) >= 2
        assert sum(context.startswith(opener) for context in contexts[10:]) >= 2


@pytest.mark.parametrize("flavour", ["yang-2024", "meng-2022"])
def test_lengths_are_the_released_ones_and_count_the_opener(
    lm: LanguageModel, flavour: prefixes.Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, decode = list[list[int]](), lm.tokenizer.decode
    monkeypatch.setattr(prefixes, "OPENERS", {"yang-2024": ("T", "I"), "meng-2022": ("",)})  # of one token here
    monkeypatch.setattr(lm.tokenizer, "decode", lambda ids, **given: (decoded.append(ids), decode(ids, **given))[1])
    sample(lm, seed=0, flavour=flavour)
    assert [len(ids) for ids in decoded] == [5] * 10 + [10] * 10
    start = [lm.tokenizer.eos_token_id] if flavour == "meng-2022" else list(prompt_ids(lm.tokenizer, "T"))
    assert all(ids[: len(start)] == start for ids in (decoded[0], decoded[10]))


def test_every_token_is_one_of_the_five_likeliest_after_those_before(lm: LanguageModel) -> None:
    generator, openers = torch.Generator().manual_seed(0), ["Because the", "I", "You and"]
    rows = [[*prompt_ids(lm.tokenizer, opener)] for opener in openers]
    assert len({len(row) for row in rows}) > 1
    for row in prefixes.continued(Passes.of(lm), rows, 12, 5, generator):
        assert len(row) == 12 and any(row[: len(start)] == start for start in rows)
        likeliest = lm.model(torch.tensor([row])).logits[0].topk(5).indices
        begun = next(len(start) for start in rows if row[: len(start)] == start)
        assert all(row[i] in likeliest[i - 1] for i in range(begun, 12))


def test_texts_are_cleaned_as_in_the_released_codes(gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2.tokenizer, "decode", lambda *_, **__: "The \ufb01rst {one}\n\nof\ntwo")
    assert set(sample(gpt2, seed=0)) == {"The first one of\ntwo. {}"}


def test_what_an_earlier_rule_sampled_is_not_read(
    own: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(prefixes, "sample", lambda *_, **__: ["New. {}"])
    (tmp_path / "prefixes").mkdir()
    for end in ("", "-meng-2022", "-yang-2024-held-out", "-meng-2022-held-out"):  # of rule 1
        old = tmp_path / "prefixes" / f"{own.fingerprint[:16]}{end}.json"
        old.write_text(json.dumps({"contexts": ["{}", "Old. {}"]}))
    assert prefix_contexts(own) == prefix_contexts(own, flavour="meng-2022") == ["{}", "New. {}"]


def test_a_tokenizer_without_an_end_of_text_token_has_no_contexts_from_it(
    own: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path))
    mute = LanguageModel(own.model, copy.deepcopy(own.tokenizer), name=own.name)
    mute.tokenizer.eos_token = None
    with pytest.raises(EditlibError, match="has no end-of-text token, which meng-2022 prefixes continue$"):
        prefix_contexts(mute, flavour="meng-2022")
    assert len(prefix_contexts(mute)) == 21


def test_a_model_that_runs_with_hooks_is_not_sampled_from(
    own: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path))
    with (
        placed(own, later_by_one),
        pytest.raises(EditlibError, match="runs with hooks; ask for its prefixes outside"),
    ):
        prefix_contexts(own)
    assert not (tmp_path / "prefixes").exists() or not list((tmp_path / "prefixes").iterdir())


def test_each_flavour_has_contexts_and_held_out_prefixes_of_its_own(lm: LanguageModel) -> None:
    kinds: list[prefixes.Flavour] = ["yang-2024", "meng-2022"]
    sets = [set(prefix_contexts(lm, flavour=kind)) - {"{}"} for kind in kinds]
    sets += [set(prefixes.test_prefixes(lm, "held-out", n=10, seed=0, flavour=kind)) for kind in kinds]
    assert all(not one & other for one, other in combinations(sets, 2))


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
    stored = {"model": own.fingerprint, "rule": 2, "seed": 0, "flavour": "yang-2024", "contexts": first}
    assert json.loads(file.read_text()) == stored


def test_those_of_the_model_folder_come_first(gpt2: LanguageModel, tmp_path: Path) -> None:
    lm = in_folder(gpt2, tmp_path, '{"contexts": ["{}", "Indeed. {}"]}')
    assert prefix_contexts(lm) == ["{}", "Indeed. {}"]


def test_an_edited_model_is_not_sampled_from(
    own: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path))
    assert own.fingerprint
    own.weight(1).add_(1)
    with pytest.raises(EditlibError, match="is edited; ask for its prefixes before the edit$"):
        prefix_contexts(own)
    assert not list((tmp_path / "prefixes").iterdir())


def test_prefixes_of_the_editing_set_are_its_non_empty_ones(lm: LanguageModel) -> None:
    assert sorted(prefixes.test_prefixes(lm, "editing", n=20, seed=0)) == sorted(prefix_contexts(lm)[1:])


def test_held_out_prefixes_are_none_of_the_editing_set(lm: LanguageModel) -> None:
    drawn = prefixes.test_prefixes(lm, "held-out", n=5, seed=0)
    assert len(drawn) == 5
    assert not set(drawn) & set(prefix_contexts(lm))
    assert all(prefix.count("{}") == 1 and prefix.endswith(". {}") for prefix in drawn)


def test_a_held_out_sample_that_repeats_the_editing_set_is_never_drawn(
    own: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(prefixes, "sample", lambda *_, seed, **__: ["Indeed. {}", f"Number {seed}. {{}}"])
    assert prefixes.test_prefixes(own, "held-out", n=1, seed=0) == ["Number 1. {}"]
    with pytest.raises(EditlibError, match="^n=2 is out of range; there are 1 held-out prefixes, so choose 1 to 1$"):
        prefixes.test_prefixes(own, "held-out", n=2, seed=0)


def test_held_out_prefixes_are_sampled_once_and_then_read(
    own: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path))
    first = prefixes.test_prefixes(own, "held-out", n=10, seed=3)
    monkeypatch.setattr(prefixes, "sample", lambda *_, **__: pytest.fail("sampled again"))
    assert prefixes.test_prefixes(own, "held-out", n=10, seed=3) == first
    own.weight(1).add_(1)
    assert prefixes.test_prefixes(own, "held-out", n=10, seed=3) == first  # edited meanwhile: still the stored ones


@pytest.mark.parametrize("source", ["held-out", "editing"])
def test_draws_are_a_function_of_the_seed_and_without_replacement(lm: LanguageModel, source: prefixes.Source) -> None:
    draws = [prefixes.test_prefixes(lm, source, n=8, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_the_editing_set_of_a_shipped_model_is_the_shipped_one() -> None:
    lm = load("testbed/anchored")
    assert set(prefixes.test_prefixes(lm, "editing", n=3, seed=0)) < set(prefix_contexts(lm))


@pytest.mark.parametrize("n", [0, 21])
def test_more_prefixes_than_there_are_cannot_be_drawn(lm: LanguageModel, n: int) -> None:
    with pytest.raises(EditlibError, match=f"n={n} is out of range; there are 20 editing prefixes"):
        prefixes.test_prefixes(lm, "editing", n=n, seed=0)


def test_unknown_source_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(EditlibError, match="prefix source 'train' is unknown; use 'held-out' or 'editing'"):
        prefixes.test_prefixes(lm, "train", n=1, seed=0)  # type: ignore[arg-type]


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
