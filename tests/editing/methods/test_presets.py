"""Presets are found by a model's type and shape, and hold the published values."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

import editlib as el
from editlib.editing.methods import METHODS, Params, hparams_for
from editlib.editing.methods.presets import PRESETS, preset_of
from editlib.models.language_model import LanguageModel


class Shaped:
    """As much of a language model as the presets look at."""

    require_causal = staticmethod(lambda: None)
    folder: Path | None = None

    def __init__(self, kind: str, layers: int, out: int, into: int) -> None:
        import torch

        self.model = type("Model", (), {"config": AutoConfig.for_model(kind)})
        self.num_layers, self._weight = layers, torch.empty(out, into, device="meta")

    def weight(self, layer: int) -> Any:
        return self._weight

    down = weight


@pytest.mark.parametrize(
    ("name", "method", "expected"),
    [
        ("gpt2-xl", "rome", {"layer": 17, "steps": 20, "weight_decay": 0.5}),
        ("gpt-j-6b", "c-rome", {"layer": 5, "steps": 20, "weight_decay": 0.5}),
        ("llama-2-7b", "r-rome", {"layer": 5, "steps": 25, "weight_decay": 0.001}),
        ("gpt2-xl", "memit", {"layers": (13, 14, 15, 16, 17), "clamp": 0.75, "moment_weight": 20000}),
        ("gpt-j-6b", "memit", {"layers": (3, 4, 5, 6, 7, 8), "steps": 25}),
        ("llama-2-7b", "memit", {"layers": (4, 5, 6, 7, 8), "clamp": 4, "weight_decay": 0.001}),
        ("gpt2-xl", "ft-l", {"layer": 0, "limit": 5e-4, "steps": 25, "learning_rate": 5e-4}),
        ("gpt-j-6b", "ft", {"layer": 21}),
        ("gpt-j-6b", "ft-l", {"layer": 0, "limit": 5e-5}),
    ],
)
def test_the_published_values_are_found_by_shape(name: str, method: str, expected: dict[str, Any]) -> None:
    lm: Any = Shaped(*PRESETS[name]["shape"])
    found = hparams_for(lm, method)
    assert {key: getattr(found, key) for key in expected} == expected


def test_every_preset_has_a_source_and_only_known_fields() -> None:
    for preset in PRESETS.values():
        assert preset["source"]
        for family, values in preset["any"].items():
            assert set(values) <= set(METHODS[family].hparams.__dataclass_fields__)


def test_the_testbeds_models_have_presets(gpt2: LanguageModel) -> None:
    assert preset_of(el.load("testbed/anchored")) is PRESETS["testbed"]
    assert preset_of(el.load("testbed/rotary")) is PRESETS["testbed-rotary"]
    assert PRESETS["testbed-rotary"]["any"] == PRESETS["testbed"]["any"]
    assert preset_of(gpt2) == {}


@pytest.mark.parametrize(("flavour", "covariance"), [("meng-2022", True), ("yang-2024", False)])
def test_a_flavour_takes_a_lineages_settings_as_a_whole(gpt2: LanguageModel, flavour: Any, covariance: bool) -> None:
    rome: Params = hparams_for(gpt2, "rome", flavour=flavour)
    assert (rome.covariance, rome.contexts) == (covariance, flavour)  # type: ignore[union-attr]
    assert hparams_for(gpt2, "ft", flavour=flavour).objective == "last-position"
    assert hparams_for(gpt2, "memit", flavour=flavour).contexts == flavour
    assert hparams_for(gpt2, "rome", flavour=flavour, covariance=not covariance).covariance is not covariance


def test_without_flavour_the_covariance_and_the_correct_objective_are_used(gpt2: LanguageModel) -> None:
    assert hparams_for(gpt2, "rome").covariance
    assert hparams_for(gpt2, "ft").objective == "teacher-forced"
