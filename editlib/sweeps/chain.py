"""A model that gets edit upon edit, and what stays of each: weights, overlays, or hooks of other methods."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editlib.data.datasets import Case
from editlib.editing.edit import Edit, Intervention
from editlib.editing.guard import guarded
from editlib.editing.method import State
from editlib.editing.overlays import unpacked
from editlib.editing.session import Session
from editlib.engine.perplexity import Perplexity, perplexity, perplexity_above, run_texts
from editlib.engine.sites import Site
from editlib.measuring import scores as scoring
from editlib.sweeps.rows import about_answer, about_edit, about_subject

if TYPE_CHECKING:
    from editlib.sweeps.sequential import SequencePlan


class Chain:
    """A model that gets edit upon edit by one method inside a block, and is as it was after it."""

    def __init__(self, session: Session, plan: "SequencePlan", name: str) -> None:
        self.session, self.plan, self.name, self.variant = session, plan, name, plan.variants[name]
        self.state: State | None = None  # what the method remembers
        self.kept = dict[str, Tensor]()  # the unedited weights that were changed
        self.lasting = ExitStack()  # of other methods' edits that write no weight, which stay applied
        self.hooked = False  # whether there are such
        self.overlaid: Edit | None = None  # the edit that lies over the model, and holds all before it
        self.over = ExitStack()  # where it does
        session.forget()
        self.passes = session.passes
        below = min(self.variant.method.layers(self.variant.params), default=0)
        self.texts = run_texts(self.passes, Site(below), plan.texts)  # now, and never again

    def __enter__(self) -> "Chain":
        return self

    def __exit__(self, *_: object) -> None:
        self.over.close()
        self.lasting.close()
        self._set(self.kept)
        self.session.forget()

    def perplexity(self) -> Perplexity:
        """Of the model as it is now; only what the edits can have changed is run."""
        if self.hooked or self.overlaid:
            return perplexity(self.session.lm, self.plan.texts)
        return perplexity_above(self.passes, self.texts)

    def add(self, case: Case) -> dict[str, Any]:
        """Change the model by one more edit, and say what it was; if it fails, nothing has changed."""
        lm, request, variant = self.session.lm, case.request, self.variant
        about_it = about_subject(lm, request)
        self.session.check_request([variant], request)
        self.session.forget()
        self.over.close()  # the next overlay holds what this one does
        try:
            edit, state = variant.method.solve(self.session, [request], variant.params, self.state)
            if self.plan.guard != "off":
                edit = guarded(self.session, edit, "refuse" if self.plan.guard == "skip" else "warn")
            with edit.applied(lm):
                weights = {n: lm.model.get_parameter(n).clone() for n in edit.changes} if isinstance(edit, Edit) else {}
                said = self.ask(case)
            self._keep(edit, weights)
        finally:
            if self.overlaid:
                self.over.enter_context(self.overlaid.applied(lm))
        self.state = state
        kept = sum(tensor.nbytes for tensor in (state or {}).values())
        return about_it | about_edit(edit) | {"state_bytes": kept} | said

    def _keep(self, edit: Intervention, weights: Mapping[str, Tensor]) -> None:
        """Let an edit last: the weights it wrote, itself in place of the one that lies over the model, or beside others
        of its kind."""
        self._set(weights)
        if not isinstance(edit, Edit):
            self.lasting.enter_context(edit.applied(self.session.lm))
            self.hooked = True
        elif edit.overlay:
            self.overlaid = edit

    def ask(self, case: Case) -> dict[str, Any]:
        """What the model says of a case now."""
        lm, request = self.session.lm, case.request
        said: dict[str, Any] = {"target_probability": scoring.target_probability(lm, request, request.target_new)}
        if self.plan.answers:
            said |= about_answer(lm, request)
        if self.plan.retest:
            asked = replace(case, neighborhood_prompts=(), neighborhood_answers=())
            reading = scoring.read(lm, asked)
            said |= scoring.score(asked, reading, reading)
        return said

    def tensors(self) -> dict[str, Tensor] | None:
        """The changed weights, and what the method remembers; None beside hooks, which no file holds."""
        if self.hooked:
            return None
        weights = {name: self.session.lm.model.get_parameter(name) for name in self.kept}
        return weights | {f"state|{key}": tensor for key, tensor in (self.state or {}).items()}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` gave."""
        state = {key.removeprefix("state|"): t for key, t in tensors.items() if key.startswith("state|")}
        self.state = {key: t.to(self.session.lm.device) for key, t in state.items()} or None
        self._set({name: tensor for name, tensor in tensors.items() if not name.startswith("state|")})
        if self.state and "overlay" in self.state:
            lm = self.session.lm
            self.overlaid = Edit(self.name, (), {}, {}, lm.fingerprint, overlay=unpacked(self.state))
            self.over.enter_context(self.overlaid.applied(lm))

    @torch.no_grad()
    def _set(self, weights: Mapping[str, Tensor]) -> None:
        """Give the model weights, and put aside those it had if none of that name are."""
        for name, weight in weights.items():
            current = self.session.lm.model.get_parameter(name)
            if name not in self.kept:
                self.kept[name] = current.clone()
            current.copy_(weight)
