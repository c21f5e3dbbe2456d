"""R-ROME's two switches against the methods they equal."""

from dataclasses import replace

import pytest
import torch

from editlib.data.request import EditRequest
from editlib.editing.methods import compute
from editlib.editing.methods.r_rome import RRomeParams
from editlib.editing.methods.rome import RomeParams
from editlib.editing.stats import Stats
from editlib.models.language_model import LanguageModel

R_ROME = RRomeParams(layer=1, steps=4, learning_rate=0.3)
ROME = RomeParams(layer=1, steps=4, learning_rate=0.3)


def test_r_rome_with_prefix_keys_is_c_rome(lm: LanguageModel, moments: Stats, ask: EditRequest) -> None:
    one = compute(lm, [ask], method="r-rome", hparams=R_ROME, stats=moments)
    other = compute(lm, [ask], method="c-rome", hparams=replace(ROME, keys="prefixed"), stats=moments)
    (name,) = one.changes
    assert torch.equal(one.delta(name), other.delta(name))
    assert (one.method, one.hparams["switch"]) == ("r-rome", "prefix-keys")


def test_r_rome_with_prompt_keys_moves_the_value_without_prefix_by_delta(
    lm: LanguageModel, moments: Stats, ask: EditRequest
) -> None:
    one = compute(lm, [ask], method="r-rome", hparams=replace(R_ROME, switch="prompt-keys"), stats=moments)
    other = compute(lm, [ask], method="p-rome", hparams=replace(ROME, keys="unprefixed"), stats=moments)
    (name,) = one.changes
    torch.testing.assert_close(one.delta(name), other.delta(name), rtol=1e-3, atol=1e-5)  # v0 = W k_u but for rounding
    assert one.diagnostics["denominator"] == pytest.approx(one.diagnostics["denominator_consistent"])
