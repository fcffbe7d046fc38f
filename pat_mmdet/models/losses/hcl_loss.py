"""Hierarchical context loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .utils import full_precision, mean, require

# Sides of the pooled maps.
HCL_SIDES = (4, 2, 1)


@full_precision
def hcl_loss(s: Tensor, t: Tensor) -> Tensor:
    """Compute the hierarchical context loss between two feature maps.

    Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3.3: mean squared
    error at full resolution (weight 1), plus that of the maps pooled to 4×4, 2×2 and 1×1 with
    weights ½, ¼, ⅛, divided by the sum of the weights. A level is skipped where its side reaches
    the map's height; the weight halves only at levels used.

    Args:
        s (Tensor): Student map, (B, C, H, W).
        t (Tensor): Teacher map, (B, C, H, W). It receives a gradient if it has a graph.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: The maps are not of equal shape (B, C, H, W).
    """
    require(s.ndim == 4 and s.shape == t.shape, "two (B, C, H, W) maps of equal shape", s, t)
    gap = s - t  # pooling is linear: the gap of the pooled maps is the pooled gap
    levels = [gap]
    levels += [F.adaptive_avg_pool2d(gap, side) for side in HCL_SIDES if side < gap.shape[2]]
    weights = [0.5**n for n in range(len(levels))]
    return sum(w * mean(level.square()) for w, level in zip(weights, levels)) / sum(weights)


class HierarchicalContextLoss(nn.Module):
    """:func:`hcl_loss` as a module, which can be replaced by a faster one."""

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """Return the loss of student and teacher maps (B, C, H, W)."""
        return hcl_loss(s, t)
