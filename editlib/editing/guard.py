"""How far an edit moves what it should leave alone, and what is done about one that moves it too far."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from editlib.editing.change import Change, LowRank
from editlib.editing.edit import Edit, Intervention
from editlib.editing.names import Guard
from editlib.editing.session import Session
from editlib.engine.prefixes import Flavour
from editlib.errors import EditlibError
from editlib.models.language_model import widened
from editlib.models.tokens import pad, prompt_ids
from editlib.models.trace import trace
from editlib.text import number

log = logging.getLogger(__name__)

BOUND = 1.0  # severity from which on collapse is foretold: ordinary words get as much of an edit as its subject
ADVICE = {"rome": "use fc-rome or c-rome, or put words before the subject"}


@dataclass(frozen=True)
class Surroundings:
    """What an edit of one layer meets in ordinary text, in float64: second moment of the keys behind position 0, the
    mean key at position 0, and the residual stream's mean length after the layer, by place."""

    later: Tensor
    first: Tensor
    residual: Mapping[str, float]


def surroundings(session: Session, layer: int, flavour: Flavour) -> Surroundings | None:
    """Read them, once a session, from the prefix contexts, which an edit needs anyway; None if those are all empty."""
    return session.once(("surroundings", layer, flavour), partial(_surroundings, session, layer, flavour))


@torch.no_grad()
def _surroundings(session: Session, layer: int, flavour: Flavour) -> Surroundings | None:
    lm, name, block = session.lm, session.lm.layout.name(layer), f"{session.lm.layout.blocks}.{layer}"
    texts = [context[: context.index("{}")].rstrip() for context in session.contexts(flavour)]
    rows = [prompt_ids(lm.tokenizer, text) for text in texts if text]
    if not rows:
        return None
    ids, mask = pad(rows, lm.device)
    with trace(lm.model, name, block, stop=True) as seen:
        lm.model(input_ids=ids, attention_mask=lm.attended(mask))
    keys, states = widened(seen[name].input).double().cpu(), widened(seen[block].output).double().norm(dim=-1).cpu()
    real = mask.bool().cpu()
    real[:, 0] = False
    later = keys[real]
    residual = {"first": float(states[:, 0].mean()), "later": float(states[real].mean())}
    return Surroundings(later.T @ later / len(later), keys[:, 0].mean(0), residual)


def severity(session: Session, edit: Edit) -> float | None:
    """How far an edit moves the outputs of ordinary words, over how far it moves those of its subjects (behind the
    prefix contexts or without, whichever is more) or over the residual stream's length, whichever is more; the largest
    of its layers.

    None for a method without prefix contexts, or an edit of other weights than down-projections.
    """
    flavour, lm = edit.hparams.get("contexts"), session.lm
    layers = {f"{lm.layout.name(layer)}.weight": layer for layer in range(lm.num_layers)}
    if flavour is None or not edit.changes or not edit.changes.keys() <= layers.keys():
        return None
    ratios = []
    for name, change in edit.changes.items():
        layer = layers[name]
        around = surroundings(session, layer, flavour)
        if around is None:
            return None
        ordinary = _root_mean_square(change, around.later)
        keys = [session.keys(layer, request, flavour).inputs.double() for request in edit.requests]
        places = torch.cat([torch.stack([rows[0], rows.mean(0)]) for rows in keys])
        subject = float(change.output(places).norm(dim=1).max())
        ratios += [ordinary / subject if subject else 0.0, ordinary / around.residual["later"]]
    return max(ratios)


def _root_mean_square(change: Change, moment: Tensor) -> float:
    """Of |Δk| over keys k, given their second moment."""
    if isinstance(change, LowRank):
        left, right = change.left.double().cpu(), change.right.double().cpu()
        square = ((left.T @ left) * (right.T @ moment @ right)).sum()
    else:
        delta = change.dense().double().cpu()
        square = ((delta @ moment) * delta).sum()
    return float(square.clamp(min=0).sqrt())


def guarded(session: Session, edit: Intervention, guard: Guard) -> Intervention:
    """The edit, its `severity` among its diagnostics; one of at least `BOUND` is told of in a line of the log, or with
    `refuse` an `EditlibError`. What writes no weight passes."""
    ratio = severity(session, edit) if guard != "off" and isinstance(edit, Edit) else None
    if ratio is None or not isinstance(edit, Edit):
        return edit
    if ratio >= BOUND:
        advice = ADVICE.get(edit.method, "see what it does to perplexity before you keep it")
        said = f"this {edit.method} edit may break {session.lm.label}: its severity is {number(ratio)}; from 1 on "
        said += f"ordinary words get more of an edit than its subject, or than they hold themselves; {advice}"
        if guard == "refuse":
            raise EditlibError(said)
        log.warning(said)
    return replace(edit, diagnostics={**edit.diagnostics, "severity": ratio})
