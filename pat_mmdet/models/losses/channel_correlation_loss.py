"""Correlation between the channels of two feature maps, and statistics of channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .utils import full_precision, mean, require

EPS = 1e-6


@full_precision
def standardize_channels(x: Tensor, scale: Tensor | None = None, eps: float = EPS) -> Tensor:
    """Bring each channel to zero mean and unit variance over batch and positions.

    Args:
        x (Tensor): Map, (B, C, H, W).
        scale (Tensor, optional): Standard deviations to give the channels instead of 1, (C,).
        eps (float): Added to the variance.

    Returns:
        Tensor: Map of the same shape, at least float32.
    """
    # Batch normalisation saves one map for the backward pass, single steps would save three. Not
    # that of torch.nn.functional, which refuses a single position.
    return torch.batch_norm(x, scale, None, None, None, True, 0.0, eps, True)


@full_precision
def match_channel_statistics(x: Tensor, reference: Tensor) -> Tensor:
    """Give each channel the mean and the standard deviation that it has in another map.

    Args:
        x (Tensor): Map, (B, C, H, W).
        reference (Tensor): Map of as many channels; it receives no gradient.

    Returns:
        Tensor: Map of the shape of ``x``, at least float32.
    """
    var, shift = torch.var_mean(reference.detach(), dim=(0, 2, 3), unbiased=False)
    return torch.batch_norm(x, (var + EPS).sqrt(), shift, None, None, True, 0.0, EPS, True)


def spread_weights(features: Sequence[Tensor], weigh_levels: bool = False) -> list[Tensor]:
    """Return weights of channels that are proportional to their standard deviations.

    A plain mean squared error weighs channels in this way: where the student's channel is much
    smaller than the teacher's, which has the deviation σ, the gradient of their squared gap is that
    of −2σ·r, with the correlation r.

    Args:
        features (Sequence[Tensor]): Maps (B, C, H, W) of the levels, which receive no gradient.
        weigh_levels (bool): Whether levels of larger deviation weigh more, too. The mean of all
            levels' mean weights is 1 then; by default that of each level is 1.

    Returns:
        list[Tensor]: Weights (C,) of each level, at least float32.
    """
    with torch.no_grad():
        spreads = [
            x.to(torch.promote_types(x.dtype, torch.float32)).std((0, 2, 3), correction=0)
            for x in features
        ]
        means = torch.stack([spread.mean() for spread in spreads]).clamp(min=EPS)
        if weigh_levels:
            means = means.mean().expand_as(means)
        return [spread / level_mean for spread, level_mean in zip(spreads, means)]


@full_precision
def channel_correlation_loss(s: Tensor, t: Tensor, weight: Tensor | None = None) -> Tensor:
    """Compute ``Σ_c w_c·(1 − r_c) / C`` with the correlation r_c of channel c over batch, H and W.

    It depends neither on the scale nor on the offset of any channel of either map. With equal
    weights it is the distance of Cao et al., PKD, NeurIPS 2022; it is computed as there, as half
    the mean squared error of the standardised maps.

    Args:
        s (Tensor): Student map, (B, C, H, W).
        t (Tensor): Teacher map, (B, C, H, W). It receives a gradient if it has a graph.
        weight (Tensor, optional): Weights of the channels, (C,).

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: The maps are not of equal shape (B, C, H, W).
    """
    require(s.ndim == 4 and s.shape == t.shape, "two (B, C, H, W) maps of equal shape", s, t)
    scale = None if weight is None else weight.to(s.dtype).sqrt()
    gap = standardize_channels(s, scale) - standardize_channels(t, scale)
    return mean(gap.square()) / 2
