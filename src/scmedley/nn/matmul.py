"""The matrix product of a dense layer, by the fastest kernel. Shapes: N cells, I inputs, O outputs."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

ONEDNN_LEAST = 2**20  # multiplications from which oneDNN is faster


def _has_onednn() -> bool:
    """Return whether the operator works; it is not part of PyTorch's public interface."""
    try:
        # dtype and device are explicit because the importing program may have other defaults.
        x = torch.zeros(2, 2, dtype=torch.float32, device="cpu")
        torch.ops.mkldnn._linear_pointwise(x, x, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    return True


ONEDNN = _has_onednn()


class _OneDNN(torch.autograd.Function):
    """x @ weight.T + bias by oneDNN; the backward pass uses it too, so second derivatives exist."""

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
        elif for_weight:  # the transposed weight of a tied layer; a transposed gradient is added faster
            grad_OI = _onednn(x_NI.t(), grad_NO.t()).t()
        return (
            _onednn(grad_NO, weight_OI.t()) if for_x else None,
            grad_OI,
            grad_NO.sum(0) if for_bias else None,
        )


def _onednn(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    y_NO: Tensor = _OneDNN.apply(x_NI, weight_OI, bias_O)  # type: ignore[no-untyped-call]
    return y_NO


def affine(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return x @ weight.T + bias (``None``: without a bias).

    In float32 on a CPU, PyTorch calls MKL, which does not use AVX-512 on AMD processors. oneDNN, which
    PyTorch uses for other formats, is twice as fast there and as fast as MKL on Intel processors.
    """
    onednn = ONEDNN and x_NI.is_cpu and x_NI.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if onednn and len(x_NI) * weight_OI.numel() >= ONEDNN_LEAST:
        return _onednn(x_NI, weight_OI, bias_O)
    return F.linear(x_NI, weight_OI, bias_O)
