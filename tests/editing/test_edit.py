"""Edit requests, and edits that are applied, undone, saved and loaded."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.change import Change, Dense, LowRank
from editlib.editing.edit import Edit
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel

REQUEST = EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo", target_true="Quint")


def random_edit(lm: LanguageModel, *, layers: tuple[int, ...] = (1,), rank: int = 1, seed: int = 0) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    changes: dict[str, Change] = {
        f"{lm.layout.name(layer)}.weight": LowRank(*(torch.randn(d, rank, generator=generator) for d in (16, 24)))
        for layer in layers
    }
    diagnostics = {"numerator": 0.5, "losses": [3.0, 2.0], "steps": 2}
    return Edit("rome", (REQUEST,), changes, {"layer": layers[0]}, lm.fingerprint, diagnostics)


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
    left, right = edit.changes[name].tensors.values()
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
    changes = dict(edit.changes)
    changes[list(changes)[-1]] = LowRank(torch.ones(5, 1), torch.ones(7, 1))
    with pytest.raises(RuntimeError), replace(edit, changes=changes).applied(own):
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
    assert loaded.changes.keys() == edit.changes.keys()
    for name, change in edit.changes.items():
        assert type(change) is type(loaded.changes[name])
        for kind, tensor in change.tensors.items():
            assert torch.equal(tensor, loaded.changes[name].tensors[kind])


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


# What else can go wrong


def test_a_dense_change_is_kept_and_applied(own: LanguageModel, tmp_path: Path) -> None:
    name, delta = f"{own.layout.name(1)}.weight", torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    edit = Edit.load(Edit("ft", (REQUEST,), {name: Dense(delta)}, {}, own.fingerprint).save(tmp_path / "edit"))
    before = own.weight(1).clone()
    with edit.applied(own):
        torch.testing.assert_close(own.weight(1), before + delta)
    assert torch.equal(own.weight(1), before) and edit.norm() == pytest.approx(delta.norm().item())


def test_an_edit_saved_by_an_earlier_version_is_loaded(gpt2: LanguageModel, tmp_path: Path) -> None:
    """Written out as it was then: factors by weight and side, and no dtype."""
    name = f"{gpt2.layout.name(1)}.weight"
    left, right = torch.ones(16, 2), torch.full((24, 2), 0.5)
    (tmp_path / "edit").mkdir()
    save_file({f"{name}|L": left, f"{name}|R": right}, tmp_path / "edit" / "edit.safetensors")
    record = {
        "method": "rome",
        "requests": [{"prompt": "{} is in", "subject": "Zen", "target_new": "Daslo", "target_true": None}],
        "hparams": {"layer": 1}, "fingerprint": gpt2.fingerprint, "diagnostics": {"numerator": "inf"},
    }  # fmt: skip
    (tmp_path / "edit" / "edit.json").write_text(json.dumps(record))
    edit = Edit.load(tmp_path / "edit")
    assert torch.equal(edit.delta(name), left @ right.T) and edit.requests[0].subject == "Zen"
    with edit.applied(gpt2):
        pass


def test_the_same_edit_is_not_applied_twice(own: LanguageModel, tmp_path: Path) -> None:
    """Nested it would be added twice without a word."""
    edit, before = random_edit(own), state(own)
    with edit.applied(own):
        inside = state(own)
        with pytest.raises(EditlibError, match="^this edit .* is applied already; leave its block"), edit.applied(own):
            pass
        assert same(state(own), inside)
        again = Edit.load(edit.save(tmp_path / "edit"))
        with pytest.raises(EditlibError, match="is applied already"), again.applied(own):
            pass
        with random_edit(own, seed=1).applied(own):  # of the same request, and another
            assert not same(state(own), inside)
        assert same(state(own), inside)
    assert same(state(own), before)
    with edit.applied(own):  # again after its block
        assert same(state(own), inside)


def test_an_edit_is_printed_in_one_line(gpt2: LanguageModel) -> None:
    name = f"{gpt2.layout.name(1)}.weight"
    assert repr(random_edit(gpt2)) == f"<Edit by rome: 'Zen is located in' -> 'Daslo', in {name}>"
    both = random_edit(gpt2) + random_edit(gpt2, seed=1)
    assert repr(both) == f"<Edit by rome: 'Zen is located in' -> 'Daslo' and 1 more, in {name}>"


def test_a_model_in_another_dtype_is_told_so(gpt2: LanguageModel) -> None:
    half = LanguageModel(copy.deepcopy(gpt2.model).bfloat16(), gpt2.tokenizer, name="half")
    edit = replace(random_edit(gpt2), dtype="float32")
    said = "that was float32, this is bfloat16; load it in float32, or there make the edit one for bfloat16 by cast"
    with pytest.raises(EditlibError, match=said), edit.applied(half):
        pass
