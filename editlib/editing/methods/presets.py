"""Published and tuned hyper-parameters: shipped data, found by a model's type and shape, never by its name."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from editlib.errors import EditlibError, unknown
from editlib.models.language_model import LanguageModel

PRESETS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "presets.json").read_text("utf-8"))
RELEASED = {"objective": "last-position", "kl_position": "subject"}  # in either lineage
FLAVOURS: dict[str, dict[str, Any]] = {  # what the two lineages of released code do on every model
    "meng-2022": {"covariance": True, "contexts": "meng-2022"} | RELEASED,
    "yang-2024": {"covariance": False, "contexts": "yang-2024"} | RELEASED,
}
OWN = "editlib.json"  # a model's own settings, in its folder
FAMILIES = {"c-rome": "rome", "p-rome": "rome", "r-rome": "rome", "emmet": "rome"}  # these share v*, hence settings

Settings = dict[str, dict[str, Any]]  # by method, or by the method whose settings others share


def preset_of(lm: LanguageModel) -> dict[str, Any]:
    """The preset for models of this type, number of layers and shape of the edited weight; empty if there is none."""
    shape = [lm.model.config.model_type, lm.num_layers, *lm.weight(0).shape]
    return next((preset for preset in PRESETS.values() if preset["shape"] == shape), {})


def defaults(lm: LanguageModel, method: str, flavour: str | None, files: Sequence[Settings]) -> dict[str, Any]:
    """Every setting known for a method on a model: middle layers, then those of its shape, of files in their order, of
    the flavour."""
    middle = (lm.num_layers - 1) // 2  # never the last layer: what it adds at the subject reaches no later token
    chosen: dict[str, Any] = {"layer": middle, "layers": tuple(range(max(middle - 4, 0), middle + 1))}
    for settings in (preset_of(lm).get("any", {}), *files):
        chosen |= settings.get(FAMILIES.get(method, method), {}) | settings.get(method, {})
    return chosen | (FLAVOURS[flavour] if flavour else {})


def read_preset(path: Path, known: Mapping[str, Collection[str]]) -> Settings:
    """Settings by method from a JSON file such as {"rome": {"layer": 5}}, given the names each method has.

    Raises `EditlibError` if it is missing or damaged, or holds an unknown name.
    """
    try:
        settings: Settings = json.loads(path.read_text("utf-8"))
        named = {method: list(values) for method, values in settings.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise EditlibError(f'preset {path} cannot be read: {error}; write {{"rome": {{"layer": 5}}}}') from error
    for method, names in named.items():
        if method not in known:
            raise unknown(f"preset {path}: method", method, known)
        for name in names:
            if name not in known[method]:
                raise unknown(f"preset {path}: {method}'s hyper-parameter", name, sorted(known[method]))
    return settings
