"""The engine gives what the plain path gives, on every family, for any request; only the order of sums differs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import CONFIGS, CONTEXTS, random_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from editlib.bench import plain
from editlib.data.request import EditRequest
from editlib.editing.change import LowRank
from editlib.editing.edit import Edit
from editlib.editing.methods import compute
from editlib.editing.methods.rome import RomeParams
from editlib.editing.session import Session
from editlib.engine import search as searching
from editlib.engine.passes import Passes, Past, Start, Tokens
from editlib.engine.perplexity import perplexity
from editlib.engine.search import Live
from editlib.engine.sites import Site, site_of
from editlib.engine.values import Prefixes, ValueParams, read_keys, rows_of
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel

LAYER = 1
SEARCH = ValueParams(steps=7, learning_rate=0.1, kl_weight=0.5, stop_loss=0.0, clamp=0.8)
REQUESTS = [
    EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel"),
    EditRequest(prompt="The town of {} is located in", subject="Brast Nolva", target_new="Daslo and Quint"),
    EditRequest(prompt="Near the sea, since the long winter, lies {}", subject="Uvo", target_new="Parvo"),
    EditRequest(prompt="Zen, yes {}, is in", subject="Zen", target_new="Ostrel xyz"),
]
TEXTS = ["Zen is located in Daslo, near the sea.", "Today.", "The town of Brast Nolva is known for its bells."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder with nothing in it but a few prefix contexts."""
    place = tmp_path_factory.mktemp("prefixes")
    (place / "prefixes.json").write_text(json.dumps({"contexts": CONTEXTS}))
    return place


@pytest.fixture(autouse=True)
def whole(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Keep float64 models whole: some compute norms and attention in float32 whatever their dtype."""
    if "single" not in request.fixturenames:
        monkeypatch.setattr(torch, "float32", torch.float64)
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture(scope="module", params=CONFIGS)
def double(request: pytest.FixtureRequest, folder: Path, start_tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """A random model of each family in turn, in float64."""
    return LanguageModel(random_model(request.param).double(), start_tokenizer, folder=folder)


@pytest.fixture(scope="module")
def single(double: LanguageModel, start_tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """The same model in float32."""
    family = next(name for name, config in CONFIGS.items() if type(config) is type(double.model.config))
    return LanguageModel(random_model(family), start_tokenizer, folder=double.folder)


def near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return float((found - expected).norm()) <= tolerance * float(expected.norm())


def names(lm: LanguageModel) -> list[str]:
    """A down-projection, and a block."""
    return [lm.layout.name(LAYER), f"{lm.layout.blocks}.{LAYER}"]


# Partial passes


def test_a_pass_behind_a_past_and_from_the_middle_is_the_whole_pass(double: LanguageModel) -> None:
    rows = [double.tokenizer(text)["input_ids"] for text in TEXTS]
    cuts, passes = (2, 0, 3), Passes.of(double)
    block = f"{double.layout.blocks}.{LAYER}"
    with torch.no_grad():
        whole = [double.model(torch.tensor([row])).logits[0] for row in rows]
        early = passes.run(Tokens.of(double, [row[: n or 1] for row, n in zip(rows, cuts, strict=True)])).new
        known = torch.arange(early.mask.shape[1]) < torch.tensor(cuts)[:, None]
        past = passes.nothing(3).with_new(Past(early.past_key_values, known.long()))
        tail = Tokens.of(double, [row[n:] for row, n in zip(rows, cuts, strict=True)])
        at = torch.tensor([0, 1, 2]), torch.tensor([len(row) - n - 1 for row, n in zip(rows, cuts, strict=True)])
        run = passes.run(tail, past, names=[block], at=at)
        again = passes.run(tail, past, start=Start(LAYER + 1, run.seen[block].output), at=at)
    for i, expected in enumerate(whole):
        torch.testing.assert_close(run.logits[i], expected[-1])
        torch.testing.assert_close(again.logits[i], expected[-1])


def test_a_partial_pass_leaves_the_model_as_it_was(double: LanguageModel) -> None:
    ids = torch.tensor([double.tokenizer(TEXTS[0])["input_ids"]])
    passes = Passes.of(double)
    with torch.no_grad():
        before = double.model(ids).logits
        with pytest.raises(RuntimeError):  # of the wrong width
            passes.run(Tokens(ids, torch.ones_like(ids)), start=Start(2, torch.zeros(1, ids.shape[1], 3)))
        assert torch.equal(double.model(ids).logits, before)


# Keys and v*


@pytest.mark.parametrize("which", [0, 1])
def test_searches_side_by_side_are_the_plain_ones(double: LanguageModel, which: int) -> None:
    space, name = Session(double), names(double)[which]
    space.prepare(name, REQUESTS, SEARCH)
    for request in REQUESTS:
        keys, target = (
            read_keys(double, LAYER, request, CONTEXTS),
            plain.target(double, name, request, CONTEXTS, SEARCH),
        )
        found = space.targets(name, [request], SEARCH)[0]
        assert near(space.keys(LAYER, request, "yang-2024").inputs, keys.inputs, 1e-8)
        assert near(space.keys(LAYER, request, "yang-2024").outputs, keys.outputs, 1e-8)
        assert near(found.start, target.start, 1e-8) and near(found.change, target.change, 1e-8)
        assert found.losses == pytest.approx(target.losses, rel=1e-8)


def test_in_single_precision_rounding_is_amplified_but_little(single: LanguageModel) -> None:
    space, name = Session(single), names(single)[0]
    space.prepare(name, REQUESTS, SEARCH)
    for request in REQUESTS:
        target = plain.target(single, name, request, CONTEXTS, SEARCH)
        assert near(space.targets(name, [request], SEARCH)[0].value, target.value, 1e-3)
        assert space.targets(name, [request], SEARCH)[0].losses == pytest.approx(target.losses, rel=1e-3)


def test_every_search_stops_for_itself(lm: LanguageModel, folder: Path) -> None:
    own = LanguageModel(lm.model, lm.tokenizer, folder=folder)
    name = names(own)[0]
    slow = replace(SEARCH, steps=14, learning_rate=0.02)
    finals = [plain.target(own, name, r, CONTEXTS, slow).losses for r in REQUESTS]
    stop = sorted(losses[4] for losses in finals)[1] + 1e-4  # some stop before the others
    search = replace(slow, stop_loss=stop)
    expected = [plain.target(own, name, r, CONTEXTS, search) for r in REQUESTS]
    assert len({len(target.losses) for target in expected}) > 1
    space = Session(own)
    space.prepare(name, REQUESTS, search)
    for request, target in zip(REQUESTS, expected, strict=True):
        found = space.targets(name, [request], search)[0]
        assert found.losses == pytest.approx(target.losses, rel=1e-3)
        assert near(found.value, target.value, 1e-3)


words = st.sampled_from("Zen Brast Nolva Uvo Daslo the town sea winter bells river today xyz".split())
phrases = st.lists(words, min_size=1, max_size=4).map(" ".join)
beginnings = st.lists(words, max_size=4).map(lambda found: "".join(f"{word} " for word in found))
ends = st.lists(words, max_size=4).map(lambda found: "".join(f" {word}" for word in found))
requests = st.builds(
    lambda before, subject, after, new: EditRequest(prompt=f"{before}{{}}{after}", subject=subject, target_new=new),
    beginnings, phrases, ends, phrases,
)  # fmt: skip


@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(batch=st.lists(requests, min_size=1, max_size=5, unique=True))
def test_any_requests_side_by_side_are_found_as_alone(batch: list[EditRequest], doubles: list[LanguageModel]) -> None:
    search = replace(SEARCH, steps=3)
    for lm in doubles:
        space, name = Session(lm), lm.layout.name(LAYER)
        space.prepare(name, batch, search)
        for request in batch:
            target = plain.target(lm, name, request, CONTEXTS, search)
            assert near(space.targets(name, [request], search)[0].value, target.value, 1e-8)
            assert space.targets(name, [request], search)[0].losses == pytest.approx(target.losses, rel=1e-8)


@pytest.fixture(scope="module")
def doubles(folder: Path, start_tokenizer: PreTrainedTokenizerFast) -> list[LanguageModel]:
    """One model that adds its MLP's output, and one with a norm behind it."""
    return [LanguageModel(random_model(f).double(), start_tokenizer, folder=folder) for f in ("llama", "opt-350m")]


def test_a_block_with_a_norm_behind_its_mlp_is_run_again(double: LanguageModel) -> None:
    site = site_of(Passes.of(double), double.layout.name(LAYER))
    again = double.model.config.model_type in ("gemma2", "gemma3_text") or not getattr(
        double.model.config, "do_layer_norm_before", True
    )
    assert site == (Site(LAYER, double.layout.name(LAYER)) if again else Site(LAYER + 1))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_batch_too_large_for_memory_is_halved(
    double: LanguageModel, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    sizes, optimise = list[int](), searching.optimise

    def small(passes: Passes, site: Site, live: Live, starts: torch.Tensor, params: ValueParams) -> object:
        sizes.append(len(starts))
        if sizes[-1] > 1:
            raise error
        return optimise(passes, site, live, starts, params)

    monkeypatch.setattr(searching, "optimise", small)
    space, name = Session(double), names(double)[0]
    space.prepare(name, REQUESTS[:1] * 2 + [replace(REQUESTS[0], target_new="Daslo")], SEARCH)
    assert sizes == [2, 1, 1]
    expected = plain.target(double, name, REQUESTS[0], CONTEXTS, SEARCH)
    assert near(space.targets(name, [REQUESTS[0]], SEARCH)[0].value, expected.value, 1e-8)


# Perplexity


def edits(lm: LanguageModel) -> list[Edit]:
    params = RomeParams(layer=LAYER, steps=2, covariance=False)
    return [compute(lm, [request], method="rome", hparams=params) for request in REQUESTS]


def test_perplexities_of_edits_are_those_of_written_weights(double: LanguageModel) -> None:
    made = edits(double)
    for edit, found in zip(made, Session(double).perplexities(made, TEXTS), strict=True):
        with edit.applied(double):
            expected = perplexity(double, TEXTS)
        assert found.per_sentence == pytest.approx(expected.per_sentence, rel=1e-8)
        assert (found.mean, found.corpus) == pytest.approx((expected.mean, expected.corpus), rel=1e-8)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_edits_of_other_weights_are_written_and_measured_from_there_on(double: LanguageModel, layer: int) -> None:
    weight = next(name for name in double.mlp(layer) if name != double.layout.name(layer))
    shape = double.model.get_parameter(f"{weight}.weight").shape
    left, right = (torch.randn(n, 1, dtype=torch.float64) for n in sorted(shape, reverse=True))
    flip = type(double.model.get_submodule(weight)).__name__ == "Conv1D"
    out, into = (shape[1], shape[0]) if flip else (shape[0], shape[1])
    left, right = torch.randn(out, 1).double() * 0.1, torch.randn(into, 1).double() * 0.1
    edit = Edit("by hand", (REQUESTS[0],), {f"{weight}.weight": LowRank(left, right)}, {}, double.fingerprint)
    (found,) = Session(double).perplexities([edit], TEXTS)
    with edit.applied(double):
        assert found.per_sentence == pytest.approx(perplexity(double, TEXTS).per_sentence, rel=1e-8)


def test_an_edit_that_changes_nothing_is_measured_too(lm: LanguageModel) -> None:
    nothing = Edit("none", (REQUESTS[0],), {}, {}, lm.fingerprint)
    (found,) = Session(lm).perplexities([nothing], TEXTS)
    assert found.per_sentence == pytest.approx(perplexity(lm, TEXTS).per_sentence, rel=1e-5)


def test_a_pass_that_fails_leaves_no_hook(own: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own.model.get_output_embeddings(), "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Passes.of(own)
    assert not any(module._forward_hooks for module in own.model.modules())


@pytest.mark.parametrize("size", [1e30, math.inf, math.nan])
def test_an_edit_that_overflows_does_so_in_the_engine_too(single: LanguageModel, size: float) -> None:
    out, into = single.weight(LAYER).shape
    change = LowRank(torch.full((out, 1), size), torch.ones(into, 1))
    edit = Edit("too large", (REQUESTS[0],), {f"{single.layout.name(LAYER)}.weight": change}, {}, single.fingerprint)
    (found,) = Session(single).perplexities([edit], TEXTS)
    with edit.applied(single):
        expected = perplexity(single, TEXTS)
    assert found.per_sentence == pytest.approx(expected.per_sentence, rel=1e-2, nan_ok=True)


# Mistakes


def test_a_request_that_is_too_long_is_refused_before_any_pass(lm: LanguageModel, folder: Path) -> None:
    own, passes = LanguageModel(lm.model, lm.tokenizer, name=lm.name, folder=folder), list[int]()

    def longest(request: EditRequest) -> int:
        return max(len(row.encoded.ids) for row in rows_of(own, request, Prefixes.of(own, CONTEXTS)))

    asks = [replace(REQUESTS[0], prompt="{} is located in" + "!?" * n) for n in range(100)]
    fits = next(i for i in range(100) if longest(asks[i]) + 3 > own.max_length)  # some marks are two tokens
    handle = own.model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        with pytest.raises(EditlibError, match=r"has 1(29|3\d) tokens, tiny-.* takes at most 128"):
            compute(own, [asks[fits + 3]], method="rome", hparams=RomeParams(layer=LAYER, covariance=False))
        assert not passes
        compute(own, [asks[fits]], method="rome", hparams=RomeParams(layer=LAYER, covariance=False, steps=1))
        assert passes
    finally:
        handle.remove()
