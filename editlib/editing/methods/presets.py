"""Published and tuned hyper-parameters: shipped data, found by a model's type and shape, never by its name."""

import json
from pathlib import Path
from typing import Any

from editlib.models.language_model import LanguageModel

PRESETS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "presets.json").read_text())
RELEASED = {"objective": "last-position", "kl_position": "subject"}  # in either lineage
FLAVOURS: dict[str, dict[str, Any]] = {  # what the two lineages of released code do on every model
    "meng-2022": {"covariance": True, "contexts": "meng-2022"} | RELEASED,
    "yang-2024": {"covariance": False, "contexts": "yang-2024"} | RELEASED,
}
FAMILIES = {"c-rome": "rome", "p-rome": "rome", "r-rome": "rome", "emmet": "rome"}  # these share v*, hence settings


def preset_of(lm: LanguageModel) -> dict[str, Any]:
    """The preset for models of this type, number of layers and shape of the edited weight; empty if there is none."""
    shape = [lm.model.config.model_type, lm.num_layers, *lm.weight(0).shape]
    return next((preset for preset in PRESETS.values() if preset["shape"] == shape), {})


def defaults(lm: LanguageModel, method: str, flavour: str | None) -> dict[str, Any]:
    """Every setting known for a method on a model: middle layers, then the preset, then the flavour."""
    preset, family = preset_of(lm), FAMILIES.get(method, method)
    middle = (lm.num_layers - 1) // 2  # never the last layer: what it adds at the subject reaches no later token
    chosen: dict[str, Any] = {"layer": middle, "layers": tuple(range(max(middle - 4, 0), middle + 1))}
    chosen |= preset.get("any", {}).get(family, {})
    if flavour is None:
        return chosen
    return chosen | FLAVOURS[flavour]
