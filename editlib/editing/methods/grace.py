"""GRACE: a codebook of keys, values and radii beside one layer (Hartvigsen et al. 2023, Aging with GRACE, section 3).

A request's key is the input of the layer's down-projection at its prompt's last token; its value is trained to be the
output there. With d the distance to the nearest key j, a new key is kept with radius ε₀ if d > ε₀ + εⱼ. Nearer, the
target decides: another one parts both balls at d / 2; the same one widens the ball of j to d.

Deviations from the released code: a target is compared token by token with that of the nearest key (there the mean of
token ids, and from the third key on another key's); the codebook is asked at every token, since a pass does not say
where its prompt ends (there at that token alone).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.method import Method, State
from editlib.editing.methods.added import loss_with
from editlib.editing.methods.ft import descent
from editlib.editing.methods.overlaid import earlier, overlaid
from editlib.editing.overlays.codebook import Codebook
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import Encoded, encode
from editlib.models.trace import trace

if TYPE_CHECKING:
    from editlib.editing.session import Session

GAP = 1e-5  # between two balls that were parted


@dataclass(frozen=True, kw_only=True)
class GraceParams:
    """Hyper-parameters of GRACE."""

    layer: int
    radius: PositiveFloat = 1.0  # ε₀, in the unit of the layer's input
    steps: PositiveInt = 50
    learning_rate: PositiveFloat = 1.0  # Adam
    stop_loss: float = 1e-2
    begin: Literal["cold", "warm"] = "cold"  # a value begins with random numbers, or with the present output
    seed: int = 0


class Grace(Method):
    """GRACE."""

    name, hparams, several, weights, remembers = "grace", GraceParams, True, False, True
    paper, equation = "Hartvigsen et al. 2023, Aging with GRACE", "algorithm 1"

    def layers(self, params: GraceParams) -> tuple[int, ...]:
        """The one beside which the codebook is."""
        return (params.layer,)

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: GraceParams, state: State | None = None
    ) -> tuple[Edit, State]:
        """The codebook with all requests up to now; diagnostics have the distances to the nearest keys, over the keys'
        length too. Raises `EditlibError` if a target cannot be located, or for a state of another model or layer."""
        lm, module = session.lm, session.lm.layout.name(params.layer)
        d_out, d_in = lm.weight(params.layer).shape
        keys, values, radii = (torch.zeros(0, *size, device=lm.device) for size in ((d_in,), (d_out,), ()))
        book = earlier(lm, state, self, Codebook) or Codebook(module, (), keys, values, radii)
        if book.module != module:
            raise EditlibError(f"this state's codebook is beside {book.module}, not {module}; begin with state=None")
        losses, distances = list[list[float]](), list[float | None]()
        for request in requests:
            row = encode(lm.tokenizer, request.prompt, request.subject, target=request.target_new,
                         separator=request.separator)  # fmt: skip
            key, output = _at_prompt_end(lm, module, row)
            distances.append(float(book.nearest(key[None])[0]) if len(book.keys) else None)
            book, fresh = learned(book, key, row.wanted, params.radius)
            if fresh:
                value, curve = _value(lm, module, row, output, params)
                book, losses = replace(book, values=torch.cat([book.values, value[None]])), [*losses, curve]
        length = float(book.keys.norm(dim=1).mean())
        numbers: dict[str, Any] = {
            "steps": max(map(len, losses), default=0), "losses": losses, "entries": len(book.keys),
            "distance": distances, "key_norm": length,
            "relative_distance": [None if d is None else d / length for d in distances],
        }  # fmt: skip
        return overlaid(session, self, requests, params, book, numbers)


def learned(book: Codebook, key: Tensor, label: tuple[int, ...], radius: float) -> tuple[Codebook, bool]:
    """The codebook after a key (d_in,) with a target came, and whether the key is new and lacks its value."""
    own, radii = radius, book.radii.clone()
    if len(book.keys):
        distance, j = (each[0] for each in book.nearest(key[None]))
        near = distance <= radius + radii[j]
        if near and book.labels[int(j)] == label:
            radii[j] = torch.maximum(radii[j], distance)
            return replace(book, radii=radii), False
        if near:
            radii[j], own = distance / 2 - GAP, float(distance) / 2
    keys, radii = torch.cat([book.keys, key[None]]), torch.cat([radii, radii.new_tensor([own])])
    return replace(book, labels=(*book.labels, label), keys=keys, radii=radii), True


@torch.no_grad()
def _at_prompt_end(lm: LanguageModel, module: str, row: Encoded) -> tuple[Tensor, Tensor]:
    """Input and output of a module at the last token before the target.  # (d_in,), (d_out,)"""
    with trace(lm.model, module, stop=True) as seen:
        lm.model(torch.tensor([row.ids[: row.target]], device=lm.device))
    return widened(seen[module].input[0, -1]), widened(seen[module].output[0, -1])


def _value(
    lm: LanguageModel, module: str, row: Encoded, output: Tensor, params: GraceParams
) -> tuple[Tensor, list[float]]:
    """The output before the target that makes the model say it, and the loss of every step."""
    drawn = torch.rand(len(output), generator=torch.Generator().manual_seed(params.seed)).to(output)
    value = (drawn if params.begin == "cold" else output).clone().requires_grad_()
    at = torch.tensor(row.target - 1, device=lm.device)

    def put(outputs: Tensor) -> Tensor:
        return outputs.index_put((torch.zeros_like(at), at), value.to(outputs.dtype))

    losses = list(descent([value], lambda: loss_with(lm, module, row, put), params))
    return value.detach(), losses
