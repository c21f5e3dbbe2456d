"""Edit requests, and edits that are applied, undone, saved and loaded."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel

REQUEST = EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo", target_true="Quint")


def random_edit(lm: LanguageModel, *, layers: tuple[int, ...] = (1,), rank: int = 1, seed: int = 0) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    factors = {
        f"{lm.layout.name(layer)}.weight": tuple(torch.randn(d, rank, generator=generator) for d in (16, 24))
        for layer in layers
    }
    diagnostics = {"numerator": 0.5, "losses": [3.0, 2.0], "steps": 2}
    return Edit("rome", (REQUEST,), factors, {"layer": layers[0]}, lm.fingerprint, diagnostics)  # type: ignore[arg-type]


def state(lm: LanguageModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit, so that -0.0 is not 0.0."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name].view(torch.int32), second[name].view(torch.int32)) for name in first
    )


# Requests


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"prompt": "Zen is in"},
            "prompt 'Zen is in' must hold {} once, where the subject goes: write '{} is in'",
        ),
        (
            {"prompt": "It is in"},
            "prompt 'It is in' must hold {} once, where the subject goes; for example '{} is located in'",
        ),
        (
            {"prompt": "{} and {} lie in"},
            "prompt '{} and {} lie in' must hold {} once, where the subject goes; for example '{} is located in'",
        ),
        ({"subject": " "}, "subject ' ' is empty; name what the prompt is about"),
        ({"target_new": ""}, "target '' is empty; say what should follow the prompt"),
        ({"target_new": "\n"}, "target '\\n' is empty; say what should follow the prompt"),
    ],
)
def test_mistakes_in_a_request_say_what_to_write(fields: dict[str, str], message: str) -> None:
    with pytest.raises(EditlibError) as caught:
        EditRequest(**{"prompt": "{} is in", "subject": "Zen", "target_new": "Daslo"} | fields)
    assert str(caught.value) == message


def test_text_is_the_prompt_with_its_subject() -> None:
    assert replace(REQUEST, subject="Z{}n").text == "Z{}n is located in"


# Applying


def test_applied_adds_the_outer_product_and_nothing_else(own: LanguageModel) -> None:
    edit, before, weight = random_edit(own), state(own), own.weight(1).clone()
    name = f"{own.layout.name(1)}.weight"
    left, right = edit.factors[name]
    with edit.applied(own) as edited:
        assert edited is own
        torch.testing.assert_close(own.weight(1), weight + torch.outer(left[:, 0], right[:, 0]))
        changed = state(own)
    assert [key for key in before if not torch.equal(before[key], changed[key])] == [name]


def test_weights_are_the_same_bits_after_the_block(own: LanguageModel) -> None:
    own.weight(1)[0, :3] = torch.tensor([-0.0, float("inf"), float("nan")])
    edit, before = random_edit(own, layers=(0, 1), rank=3), state(own)
    with edit.applied(own):
        assert not same(state(own), before)
    assert same(state(own), before)


def test_weights_are_the_same_bits_after_an_exception(own: LanguageModel) -> None:
    edit, before = random_edit(own, layers=(0, 2)), state(own)
    with pytest.raises(KeyboardInterrupt), edit.applied(own):
        own.weight(0).fill_(float("nan"))
        raise KeyboardInterrupt
    assert same(state(own), before)


def test_edits_nest(own: LanguageModel) -> None:
    outer, inner, before = random_edit(own), random_edit(own, layers=(1, 2), seed=1), state(own)
    with outer.applied(own):
        middle = state(own)
        with inner.applied(own):
            assert not same(state(own), middle)
        assert same(state(own), middle)
    assert same(state(own), before)


def test_an_edit_that_does_not_fit_leaves_the_weights_alone(own: LanguageModel) -> None:
    edit, before = random_edit(own, layers=(0, 1)), state(own)
    factors = dict(edit.factors)
    last = list(factors)[-1]
    factors[last] = (torch.ones(5, 1), torch.ones(7, 1))
    with pytest.raises(RuntimeError), replace(edit, factors=factors).applied(own):
        pass
    assert same(state(own), before)


def test_another_model_is_refused(gpt2: LanguageModel, llama: LanguageModel) -> None:
    edit, before = random_edit(gpt2), state(llama)
    with pytest.raises(EditlibError) as caught, edit.applied(llama):
        pass
    assert str(caught.value) == (
        f"this edit was computed for model {gpt2.fingerprint[:12]}, not for tiny-llama "
        f"({llama.fingerprint[:12]}); compute it again"
    )
    assert same(state(llama), before)


# Files


def test_saved_and_loaded_is_the_same(lm: LanguageModel, tmp_path: Path) -> None:
    edit = random_edit(lm, layers=(0, 1), rank=2)
    loaded = Edit.load(edit.save(tmp_path / "new" / "edit"))
    assert (loaded.method, loaded.requests, loaded.hparams) == (edit.method, edit.requests, edit.hparams)
    assert (loaded.fingerprint, loaded.diagnostics) == (edit.fingerprint, edit.diagnostics)
    assert loaded.factors.keys() == edit.factors.keys()
    for name in edit.factors:
        for mine, its in zip(edit.factors[name], loaded.factors[name], strict=True):
            assert torch.equal(mine, its)


def test_a_folder_holds_the_two_files_and_nothing_else(gpt2: LanguageModel, tmp_path: Path) -> None:
    folder = random_edit(gpt2).save(tmp_path / "edit")
    assert sorted(path.name for path in folder.iterdir()) == ["edit.json", "edit.safetensors"]
    assert list(tmp_path.iterdir()) == [folder]


def test_infinite_diagnostics_are_saved_as_strings(gpt2: LanguageModel, tmp_path: Path) -> None:
    diagnostics = {"numerator": float("inf"), "denominator": -float("inf"), "losses": [1.0, float("nan")]}
    folder = replace(random_edit(gpt2), diagnostics=diagnostics).save(tmp_path / "edit")
    saved = {"numerator": "inf", "denominator": "-inf", "losses": [1.0, "nan"]}
    assert json.loads((folder / "edit.json").read_text())["diagnostics"] == saved
    assert Edit.load(folder).diagnostics == saved


def test_an_existing_folder_is_refused(gpt2: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "edit").mkdir()
    with pytest.raises(EditlibError, match="edit exists already; choose another$"):
        random_edit(gpt2).save(tmp_path / "edit")


def test_a_folder_that_cannot_be_written_is_refused(gpt2: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        EditlibError, match=r"file/edit cannot be written: .+; free some space there, or choose another place$"
    ):
        random_edit(gpt2).save(tmp_path / "file" / "edit")


@pytest.mark.parametrize("raised", [SafetensorError, ValueError, OSError, KeyboardInterrupt])
def test_whatever_stops_saving_leaves_nothing(
    gpt2: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    (tmp_path / "edit.writing").mkdir()  # somebody else's

    def failing(*_: object, **__: object) -> None:
        raise raised("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", failing)
    with pytest.raises((EditlibError, ValueError, KeyboardInterrupt)):
        random_edit(gpt2).save(tmp_path / "edit")
    assert [path.name for path in tmp_path.iterdir()] == ["edit.writing"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def lose_requests(path: Path) -> None:
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "requests"})
    )


def add_field(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "red"}))


def listed(path: Path) -> None:
    path.write_text("[]")


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("edit.json", Path.unlink),
        ("edit.safetensors", Path.unlink),
        ("edit.json", cut),
        ("edit.safetensors", cut),
        ("edit.json", lose_requests),
        ("edit.json", add_field),
        ("edit.json", listed),
    ],
)
def test_a_damaged_folder_is_refused(
    gpt2: LanguageModel, tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    folder = random_edit(gpt2).save(tmp_path / "edit")
    damage(folder / file)
    with pytest.raises(EditlibError, match="^edit .* cannot be read: "):
        Edit.load(folder)
