"""What a filter on updates is, and the method that another one is with a filter behind it."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields, make_dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.change import Change
from editlib.editing.edit import Edit
from editlib.editing.method import Method, State
from editlib.editing.methods.memory import remembered
from editlib.engine.values import ValueParams
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, named_weight

if TYPE_CHECKING:
    from editlib.editing.session import Session

Kept = dict[str, Tensor]  # what a filter remembers; it writes there what the next edit is given
Found = tuple[Mapping[str, Change], Mapping[str, Any]]  # changes by weight, and what is said of them


class Filter(Protocol):
    """Something that is done to every update before it is applied. Whoever inherits from this has to give `name`,
    `hparams`, and `change` or `filtered`.

    The names of hyper-parameters begin with the filter's, so that they do not clash with a method's.
    """

    name: str
    hparams: type[Any]
    paper: str = ""
    equation: str = ""
    remembers: bool = False  # whether it is given what it kept at the edit before

    def check(self, lm: LanguageModel, layers: Sequence[int], params: Any) -> None:
        """Raise `EditlibError` for what can be known to fail without running the model."""
        return

    def standing(self, session: "Session", kept: Kept) -> AbstractContextManager[None]:
        """Where the method computes its update: in the model as it is."""
        return nullcontext()

    def change(self, change: Change, weight: Tensor, params: Any) -> Change:
        """What is left of the change of a weight, both (d_out, d_in)."""
        return change

    def filtered(self, session: "Session", edit: Edit, params: Any, kept: Kept) -> Found:
        """What is left of an edit."""
        weights = {name: named_weight(session.lm, name) for name in edit.changes}
        return {name: self.change(change, weights[name], params) for name, change in edit.changes.items()}, {}


class Filtered(Method):
    """A method whose updates go through a filter: hyper-parameters of both, and state of both."""

    def __init__(self, inner: Method, through: Filter) -> None:
        if not inner.weights:
            raise EditlibError(f"{inner.name} changes no weight, so {through.name} has nothing to filter; leave it out")
        self.inner, self.filter = inner, through
        self.name, self.several, self.stands_for = f"{inner.name}+{through.name}", inner.several, inner.stands_for
        self.paper, self.equation = f"{inner.paper}; {through.paper}", f"{inner.equation}; {through.equation}"
        name, bases = f"{inner.hparams.__name__}+{through.hparams.__name__}", (inner.hparams, through.hparams)
        self.hparams = make_dataclass(name, [], bases=bases, frozen=True, kw_only=True, namespace={"made_for": self})

    def layers(self, params: Any) -> tuple[int, ...]:
        """Those of the method."""
        return self.inner.layers(params)

    def moments(self, params: Any) -> tuple[int, ...]:
        """Those of the method."""
        return self.inner.moments(params)

    def searches(self, lm: LanguageModel, params: Any) -> list[tuple[str, ValueParams]]:
        """Those of the method."""
        return self.inner.searches(lm, params)

    def check(self, lm: LanguageModel, params: Any) -> dict[str, str]:
        """What either refuses; the method's files."""
        self.filter.check(lm, self.layers(params), params)
        return self.inner.check(lm, params)

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: Any, state: State | None = None
    ) -> tuple[Edit, State | None]:
        """What the filter leaves of the method's edit; errors of either, and for an edit that changes no weight."""
        own = f"{self.filter.name}|"
        kept = {key.removeprefix(own): tensor for key, tensor in (state or {}).items() if key.startswith(own)}
        rest = {key: tensor for key, tensor in (state or {}).items() if not key.startswith(own)} or None
        kept = remembered(session.lm, kept or None, self.filter.name) if self.filter.remembers else {}
        plain = self.inner.hparams(**{field.name: getattr(params, field.name) for field in fields(self.inner.hparams)})
        with self.filter.standing(session, kept):
            edit, left = self.inner.solve(session, requests, plain, rest)
        if not isinstance(edit, Edit):
            raise EditlibError(f"{self.inner.name} changes no weight, so {self.filter.name} has nothing to filter")
        filtered, said = self.filter.filtered(session, edit, params, kept)
        like = {name: next(iter(change.tensors.values())) for name, change in edit.changes.items()}
        changes = {name: change.to(like[name]) for name, change in filtered.items()}
        made = replace(edit, method=self.name, changes=changes, hparams=asdict(params))
        norm, whole = made.norm(), math.hypot(*map(session.weight_norm, changes))
        norms = {"delta_norm": norm, "relative_delta_norm": norm / whole}
        numbers = {"unfiltered_delta_norm": edit.norm(), **edit.diagnostics, **norms, **said}
        memory = dict(left or {}) | {f"{own}{key}": tensor for key, tensor in kept.items()}
        return replace(made, diagnostics=numbers), memory or None
