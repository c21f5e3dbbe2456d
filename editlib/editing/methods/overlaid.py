"""What methods that write no weight share: an edit of one holds all it remembers, and takes the place of the last."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.method import Method, State
from editlib.editing.methods.memory import remembered
from editlib.editing.overlays import packed, unpacked
from editlib.editing.overlays.overlay import Overlay
from editlib.models.language_model import LanguageModel

if TYPE_CHECKING:
    from editlib.editing.session import Session

Kind = TypeVar("Kind", bound=Overlay)


def earlier(lm: LanguageModel, state: State | None, method: Method, kind: type[Kind]) -> Kind | None:
    """The overlay that a method left in a state; None at first. Raises `EditlibError` for a state of another model or
    method."""
    kept = remembered(lm, state, method.name, ["overlay"])
    if state is None:
        return None
    overlay = unpacked(kept)
    assert isinstance(overlay, kind)  # that of the method
    return overlay


def overlaid(
    session: "Session",
    method: Method,
    requests: Sequence[EditRequest],
    params: Any,
    overlay: Overlay,
    numbers: Mapping[str, Any],
) -> tuple[Edit, State]:
    """The edit that an overlay is, and the state it leaves."""
    said = {"steps": 0, "losses": []} | dict(numbers)
    edit = session.edit(method, requests, params, {}, said, overlay)
    return edit, remembered(session.lm, None, method.name) | packed(overlay)
