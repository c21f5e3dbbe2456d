"""Language models as the editing code sees them: a model, its tokenizer, and where its MLP memories sit."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editlib.errors import EditlibError
from editlib.models.layout import Layout, check_layout, find_layout, is_linear, oriented


@dataclass(frozen=True)
class LanguageModel:
    """A language model with its tokenizer; wraps any transformers model you already hold.

    Wrapping puts the model in evaluation mode and asks for no gradients of its weights. Of an encoder-decoder such as
    T5, the encoder's keys can be read, and that is all. The layout is discovered when not given. Raises `EditlibError`
    if it cannot be or does not fit, or if the tokenizer has no offsets or gives tokens that the model has no row for.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout = Layout("", "")  # found in the module tree when not given
    name: str = ""
    folder: Path | None = None

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise EditlibError(f"tokenizer {type(self.tokenizer).__name__} has no offsets; load it with use_fast=True")
        self.model.eval().requires_grad_(False)
        if self.layout.blocks:
            check_layout(self.model, self.layout)
        else:
            object.__setattr__(self, "layout", find_layout(self.model))
        rows, special = self.model.get_input_embeddings().weight.shape[0], set(self.tokenizer.all_special_ids)
        if len(self.tokenizer) > rows:  # a special token, such as for padding, does no harm: no text holds it
            lost = [token for token, i in self.tokenizer.get_vocab().items() if i >= rows and i not in special]
            if lost:
                raise EditlibError(
                    f"the tokenizer has {len(self.tokenizer)} tokens, {self.label} embeddings for {rows}: none for "
                    f"{min(lost)!r}; use the model's own tokenizer"
                )

    @property
    def label(self) -> str:
        """What messages call the model."""
        return self.name or "the model"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    @property
    def max_length(self) -> int | None:
        """The most tokens the model takes at once, if its configuration says so."""
        config = self.model.config.get_text_config()
        limit: int | None = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
        return limit

    @property
    def causal(self) -> bool:
        """Whether the model predicts each token from those before."""
        return not self.model.config.is_encoder_decoder and self.model.get_output_embeddings() is not None

    def attended(self, mask: Tensor) -> Tensor:
        """The attention mask for right-padded rows, given which tokens are real.

        In a causal model all may be seen: nothing looks at the padding behind it, whereas padding that may see
        nothing, as in short sliding windows, turns to nan and spreads.
        """
        return torch.ones_like(mask) if self.causal else mask

    def require_causal(self) -> None:
        """Raise `EditlibError` unless the model predicts each token from those before, as edits and scores need."""
        if not self.causal:
            raise EditlibError(
                f"{self.label} ({type(self.model).__name__}) is no causal language model: its keys can "
                "be read, but it cannot be edited or scored; use one such as GPT-2"
            )

    def require_untouched(self, what: str) -> None:
        """Raise `EditlibError` unless the model runs as it was loaded, which `what` is to be kept for.

        Hooks, as inside `placed` or `trace`, change its passes; an edit that is applied changes its weights.
        """
        hooks = [h for m in self.model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        if any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks):  # those only look
            raise EditlibError(f"{self.label} runs with hooks; ask for {what} outside placed() and trace()")
        if replace(self).fingerprint != self.fingerprint:
            raise EditlibError(f"{self.label} is edited; ask for {what} before the edit")

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.model.get_submodule(self.layout.blocks))

    def down(self, layer: int) -> nn.Module:
        """The down-projection of one layer: its input is the key, its output the value."""
        if not 0 <= layer < self.num_layers:
            raise EditlibError(f"layer {layer} is out of range: {self.label} has layers 0 to {self.num_layers - 1}")
        module: nn.Module = self.model.get_submodule(self.layout.name(layer))
        return module

    def weight(self, layer: int) -> Tensor:
        """The memory of one layer as a view of shape (d_out, d_in), whichever way the module stores it."""
        return oriented(self.down(layer))

    def mlp(self, layer: int) -> dict[str, nn.Module]:
        """The linear maps beside and including the down-projection of one layer, by dotted name."""
        self.down(layer)  # raises if out of range
        parent = self.layout.name(layer).rpartition(".")[0]
        children = self.model.get_submodule(parent).named_children()
        return {f"{parent}.{name}": child for name, child in children if is_linear(child)}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every parameter's name, dtype, shape and bytes, taken the first time it is asked for."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def widened(values: Tensor) -> Tensor:
    """Half precision as fp32; fp32 and fp64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
