"""Read or replace activations inside a model, for the length of a `with` block.

with trace(lm.model, "transformer.h.2.mlp.c_proj", stop=True) as seen:
    lm.model(ids)
seen["transformer.h.2.mlp.c_proj"].input   # (batch, tokens, d_in)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Replace = Callable[[Tensor], Tensor]
Alter = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Seen:
    """What went in and came out of one module in the last forward pass, (texts, tokens, width) in every family.

    The output is the module's own, whatever later modules write into what they are given.
    """

    input: Tensor
    output: Tensor


class _Stop(Exception):
    """Ends a forward pass once the last traced module has run."""


@contextmanager
def trace(
    model: nn.Module, *names: str, replace: Mapping[str, Replace] | None = None, stop: bool = False
) -> Iterator[dict[str, Seen]]:
    """Record the modules `names`; `replace` maps a name to a function of its output; `stop` ends the pass after
    the last one.

    Hooks are removed when the block ends, also after an exception. A stopped pass ends the block at once, so
    with `stop` let the model's call be its last line.
    """
    seen: dict[str, Seen] = {}
    functions, wanted = dict(replace or {}), {*names, *(replace or {})}

    def seeing(name: str) -> Alter:
        def see(given: Tensor, output: Tensor) -> Tensor:
            changed = functions[name](output) if name in functions else output
            seen[name] = Seen(given, changed)
            if stop and wanted <= seen.keys():
                raise _Stop
            return changed

        return see

    with altered(model, {name: seeing(name) for name in wanted}):
        try:
            yield seen
        except _Stop:
            return


@contextmanager
def altered(model: nn.Module, functions: Mapping[str, Alter]) -> Iterator[None]:
    """Let modules by name put out what functions of their input and output say, both (texts, tokens, width)."""
    texts: list[int] = []  # how many the current pass has

    def count(_module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        texts[:] = [len(value) for value in (*inputs, *options.values()) if isinstance(value, Tensor)][:1]

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
            several = isinstance(output, tuple | list)
            first = output[0] if several else output
            given = (*inputs, *options.values())[0]  # some blocks call by keyword
            changed = functions[name](_by_text(given, texts), _by_text(first, texts))
            passed_on = changed.view_as(first).clone()  # Falcon adds attention in place to what its MLP put out
            return type(output)([passed_on, *output[1:]]) if several else passed_on

        return hook

    with ExitStack() as stack:
        stack.enter_context(_removed(model.register_forward_pre_hook(count, with_kwargs=True)))
        for name in functions:
            handle = model.get_submodule(name).register_forward_hook(hook_for(name), with_kwargs=True)
            stack.enter_context(_removed(handle))
        yield


def _by_text(values: Tensor, texts: Sequence[int]) -> Tensor:
    """OPT hands its MLP the tokens of all texts in one row; this parts them again."""
    flat = texts and values.ndim == 2 and values.is_floating_point()
    return values.unflatten(0, (*texts, -1)) if flat else values


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
