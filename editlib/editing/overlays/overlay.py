"""What an overlay is: what an edit that writes no weight does to a model's passes while it is applied."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel

MARK = "editlib_overlay"  # the model's attribute that names what lies over it


@dataclass(frozen=True)
class Overlay:
    """A frozen dataclass of tensors and of what JSON holds; `laid` is what it does.

    What a model says at a token follows from that token and those before it alone, as without one, so that scores,
    perplexity and greedy decoding agree whatever else stands in the batch.
    """

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its fields that are tensors."""
        return {name: value for name, value in self._fields().items() if isinstance(value, Tensor)}

    @property
    def record(self) -> dict[str, Any]:
        """Its kind and its other fields, as JSON."""
        rest = {name: value for name, value in self._fields().items() if not isinstance(value, Tensor)}
        return {"kind": type(self).__name__.lower()} | rest

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def laid(self, lm: LanguageModel) -> AbstractContextManager[None]:
        """Change the model's passes inside the block; after it they are as before."""
        raise NotImplementedError


def require_bare(lm: LanguageModel, what: str) -> None:
    """Raise `EditlibError` if the edit of a method that writes no weight is applied to the model."""
    name = vars(lm.model).get(MARK)
    if name:
        raise EditlibError(
            f"{what} cannot be while a {name} edit is applied to {lm.label}; leave its block, or give its method all "
            "requests at once, or one after another by sequence"
        )


@contextmanager
def over(lm: LanguageModel, overlay: Overlay, method: str) -> Iterator[None]:
    """Lay an overlay, the only one, over a model inside the block.

    What the model generates is made of whole texts, with no attention keys kept from token to token: what an overlay
    does may depend on all that stands before. Raises `EditlibError` where there is one already.
    """
    require_bare(lm, f"another edit by {method}")
    generate = lm.model.generate
    setattr(lm.model, MARK, method)
    lm.model.generate = lambda *given, **options: generate(*given, **options | {"use_cache": False})
    try:
        with overlay.laid(lm):
            yield
    finally:
        delattr(lm.model, MARK)
        del lm.model.generate
