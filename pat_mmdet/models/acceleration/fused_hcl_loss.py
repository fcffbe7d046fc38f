"""Hierarchical context loss in few passes over the maps."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pat_mmdet.models.losses.hcl_loss import HCL_SIDES
from pat_mmdet.models.losses.utils import full_precision, require


class FastHierarchicalContextLoss:
    """``HierarchicalContextLoss`` by :func:`fused_hcl_loss`."""

    @staticmethod
    def obstacle(module: nn.Module) -> str | None:
        """Return why the module cannot be replaced, None if it can."""
        return None

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """Return the loss of student and teacher maps (B, C, H, W)."""
        return fused_hcl_loss(s, t)


@full_precision
def fused_hcl_loss(s: Tensor, t: Tensor) -> Tensor:
    """Compute :func:`pat_mmdet.models.losses.hcl_loss` with a backward pass of its own.

    Pooling is linear: one matrix product gives the averages of all levels, and one adds their
    gradients to that of the gap, the only map that is saved for the backward pass.

    Args:
        s (Tensor): Student map, (B, C, H, W).
        t (Tensor): Teacher map, (B, C, H, W). It receives a gradient if it has a graph.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: The maps are not of equal shape (B, C, H, W).
    """
    require(s.ndim == 4 and s.shape == t.shape, "two (B, C, H, W) maps of equal shape", s, t)
    return _HierarchicalContext.apply(s, t)


class _HierarchicalContext(torch.autograd.Function):
    """See :func:`fused_hcl_loss`."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor) -> Tensor:
        # The gap has the memory order of the teacher's map. Where the channels are innermost
        # (token networks), they stay so: rows of channels instead of rows of positions.
        gap = t - s
        batch, channels, height, width = ctx.shape = gap.shape
        sides = tuple(side for side in HCL_SIDES if side < height)
        pool = _pooling_matrix(sides, height, width, gap.dtype, gap.device)
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


@lru_cache(16)  # the matrix of a P2 map takes 5 MB
@torch.no_grad()
def _pooling_matrix(
    sides: tuple[int, ...], height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return adaptive average pooling to several square sizes at once, as a matrix.

    Args:
        sides (tuple[int, ...]): Sides of the pooled maps; the n-th has the weight 0.5 ** n.
        height (int): Height of the map.
        width (int): Width of the map.
        dtype (torch.dtype): Data type of the result.
        device (torch.device): Device of the result.

    Returns:
        Tensor: Averages times the roots of their weights, shape (N, height * width) with N the
            number of pooled values.
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
