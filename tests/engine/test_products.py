"""oneDNN's products are those of torch but for the order of sums, forward and backward."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from editlib.engine.passes import PRODUCT, product, suits_product

pytestmark = pytest.mark.skipif(PRODUCT is None, reason="this torch has no oneDNN")
MODULES = {"linear": nn.Linear(6, 5), "without bias": nn.Linear(6, 5, bias=False), "conv1d": Conv1D(5, 6)}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (0, 6)])
def test_values_and_gradients_are_those_of_the_module(name: str, shape: tuple[int, ...]) -> None:
    module, inputs = MODULES[name], torch.randn(shape, requires_grad=True)
    assert suits_product(module)
    upstream = torch.randn(*shape[:-1], 5)
    found, expected = product(module, inputs), module(inputs)
    torch.testing.assert_close(found, expected)
    mine, theirs = (torch.autograd.grad(output, inputs, upstream)[0] for output in (found, expected))
    torch.testing.assert_close(mine, theirs)


def test_infinity_and_nan_come_through() -> None:
    inputs = torch.tensor([[float("inf"), 1, 1, 1, 1, 1], [float("nan"), 1, 1, 1, 1, 1]])
    for module in MODULES.values():
        torch.testing.assert_close(product(module, inputs), module(inputs), equal_nan=True)


def test_other_modules_and_other_precision_are_left_to_torch() -> None:
    class Linear(nn.Linear):
        """One that may do something else."""

    others = (Linear(2, 2), nn.Linear(2, 2).double(), nn.Linear(2, 2).bfloat16(), nn.LayerNorm(2))
    assert not any(map(suits_product, others))
    inputs = torch.randn(3, 6, dtype=torch.float64)
    module = nn.Linear(6, 5).double()
    torch.testing.assert_close(product(module, inputs), module(inputs))
