"""Forward passes that do less: some tokens, the upper blocks only, logits only where they are read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache, DynamicLayer

from editlib.engine import products
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
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
    """Attention keys and values (rows, heads, tokens, width) of earlier tokens by layer; rows end at the right."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor  # (rows, tokens), 0 before a row begins

    def take(self, rows: Tensor) -> "Past":
        """Some rows, in any order, as often as wanted."""
        return Past(tuple((k[rows], v[rows]) for k, v in self.layers), self.mask[rows])

    def with_new(self, new: "Past", *, first: int = 0) -> "Past":
        """Earlier and new tokens, aligned again; layers before `first`, which no pass will read, stand for nothing."""
        mask = torch.cat([self.mask, new.mask], 1)
        width = int(mask.sum(1).max())
        order = mask.argsort(dim=1, stable=True)[:, mask.shape[1] - width :]
        index = order[:, None, :, None]

        def joined(old: Tensor, fresh: Tensor) -> Tensor:
            both = torch.cat([old, fresh], 2)
            return both.gather(2, index.expand(-1, both.shape[1], -1, both.shape[3]))

        pairs = list(zip(self.layers, new.layers, strict=True))
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


@dataclass(frozen=True)
class Passes:
    """A model's partial passes; one token through it shows the widths of its past, and what its blocks return."""

    lm: LanguageModel
    empty: Past  # one row
    in_tuple: bool
    activations: tuple[nn.Module, ...]  # those that are one kernel in torch and eight in transformers
    linear: tuple[nn.Module, ...]  # those whose products another library makes faster

    @classmethod
    @torch.no_grad()
    def of(cls, lm: LanguageModel) -> "Passes":
        """Run one token through the model.

        Raises `EditlibError` for a model that cannot go on from where it was: without attention keys and values in
        every block, as the first GPT and recurrent hybrids, or with blocks that hand on several streams, as Gemma 3n.
        """
        first, outputs = lm.model.get_submodule(f"{lm.layout.blocks}.0"), list[Any]()
        cache, token = Cache(layers=[DynamicLayer() for _ in range(lm.num_layers)]), torch.zeros(1, 1, dtype=torch.long)
        handle = first.register_forward_hook(lambda *seen: outputs.append(seen[2]))
        try:
            lm.model(input_ids=token.to(lm.device), past_key_values=cache, use_cache=True)
            layers = tuple((layer.keys[:, :, :0], layer.values[:, :, :0]) for layer in cache.layers)
            hidden = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
            if hidden.shape[:2] != (1, 1) or hidden.ndim != 3:
                raise ValueError(f"hidden states of shape {tuple(hidden.shape)}")
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # each family has its own way to fail
            raise EditlibError(
                f"{lm.label} ({type(lm.model).__name__}) cannot be edited: not every block keeps attention keys and "
                "values and hands on hidden states alone; use a plain decoder such as Llama"
            ) from error
        finally:
            handle.remove()
        slow = tuple(module for module in lm.model.modules() if isinstance(module, NewGELUActivation))
        empty = Past(layers, torch.zeros(1, 0, dtype=torch.long, device=lm.device))
        return cls(lm, empty, isinstance(outputs[0], tuple), slow, tuple(filter(products.suits, lm.model.modules())))

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
        replace: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        stop: bool = False,
        above: int | None = None,
    ) -> Pass:
        """Run tokens behind their past; logits (pairs, vocabulary) are read at the pairs `at` only.

        With `stop` the pass ends once the modules `names` have run, without logits. From block `above` on MLPs are run
        on real tokens alone, and in the last block only where logits are read; no module in there can be named.
        """
        past = past or self.nothing(len(tokens.ids))
        kept = [_Kept(k, v) for k, v in past.layers]
        behind = (tokens.mask.cumsum(1) - 1).clamp(min=0)  # padding repeats the last position
        none, logits = behind[:0, 0], torch.empty(0)
        read = at or (none, none)
        with ExitStack() as stack:
            if start:
                self._start(stack, start)
            for module in self.activations:
                stack.enter_context(_running(module, partial(gelu, approximate="tanh")))
            for module in self.linear:
                stack.enter_context(_running(module, partial(products.apply, module)))
            stack.enter_context(_headed(self.lm, read))
            for layer in range(self.lm.num_layers if above is None else above, self.lm.num_layers):
                self._thin(stack, layer, tokens, read if layer == self.lm.num_layers - 1 else tokens.real)
            seen = stack.enter_context(trace(self.lm.model, *names, replace=replace, stop=stop))
            logits = self.lm.model(
                input_ids=tokens.ids,
                attention_mask=torch.cat([past.mask, self.lm.attended(tokens.mask)], 1),
                position_ids=past.mask.sum(1, keepdim=True) + behind,
                past_key_values=Cache(layers=list(kept)),
                use_cache=True,
            ).logits
        new = tuple(layer.new or pair for layer, pair in zip(kept, past.layers, strict=True))
        return Pass(logits, seen, Past(new, tokens.mask))

    def _start(self, stack: ExitStack, start: Start) -> None:
        """Let the blocks before the start pass on their input, and the last of them the start's hidden states."""
        every: Any = self.lm.model.get_submodule(self.lm.layout.blocks)
        for block in list(every)[: start.below]:
            stack.enter_context(_running(block, self._pass_on))
        if start.below:
            stack.enter_context(_running(every[start.below - 1], lambda *_, **__: self._returned(start.hidden)))

    def _thin(self, stack: ExitStack, layer: int, tokens: Tokens, needed: At) -> None:
        """Run a layer's MLP only where it is needed; blocks that have no module of that kind stay as they are."""
        name = self.lm.layout.name(layer).rpartition(".")[0]
        if name != f"{self.lm.layout.blocks}.{layer}" and len(needed[0]) < tokens.ids.numel():
            mlp = self.lm.model.get_submodule(name)
            stack.enter_context(_running(mlp, _at(mlp, needed)))

    def _pass_on(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return self._returned(hidden_states)

    def _returned(self, hidden: Tensor) -> Any:
        return (hidden, None) if self.in_tuple else hidden


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
