"""Reading and replacing activations."""

import pytest
import torch
from torch import Tensor, nn

from editlib.models.language_model import LanguageModel
from editlib.models.trace import trace

IDS = torch.tensor([[5, 9, 17, 33]])


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_it_reads_what_a_plain_hook_reads(lm: LanguageModel) -> None:
    by_hand: list[tuple[Tensor, Tensor]] = []
    handle = lm.down(1).register_forward_hook(lambda _, inputs, output: by_hand.append((inputs[0], output)))
    with torch.no_grad():
        lm.model(IDS)
        handle.remove()
        with trace(lm.model, lm.layout.name(1)) as seen:
            lm.model(IDS)
    read = seen[lm.layout.name(1)]
    assert torch.equal(read.input, by_hand[0][0])
    assert torch.equal(read.output, by_hand[0][1])
    assert read.input.shape == (1, 4, 24)
    assert read.output.shape == (1, 4, 16)


def test_it_leaves_the_pass_as_it_is(lm: LanguageModel) -> None:
    plain = lm.model(IDS).logits
    with trace(lm.model, *map(lm.layout.name, range(3))) as seen:
        traced = lm.model(IDS).logits
    assert torch.equal(plain, traced)
    assert list(seen) == [lm.layout.name(layer) for layer in range(3)]


def test_replaced_outputs_are_what_later_modules_get(lm: LanguageModel) -> None:
    with trace(lm.model, replace={lm.layout.name(1): torch.zeros_like}) as seen:
        replaced = lm.model(IDS).logits
    assert not seen[lm.layout.name(1)].output.any()
    weight, bias = lm.weight(1), getattr(lm.down(1), "bias", None)
    kept = weight.clone(), None if bias is None else bias.clone()
    weight.zero_()
    if bias is not None:
        bias.zero_()
    by_hand = lm.model(IDS).logits
    weight.copy_(kept[0])
    if bias is not None:
        bias.copy_(kept[1])
    torch.testing.assert_close(replaced, by_hand)


def test_replacing_a_block_keeps_the_rest_of_its_output(lm: LanguageModel) -> None:
    block = f"{lm.layout.blocks}.0"
    with trace(lm.model, block) as seen:
        plain = lm.model(IDS).logits
    stream = seen[block].output
    with trace(lm.model, replace={block: lambda _: stream.roll(1, dims=-1)}):
        rolled = lm.model(IDS).logits
    with trace(lm.model, replace={block: lambda output: output}):
        same = lm.model(IDS).logits
    assert torch.equal(plain, same)
    assert not torch.allclose(plain, rolled)


def test_modules_called_by_keyword_are_read(lm: LanguageModel) -> None:
    block = f"{lm.layout.blocks}.0"
    names = {"transformer.h.0": "attn", "model.layers.0": "self_attn"}
    with trace(lm.model, f"{block}.{names[block]}") as seen:
        lm.model(IDS)
    assert seen[f"{block}.{names[block]}"].input.shape == (1, 4, 16)


def test_stop_ends_the_pass_after_the_last_traced_module(lm: LanguageModel) -> None:
    ran: list[int] = []
    handles = [lm.down(layer).register_forward_hook(lambda *_, layer=layer: ran.append(layer)) for layer in range(3)]
    after = False
    with trace(lm.model, lm.layout.name(0), lm.layout.name(1), stop=True) as seen:
        lm.model(IDS)
        after = True
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]
    assert not after
    assert set(seen) == {lm.layout.name(0), lm.layout.name(1)}


def test_hooks_are_gone_after_the_block(lm: LanguageModel) -> None:
    with trace(lm.model, lm.layout.name(0), stop=True):
        assert hooks(lm.model) == 1
        lm.model(IDS)
    assert hooks(lm.model) == 0


def test_hooks_are_gone_after_an_exception(lm: LanguageModel) -> None:
    with pytest.raises(ZeroDivisionError), trace(lm.model, lm.layout.name(0), lm.layout.name(1)):
        raise ZeroDivisionError
    assert hooks(lm.model) == 0


def test_hooks_are_gone_after_an_exception_inside_the_pass(lm: LanguageModel) -> None:
    def fail(output: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), trace(lm.model, replace={lm.layout.name(0): fail}):
        lm.model(IDS)
    assert hooks(lm.model) == 0


def test_hooks_are_gone_when_a_module_does_not_exist(lm: LanguageModel) -> None:
    with pytest.raises(AttributeError), trace(lm.model, lm.layout.name(0), "nowhere"):
        pass
    assert hooks(lm.model) == 0


def test_gradients_flow_through_replaced_outputs(lm: LanguageModel) -> None:
    shift = torch.zeros(16, requires_grad=True)
    with trace(lm.model, replace={lm.layout.name(1): lambda output: output + shift}):
        lm.model(IDS).logits.log_softmax(-1)[0, -1, 3].backward()
    assert shift.grad is not None and shift.grad.any()
