"""Tiny random models of every family, made from configuration."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

CONTEXTS = ["{}", "Because the long winter. {}", "I and the sea turn today where the river is. {}"]
VOCABULARY = 360
SPECIAL: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
SIZES: dict[str, Any] = SPECIAL | {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 1}
NARROW = GROUPED | {"head_dim": 4}  # attention narrower than the stream
SLIDING = {"sliding_window": 4}  # shorter than the prompts
GPT: dict[str, Any] = SPECIAL | {"n_positions": 128, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_inner": 24}
OPT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 128, "init_std": 0.3,
}  # fmt: skip
T5: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}

CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(**GPT, initializer_range=0.3),
    "gpt-j": GPTJConfig(**GPT, initializer_range=0.3, rotary_dim=4),
    "gpt-neox": GPTNeoXConfig(**SIZES),
    "opt": OPTConfig(**OPT, word_embed_proj_dim=16),
    "opt-350m": OPTConfig(**OPT, word_embed_proj_dim=8, do_layer_norm_before=False),  # embeddings narrower than blocks
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**NARROW, **SLIDING),
    "qwen2": Qwen2Config(**GROUPED, **SLIDING, use_sliding_window=True, max_window_layers=1),
    "qwen3": Qwen3Config(**NARROW),
    "gemma2": Gemma2Config(**NARROW, **SLIDING),
    "gemma3": Gemma3TextConfig(**NARROW, **SLIDING),
    "phi": PhiConfig(**SIZES),
    "phi3": Phi3Config(**GROUPED, **SLIDING),
}


def random_model(family: str) -> PreTrainedModel:
    """A random model of one family, always the same."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[family])
    return model
