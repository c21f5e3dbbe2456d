"""Read or replace activations inside a model, for the length of a `with` block.

with trace(lm.model, "transformer.h.2.mlp.c_proj", stop=True) as seen:
    lm.model(ids)
seen["transformer.h.2.mlp.c_proj"].input   # (batch, tokens, d_in)
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Replace = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Seen:
    """What went in and came out of one module in the last forward pass."""

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

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            changed = functions[name](first) if name in functions else first
            seen[name] = Seen((*inputs, *options.values())[0], changed)  # some blocks call by keyword
            if stop and wanted <= seen.keys():
                raise _Stop
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    with ExitStack() as stack:
        for name in wanted:
            handle = model.get_submodule(name).register_forward_hook(hook_for(name), with_kwargs=True)
            stack.enter_context(_removed(handle))
        try:
            yield seen
        except _Stop:
            return


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
