"""Hierarchical context loss."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .utils import full_precision, require


@full_precision
def hcl_loss(s: Tensor, t: Tensor) -> Tensor:
    """Hierarchical context loss between two feature maps.

    Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3.3: mean squared
    error at full resolution (weight 1), plus that of the maps pooled to 4×4, 2×2 and 1×1 with
    weights ½, ¼, ⅛, divided by the sum of the weights. A level is skipped where its side reaches
    the map's height; the weight halves only at levels used.

    Args:
        s: Student map, (B, C, H, W).
        t: Teacher map, (B, C, H, W). It receives a gradient if it has a graph.

    Returns:
        Scalar.

    Raises:
        ValueError: The maps are not of equal shape (B, C, H, W).
    """
    require(s.ndim == 4 and s.shape == t.shape, "two (B, C, H, W) maps of equal shape", s, t)
    return _HierarchicalContext.apply(s, t)


class _HierarchicalContext(torch.autograd.Function):
    """:func:`hcl_loss` in few passes over the maps, of which one, their gap, is kept.

    Pooling is linear: one matrix product gives the averages of all levels, and one adds their
    gradients to that of the gap.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor) -> Tensor:
        # What has the channels innermost (token networks) stays so: rows of channels, not of
        # positions. The order of the target decides for both.
        gap = t - s
        batch, channels, height, width = ctx.shape = gap.shape
        sides = tuple(side for side in (4, 2, 1) if side < height)
        pool = _pooling(sides, height, width, gap.dtype, gap.device)
        ctx.innermost = not gap.is_contiguous()
        if ctx.innermost:
            gap = gap.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
            pooled = pool @ gap
        else:
            gap = gap.view(batch * channels, height * width)
            pooled = gap @ pool.t()
        weights = 2 - 0.5 ** len(sides)
        maps = max(batch * channels, 1)
        ctx.scales = 1 / (weights * maps * max(height * width, 1)), 1 / (weights * maps)
        ctx.save_for_backward(gap, pooled, pool)
        dense = torch.linalg.vector_norm(gap, dim=-1).square().sum()
        return ctx.scales[0] * dense + ctx.scales[1] * pooled.square().sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gap, pooled, pool = ctx.saved_tensors
        batch, channels, height, width = ctx.shape
        beta, alpha = (2 * scale for scale in ctx.scales)
        if ctx.innermost:
            pool = pool.t().expand(batch, -1, -1)
            full = torch.baddbmm(gap, pool, pooled, beta=beta, alpha=alpha)
            full = full.view(batch, height, width, channels).permute(0, 3, 1, 2)
        else:
            full = torch.addmm(gap, pooled, pool, beta=beta, alpha=alpha).view(ctx.shape)
        full = full.mul_(gradient)
        return (
            -full if ctx.needs_input_grad[0] else None,
            full if ctx.needs_input_grad[1] else None,
        )


@functools.lru_cache(16)  # that of P2 takes 5 MB
@torch.no_grad()
def _pooling(
    sides: tuple[int, ...], height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Adaptive average pooling to several square sizes at once, as a matrix.

    Args:
        sides: Sides of the pooled maps; the n-th has the weight 0.5 ** n in the loss.
        height: Of the map.
        width: Of the map.
        dtype: Of the result.
        device: Of the result.

    Returns:
        Averages times the roots of their weights, shape (N, height * width) with N the number of
        pooled values.
    """
    like = dict(dtype=dtype, device=device)
    levels = [torch.zeros(0, height * width, **like)]
    for n, side in enumerate(sides, 1):
        rows, columns = (
            F.adaptive_avg_pool1d(torch.eye(length, **like)[None], side)[0].t()
            for length in (height, width)
        )
        levels.append(torch.kron(rows, columns) * (0.5**n / side**2) ** 0.5)
    return torch.cat(levels)
