"""Tiny random models of every family, made from configuration."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    CodeGenConfig,
    CohereConfig,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Glm4Config,
    GPT2Config,
    GPTBigCodeConfig,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
    NemotronConfig,
    Olmo2Config,
    OpenAIGPTConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
    XGLMConfig,
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

BARE = {name: value for name, value in SIZES.items() if name != "intermediate_size"}  # four times the hidden width
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
OTHERS: dict[str, tuple[PreTrainedConfig, str]] = {  # works too, with where its memory is
    "falcon": (FalconConfig(**BARE), "transformer.h.1.mlp.dense_4h_to_h"),
    "falcon-40b": (FalconConfig(**BARE, new_decoder_architecture=True, num_kv_heads=2),
                   "transformer.h.1.mlp.dense_4h_to_h"),
    "falcon-rw": (FalconConfig(**BARE, alibi=True, parallel_attn=False), "transformer.h.1.mlp.dense_4h_to_h"),
    "bloom": (BloomConfig(**SPECIAL, hidden_size=16, n_layer=3, n_head=2, initializer_range=0.3),
              "transformer.h.1.mlp.dense_4h_to_h"),
    "mpt": (MptConfig(vocab_size=VOCABULARY, d_model=16, n_layers=3, n_heads=2, max_seq_len=128),
            "transformer.blocks.1.ffn.down_proj"),
    "gpt-neo": (GPTNeoConfig(**SPECIAL, hidden_size=16, num_layers=4, num_heads=2, intermediate_size=24,
                             attention_types=[[["global", "local"], 2]], max_position_embeddings=128, window_size=4,
                             initializer_range=0.3), "transformer.h.1.mlp.c_proj"),
    "bigcode": (GPTBigCodeConfig(**GPT, initializer_range=0.3), "transformer.h.1.mlp.c_proj"),
    "codegen": (CodeGenConfig(**GPT | {"n_head": 4}, rotary_dim=4), "transformer.h.1.mlp.fc_out"),
    "xglm": (XGLMConfig(vocab_size=VOCABULARY, d_model=16, num_layers=3, attention_heads=2, ffn_dim=24, init_std=0.3,
                        max_position_embeddings=128), "model.layers.1.fc2"),
    "bert": (BertConfig(**SIZES, is_decoder=True), "bert.encoder.layer.1.output.dense"),
    "stablelm": (StableLmConfig(**GROUPED), "model.layers.1.mlp.down_proj"),
    "cohere": (CohereConfig(**GROUPED), "model.layers.1.mlp.down_proj"),
    "olmo2": (Olmo2Config(**GROUPED), "model.layers.1.mlp.down_proj"),
    "granite": (GraniteConfig(**GROUPED), "model.layers.1.mlp.down_proj"),
    "starcoder2": (Starcoder2Config(**GROUPED), "model.layers.1.mlp.c_proj"),
    "nemotron": (NemotronConfig(**GROUPED), "model.layers.1.mlp.down_proj"),
    "glm4": (Glm4Config(**GROUPED, head_dim=8), "model.layers.1.mlp.down_proj"),
    "smollm3": (SmolLM3Config(**GROUPED), "model.layers.1.mlp.down_proj"),
    "openai-gpt": (OpenAIGPTConfig(vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=2, n_positions=128),
                   "transformer.h.1.mlp.c_proj"),
    "recurrent-gemma": (RecurrentGemmaConfig(**SIZES, lru_width=16, attention_window_size=16),
                        "model.layers.1.mlp_block.down_proj"),
    "qwen3-next": (Qwen3NextConfig(**NARROW | {"num_hidden_layers": 4}, **LINEAR, num_experts=0),
                   "model.layers.1.mlp.down_proj"),
    "falcon-h1": (FalconH1Config(**GROUPED, mamba_d_ssm=24, mamba_n_heads=4, mamba_d_head=6, mamba_n_groups=1,
                                 mamba_d_state=4, mamba_chunk_size=16), "model.layers.1.feed_forward.down_proj"),
    "gemma4": (Gemma4TextConfig(**NARROW, global_head_dim=4, vocab_size_per_layer_input=VOCABULARY,
                                hidden_size_per_layer_input=4, num_kv_shared_layers=0),
               "model.layers.1.mlp.down_proj"),
}  # fmt: skip
STREAMS = Gemma3nTextConfig(
    **NARROW, vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=4, laurel_rank=4, altup_num_inputs=2,
    num_kv_shared_layers=0, activation_sparsity_pattern=None,
)  # fmt: skip
WITHOUT_MLP: dict[str, PreTrainedConfig] = {
    "mamba": MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4),
    "rwkv": RwkvConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, context_length=128),
}


def random_model(family: str) -> PreTrainedModel:
    """A random model of one family, always the same."""
    return made_from(CONFIGS[family])


def made_from(config: PreTrainedConfig) -> PreTrainedModel:
    """A random model of a configuration, always the same."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model
