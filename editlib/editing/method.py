"""What an editing method is to everything that uses one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.edit import Intervention
from editlib.engine.values import ValueParams
from editlib.models.language_model import LanguageModel

if TYPE_CHECKING:
    from editlib.editing.session import Session

State = Mapping[str, Tensor]  # what a method remembers from one edit of a sequence to the next


class Method(Protocol):
    """An editing method. Whoever inherits from this has to give `name`, `hparams` and `solve` only.

    Any object of this form can be given where a method's name can.
    """

    name: str
    hparams: type[Any]  # a dataclass of hyper-parameters
    paper: str = ""
    equation: str = ""
    several: bool = False  # whether it is defined for several requests at once
    weights: bool = True  # whether it changes weights
    remembers: bool = False  # whether it takes account of earlier edits, given the state they left
    stands_for: Mapping[str, Any] = {}  # hyper-parameters that its name settles

    def layers(self, params: Any) -> tuple[int, ...]:
        """The layers it edits, as far as its hyper-parameters tell."""
        return ()

    def moments(self, params: Any) -> tuple[int, ...]:
        """The layers whose second moments it needs."""
        return ()

    def searches(self, lm: LanguageModel, params: Any) -> list[tuple[str, ValueParams]]:
        """The searches for v* it makes: name of the module whose output is sought, and how."""
        return []

    def check(self, lm: LanguageModel, params: Any) -> dict[str, str]:
        """Raise `EditlibError` for what can be known to fail without running the model; sha256 of the files in use."""
        return {}

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: Any, state: State | None = None
    ) -> tuple[Intervention, State | None]:
        """The edit, and what the method wants to be given as `state` for the next one on top of it; None at first.

        Raises `EditlibError` where there is none.
        """


@dataclass(frozen=True)
class Variant:
    """A method with its hyper-parameters."""

    method: Method
    params: Any


def moments_of(variants: Iterable[Variant]) -> list[int]:
    """The layers whose second moments methods need."""
    return sorted({layer for v in variants for layer in v.method.moments(v.params)})
