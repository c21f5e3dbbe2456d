"""Language models as the editing code sees them: a model, its tokenizer, and where its MLP memories sit."""

import hashlib
import inspect
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from editlib.errors import EditlibError

BY_HAND = "pass layout=Layout(blocks, down), or --layout blocks,down"


@dataclass(frozen=True)
class Layout:
    """Where the blocks are and, inside each, the map from MLP key to value (dotted module names)."""

    blocks: str
    down: str

    @classmethod
    def of(cls, text: str) -> "Layout":
        """The layout written as `blocks,down`; raises `EditlibError` for anything else."""
        blocks, _, down = text.partition(",")
        if not blocks.strip() or not down.strip() or "," in down:
            raise EditlibError(f"layout {text!r} must be blocks,down, for example transformer.h,mlp.c_proj")
        return cls(blocks.strip(), down.strip())

    def name(self, layer: int) -> str:
        """Dotted name of the down-projection of one layer."""
        return f"{self.blocks}.{layer}.{self.down}"


def find_layout(model: PreTrainedModel) -> Layout:
    """Find blocks and down-projection of a model, put in evaluation mode; `EditlibError` says what was looked for."""
    kind, width = type(model.eval()).__name__, _hidden_width(model)
    encoder = model.config.is_encoder_decoder
    stack: nn.Module = model.get_encoder() if encoder else model.get_decoder()  # without a vision tower
    inside = set(stack.modules())
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and m in inside and len(m)}
    if not lists:
        raise EditlibError(f"{kind} has no list of blocks (nn.ModuleList); {BY_HAND}")
    blocks = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    experts = next((f"{blocks}.{i}.{e}" for i, b in enumerate(lists[blocks]) if (e := _experts(b, width))), None)
    if experts is not None:
        raise EditlibError(
            f"{experts} of {kind} looks like a mixture of experts; looked for one MLP of linear maps in each block; "
            f"{BY_HAND} of another linear map"
        )
    parts = dict(lists[blocks][0].named_modules())
    downs = {n: m for n, m in parts.items() if n and is_linear(m) and oriented(m).shape[0] == width}
    if not downs:
        raise EditlibError(f"no linear map to the hidden width {width} in {blocks}.0 of {kind}; {BY_HAND}")
    holders = {name: name.rpartition(".")[0] for name in downs}
    alone = [n for n, holder in holders.items() if not holder or not mixes_tokens(parts[holder], downs[n], width)]
    if not alone:
        raise EditlibError(
            f"{kind} has no MLP: {', '.join(sorted(set(holders.values())))} in {blocks}.0 mixes tokens; {BY_HAND}"
        )
    layout = Layout(blocks, max(reversed(alone), key=lambda name: oriented(downs[name]).shape[1]))
    check_layout(model, layout)
    return layout


def check_layout(model: PreTrainedModel, layout: Layout) -> None:
    """Raise `EditlibError` naming the first block that has no linear map to the hidden width where the layout says."""
    modules, width = dict(model.named_modules()), _hidden_width(model)
    blocks = modules.get(layout.blocks)
    if not isinstance(blocks, nn.ModuleList):
        lists = ", ".join(name for name, module in modules.items() if isinstance(module, nn.ModuleList))
        raise EditlibError(f"layout blocks {layout.blocks!r} is no list of modules; the model has {lists or 'none'}")
    for name in map(layout.name, range(len(blocks))):
        if not is_linear(modules.get(name)) or oriented(modules[name]).shape[0] != width:
            raise EditlibError(f"layout down {name!r} is no linear map to the hidden width {width}; {BY_HAND}")


def is_linear(module: nn.Module | None) -> bool:
    """Whether a module is a linear map, in either way of storing it."""
    return isinstance(module, nn.Linear | Conv1D)


def oriented(module: nn.Module) -> Tensor:
    """A linear module's weight as (d_out, d_in); GPT-2's Conv1D stores the transpose."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.T if isinstance(module, Conv1D) else weight


def named_weight(lm: "LanguageModel", name: str) -> Tensor:
    """A linear module's weight by its name, as (d_out, d_in)."""
    return oriented(lm.model.get_submodule(name.removesuffix(".weight")))


def _hidden_width(model: PreTrainedModel) -> int:
    width: int = model.config.get_text_config().hidden_size  # OPT-350m's embeddings are narrower than its blocks
    return width


def _experts(block: nn.Module, width: int) -> str | None:
    """The part of a block that holds several MLPs: a list of like modules, or weights outside linear maps."""
    for name, module in block.named_modules():
        ours = is_linear(module) or isinstance(module, nn.Embedding | _ConvNd)
        shapes = [] if ours else [[n for n in p.shape if n > 1] for p in module.parameters(recurse=False)]
        parts = list(module) if isinstance(module, nn.ModuleList) else []
        kinds = [tuple(n for n, _ in part.named_modules()) for part in parts if any(map(is_linear, part.modules()))]
        if any(len(shape) > 1 and width in shape for shape in shapes) or len(set(kinds)) < len(kinds):
            return str(name)
    return None


@torch.no_grad()
def mixes_tokens(holder: nn.Module, down: nn.Module, width: int) -> bool:
    """Whether a module that maps the hidden width to itself through `down` is anything but a map of single tokens."""
    inner = [m for m in holder.modules() if is_linear(m) and m is not down]
    if not any(oriented(m).shape[1] == width for m in inner):
        return False  # it holds the way back alone
    required = [p for p in inspect.signature(holder.forward).parameters.values() if p.default is p.empty]
    count = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in required)  # some add what is kept beside themselves
    hidden = torch.arange(3 * width).sin().view(1, 3, width).to(oriented(down))
    try:
        whole, last = (holder(*[tokens] * max(1, count)) for tokens in (hidden, hidden[:, 1:]))
        whole, last = (output[0] if isinstance(output, tuple) else output for output in (whole, last))
        return whole.shape != hidden.shape or bool((whole[:, 1:] - last).norm() > 0.05 * last.norm())
    except Exception:  # whatever it asks for, an MLP does without
        return True


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
        if self.hooked():
            raise EditlibError(f"{self.label} runs with hooks; ask for {what} outside placed() and trace()")
        if replace(self).fingerprint != self.fingerprint:
            raise EditlibError(f"{self.label} is edited; ask for {what} before the edit")

    def hooked(self, inside: str = "") -> bool:
        """Whether hooks read or change passes of the model or a module of it; those of transformers only look."""
        modules = self.model.get_submodule(inside).modules()
        hooks = [h for m in modules for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        return any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks)

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
        return self.fingerprint_in(None)

    def fingerprint_in(self, dtype: torch.dtype | None) -> str:
        """The fingerprint of the same model with its weights rounded to a dtype; None is the one they have."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            values = parameter.detach().to(dtype or parameter.dtype)
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def widened(values: Tensor) -> Tensor:
    """Half precision as fp32; fp32 and fp64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
