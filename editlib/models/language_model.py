"""Language models as the editing code sees them: a model, its tokenizer, and where its MLP memories sit.

The layout is read off the module tree, never off a model's name: the blocks are the heaviest list of modules in the
text stack, and a block's memory is its last linear map back to the hidden width.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from editlib.errors import EditlibError, unknown
from editlib.models.names import DTYPES, hub_id, locate

TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model")  # a folder needs one of them
BY_HAND = "pass layout=Layout(blocks, down)"


@dataclass(frozen=True)
class Layout:
    """Where the blocks are and, inside each, the map from MLP key to value (dotted module names)."""

    blocks: str
    down: str

    def name(self, layer: int) -> str:
        """Dotted name of the down-projection of one layer."""
        return f"{self.blocks}.{layer}.{self.down}"


@dataclass(frozen=True)
class LanguageModel:
    """A language model with its tokenizer; wraps any transformers model you already hold.

    Of an encoder-decoder such as T5, the encoder's keys can be read, and that is all. The layout is discovered when not
    given. Raises `EditlibError` if it cannot be or does not fit, or if the tokenizer has no offsets.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout = Layout("", "")  # found in the module tree when not given
    name: str = ""
    folder: Path | None = None

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise EditlibError(f"tokenizer {type(self.tokenizer).__name__} has no offsets; load it with use_fast=True")
        if self.layout.blocks:
            check_layout(self.model, self.layout)
        else:
            object.__setattr__(self, "layout", find_layout(self.model))
        self.model.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    @property
    def max_length(self) -> int | None:
        """The most tokens the model takes at once, if its configuration says so."""
        limit: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
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
                f"{self.name or 'the model'} ({type(self.model).__name__}) is no causal language model: its keys can "
                "be read, but it cannot be edited or scored; use one such as GPT-2"
            )

    def require_untouched(self, what: str) -> None:
        """Raise `EditlibError` unless the model runs as it was loaded, which `what` is to be kept for.

        Hooks, as inside `placed` or `trace`, change its passes; an edit that is applied changes its weights.
        """
        name = self.name or "the model"
        hooks = [h for m in self.model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        if any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks):  # those only look
            raise EditlibError(f"{name} runs with hooks that may change it; ask for {what} outside placed() or trace()")
        if replace(self).fingerprint != self.fingerprint:
            raise EditlibError(f"{name} is edited; ask for {what} before the edit")

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.model.get_submodule(self.layout.blocks))

    def down(self, layer: int) -> nn.Module:
        """The down-projection of one layer: its input is the key, its output the value."""
        if not 0 <= layer < self.num_layers:
            raise EditlibError(
                f"layer {layer} is out of range: {self.name or 'the model'} has layers 0 to {self.num_layers - 1}"
            )
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
        return {f"{parent}.{name}": child for name, child in children if _is_linear(child)}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every parameter's name, dtype, shape and bytes, taken the first time it is asked for."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def oriented(module: nn.Module) -> Tensor:
    """A linear module's weight as (d_out, d_in); GPT-2's Conv1D stores the transpose."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.T if isinstance(module, Conv1D) else weight


def widened(values: Tensor) -> Tensor:
    """Half precision as fp32; fp32 and fp64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def find_layout(model: PreTrainedModel) -> Layout:
    """Find blocks and down-projection in the module tree; `EditlibError` says what was looked for."""
    inside = set(_text_stack(model).modules())
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and m in inside and len(m)}
    if not lists:
        raise EditlibError(f"{type(model).__name__} has no list of blocks (nn.ModuleList); {BY_HAND}")
    blocks = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    experts = next((f"{blocks}.{i}.{name}" for i, block in enumerate(lists[blocks]) if (name := _experts(block))), None)
    if experts is not None:
        raise EditlibError(
            f"{experts} of {type(model).__name__} looks like a mixture of experts; looked for one MLP of linear maps "
            f"in each block; {BY_HAND} of another linear map"
        )
    width = _hidden_width(model)
    downs = [n for n, m in lists[blocks][0].named_modules() if _is_linear(m) and oriented(m).shape[0] == width]
    if not downs:
        raise EditlibError(f"no linear map to the hidden width {width} in {blocks}.0; {BY_HAND}")
    layout = Layout(blocks, downs[-1])  # attention comes first in every family, so the last one is the MLP's
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
        if not _is_linear(modules.get(name)) or oriented(modules[name]).shape[0] != width:
            raise EditlibError(f"layout down {name!r} is no linear map to the hidden width {width}; {BY_HAND}")


def _text_stack(model: PreTrainedModel) -> nn.Module:
    """T5's encoder, the language model beside a vision tower, or the whole of a plain causal model."""
    stack: nn.Module = model.get_encoder() if model.config.is_encoder_decoder else model.get_decoder()
    return stack


def _hidden_width(model: PreTrainedModel) -> int:
    width: int = model.config.get_text_config().hidden_size  # OPT-350m's embeddings are narrower than its blocks
    return width


def _is_linear(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _experts(block: nn.Module) -> str | None:
    """The part of a block that holds several MLPs, as a list of like modules or stacked outside linear maps."""
    for name, module in block.named_modules():
        own = [] if _is_linear(module) or isinstance(module, nn.Embedding) else module.parameters(recurse=False)
        parts = list(module) if isinstance(module, nn.ModuleList) else []
        kinds = [tuple(n for n, _ in part.named_modules()) for part in parts]
        if any(parameter.ndim > 1 for parameter in own) or len(set(kinds)) < len(kinds):
            return str(name)
    return None


def load(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a testbed twin (`testbed/anchored`), a local folder, or a hub id with a pinned `revision` (or `id@commit`).

    Only safetensors weights are read. Raises `EditlibError` for an unknown model, a hub id without a 40-digit
    revision, or a folder with a missing or truncated file.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    require_device(device)
    folder = locate(name)
    if folder is not None:
        check_folder(folder)
        source, pinned = str(folder), None
    else:
        source, pinned = hub_id(f"{name}@{revision}" if revision else name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code} | ({"revision": pinned} if pinned else {})
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        config = AutoConfig.from_pretrained(source, **options)
        loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model, info = loader.from_pretrained(
            source, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise EditlibError(f"model {name!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    if info["missing_keys"]:  # transformers would leave these at random values
        lost = sorted(info["missing_keys"])[0]
        raise EditlibError(f"model {name!r} cannot be loaded: its files have no weight {lost}; copy it again")
    return LanguageModel(model.to(device), tokenizer, name=name, folder=folder)


def require_device(name: str) -> str:
    """The device's name, after checking that it is there; `EditlibError` if it is not."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by what it was built with
        raise EditlibError(f"device {name!r} is not available here; use cpu or cuda") from error
    return name


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, those its index names if it has one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            return [folder / file for file in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError) as error:
            raise EditlibError(f"{index} is truncated or damaged ({error!r}); copy it again") from error
    return [folder / "model.safetensors"]


def check_folder(folder: Path) -> None:
    """Raise `EditlibError` naming the first file of a model folder that is missing or cannot be read whole."""
    tokenizer = next((folder / file for file in TOKENIZERS if (folder / file).is_file()), folder / TOKENIZERS[0])
    for path in (folder / "config.json", tokenizer, *weight_files(folder)):
        if not path.is_file():
            raise EditlibError(
                f"{folder} has no {path.name}; copy the whole model folder (config, tokenizer, safetensors)"
            )
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):  # reads the header and compares the sizes it names with the file's
                    pass
        except (ValueError, SafetensorError) as error:
            raise EditlibError(f"{path} is truncated or damaged ({error}); copy it again") from error


def fingerprint(name: str) -> str:
    """sha256 of a testbed twin's or local folder's weight files, or the commit of a hub model given as `id@commit`."""
    folder = locate(name)
    if folder is None:
        return hub_id(name)[1]
    check_folder(folder)
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
