"""What a method remembers of the model that a sequence of edits began with."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editlib.editing.edit import restored
from editlib.editing.method import State
from editlib.editing.overlays import tensor_of, text_of
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel

if TYPE_CHECKING:
    from editlib.editing.session import Session


def remembered(lm: LanguageModel, state: State | None, by: str, needed: Iterable[str] = ()) -> dict[str, Tensor]:
    """A copy of a state to write into; at first alone whose model it is, and what it is left `by`.

    Raises `EditlibError` for a state of another model or left by something else, or one that lacks what is needed.
    """
    model = torch.tensor(list(bytes.fromhex(lm.fingerprint)), dtype=torch.uint8, device=lm.device)
    if state is None:
        return {"model": model, "method": tensor_of(by)}
    if "model" in state and not torch.equal(state["model"], model):
        raise EditlibError(f"this state was left by edits of another model than {lm.label}; begin with state=None")
    if "method" in state and (left := text_of(state["method"])) != by:
        raise EditlibError(f"this state was left by {left}, not {by}; begin with state=None")
    lacking = next((name for name in ("model", "method", *needed) if name not in state), None)
    if lacking is not None:
        raise EditlibError(f"this state has no {lacking!r}: another method or setting left it; begin with state=None")
    return dict(state)


@contextmanager
def as_it_was(session: "Session", weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the model have these weights, each (d_out, d_in), inside the block, where the session knows nothing of other
    ones, and neither after it."""
    if not weights:
        yield
        return
    session.forget()
    try:
        with restored(session.lm, weights) as present:
            for name, weight in present.items():
                weight.copy_(weights[name])
            yield
    finally:
        session.forget()
