"""Loading models, finding their memories, and telling models apart."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from editlib.errors import EditlibError
from editlib.models import names
from editlib.models.language_model import LanguageModel, Layout, find_layout
from editlib.models.loading import load, require_device
from editlib.models.names import DTYPES, fingerprint, weight_files
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
    with pytest.raises(
        EditlibError, match=r"^Odd has no list of blocks .*pass layout=Layout.*, or --layout blocks,down$"
    ):
        find_layout(Odd(head=nn.Linear(4, 4)))


def test_block_without_linear_map_to_the_hidden_width_is_refused() -> None:
    with pytest.raises(EditlibError, match="^no linear map to the hidden width 4 in blocks.0 of Odd; pass layout="):
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
    message = rf"^{lm.name} runs with hooks; ask for its prefixes outside placed\(\) and trace\(\)$"
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
    assert len(weight_files(tmp_path)) > 1
    assert load(str(tmp_path)).fingerprint == llama.fingerprint


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_loaded(gpt2_folder: Path, name: str) -> None:
    assert load(str(gpt2_folder), dtype=name).weight(0).dtype == getattr(torch, name)


def test_unknown_dtype_is_refused(gpt2_folder: Path) -> None:
    with pytest.raises(EditlibError, match=r"^dtype 'float8' is unknown; did you mean float64\? use one of float32"):
        load(str(gpt2_folder), dtype="float8")


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("cuda:97", r"not available: torch finds \d+ CUDA devices; use cpu or auto$"),
        ("nonsense", "unknown; use one of cpu, cuda, auto$"),
        ("meta", "unknown; use one of cpu, cuda, auto$"),
        ("mps", "unknown; .*use one of cpu, cuda, auto$"),
    ],
)
def test_a_device_that_is_not_there_is_refused(gpt2_folder: Path, device: str, reason: str) -> None:
    with pytest.raises(EditlibError, match=f"^device '{device}' is {reason}"):
        load(str(gpt2_folder), device=device)


def test_a_device_that_is_there_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert require_device("cpu") == require_device(torch.device("cpu")) == "cpu"
    with pytest.raises(EditlibError, match="^device '0' is unknown"):
        require_device(0)
    for there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert require_device("auto") == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "testbed/anchord",
            "is no shipped or packaged one .* no local folder .*did you mean testbed/anchored.$",
        ),
        ("nowhere", "is no shipped or packaged one .* and no local folder or GGUF file"),
        ("", "is no shipped or packaged one .* and no local folder or GGUF file"),
    ],
)
def test_unknown_model_is_refused(name: str, reason: str) -> None:
    with pytest.raises(EditlibError, match=f"^model '{name}' {reason}"):
        load(name)


def test_the_revision_of_a_folder_is_refused(gpt2_folder: Path) -> None:
    with pytest.raises(EditlibError, match=f"^revision 'main' is for models of the hub, and {gpt2_folder} is a folder"):
        load(str(gpt2_folder), revision="main")


def test_a_layout_is_given_by_hand_as_the_command_line_writes_it(gpt2_folder: Path) -> None:
    assert load(str(gpt2_folder), layout="transformer.h,attn.c_proj").weight(0).shape == (16, 16)
    for text in ("transformer.h", "transformer.h,", ",mlp", "a,b,c", ""):
        with pytest.raises(EditlibError, match=f"^layout '{text}' must be blocks,down, for example transformer.h,mlp"):
            load(str(gpt2_folder), layout=text)


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
    lost = weight_files(tmp_path)[-1]
    lost.unlink()
    with pytest.raises(EditlibError, match=f"has no {lost.name}"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_embd": 32}, r"weight transformer.h.0.attn.c_attn.bias is \[48\], by its config \[96\], and 36 more; copy"),
        ({"vocab_size": 7}, r"weight transformer.wte.weight is \[360, 16\], by its config \[7, 16\]; copy its"),
        ({"n_layer": 4}, "its files have no weight transformer.h.3.attn.c_attn.bias, and 11 more; copy its config"),
        ({"n_layer": 2}, "its config has no place for weight transformer.h.2.attn.c_attn.weight, and 10 more; copy"),
        ({"model_type": "nonesuch"}, "The checkpoint you are trying to load has model type `nonesuch`"),
        ({"n_embd": "wide"}, ".+"),
        ({"attn_implementation": "flash_attention_2"}, "(?s:.*)[Ff]lash"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"its weights are quantised \(gptq\), and",
        ),
        ({"quantization_config": {"load_in_4bit": True}}, r"its weights are quantised \(by an unknown method\), and"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(gpt2_folder: Path, change: dict[str, object], reason: str) -> None:
    path = gpt2_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EditlibError, match=f"^model '{gpt2_folder}' cannot be loaded: {reason}") as caught:
        load(str(gpt2_folder))
    assert "\n" not in str(caught.value)


def rewritten(folder: Path, changes: dict[str, torch.Tensor]) -> str:
    """The folder, its weights changed."""
    path = folder / "model.safetensors"
    save_file(load_file(path) | changes, path, metadata={"format": "pt"})
    return str(folder)


def test_weights_that_the_config_has_no_place_for_are_refused(gpt2_folder: Path) -> None:
    adapter = {f"transformer.h.0.mlp.c_proj.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    with pytest.raises(EditlibError, match="its config has no place for weight .*lora_A.weight, and 1 more; copy its"):
        load(rewritten(gpt2_folder, adapter))


@pytest.mark.parametrize("times", [1, 2])
def test_a_head_that_its_config_ties_to_the_embeddings_is_them(
    gpt2: LanguageModel, gpt2_folder: Path, times: int
) -> None:
    embeddings = load_file(gpt2_folder / "model.safetensors")["transformer.wte.weight"]
    head = {"lm_head.weight": times * embeddings}
    if times == 1:  # saved twice
        assert load(rewritten(gpt2_folder, head)).fingerprint == gpt2.fingerprint
    else:
        with pytest.raises(EditlibError, match="its config ties the head to the embeddings, and its files have two"):
            load(rewritten(gpt2_folder, head))


def test_buffers_of_older_files_are_no_weights(gpt2: LanguageModel, gpt2_folder: Path) -> None:
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in range(3)}
    assert load(rewritten(gpt2_folder, masks)).fingerprint == gpt2.fingerprint


def test_weights_that_are_not_finite_are_refused(gpt2_folder: Path) -> None:
    bad = {"transformer.h.1.mlp.c_proj.weight": torch.full((24, 16), torch.nan)}
    with pytest.raises(EditlibError, match="cannot be loaded: weight transformer.h.1.mlp.c_proj.weight is not finite;"):
        load(rewritten(gpt2_folder, bad))


def test_weights_in_other_forms_are_named_with_what_to_do(gpt2_folder: Path) -> None:
    weights = gpt2_folder / "model.safetensors"
    weights.rename(gpt2_folder / "model-00001-of-00002.safetensors")
    with pytest.raises(EditlibError, match="but no model.safetensors.index.json that lists the parts; copy that too$"):
        load(str(gpt2_folder))
    (gpt2_folder / "model-00001-of-00002.safetensors").rename(gpt2_folder / "pytorch_model.bin")
    with pytest.raises(EditlibError, match=r"pytorch_model.bin is pickle, which is not read: .* save_pretrained"):
        load(str(gpt2_folder))


def test_a_tokenizer_that_other_packages_convert_is_one_line(gpt2_folder: Path) -> None:
    (gpt2_folder / "tokenizer.json").unlink()
    (gpt2_folder / "tokenizer.model").write_bytes(b"no sentencepiece")
    with pytest.raises(EditlibError, match=r"cannot be loaded: its tokenizer cannot be read \(.+\); save it as tokeni"):
        load(str(gpt2_folder))


def test_a_folder_is_read_whatever_the_locale_is(gpt2_folder: Path) -> None:
    (gpt2_folder / "config.json").write_text(
        json.dumps(json.loads((gpt2_folder / "config.json").read_text()) | {"note": "東京"}, ensure_ascii=False),
        encoding="utf-8",
    )
    program = f"from editlib.models.names import check_folder, Path; check_folder(Path({str(gpt2_folder)!r}))"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", program], env=os.environ | plain, check=True)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(gpt2: LanguageModel) -> None:
    larger = copy.deepcopy(gpt2.tokenizer)
    larger.add_special_tokens({"pad_token": "<pad>"})
    assert LanguageModel(gpt2.model, larger).tokenizer is larger
    larger.add_tokens(["Qqwert"])
    message = "^the tokenizer has 362 tokens, tiny embeddings for 360: none for 'Qqwert'; use the model's own"
    with pytest.raises(EditlibError, match=message):
        LanguageModel(gpt2.model, larger, name="tiny")


# The fingerprint of files


def test_file_fingerprint_needs_no_loading_and_sees_every_byte(gpt2_folder: Path) -> None:
    before = fingerprint(str(gpt2_folder))
    file = gpt2_folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert fingerprint(str(gpt2_folder)) != before


def test_file_fingerprint_is_of_every_file_a_run_can_depend_on(gpt2_folder: Path) -> None:
    seen = {fingerprint(str(gpt2_folder))}
    for name in ("config.json", "tokenizer.json", "prefixes.json", "mend.safetensors", "modeling.py"):
        with (gpt2_folder / name).open("a") as file:
            file.write(" ")
        seen.add(fingerprint(str(gpt2_folder)))
    assert len(seen) == 6
    for name in ("README.md", "optimizer.pt", "trainer_state.json", "pytorch_model.bin", ".gitattributes"):
        (gpt2_folder / name).write_text("x")
    (gpt2_folder / "checkpoint-500").mkdir()
    assert fingerprint(str(gpt2_folder)) in seen


def test_the_file_fingerprint_of_a_twin_covers_its_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(names.TESTBED / "anchored", tmp_path / "anchored")
    monkeypatch.setattr(names, "TESTBED", tmp_path)
    before = fingerprint("testbed/anchored")
    with (tmp_path / "anchored" / "mend.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"edit")
    assert fingerprint("testbed/anchored") != before


def test_file_fingerprint_of_an_unknown_model_is_refused() -> None:
    with pytest.raises(EditlibError, match="^model 'gpt2' is no shipped or packaged one"):
        fingerprint("gpt2")


def test_a_hub_model_is_identified_by_its_commit() -> None:
    commit = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    assert fingerprint(f"openai-community/gpt2@{commit}") == commit
    for name in ("openai-community/gpt2", "gpt2@main", f"a/b/c@{commit}", f"../gpt2@{commit}/x"):
        with pytest.raises(EditlibError, match="40-digit commit"):
            fingerprint(name)
