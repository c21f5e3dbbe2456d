"""Searches in 16 bit on a processor, where attention with flash is slow backwards."""

import pytest
import torch

import editlib as el
from editlib import data
from editlib.editing.session import Session


@pytest.mark.parametrize(("dtype", "flash"), [("float32", True), ("bfloat16", False)])
def test_a_search_takes_the_attention_that_is_fast_backwards_and_leaves_the_choice_as_it_was(
    dtype: str, flash: bool
) -> None:
    lm = el.load("testbed/anchored", dtype=dtype)
    params, seen = el.hparams_for(lm, "rome", steps=2, stop_loss=0.0), set[bool]()

    def look(*_: object) -> None:
        if torch.is_grad_enabled():
            seen.add(torch.backends.cuda.flash_sdp_enabled())

    handle = lm.model.get_submodule(f"{lm.layout.blocks}.{params.layer}").register_forward_pre_hook(look)
    Session(lm).targets(lm.layout.name(params.layer), [data.cases("testbed")[0].request], params)
    handle.remove()
    assert seen == {flash} and torch.backends.cuda.flash_sdp_enabled()


def test_a_search_in_16_bit_begins_and_goes_as_one_in_32() -> None:
    request = data.cases("testbed")[0].request
    losses = []
    for dtype in ("float32", "bfloat16"):
        lm = el.load("testbed/anchored", dtype=dtype)
        params = el.hparams_for(lm, "rome", steps=3, stop_loss=0.0)
        (target,) = Session(lm).targets(lm.layout.name(params.layer), [request], params)
        losses.append(target.losses)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
