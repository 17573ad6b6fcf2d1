"""The product of a dense layer, by the quickest kernel at hand. Shapes: N cells, I inputs, O outputs."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

ONEDNN_WORTH = 2**20  # multiplications below which the call costs more than it saves


def _has_onednn() -> bool:
    """Try the operator: it is PyTorch's own, but not part of its public interface."""
    try:
        # Said in full: the importing program may have other defaults.
        x = torch.zeros(2, 2, dtype=torch.float32, device="cpu")
        torch.ops.mkldnn._linear_pointwise(x, x, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    return True


ONEDNN = _has_onednn()


class _OneDNN(torch.autograd.Function):
    """x @ weight.T + bias by oneDNN. Backward is made of the same, so second derivatives exist too."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        y_NO: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
        return y_NO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        grad_NO = grads[0].contiguous()
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad_OI = None
        if for_weight and weight_OI.is_contiguous():
            grad_OI = _onednn(grad_NO.t(), x_NI.t())
        elif (
            for_weight
        ):  # a tied layer's weight, transposed; its gradient has to be so too, to be added quickly
            grad_OI = _onednn(x_NI.t(), grad_NO.t()).t()
        return (
            _onednn(grad_NO, weight_OI.t()) if for_x else None,
            grad_OI,
            grad_NO.sum(0) if for_bias else None,
        )


def _onednn(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    y_NO: Tensor = _OneDNN.apply(x_NI, weight_OI, bias_O)  # type: ignore[no-untyped-call]
    return y_NO


def affine(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """Return x @ weight.T + bias.

    In float32 on a CPU, PyTorch calls MKL, which leaves AVX-512 unused on AMD's processors: oneDNN, which
    PyTorch has for other formats, is twice as fast there and equals MKL on Intel's.
    """
    onednn = ONEDNN and x_NI.is_cpu and x_NI.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if onednn and len(x_NI) * weight_OI.numel() >= ONEDNN_WORTH:
        return _onednn(x_NI, weight_OI, bias_O)
    return F.linear(x_NI, weight_OI, bias_O)
