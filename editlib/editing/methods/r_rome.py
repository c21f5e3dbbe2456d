"""R-ROME (Gupta et al. 2024, Rebuilding ROME, section 3 and released code): ROME with the same key everywhere.

Its two switches: `prefix-keys` averages over the prefix contexts everywhere, which is C-ROME; `prompt-keys` takes the
key without prefix everywhere and aims for W k + δ instead of v0 + δ.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.method import State
from editlib.editing.methods.rome import RankOne, RankOneParams, Rome, RomeParams

if TYPE_CHECKING:
    from editlib.editing.session import Session

SWITCHES: dict[str, dict[str, Any]] = {
    "prefix-keys": {"keys": "prefixed", "anchor": "unprefixed"},
    "prompt-keys": {"keys": "unprefixed", "anchor": "current"},
}


@dataclass(frozen=True, kw_only=True)
class RRomeParams(RankOneParams):
    """Hyper-parameters of R-ROME."""

    switch: Literal["prefix-keys", "prompt-keys"] = "prefix-keys"


class RRome(RankOne):
    """R-ROME."""

    name, hparams = "r-rome", RRomeParams
    paper, equation = "Gupta et al. 2024, Rebuilding ROME", "section 3"

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: RRomeParams, state: State | None = None
    ) -> tuple[Edit, State | None]:
        """Δ at one layer for one request; errors as for ROME."""
        given = asdict(params)
        as_rome = RomeParams(**SWITCHES[given.pop("switch")], **given)
        edit, state = Rome(self.name, {}, self.paper, self.equation).solve(session, requests, as_rome, state)
        return replace(edit, hparams=asdict(params)), state
