"""Where a model's MLP memories sit, read off its modules and what they do, never off a model's name.

The blocks are the heaviest list of modules in the text stack. A block's memory is its widest linear map back to the
hidden width that no module holds which mixes tokens, as attention, convolutions and recurrences do.
"""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
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
        whole, last = (found[0] if isinstance(found, tuple) else found for found in (whole, last))
        return whole.shape != hidden.shape or bool((whole[:, 1:] - last).norm() > 0.05 * last.norm())
    except Exception:  # whatever it asks for, an MLP does without
        return True
