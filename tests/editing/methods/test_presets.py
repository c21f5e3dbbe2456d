"""Presets are found by a model's type and shape, and hold the published values."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

import editlib as el
from editlib.editing.methods import METHODS, PRESETS, Params, hparams_for, preset_of
from editlib.errors import EditlibError
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
        ("gpt2-xl", "encore", {"layers": (13, 14, 15, 16, 17), "moment_weight": 20000, "ridge": 10}),
        ("gpt-j-6b", "alphaedit", {"clamp": 0.75, "nullspace_threshold": 0.02, "threshold_unit": "absolute"}),
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


# Settings from files


@pytest.fixture
def with_folder(gpt2: LanguageModel, tmp_path: Path) -> LanguageModel:
    """A model whose folder may hold settings."""
    return LanguageModel(gpt2.model, gpt2.tokenizer, folder=tmp_path)


def test_what_is_nearer_to_the_user_wins(with_folder: LanguageModel, tmp_path: Path) -> None:
    assert hparams_for(with_folder, "rome").clamp == 4
    own = {"rome": {"layer": 0, "clamp": 1, "steps": 1}, "c-rome": {"steps": 2}}
    (tmp_path / "editlib.json").write_text(json.dumps(own))
    rome, consistent = hparams_for(with_folder, "rome"), hparams_for(with_folder, "c-rome")
    assert (rome.layer, rome.clamp, rome.steps) == (0, 1, 1)
    assert (consistent.layer, consistent.clamp, consistent.steps) == (0, 1, 2)  # its family's, then its own
    given = tmp_path / "mine.json"
    given.write_text(json.dumps({"rome": {"clamp": 2, "covariance": True}}))
    rome = hparams_for(with_folder, "rome", preset=given)
    assert (rome.layer, rome.clamp, rome.covariance) == (0, 2, True)
    rome = hparams_for(with_folder, "rome", preset=str(given), flavour="yang-2024", clamp=3)
    assert (rome.layer, rome.clamp, rome.covariance, rome.steps) == (0, 3, False, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: .*No such file"),
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"rome": 3}', "cannot be read"),
        ('{"rom": {}}', r"method 'rom' is unknown; did you mean rome\?"),
        ('{"rome": {"lyer": 1}}', r"rome's hyper-parameter 'lyer' is unknown; did you mean layer\?"),
    ],
)
def test_bad_settings_are_refused_with_their_file(
    gpt2: LanguageModel, tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(EditlibError, match=f"mine.json.* ?{said}") as caught:
        hparams_for(gpt2, "rome", preset=path)
    assert "\n" not in str(caught.value)


def test_a_bad_value_in_a_file_is_refused(with_folder: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "editlib.json").write_text('{"rome": {"steps": 0}}')
    with pytest.raises(EditlibError, match="^hyper-parameter steps=0 of rome"):
        hparams_for(with_folder, "rome")
