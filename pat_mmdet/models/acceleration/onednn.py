"""oneDNN linear layers and malloc tuning."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Before 2.4, torch does not tell whether autocast is on for a device.
ONEDNN_AVAILABLE = (
    torch.__version__ >= (2, 4)
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
# Parameters of mallopt in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def onednn_supported(*tensors: Tensor) -> bool:
    """Return True if the oneDNN kernel supports these tensors.

    Args:
        tensors (Tensor): Factors of a matrix product.
    """
    return (
        ONEDNN_AVAILABLE
        and all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``F.linear``, by oneDNN's matrix product where it supports the tensors.

    It pays where the BLAS of torch leaves a part of the processor idle (MKL on AMD processors with
    AVX-512), forward and backward; elsewhere it is about as fast.

    Args:
        x (Tensor): Shape (..., in).
        weight (Tensor): Shape (out, in).
        bias (Tensor, optional): Shape (out,).

    Returns:
        Tensor: Shape (..., out).
    """
    if not onednn_supported(x, weight):
        return F.linear(x, weight, bias)
    rows = _OneDNNLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], len(weight))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``x @ weight.T + bias`` of matrices; oneDNN needs no copy of transposed ones."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    """``x @ weight.T + bias`` for rows ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # A frozen layer needs its input no more.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if to_x else None,
            _product(gradient.t(), x.t()) if to_weight else None,
            gradient.sum(0) if to_bias else None,
        )


def disable_malloc_trim() -> None:
    """Make glibc's malloc keep freed blocks.

    By default it returns large blocks to the system and gets them back page by page, which costs
    some percent of the time of a step. Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
