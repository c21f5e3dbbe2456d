"""R-ROME (Gupta et al. 2024, Rebuilding ROME, section 3 and released code): ROME with the same key everywhere.

Its two switches: `prefix-keys` averages over the prefix contexts everywhere, which is C-ROME; `prompt-keys` takes the
key without prefix everywhere and aims for W k + δ instead of v0 + δ.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from editlib.data.request import EditRequest
from editlib.editing.edit import Factors
from editlib.editing.methods.rome import RankOneParams, RomeParams, rome
from editlib.editing.session import Session

SWITCHES: dict[str, dict[str, Any]] = {
    "prefix-keys": {"keys": "prefixed", "anchor": "unprefixed"},
    "prompt-keys": {"keys": "unprefixed", "anchor": "current"},
}


@dataclass(frozen=True, kw_only=True)
class RRomeParams(RankOneParams):
    """Hyper-parameters of R-ROME."""

    switch: Literal["prefix-keys", "prompt-keys"] = "prefix-keys"


def r_rome(space: Session, requests: Sequence[EditRequest], params: RRomeParams) -> tuple[Factors, dict[str, Any]]:
    """Factors of Δ at one layer for one request, and its diagnostics; errors as for ROME."""
    given = asdict(params)
    return rome(space, requests, RomeParams(**SWITCHES[given.pop("switch")], **given))
