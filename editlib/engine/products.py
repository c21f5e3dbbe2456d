"""Products with a linear module's weight by oneDNN, which many CPUs run faster than what torch takes by default.

Both add the same products in float32, in another order.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from editlib.models.layout import oriented

PRODUCT = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def suits(module: nn.Module) -> bool:
    """Whether a module is linear, in float32 and on a CPU that has oneDNN."""
    if PRODUCT is None or type(module) not in (nn.Linear, Conv1D):
        return False
    weight = oriented(module)
    return weight.device.type == "cpu" and weight.element_size() == 4


def apply(module: nn.Module, inputs: Tensor) -> Tensor:
    """What a linear module gives; the gradient goes to its inputs alone."""
    found: Tensor = _Product.apply(inputs, oriented(module), module.bias)
    return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _product(gradients[0], ctx.weight.T, None), None, None


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if PRODUCT is None or not inputs.numel() or inputs.element_size() != 4:
        return linear(inputs, weight, bias)
    found: Tensor = PRODUCT(inputs, weight, bias, "none", [], "")
    return found
