"""Forward passes that do less: some tokens, the upper blocks only, logits only where they are read."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import gelu, linear
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache, DynamicLayer
from transformers.pytorch_utils import Conv1D

from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, mixes_tokens, oriented
from editlib.models.tokens import pad
from editlib.models.trace import Seen, trace

At = tuple[Tensor, Tensor]  # rows and columns


class _Kept(DynamicLayer):
    """Attention keys and values of earlier tokens at one layer; those of a pass are put behind them, not kept."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True
        self.new: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.new = key_states, value_states
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


@dataclass(frozen=True)
class Past:
    """Attention keys and values (rows, heads, tokens, width) of earlier tokens by layer; rows end at the right.

    There are none for models whose blocks keep more than that, or something else, of earlier tokens.
    """

    past_key_values: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor  # (rows, tokens), 0 before a row begins

    def take(self, rows: Tensor) -> "Past":
        """Some rows, in any order, as often as wanted."""
        return Past(tuple((k[rows], v[rows]) for k, v in self.past_key_values), self.mask[rows])

    def with_new(self, new: "Past", *, first: int = 0) -> "Past":
        """Earlier and new tokens, aligned again; layers before `first`, which no pass will read, stand for nothing."""
        mask = torch.cat([self.mask, new.mask], 1)
        width = int(mask.sum(1).max())
        order = mask.argsort(dim=1, stable=True)[:, mask.shape[1] - width :]
        index = order[:, None, :, None]

        def joined(old: Tensor, fresh: Tensor) -> Tensor:
            both = torch.cat([old, fresh], 2)
            return both.gather(2, index.expand(-1, both.shape[1], -1, both.shape[3]))

        pairs = list(zip(self.past_key_values, new.past_key_values, strict=True))
        first = min(first, len(pairs) - 1)
        kept = [(joined(k, fresh_k), joined(v, fresh_v)) for (k, v), (fresh_k, fresh_v) in pairs[first:]]
        return Past((*kept[:1] * first, *kept), mask.gather(1, order))


@dataclass(frozen=True)
class Pass:
    """What a pass gives: logits where asked for, what modules saw, and attention keys and values of its tokens."""

    logits: Tensor  # (pairs, vocabulary)
    seen: Mapping[str, Seen]
    new: Past


@dataclass(frozen=True)
class Start:
    """Where a pass starts: blocks before `below` are skipped, and block `below` is given `hidden`."""

    below: int
    hidden: Tensor  # (rows, tokens, width)


@dataclass(frozen=True)
class Tokens:
    """Right-padded token ids, and 1 where they are real."""

    ids: Tensor  # (rows, tokens)
    mask: Tensor

    @classmethod
    def of(cls, lm: LanguageModel, rows: Sequence[Sequence[int]]) -> "Tokens":
        """Pad rows of ids."""
        return cls(*pad(rows, lm.device))

    def take(self, rows: Tensor) -> "Tokens":
        """Some rows."""
        return Tokens(self.ids[rows], self.mask[rows])

    @cached_property
    def real(self) -> At:
        """Where they are real."""
        row, column = self.mask.nonzero(as_tuple=True)
        return row, column


def stateful(lm: LanguageModel) -> bool:
    """Whether blocks keep other things of earlier tokens than attention keys and values, or nothing.

    So do state-space models, hybrids with them, and the first GPT. All tokens are run in every pass of such a model.
    """
    kinds: Sequence[str] = getattr(lm.model.config.get_text_config(), "layer_types", None) or ()
    other = any("attention" not in kind or "linear" in kind for kind in kinds)
    keeps = "past_key_values" in inspect.signature(lm.model.forward).parameters
    return other or not keeps or bool(getattr(lm.model, "_is_stateful", False))


def uncached(lm: LanguageModel) -> dict[str, Any]:
    """What tells a model to keep nothing, if it can be told: the first GPT never does."""
    return {"use_cache": False} if "use_cache" in inspect.signature(lm.model.forward).parameters else {}


@dataclass(frozen=True)
class Passes:
    """A model's partial passes; one token through it shows the widths of its past, and what its blocks return."""

    lm: LanguageModel
    empty: Past  # one row
    others: int | None  # what a block returns in a tuple behind its hidden states, or None if it returns those alone
    streams: bool  # whether a block's hidden states are several for each token
    pointwise: bool  # whether the module around a down-projection treats every token by itself
    activations: tuple[nn.Module, ...]  # those that are one kernel in torch and eight in transformers
    linear: tuple[nn.Module, ...]  # those whose products another library makes faster
    slow_flash: bool  # whether flash attention is slow backwards: on a CPU in 16 bit, seven times as in 32

    @classmethod
    @torch.no_grad()
    def of(cls, lm: LanguageModel, *, plain: bool = False) -> "Passes":
        """Run one token through the model.

        With `plain` the passes are the model's own: no kernels but its own, no keys and values kept, every module run
        on all tokens. Raises `EditlibError` otherwise for a model whose blocks hand on several streams, as Gemma 3n.
        """
        block, outputs = lm.model.get_submodule(f"{lm.layout.blocks}.0"), list[Any]()
        cache = None if plain or stateful(lm) else Cache(layers=[DynamicLayer() for _ in range(lm.num_layers)])
        options = uncached(lm) if cache is None else {"past_key_values": cache, "use_cache": True}
        handle = block.register_forward_hook(lambda *seen: outputs.append(seen[2]))
        try:
            lm.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=lm.device), **options)
        finally:
            handle.remove()
        several = isinstance(outputs[0], tuple | list)
        streams = (outputs[0][0] if several else outputs[0]).shape[:-1] != (1, 1)
        kept = [layer.keys is not None for layer in cache.layers] if cache else []
        if not plain and (streams or not all(kept)):
            raise EditlibError(
                f"{lm.label} ({type(lm.model).__name__}) cannot be edited: not every block keeps attention keys and "
                "values and hands on hidden states alone; use a plain decoder such as Llama"
            )
        layers = tuple((layer.keys[:, :, :0], layer.values[:, :, :0]) for layer in cache.layers) if cache else ()
        around = lm.layout.name(0).rpartition(".")[0]
        mlp = None if around == f"{lm.layout.blocks}.0" else lm.model.get_submodule(around)
        modules, weight = [] if plain else list(lm.model.modules()), lm.weight(0)
        return cls(
            lm,
            empty=Past(layers, torch.zeros(1, 0, dtype=torch.long, device=lm.device)),
            others=len(outputs[0]) - 1 if several else None,
            streams=streams,
            pointwise=not (plain or mlp is None or mixes_tokens(mlp, lm.down(0), len(lm.weight(0)))),
            activations=tuple(module for module in modules if isinstance(module, NewGELUActivation)),
            linear=tuple(filter(suits_product, modules)),
            slow_flash=not plain and weight.device.type == "cpu" and weight.element_size() == 2,
        )

    @property
    def vocabulary(self) -> int:
        """Logits of a position."""
        head: nn.Module = self.lm.model.get_output_embeddings()
        return len(head.get_parameter("weight"))

    def nothing(self, rows: int) -> Past:
        """The past of rows that begin now."""
        return self.empty.take(torch.zeros(rows, dtype=torch.long, device=self.lm.device))

    def run(
        self,
        tokens: Tokens,
        past: Past | None = None,
        *,
        start: Start | None = None,
        at: At | None = None,
        names: Sequence[str] = (),
        changed: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        stop: bool = False,
        above: int | None = None,
    ) -> Pass:
        """Run tokens behind their past; logits (pairs, vocabulary) are read at the pairs `at` only.

        With `stop` the pass ends once the modules `names` have run, without logits. From block `above` on MLPs are run
        on real tokens alone, and in the last block only where logits are read; no module in there can be named.
        """
        past = past or self.nothing(len(tokens.ids))
        kept = [_Kept(k, v) for k, v in past.past_key_values]
        behind = (tokens.mask.cumsum(1) - 1).clamp(min=0)  # padding repeats the last position
        none, logits = behind[:0, 0], torch.empty(0)
        read = at or (none, none)
        with ExitStack() as stack:
            if self.slow_flash and torch.is_grad_enabled():
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if start:
                self._start(stack, start)
            for module in self.activations:
                stack.enter_context(_running(module, partial(gelu, approximate="tanh")))
            for module in self.linear:
                stack.enter_context(_running(module, partial(product, module)))
            stack.enter_context(_headed(self.lm, read))
            if above is not None and self.pointwise:
                self._thin(stack, above, tokens, read)
            options = uncached(self.lm)
            if kept:
                positions = past.mask.sum(1, keepdim=True) + behind
                options = {"position_ids": positions, "past_key_values": Cache(layers=list(kept)), "use_cache": True}
            mask = torch.cat([past.mask, self.lm.attended(tokens.mask)], 1)
            seen = stack.enter_context(trace(self.lm.model, *names, replace=changed, stop=stop))
            logits = self.lm.model(input_ids=tokens.ids, attention_mask=mask, **options).logits
        new = tuple(layer.new or pair for layer, pair in zip(kept, past.past_key_values, strict=True))
        return Pass(logits, seen, Past(new, tokens.mask))

    def _start(self, stack: ExitStack, start: Start) -> None:
        """Let the blocks before the start pass on their input, and the last of them the start's hidden states."""
        every: Any = self.lm.model.get_submodule(self.lm.layout.blocks)
        for block in list(every)[: start.below]:
            stack.enter_context(_running(block, self._returned))
        if start.below:
            stack.enter_context(_running(every[start.below - 1], lambda *_, **__: self._returned(start.hidden)))

    def _returned(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return hidden_states if self.others is None else (hidden_states, *[None] * self.others)

    def _thin(self, stack: ExitStack, above: int, tokens: Tokens, read: At) -> None:
        """Run the MLPs from block `above` on only where they are needed."""
        for layer in range(above, self.lm.num_layers):
            needed = read if layer == self.lm.num_layers - 1 else tokens.real
            if len(needed[0]) < tokens.ids.numel():
                mlp = self.lm.model.get_submodule(self.lm.layout.name(layer).rpartition(".")[0])
                stack.enter_context(_running(mlp, _at(mlp, needed)))


@contextmanager
def _headed(lm: LanguageModel, at: At) -> Iterator[None]:
    """Give the head the hidden states at pairs of row and column alone."""
    head: nn.Module = lm.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][at],))
    try:
        yield
    finally:
        handle.remove()


def _at(module: nn.Module, at: At) -> Callable[..., Tensor]:
    """What a module, which treats every token by itself, gives at pairs of row and column, and 0 elsewhere."""
    inner = module.forward

    def forward(*inputs: Tensor) -> Tensor:
        rows, tokens, _ = inputs[0].shape
        found: Tensor = inner(*(value[at][None] for value in inputs))[0]
        return found.new_zeros(rows, tokens, found.shape[-1]).index_put(at, found)

    return forward


@contextmanager
def _running(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module run another function in place of its own."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before:
            module.forward = before


# oneDNN multiplies faster than what torch takes by default on many CPUs; the same sums in another order
PRODUCT = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def suits_product(module: nn.Module) -> bool:
    """Whether a module is linear, in float32 and on a CPU that has oneDNN."""
    if PRODUCT is None or type(module) not in (nn.Linear, Conv1D):
        return False
    weight = oriented(module)
    return weight.device.type == "cpu" and weight.element_size() == 4


def product(module: nn.Module, inputs: Tensor) -> Tensor:
    """What a linear module gives; the gradient goes to its inputs alone."""
    found: Tensor = _Product.apply(inputs, oriented(module), module.bias)
    return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _product(gradients[0], ctx.weight.T, None), None, None


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if PRODUCT is None or not inputs.numel() or inputs.element_size() != 4:
        return linear(inputs, weight, bias)
    found: Tensor = PRODUCT(inputs, weight, bias, "none", [], "")
    return found
