"""Loading models, finding their memories, and telling models apart."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from editlib.errors import EditlibError
from editlib.models import language_model as models
from editlib.models.language_model import LanguageModel, Layout, find_layout, fingerprint, load
from editlib.models.positions import later_by_one, placed
from editlib.models.trace import trace


def copied(lm: LanguageModel) -> LanguageModel:
    return LanguageModel(copy.deepcopy(lm.model), lm.tokenizer)


def cut(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])


# The layout


def test_layout_of_gpt2_is_its_mlp_projection(gpt2: LanguageModel) -> None:
    assert gpt2.layout == Layout("transformer.h", "mlp.c_proj")
    assert gpt2.num_layers == 3


def test_layout_of_llama_is_its_down_projection(llama: LanguageModel) -> None:
    assert llama.layout == Layout("model.layers", "mlp.down_proj")
    assert llama.num_layers == 3


def test_layout_does_not_depend_on_mlp_width_being_different(tokenizer: PreTrainedTokenizerFast) -> None:
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_inner=16, n_layer=2, n_head=2)
    assert find_layout(GPT2LMHeadModel(config)).down == "mlp.c_proj"


class Odd(PreTrainedModel):
    """A model of hidden width 4 with nothing in it but what a test puts there."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__(PreTrainedConfig(hidden_size=4))
        for name, part in parts.items():
            self.add_module(name, part)


def test_model_without_blocks_is_refused() -> None:
    with pytest.raises(EditlibError, match=r"^Odd has no list of blocks .*pass layout=Layout\(blocks, down\)$"):
        find_layout(Odd(head=nn.Linear(4, 4)))


def test_block_without_linear_map_to_the_hidden_width_is_refused() -> None:
    with pytest.raises(EditlibError, match="^no linear map to the hidden width 4 in blocks.0; pass layout="):
        find_layout(Odd(blocks=nn.ModuleList([nn.Linear(4, 5)])))


def test_blocks_that_differ_are_refused() -> None:
    like = [nn.ModuleDict({"up": nn.Linear(4, 9), "down": nn.Linear(9, 4)}), nn.ModuleDict({"down": nn.Linear(9, 5)})]
    with pytest.raises(EditlibError, match="^layout down 'blocks.1.down' is no linear map to the hidden width 4; pass"):
        find_layout(Odd(blocks=nn.ModuleList(like)))


def test_given_layout_is_used_as_it_is(gpt2: LanguageModel) -> None:
    layout = Layout("transformer.h", "attn.c_proj")
    assert LanguageModel(gpt2.model, gpt2.tokenizer, layout=layout).weight(0).shape == (16, 16)


@pytest.mark.parametrize(
    ("blocks", "down", "named"),
    [
        ("transformer.nowhere", "mlp.c_proj", "blocks 'transformer.nowhere' is no list of modules; .* transformer.h$"),
        ("transformer.wte", "mlp.c_proj", "blocks 'transformer.wte' is no list of modules; .* transformer.h$"),
        ("transformer.h", "mlp.down_proj", "down 'transformer.h.0.mlp.down_proj' is no linear map to the hidden width"),
        ("transformer.h", "mlp", "down 'transformer.h.0.mlp' is no linear map to the hidden width 16; pass layout="),
        ("transformer.h", "mlp.c_fc", "down 'transformer.h.0.mlp.c_fc' is no linear map to the hidden width 16; pass"),
    ],
)
def test_given_layout_is_checked(gpt2: LanguageModel, blocks: str, down: str, named: str) -> None:
    with pytest.raises(EditlibError, match=f"^layout {named}"):
        LanguageModel(gpt2.model, gpt2.tokenizer, layout=Layout(blocks, down))


def test_the_mlp_is_the_linear_maps_beside_the_memory(gpt2: LanguageModel, llama: LanguageModel) -> None:
    assert list(gpt2.mlp(1)) == ["transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj"]
    assert list(llama.mlp(2)) == [f"model.layers.2.mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert gpt2.mlp(1)["transformer.h.1.mlp.c_proj"] is gpt2.down(1)


def test_the_mlp_of_a_layer_out_of_range_is_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(EditlibError, match="^layer 3 is out of range"):
        gpt2.mlp(3)


def test_a_model_without_a_head_is_not_causal(gpt2: LanguageModel) -> None:
    gpt2.require_causal()
    bare = LanguageModel(gpt2.model.transformer, gpt2.tokenizer, name="bare")
    with pytest.raises(EditlibError, match=r"^bare \(GPT2Model\) is no causal language model"):
        bare.require_causal()


def test_weight_maps_key_to_value(lm: LanguageModel) -> None:
    assert lm.weight(1).shape == (16, 24)
    key = torch.randn(24)
    down = lm.down(1)
    bias = getattr(down, "bias", None)
    torch.testing.assert_close(lm.weight(1) @ key + (0 if bias is None else bias), down(key))


def test_weight_is_a_view_of_the_parameter(own: LanguageModel) -> None:
    own.weight(0)[3, 5] = 123.0
    assert (own.down(0).weight == 123.0).sum() == 1


@pytest.mark.parametrize("layer", [-1, 3])
def test_layer_out_of_range_is_refused(gpt2: LanguageModel, layer: int) -> None:
    with pytest.raises(EditlibError, match=f"^layer {layer} is out of range: tiny-gpt2 has layers 0 to 2$"):
        gpt2.down(layer)


def test_wrapped_model_is_in_evaluation_mode_and_frozen(
    tokenizer: PreTrainedTokenizerFast, gpt2: LanguageModel
) -> None:
    model = copy.deepcopy(gpt2.model).train().requires_grad_(True)
    LanguageModel(model, tokenizer)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_tokenizer_without_offsets_is_refused(gpt2: LanguageModel) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(EditlibError, match="tokenizer Slow has no offsets"):
        LanguageModel(gpt2.model, Slow())  # type: ignore[arg-type]


# Fingerprints


def test_fingerprint_is_a_function_of_the_weights(lm: LanguageModel) -> None:
    assert copied(lm).fingerprint == lm.fingerprint
    assert len(lm.fingerprint) == 64


def test_fingerprint_changes_with_one_weight(lm: LanguageModel) -> None:
    other = copied(lm)
    weight = other.weight(1)
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert other.fingerprint != lm.fingerprint


def test_fingerprint_changes_with_the_dtype(gpt2: LanguageModel) -> None:
    assert LanguageModel(copy.deepcopy(gpt2.model).double(), gpt2.tokenizer).fingerprint != gpt2.fingerprint


def test_fingerprint_takes_parameters_without_a_dimension(gpt2: LanguageModel) -> None:
    model = copy.deepcopy(gpt2.model)
    model.register_parameter("temperature", nn.Parameter(torch.tensor(1.0)))
    assert len(LanguageModel(model, gpt2.tokenizer).fingerprint) == 64


# Whether the model runs as it was loaded


def test_an_edited_model_is_found_out(own: LanguageModel) -> None:
    assert own.fingerprint
    own.require_untouched("its prefixes")
    own.weight(1)[0, 0] += 1
    with pytest.raises(EditlibError, match=f"^{own.name} is edited; ask for its prefixes before the edit$"):
        own.require_untouched("its prefixes")


def test_a_model_whose_passes_are_altered_is_found_out(lm: LanguageModel) -> None:
    message = rf"^{lm.name} runs with hooks that may change it; ask for its prefixes outside placed\(\) or trace\(\)$"
    altering = [
        lambda: placed(lm, later_by_one),
        lambda: trace(lm.model, replace={lm.layout.name(1): torch.zeros_like}),
        lambda: lm.down(2).register_forward_hook(lambda *_: None),
    ]
    for alter in altering:
        with alter(), pytest.raises(EditlibError, match=message):  # type: ignore[attr-defined]
            lm.require_untouched("its prefixes")
        lm.require_untouched("its prefixes")


def test_hooks_that_transformers_leaves_behind_change_nothing(own: LanguageModel) -> None:
    own.model(torch.tensor([[5, 9]]), output_hidden_states=True)
    own.require_untouched("its prefixes")


# Loading


def test_a_local_folder_is_loaded_as_it_was_saved(gpt2: LanguageModel, gpt2_folder: Path) -> None:
    lm = load(str(gpt2_folder))
    assert lm.fingerprint == gpt2.fingerprint
    assert lm.folder == gpt2_folder
    assert lm.tokenizer("Zen is located in Daslo") == gpt2.tokenizer("Zen is located in Daslo")


def test_a_folder_of_several_weight_files_is_loaded(llama: LanguageModel, tmp_path: Path) -> None:
    llama.model.save_pretrained(tmp_path, max_shard_size="20KB")
    llama.tokenizer.save_pretrained(tmp_path)
    assert len(models.weight_files(tmp_path)) > 1
    assert load(str(tmp_path)).fingerprint == llama.fingerprint


@pytest.mark.parametrize("name", models.DTYPES)
def test_every_dtype_is_loaded(gpt2_folder: Path, name: str) -> None:
    assert load(str(gpt2_folder), dtype=name).weight(0).dtype == getattr(torch, name)


def test_unknown_dtype_is_refused(gpt2_folder: Path) -> None:
    with pytest.raises(EditlibError, match=r"^dtype 'float8' is unknown; did you mean float64\? use one of float32"):
        load(str(gpt2_folder), dtype="float8")


@pytest.mark.parametrize("device", ["cuda:97", "nonsense"])
def test_a_device_that_is_not_there_is_refused(gpt2_folder: Path, device: str) -> None:
    with pytest.raises(EditlibError, match=f"^device '{device}' is not available here; use cpu or cuda$"):
        load(str(gpt2_folder), device=device)


def test_a_device_that_is_there_is_itself() -> None:
    assert models.require_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["testbed/nothing", "nowhere", ""])
def test_unknown_model_is_refused(name: str) -> None:
    with pytest.raises(EditlibError, match=f"^model '{name}' is no testbed twin .* and no local folder"):
        load(name)


@pytest.mark.parametrize("revision", [None, "main", "0" * 39])
def test_hub_id_without_a_whole_commit_is_refused(revision: str | None) -> None:
    with pytest.raises(EditlibError, match="give its 40-digit commit: revision= or id@commit$"):
        load("openai-community/gpt2", revision=revision)


def test_hub_model_that_cannot_be_had_is_one_line() -> None:
    with pytest.raises(EditlibError, match="^model 'nobody/nothing' cannot be loaded: .+$") as caught:
        load("nobody/nothing", revision="0" * 40)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file_is_named(gpt2_folder: Path, file: str) -> None:
    (gpt2_folder / file).unlink()
    with pytest.raises(EditlibError, match=f"has no {file}; copy the whole model folder"):
        load(str(gpt2_folder))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.98])
def test_truncated_file_is_named(gpt2_folder: Path, file: str, share: float) -> None:
    cut(gpt2_folder / file, share)
    with pytest.raises(EditlibError, match=f"{file} is truncated or damaged .*; copy it again$"):
        load(str(gpt2_folder))


@pytest.mark.parametrize("content", ['{"weight_map": {', "{}", "[]"])
def test_damaged_index_of_weight_files_is_named(gpt2_folder: Path, content: str) -> None:
    (gpt2_folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(EditlibError, match="model.safetensors.index.json is truncated or damaged"):
        load(str(gpt2_folder))


def test_missing_weight_file_of_several_is_named(llama: LanguageModel, tmp_path: Path) -> None:
    llama.model.save_pretrained(tmp_path, max_shard_size="20KB")
    llama.tokenizer.save_pretrained(tmp_path)
    lost = models.weight_files(tmp_path)[-1]
    lost.unlink()
    with pytest.raises(EditlibError, match=f"has no {lost.name}"):
        load(str(tmp_path))


@pytest.mark.parametrize("change", [{"n_embd": 32}, {"vocab_size": 7}, {"n_layer": 4}, {"model_type": "nonesuch"}])
def test_weights_that_do_not_fit_the_config_are_refused(gpt2_folder: Path, change: dict[str, object]) -> None:
    path = gpt2_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EditlibError, match="cannot be loaded"):
        load(str(gpt2_folder))


# The fingerprint of files


def test_file_fingerprint_needs_no_loading_and_sees_every_byte(gpt2_folder: Path) -> None:
    before = models.fingerprint(str(gpt2_folder))
    file = gpt2_folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert models.fingerprint(str(gpt2_folder)) != before


def test_file_fingerprint_of_an_unknown_model_is_refused() -> None:
    with pytest.raises(EditlibError, match="^model 'gpt2' is no testbed twin"):
        models.fingerprint("gpt2")


def test_a_hub_model_is_identified_by_its_commit() -> None:
    commit = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    assert fingerprint(f"openai-community/gpt2@{commit}") == commit
    for name in ("openai-community/gpt2", "gpt2@main", f"a/b/c@{commit}", f"../gpt2@{commit}/x"):
        with pytest.raises(EditlibError, match="40-digit commit"):
            fingerprint(name)
