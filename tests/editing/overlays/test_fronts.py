"""Edits in context are the model behind a text: positions, choice token by token, padding, and what cannot be read."""

from dataclasses import replace

import pytest
import torch

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.overlays.fronts import Fronts, embedded, embedded_texts
from editlib.engine.perplexity import perplexity
from editlib.errors import EditlibError
from editlib.measuring import scores
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import prompt_ids
from editlib.models.trace import trace

FRONT = "Zen is located in Ostrel.\n"
TEXT = "Brast Nolva is known for its bells today"


def memory(lm: LanguageModel, *about: tuple[str, str], **options: object) -> Fronts:
    """Fronts by what is about them, as (text whose like takes it, front)."""
    notes = tuple((text.split()[0], "is", "x") for text, _ in about)
    keys = embedded_texts(lm, [text for text, _ in about])
    return Fronts(tuple(front for _, front in about), keys, notes, **options)  # type: ignore[arg-type]


def edit(lm: LanguageModel, ask: EditRequest, overlay: Fronts) -> Edit:
    return Edit("ike", (ask,), {}, {}, lm.fingerprint, overlay=overlay)


def ids_of(lm: LanguageModel, text: str) -> torch.Tensor:
    return torch.tensor([prompt_ids(lm.tokenizer, text)])


def behind(lm: LanguageModel, front: str, text: str) -> torch.Tensor:
    """The logits of a text's tokens where it stands behind another, as one plain row; its own start token goes."""
    first, then = prompt_ids(lm.tokenizer, front), prompt_ids(lm.tokenizer, text)
    then = then[then[0] == lm.tokenizer.bos_token_id :]
    found: torch.Tensor = lm.model(torch.tensor([first + then])).logits
    return found[:, len(first) :]


def test_logits_are_those_of_the_text_behind_the_front(lm: LanguageModel, ask: EditRequest) -> None:
    expected, ids = behind(lm, FRONT, TEXT), ids_of(lm, TEXT)
    with edit(lm, ask, memory(lm, ("Zen", FRONT))).applied(lm):
        found = lm.model(ids).logits
    assert found.shape[1] == ids.shape[1]  # no position, and so no label, has moved
    torch.testing.assert_close(found[:, -expected.shape[1] :], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "too unlike", "not named"])
def test_a_memory_that_nothing_is_taken_from_is_the_base_model_bit_for_bit(
    lm: LanguageModel, ask: EditRequest, kind: str
) -> None:
    fronts = {
        "none": memory(lm), "too unlike": memory(lm, ("Zen", FRONT), least=1.0),
        "not named": memory(lm, ("Zen", FRONT), named=True),
    }[kind]  # fmt: skip
    ids, texts = ids_of(lm, TEXT), [TEXT, "today"]
    before, measured = lm.model(ids).logits, perplexity(lm, texts)
    with edit(lm, ask, fronts).applied(lm):
        assert torch.equal(lm.model(ids).logits, before)
        assert (perplexity(lm, texts).losses == measured.losses).all()


def test_a_front_is_taken_from_the_token_on_that_names_its_subject(lm: LanguageModel, ask: EditRequest) -> None:
    text = f"{TEXT}. Zen is located in"
    ids, named = ids_of(lm, text), len(prompt_ids(lm.tokenizer, f"{TEXT}. Zen"))
    plain, fronted = lm.model(ids).logits, behind(lm, FRONT, text)
    with edit(lm, ask, memory(lm, ("Zen", FRONT), named=True)).applied(lm):
        found = lm.model(ids).logits
    assert torch.equal(found[:, : named - 1], plain[:, : named - 1])
    after = ids.shape[1] - named + 1
    torch.testing.assert_close(found[:, -after:], fronted[:, -after:], rtol=1e-4, atol=1e-4)


def test_part_of_a_word_names_no_subject(lm: LanguageModel) -> None:
    fronts = memory(lm, ("Zen", FRONT), named=True)
    for text, named in (("Zenith is", False), ("Zen's", True), ("the Zen", True), ("zen", False)):
        ids = ids_of(lm, text)
        assert bool((fronts.choose(lm, ids, torch.ones_like(ids))[0, -1] >= 0).any()) is named, text


def test_what_is_said_at_a_token_does_not_depend_on_what_follows_or_on_the_batch(
    lm: LanguageModel, ask: EditRequest
) -> None:
    text = f"Zen is located in Daslo. {TEXT}"
    two = memory(lm, ("Zen is", FRONT), (text, "Brast Nolva is in Daslo.\n"))
    ids = ids_of(lm, text)
    texts = [TEXT, "Zen is located in Daslo, near the sea.", "Uvo and Zen are far from the river"]
    with edit(lm, ask, two).applied(lm):
        whole, begun = lm.model(ids).logits, lm.model(ids[:, :7]).logits
        together, apart = perplexity(lm, texts), perplexity(lm, texts, batch_tokens=1)
    chosen = two.choose(lm, ids, torch.ones_like(ids))
    assert set(chosen.flatten().tolist()) == {0, 1}
    torch.testing.assert_close(whole[:, :7], begun, rtol=1e-4, atol=1e-4)
    assert together.per_sentence == pytest.approx(apart.per_sentence, rel=1e-4)


def test_perplexity_is_that_of_the_text_behind_its_front_over_the_same_tokens(
    lm: LanguageModel, ask: EditRequest
) -> None:
    ids = lm.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    front = prompt_ids(lm.tokenizer, FRONT)
    scored = lm.model(torch.tensor([[*front, *ids]])).logits[0, len(front) : -1].log_softmax(-1)
    expected = -scored.gather(1, torch.tensor(ids[1:])[:, None]).sum()
    with edit(lm, ask, memory(lm, ("Zen", FRONT))).applied(lm):
        found = perplexity(lm, [TEXT])
    assert found.counts.tolist() == [len(ids) - 1] == perplexity(lm, [TEXT]).counts.tolist()
    assert found.losses[0] == pytest.approx(float(expected), rel=1e-4)


def test_padding_on_the_left_changes_nothing(lm: LanguageModel, ask: EditRequest) -> None:
    """As where a model generates for several texts."""
    ids = ids_of(lm, TEXT)
    fronts = memory(lm, (TEXT[:11], FRONT), named=True)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    mask = (torch.arange(padded.shape[1]) >= 3).long()[None]
    with edit(lm, ask, fronts).applied(lm):
        alone = lm.model(ids).logits
        options = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        found = lm.model(padded, attention_mask=mask, **options).logits[:, 3:]
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_a_model_generates_what_it_says_greedily(lm: LanguageModel, ask: EditRequest) -> None:
    ids = ids_of(lm, TEXT)
    with edit(lm, ask, memory(lm, ("Zen", FRONT))).applied(lm):
        made = lm.model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=True, pad_token_id=0)
        said = scores.continuation(lm, TEXT, tokens=5)
    assert lm.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True) == said
    assert "generate" not in vars(lm.model) and "forward" not in vars(lm.model.get_decoder())


def test_a_front_follows_weights_that_are_written_meanwhile(own: LanguageModel, ask: EditRequest) -> None:
    ids = ids_of(own, TEXT)
    with edit(own, ask, memory(own, ("Zen", FRONT))).applied(own):
        before = own.model(ids).logits
        with torch.no_grad():
            own.weight(0).mul_(1.5)
        after = own.model(ids).logits
    expected = behind(own, FRONT, TEXT)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after[:, -expected.shape[1] :], expected, rtol=1e-4, atol=1e-4)


def test_several_fronts_stand_together_the_nearest_last(lm: LanguageModel, ask: EditRequest) -> None:
    fronts = memory(lm, ("Zen is located in", "A.\n"), ("Zen is", "B.\n"), ("Zen", "C.\n"), named=True, most=9)
    ids = ids_of(lm, "Zen is located in")
    assert fronts.choose(lm, ids, torch.ones_like(ids))[0, -1].tolist()[-1] == 0
    expected = behind(lm, "C.\nB.\nA.\n", "Zen is located in")
    with edit(lm, ask, fronts).applied(lm):
        found = lm.model(ids).logits
    torch.testing.assert_close(found[:, -1], expected[:, -1], rtol=1e-4, atol=1e-4)


def test_a_text_is_wholly_like_itself(lm: LanguageModel) -> None:
    fronts = memory(lm, (TEXT, FRONT))
    ids = ids_of(lm, TEXT)
    found = fronts.similarity(embedded(lm, ids, torch.ones_like(ids))[0])
    assert float(found[-1, 0]) == pytest.approx(1, abs=1e-6) and (found[:-1] < 1).all()


# What cannot be


def test_activations_under_several_fronts_are_refused(lm: LanguageModel, ask: EditRequest) -> None:
    ids = ids_of(lm, f"{TEXT}. Zen is located in")
    with edit(lm, ask, memory(lm, ("Zen", FRONT), named=True)).applied(lm):
        with pytest.raises(EditlibError, match="^activations of tiny-.* cannot be read here: .* several fronts"):
            with trace(lm.model, f"{lm.layout.blocks}.1"):
                lm.model(ids)
        with trace(lm.model, f"{lm.layout.blocks}.1") as seen:
            lm.model(ids[:, :4])
        assert seen[f"{lm.layout.blocks}.1"].output.shape[1] == 4


def test_a_text_without_room_behind_its_front_is_refused(lm: LanguageModel, ask: EditRequest) -> None:
    long = memory(lm, ("Zen", FRONT * 12))
    with edit(lm, ask, long).applied(lm), pytest.raises(EditlibError, match="stands behind .* takes 128 in all"):
        perplexity(lm, [TEXT * 2])


def test_passes_with_keys_of_their_own_are_refused(lm: LanguageModel, ask: EditRequest) -> None:
    kept = lm.model(ids_of(lm, TEXT), use_cache=True).past_key_values
    with edit(lm, ask, memory(lm, ("Zen", FRONT))).applied(lm):
        with pytest.raises(EditlibError, match="can only be given whole texts"):
            lm.model(ids_of(lm, "today"), past_key_values=kept)


def test_only_one_lies_over_a_model(lm: LanguageModel, ask: EditRequest) -> None:
    first, second = (edit(lm, ask, memory(lm, ("Zen", FRONT))) for _ in range(2))
    with first.applied(lm), pytest.raises(EditlibError, match="^another edit by ike cannot be while a ike edit is"):
        with second.applied(lm):
            raise AssertionError
    assert replace(lm).fingerprint == lm.fingerprint and "editlib_overlay" not in vars(lm.model)
