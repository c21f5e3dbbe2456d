"""Keys, and the search for v*, against a plain loop that takes one row at a time, without padding."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.methods.rome import RomeParams
from editlib.editing.session import Session
from editlib.engine.values import KlPosition, Target, ValueParams, read_at, read_keys
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import encode

CONTEXTS = ["{}", "Because the long winter. {}", "I and the sea turn today where the river is. {}"]
LAYER = 1


def subject_end(lm: LanguageModel, ids: Sequence[int], text: str) -> int:
    """The token with which the decoded row first holds all of `text`."""
    spelled = (lm.tokenizer.decode(ids[: i + 1], skip_special_tokens=True) for i in range(len(ids)))
    return next(i for i, decoded in enumerate(spelled) if decoded.startswith(text))


def rows(lm: LanguageModel, request: EditRequest) -> list[tuple[list[int], int]]:
    """Ids of the prompt behind each context, and the position of the subject's last token."""
    filled = [(c.replace("{}", request.text), c.replace("{}", request.text).index(request.subject)) for c in CONTEXTS]
    encoded = [(lm.tokenizer(text)["input_ids"], text[: start + len(request.subject)]) for text, start in filled]
    return [(ids, subject_end(lm, ids, until)) for ids, until in encoded]


def run(lm: LanguageModel, ids: Sequence[int], at: int, delta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, key and value at `at`, with `delta` added to that value."""
    kept: list[Tensor] = []

    def hook(_: object, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        changed = output.clone()
        if delta is not None:
            changed[0, at] += delta
        kept.extend((inputs[0][0, at], output[0, at]))
        return changed

    handle = lm.down(LAYER).register_forward_hook(hook)
    scores = lm.model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)
    handle.remove()
    return scores, kept[0], kept[1]


def plain_loss(lm: LanguageModel, request: EditRequest, delta: Tensor, params: ValueParams) -> Tensor:
    """ROME's equation 4 as released, term by term."""
    target = lm.tokenizer(f" {request.target_new}", add_special_tokens=False)["input_ids"]
    nll = torch.tensor(0.0)
    for ids, at in rows(lm, request):
        scores, _, _ = run(lm, [*ids, *target], at, delta)
        nll = nll - sum(scores[len(ids) - 1 + j, token] for j, token in enumerate(target)) / len(target)
    bare, at = rows(lm, request)[0]
    v0 = run(lm, bare, at, None)[2]
    ids = lm.tokenizer(f"{request.subject} is a")["input_ids"]
    end = subject_end(lm, ids, request.subject)
    read = end if params.kl_position == "subject" else -1
    before, after = (run(lm, ids, end, change)[0][read] for change in (None, delta))
    kl = (after.exp() * (after - before)).sum()
    decay = params.weight_decay * delta.norm() / v0.norm() ** 2
    return nll / len(CONTEXTS) + params.kl_weight * kl + decay


def params(**changes: float) -> ValueParams:
    return ValueParams(**{"stop_loss": 0.0, "learning_rate": 0.1} | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def lm(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Each family in turn, with prefix contexts of its own."""
    folder = tmp_path_factory.mktemp("prefixes")
    (folder / "prefixes.json").write_text(json.dumps({"contexts": CONTEXTS}))
    return LanguageModel(lm.model, lm.tokenizer, name=lm.name, folder=folder)


def search_of(lm: LanguageModel, request: EditRequest, params: ValueParams) -> Target:
    """v* of a request at the edited layer, by a session that knows nothing yet."""
    return Session(lm).targets(lm.layout.name(LAYER), [request], params)[0]


# Keys


def test_keys_are_those_of_plain_passes(lm: LanguageModel, ask: EditRequest) -> None:
    read = read_keys(lm, LAYER, ask, CONTEXTS)
    with torch.no_grad():
        each = [run(lm, ids, at, None) for ids, at in rows(lm, ask)]
    keys, values = torch.stack([k for _, k, _ in each]), torch.stack([v for _, _, v in each])
    torch.testing.assert_close(read.bare, (keys[0], values[0]))
    torch.testing.assert_close(read.mean(), (keys.mean(0), values.mean(0)))
    torch.testing.assert_close(read.mean(empty=False), (keys[1:].mean(0), values[1:].mean(0)))


@pytest.mark.parametrize("empty", [True, False])
def test_with_the_empty_context_alone_all_keys_are_the_same(lm: LanguageModel, ask: EditRequest, empty: bool) -> None:
    read = read_keys(lm, LAYER, ask, ["{}"])
    assert all(map(torch.equal, read.mean(empty=empty), read.bare))


# The loss


def test_loss_without_change_equals_the_plain_one(lm: LanguageModel, ask: EditRequest) -> None:
    target = search_of(lm, ask, params(steps=1))
    with torch.no_grad():
        expected = plain_loss(lm, ask, torch.zeros(16), params())
    assert target.losses == (pytest.approx(expected.item(), rel=1e-5),)


@pytest.mark.parametrize("kl_position", ["end", "subject"])
@pytest.mark.parametrize("steps", [2, 5])
def test_loss_at_the_value_found_equals_the_plain_one(
    lm: LanguageModel, ask: EditRequest, steps: int, kl_position: KlPosition
) -> None:
    search = params(steps=steps, learning_rate=0.5, kl_weight=20.0)  # so that every term counts
    search = replace(search, kl_position=kl_position)
    target = search_of(lm, ask, search)
    v0 = read_keys(lm, LAYER, ask, CONTEXTS).bare[1]
    delta = target.value - v0
    assert delta.norm() > 0.1
    with torch.no_grad():
        assert target.losses[-1] == pytest.approx(plain_loss(lm, ask, delta, search).item(), rel=1e-5)


def test_the_first_steps_follow_the_plain_gradient(lm: LanguageModel, ask: EditRequest) -> None:
    search, delta = params(steps=4, kl_weight=0.7), torch.zeros(16, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=search.learning_rate)
    for _ in range(3):
        adam.zero_grad()
        plain_loss(lm, ask, delta, search).backward()
        adam.step()
    v0 = read_keys(lm, LAYER, ask, CONTEXTS).bare[1]
    target = search_of(lm, ask, search)
    torch.testing.assert_close(target.value, v0 + delta.detach(), rtol=1e-3, atol=1e-4)


def test_a_target_of_several_tokens_counts_as_one_of_one_token(lm: LanguageModel) -> None:
    long = EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel xyz and Quint")
    target = search_of(lm, long, params(steps=1))
    with torch.no_grad():
        assert target.losses[0] == pytest.approx(plain_loss(lm, long, torch.zeros(16), params()).item(), rel=1e-5)


# The search: the subject ends the prompt, since untrained models attend to nothing in particular

END = EditRequest(prompt="The town is {}", subject="Brast Nolva", target_new="Ostrel")


def test_the_loss_goes_down(lm: LanguageModel) -> None:
    search = params(steps=30, learning_rate=0.5, clamp=20.0, weight_decay=0.0)
    target = search_of(lm, END, search)
    assert len(target.losses) == 30
    assert target.losses[-1] < 0.5 * target.losses[0]


@pytest.mark.parametrize("clamp", [0.05, 0.5])
def test_the_change_stays_within_the_clamp(lm: LanguageModel, clamp: float) -> None:
    target = search_of(lm, END, params(steps=10, learning_rate=1.0, clamp=clamp))
    v0 = read_keys(lm, LAYER, END, CONTEXTS).bare[1]
    assert ((target.value - v0).norm() / v0.norm()).item() == pytest.approx(clamp, rel=1e-4)


def test_it_stops_as_soon_as_the_loss_is_low_enough(lm: LanguageModel) -> None:
    whole = search_of(lm, END, params(steps=8, learning_rate=0.02))
    assert list(whole.losses) == sorted(whole.losses, reverse=True)
    search = params(steps=8, learning_rate=0.02, stop_loss=whole.losses[2] + 1e-6)
    stopped = search_of(lm, END, search)
    assert stopped.losses == whole.losses[:3]


@pytest.mark.slow
def test_it_stops_at_the_hit_asked_for(lm: LanguageModel) -> None:
    """A hit: behind every prefix, the target's tokens are the likeliest; those of the bare prompt need not be."""
    search = params(steps=40, learning_rate=0.3, clamp=20.0, weight_decay=0.0)
    target = lm.tokenizer(f" {END.target_new}", add_special_tokens=False)["input_ids"]

    def hit(delta: Tensor) -> bool:
        with torch.no_grad():
            for ids, at in rows(lm, END)[1:]:
                scores, _, _ = run(lm, [*ids, *target], at, delta)
                if scores[len(ids) - 1 : len(ids) - 1 + len(target)].argmax(-1).tolist() != target:
                    return False
        return True

    changes = [search_of(lm, END, replace(search, steps=steps)).change for steps in range(1, 41)]
    hits = [step for step, change in enumerate(changes, 1) if hit(change)]
    assert len(hits) > 2
    for count in (1, 3):
        stopped = search_of(lm, END, replace(search, stop_hits=count))
        assert len(stopped.losses) == hits[count - 1]
        torch.testing.assert_close(stopped.change, changes[hits[count - 1] - 1])


def test_a_loss_low_enough_at_once_changes_nothing(lm: LanguageModel) -> None:
    target = search_of(lm, END, params(stop_loss=1e9))
    assert len(target.losses) == 1
    torch.testing.assert_close(target.value, read_keys(lm, LAYER, END, CONTEXTS).bare[1])


def test_the_search_is_repeatable_and_leaves_no_trace(lm: LanguageModel) -> None:
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    first, second = (search_of(lm, END, params(steps=4)) for _ in range(2))
    assert torch.equal(first.value, second.value)
    assert first.losses == second.losses
    assert not first.value.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_the_output_of_a_block_can_be_optimised_too(lm: LanguageModel) -> None:
    block = f"{lm.layout.blocks}.{LAYER}"
    search = params(steps=10, learning_rate=0.5, clamp=20.0, weight_decay=0.0)
    target = Session(lm).targets(block, [END], search)[0]
    seen = read_at(lm, block, [encode(lm.tokenizer, END.prompt, END.subject)])
    torch.testing.assert_close(target.start, seen.output[0])
    assert target.losses[-1] < target.losses[0]
    assert not torch.allclose(target.start, read_keys(lm, LAYER, END, CONTEXTS).bare[1])


def test_the_search_is_the_part_of_the_hyper_parameters_that_it_depends_on() -> None:
    search = ValueParams(steps=7, contexts="meng-2022")
    assert RomeParams(layer=2, keys="prefixed", steps=7, contexts="meng-2022").search == search
