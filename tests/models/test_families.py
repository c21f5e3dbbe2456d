"""Every family of models, as tiny random ones made from configuration: layout, spans, keys, methods, both dtypes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import (
    CONFIGS,
    CONTEXTS,
    GROUPED,
    NARROW,
    OTHERS,
    STREAMS,
    T5,
    VOCABULARY,
    WITHOUT_MLP,
    made_from,
    random_model,
)
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from editlib.bench import plain as plainpath
from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.methods import METHODS, compute, hparams_for, solve
from editlib.editing.methods.editor import Editor, EditorHeader, save_editor, shapes
from editlib.editing.methods.filters import FILTERS
from editlib.editing.session import Session
from editlib.editing.stats import Stats, corpus_windows, second_moments
from editlib.engine import memory
from editlib.engine.perplexity import perplexity
from editlib.engine.values import read_keys
from editlib.errors import EditlibError
from editlib.measuring import causal
from editlib.models.language_model import LanguageModel, Layout, find_layout, oriented
from editlib.models.loading import load
from editlib.models.tokens import encode
from editlib.models.trace import trace

TEXTS = ["Zen is located in Daslo, near the sea.", "Today."]
PARTS: dict[str, tuple[str, str, set[str]]] = {  # blocks, down-projection, and the linear maps of layer 1's MLP
    "gpt2": ("transformer.h", "mlp.c_proj", {"mlp.c_fc", "mlp.c_proj"}),
    "gpt-j": ("transformer.h", "mlp.fc_out", {"mlp.fc_in", "mlp.fc_out"}),
    "gpt-neox": ("gpt_neox.layers", "mlp.dense_4h_to_h", {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}),
    "opt": ("model.decoder.layers", "fc2", {"fc1", "fc2"}),
    "opt-350m": ("model.decoder.layers", "fc2", {"fc1", "fc2"}),
    "phi": ("model.layers", "mlp.fc2", {"mlp.fc1", "mlp.fc2"}),
    "phi3": ("model.layers", "mlp.down_proj", {"mlp.gate_up_proj", "mlp.down_proj"}),
} | dict.fromkeys(
    ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"),
    ("model.layers", "mlp.down_proj", {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
)


@pytest.fixture(scope="session", params=CONFIGS)
def family(request: pytest.FixtureRequest) -> str:
    """Each family's name in turn."""
    return str(request.param)


@pytest.fixture(scope="session", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder with nothing in it but prefix contexts, few of them."""
    place = tmp_path_factory.mktemp("prefixes")
    for name in ("prefixes.json", "prefixes-meng-2022.json"):
        (place / name).write_text(json.dumps({"contexts": CONTEXTS}))
    return place


@pytest.fixture(scope="session")
def member(family: str, dtype: str, folder: Path, start_tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """A random model of the family. Tests leave its weights alone."""
    model = random_model(family).to(getattr(torch, dtype))
    return LanguageModel(model, start_tokenizer, name=f"tiny-{family}", folder=folder)


@pytest.fixture(scope="session")
def moments(member: LanguageModel, corpus: list[str]) -> Stats:
    return second_moments(member, corpus_windows(member, corpus, 1500))


@pytest.fixture(scope="session")
def plain(family: str, folder: Path, start_tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """The family's random model in float32, where that is enough."""
    return LanguageModel(random_model(family), start_tokenizer, folder=folder)


def alone(lm: LanguageModel, ids: list[int], layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Key and value of every token of one text, read by a plain hook; whatever their shape, tokens by width."""
    kept: list[torch.Tensor] = []
    handle = lm.down(layer).register_forward_hook(lambda _, inputs, output: kept.extend((inputs[0], output.clone())))
    lm.model(torch.tensor([ids]))
    handle.remove()
    return kept[0].view(len(ids), -1), kept[1].view(len(ids), -1)


# Layout


def test_the_memory_is_the_mlps_down_projection(family: str, plain: LanguageModel) -> None:
    blocks, down, _ = PARTS[family]
    assert plain.layout == Layout(blocks, down)
    assert plain.num_layers == 3
    assert plain.weight(1).shape == (16, 24)


def test_the_mlp_is_all_its_linear_maps_and_no_others(family: str, plain: LanguageModel) -> None:
    blocks, _, parts = PARTS[family]
    maps = plain.mlp(1)
    assert set(maps) == {f"{blocks}.1.{part}" for part in parts}
    assert all(16 in oriented(module).shape and max(oriented(module).shape) >= 24 for module in maps.values())
    assert all(plain.model.get_submodule(name) is module for name, module in maps.items())


def test_the_context_is_known(plain: LanguageModel) -> None:
    assert plain.max_length == 128


# Spans, keys, perplexity


def test_spans_are_found(plain: LanguageModel, ask: EditRequest) -> None:
    row = encode(plain.tokenizer, ask.prompt, ask.subject, target=ask.target_new)
    assert plain.tokenizer.decode(row.ids[slice(*row.subject)]).strip() == ask.subject
    assert plain.tokenizer.decode(row.ids[row.last]).strip() == ask.subject[-len("Nolva") :]
    assert plain.tokenizer.decode(row.ids[row.target :]).strip() == ask.target_new


def test_trace_reads_each_texts_keys_and_values_and_stops(plain: LanguageModel) -> None:
    rows = plain.tokenizer(TEXTS)["input_ids"]
    width, after, name = max(map(len, rows)), False, plain.layout.name(1)
    ids = torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with trace(plain.model, name, stop=True) as seen:
        plain.model(input_ids=ids, attention_mask=mask)
        after = True
    assert not after
    assert seen[name].input.shape == (2, width, 24) and seen[name].output.shape == (2, width, 16)
    for i, row in enumerate(rows):
        key, value = alone(plain, row, 1)
        torch.testing.assert_close(seen[name].input[i, : len(row)], key, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen[name].output[i, : len(row)], value, rtol=1e-4, atol=1e-5)


def test_replacing_one_texts_value_changes_that_text_alone(plain: LanguageModel) -> None:
    ids = torch.tensor([plain.tokenizer(TEXTS[0])["input_ids"]] * 2)

    def lift(values: torch.Tensor) -> torch.Tensor:
        return values.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(3.0), accumulate=True)

    before = plain.model(ids).logits
    with trace(plain.model, replace={plain.layout.name(1): lift}):
        after = plain.model(ids).logits
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1, :2], before[1, :2])
    assert not torch.allclose(after[1, 2:], before[1, 2:])


def test_keys_behind_contexts_are_those_of_the_texts_alone(plain: LanguageModel, ask: EditRequest) -> None:
    read = read_keys(plain, 1, ask, CONTEXTS)
    for i, context in enumerate(CONTEXTS):
        row = encode(plain.tokenizer, context.replace("{}", ask.prompt), ask.subject)
        key, value = alone(plain, list(row.ids), 1)
        torch.testing.assert_close(read.inputs[i], key[row.last], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(read.outputs[i], value[row.last], rtol=1e-4, atol=1e-5)


def test_perplexity_is_finite_and_does_not_depend_on_the_batch(member: LanguageModel, dtype: str) -> None:
    together, apart = perplexity(member, TEXTS), perplexity(member, TEXTS, batch_tokens=1)
    close = {"float32": 1e-4, "bfloat16": 0.1}[dtype]
    assert together.per_sentence == pytest.approx(apart.per_sentence, rel=close)
    assert 1 < together.mean < float("inf")


# Every method


@pytest.fixture(scope="session")
def new_editor(member: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MEND editor that was never trained: it takes a step down the gradient."""
    sizes = shapes(member, [1, 2])
    header = EditorHeader(
        model=member.fingerprint, shapes={name: list(shape) for name, shape in sizes.items()}, rank=2, data="",
        recipe={}, command="", best_step=0, seconds=0.0, curve=[],
    )  # fmt: skip
    tensors = Editor(sizes, rank=2).state_dict()
    return save_editor(tmp_path_factory.mktemp("mend") / "editor.safetensors", header, tensors)


FEW: dict[str, dict[str, Any]] = {
    "mend": {}, "skeme": {}, "ike": {"demonstrations": 1}, "coachhook": {"steps": 3, "moment_weight": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    "method", [*METHODS, *(pytest.param(f"rome+{name}", marks=pytest.mark.slow) for name in FILTERS)]
)
def test_an_edit_is_finite_changes_the_model_and_is_undone(
    member: LanguageModel, moments: Stats, ask: EditRequest, method: str, new_editor: Path, tmp_path: Path
) -> None:
    few = FEW.get(method, {"steps": 3}) | ({"editor": str(new_editor)} if method == "mend" else {})
    if method == "kn" and member.name == "tiny-opt-350m":
        with pytest.raises(EditlibError, match="^kn adds rows of the output embedding, 8 wide, to outputs 16 wide; "):
            compute(member, [ask], method=method)
        return
    edit = compute(member, [ask], method=method, hparams=hparams_for(member, method, **few), stats=moments)
    parts = [edit.overlay] if edit.overlay else list(edit.changes.values())
    assert parts and all(torch.isfinite(t).all() for part in parts for t in part.tensors.values())
    loaded = Edit.load(edit.save(tmp_path / "edit"))
    ids = torch.tensor([member.tokenizer(ask.text)["input_ids"]])
    before = member.model(ids).logits
    with edit.applied(member):
        after = member.model(ids).logits
    with loaded.applied(member):
        assert torch.equal(member.model(ids).logits, after)
    assert torch.isfinite(after).all() and not torch.equal(before, after)
    assert replace(member).fingerprint == member.fingerprint
    assert torch.equal(member.model(ids).logits, before)


# Causal tracing


def test_noise_hides_the_subject_and_restoring_changes_that(
    member: LanguageModel, ask: EditRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = encode(member.tokenizer, ask.prompt, ask.subject, target=ask.target_new)
    monkeypatch.setattr(causal, "known", lambda *_, **__: [row])  # a random model knows nothing
    found = causal.causal_trace(member, [ask], samples=2)
    assert found.effects.shape == (3, 5) and found.effects.loc[:, causal.DECIDING :].notna().all(axis=None)
    assert found.clean != found.corrupted and found.effects[causal.DECIDING].ne(0).any()


# Other families, by one edit


@pytest.mark.parametrize("name", OTHERS)
def test_another_familys_edit_is_the_same_with_and_without_the_engine(
    name: str, folder: Path, start_tokenizer: PreTrainedTokenizerFast, ask: EditRequest
) -> None:
    config, down = OTHERS[name]
    model = made_from(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)  # not every configuration asks for as much
    lm = LanguageModel(model, start_tokenizer, name=name, folder=folder)
    assert lm.layout.name(1) == down
    session, params = Session(lm), hparams_for(lm, "rome", steps=3, covariance=False)
    edit = solve(session, "rome", [ask], params)
    (found,), expected = session.targets(down, [ask], params), plainpath.target(lm, down, ask, CONTEXTS, params)
    torch.testing.assert_close(found.value, expected.value, rtol=1e-3, atol=1e-4)
    key, value = alone(lm, list(encode(start_tokenizer, ask.prompt, ask.subject).ids), 1)
    last = encode(start_tokenizer, ask.prompt, ask.subject).last
    torch.testing.assert_close(found.start, value[last], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lm.down(1)(key[last]), found.start, rtol=1e-4, atol=1e-5)
    (engine,) = session.perplexities([edit], TEXTS)
    before = perplexity(lm, TEXTS)
    with edit.applied(lm):
        written = perplexity(lm, TEXTS)
    assert engine.per_sentence == pytest.approx(written.per_sentence, rel=1e-4)
    assert written.per_sentence != pytest.approx(before.per_sentence, rel=1e-4)


def test_a_model_of_several_streams_is_measured_and_not_edited(
    folder: Path, start_tokenizer: PreTrainedTokenizerFast, ask: EditRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LanguageModel(made_from(STREAMS), start_tokenizer, name="gemma3n", folder=folder)
    assert lm.layout.name(1) == "model.layers.1.mlp.down_proj"
    with pytest.raises(EditlibError, match=r"^gemma3n \(\w+\) cannot be edited: not every block keeps attention keys"):
        compute(lm, [ask], method="rome", hparams=hparams_for(lm, "rome", covariance=False))
    assert not any(module._forward_hooks for module in lm.model.modules())
    whole = perplexity(lm, TEXTS)
    monkeypatch.setitem(memory.LOGITS, "cpu", 3 * VOCABULARY)
    assert perplexity(lm, TEXTS).per_sentence == pytest.approx(whole.per_sentence, rel=1e-5)


@pytest.mark.parametrize("name", WITHOUT_MLP)
def test_a_model_that_mixes_tokens_everywhere_has_no_memory(name: str) -> None:
    with pytest.raises(EditlibError, match=r"^\w+ has no MLP: \w+(, \w+)? in \w+.(blocks|layers).0 mixes tokens; pass"):
        find_layout(made_from(WITHOUT_MLP[name]))


# Encoder-decoders: keys are read, nothing is edited

ENCODERS: dict[str, tuple[type[PreTrainedModel], dict[str, Any], set[str]]] = {
    "t5": (T5ForConditionalGeneration, {}, {"wi", "wo"}),
    "t5-v1.1": (T5ForConditionalGeneration, {"feed_forward_proj": "gated-gelu"}, {"wi_0", "wi_1", "wo"}),
    "t5-encoder": (T5EncoderModel, {}, {"wi", "wo"}),
}


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest, dtype: str, tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """A random T5 of each kind, its decoder deeper than its encoder."""
    torch.manual_seed(0)
    kind, options, _ = ENCODERS[request.param]
    model = kind(T5Config(**T5, num_decoder_layers=4, **options)).to(getattr(torch, dtype))
    return LanguageModel(model, tokenizer, name=request.param)


def test_an_encoders_memories_are_its_own(encoder: LanguageModel) -> None:
    assert encoder.layout == Layout("encoder.block", "layer.1.DenseReluDense.wo")
    assert encoder.num_layers == 2 and encoder.max_length is None
    mlp = "encoder.block.1.layer.1.DenseReluDense"
    assert set(encoder.mlp(1)) == {f"{mlp}.{part}" for part in ENCODERS[encoder.name][2]}


def test_an_encoders_keys_are_read_without_its_decoder(encoder: LanguageModel, ask: EditRequest) -> None:
    read = read_keys(encoder, 1, ask, CONTEXTS)
    assert read.inputs.shape == (3, 24) and read.outputs.shape == (3, 16)
    row, kept = encode(encoder.tokenizer, ask.prompt, ask.subject), list[torch.Tensor]()
    handle = encoder.down(1).register_forward_hook(lambda _, inputs, output: kept.append(inputs[0][0, row.last]))
    encoder.model.get_encoder()(input_ids=torch.tensor([row.ids]))
    handle.remove()
    close = {"rtol": 1e-4, "atol": 1e-5} if kept[0].dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(read.inputs[0], kept[0].float(), **close)


def test_an_encoders_second_moments_are_computed(encoder: LanguageModel, corpus: list[str]) -> None:
    moments = second_moments(encoder, corpus_windows(encoder, corpus, 500)).moments
    assert {layer: moment.shape for layer, moment in moments.items()} == {0: (24, 24), 1: (24, 24)}
    assert all(torch.isfinite(moment).all() and moment.any() for moment in moments.values())


def test_an_encoder_is_not_edited(encoder: LanguageModel) -> None:
    with pytest.raises(EditlibError, match=rf"^{encoder.name} \(T5\w+\) is no causal language model: its keys can be"):
        encoder.require_causal()


def test_a_causal_model_may_be_edited(plain: LanguageModel) -> None:
    plain.require_causal()


def test_an_encoder_decoder_is_loaded_from_its_folder(
    tokenizer: PreTrainedTokenizerFast, ask: EditRequest, tmp_path: Path
) -> None:
    model = T5ForConditionalGeneration(T5Config(**T5))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert loaded.fingerprint == LanguageModel(model, tokenizer).fingerprint
    assert read_keys(loaded, 0, ask, ["{}"]).inputs.shape == (1, 24)


# What is refused, and what lies beside a vision tower

EXPERTS: dict[str, tuple[PreTrainedConfig, str]] = {
    "mixtral": (MixtralConfig(**NARROW, num_local_experts=2), "model.layers.0"),
    "qwen2-moe": (
        Qwen2MoeConfig(**GROUPED, moe_intermediate_size=24, shared_expert_intermediate_size=24, num_experts=2,
                       num_experts_per_tok=1, decoder_sparse_step=2),
        "model.layers.1",  # every second block has experts
    ),
    "qwen3-moe": (
        Qwen3MoeConfig(**NARROW, moe_intermediate_size=24, num_experts=2, num_experts_per_tok=1, mlp_only_layers=[0]),
        "model.layers.1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERTS)
def test_mixtures_of_experts_are_refused(name: str) -> None:
    config, block = EXPERTS[name]
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(EditlibError, match=rf"^{block}\.mlp.* looks like a mixture of experts; looked for .*Layout\("):
        find_layout(model)


def test_experts_in_a_list_are_refused() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16)) for _ in range(2))

    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    model.model.layers[1].mlp = Sparse()
    with pytest.raises(EditlibError, match=r"^model.layers.1.mlp.experts .* looks like a mixture of experts"):
        find_layout(model)


def test_a_linear_map_of_a_mixture_can_be_given_by_hand(start_tokenizer: PreTrainedTokenizerFast) -> None:
    model = AutoModelForCausalLM.from_config(EXPERTS["mixtral"][0])
    given = Layout("model.layers", "self_attn.o_proj")
    assert LanguageModel(model, start_tokenizer, layout=given).weight(2).shape == (16, 8)


VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


@pytest.mark.parametrize("kind", [Gemma3ForConditionalGeneration, LlavaForConditionalGeneration])
def test_the_language_model_beside_a_vision_tower_is_found(
    kind: type[PreTrainedModel], start_tokenizer: PreTrainedTokenizerFast
) -> None:
    configs = {
        Gemma3ForConditionalGeneration: Gemma3Config(text_config=NARROW, vision_config=VISION),
        LlavaForConditionalGeneration: LlavaConfig(text_config=GROUPED | {"model_type": "llama"}, vision_config=VISION),
    }
    lm = LanguageModel(kind(configs[kind]), start_tokenizer)
    assert lm.layout == Layout("model.language_model.layers", "mlp.down_proj")
    assert lm.num_layers == 3 and lm.max_length == 128
