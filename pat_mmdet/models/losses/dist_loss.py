"""Distillation from a stronger teacher (DIST)."""

from __future__ import annotations

import torch
from torch import Tensor

from .utils import check_logits, full_precision

# The published implementation has this constant, which is not negligible: a rare class has a tiny
# column norm. It belongs to the definition of the loss.
_PEARSON_EPS = 1e-8


def _pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Compute Pearson correlations along ``dim``; 0 without gradient where one side is constant."""

    def centre(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centred = x - x.mean(dim, keepdim=True)
        norm = torch.linalg.vector_norm(centred, dim=dim)
        # What is left of a constant is rounding noise, and its gradient would be about 1e7.
        noise = 8 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x.detach(), dim=dim)
        return centred, norm, norm <= noise

    (a, norm_a, constant_a), (b, norm_b, constant_b) = centre(a), centre(b)
    correlation = (a * b).sum(dim) / (norm_a * norm_b + _PEARSON_EPS)
    return correlation.masked_fill(constant_a | constant_b, 0.0)


@full_precision
def dist_loss(
    s: Tensor, t: Tensor, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Compute distillation from a stronger teacher (DIST): relations instead of values.

    Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, inter- and
    intra-class relation: ``T² · (β · (1 − mean row Pearson) + γ · (1 − mean column Pearson))`` of
    the softmax outputs. A row holds the classes of one image, a column one class over the batch. As
    in the published code, 1e-8 is added to the product of the norms. A constant row or column
    counts as uncorrelated and sends no gradient: one row alone costs γ whatever it is.

    Args:
        s (Tensor): Student logits, (N, K).
        t (Tensor): Teacher logits, (N, K).
        beta (float): Weight of the relation between classes (rows).
        gamma (float): Weight of the relation between images (columns).
        temperature (float): T.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: The logits are not two matrices of equal shape.
    """
    check_logits(s, t)
    if len(s) == 0:
        # Columns without entries would count as uncorrelated and cost γ.
        return s.sum() + t.sum()
    p_s, p_t = (s / temperature).softmax(1), (t / temperature).softmax(1)
    inter = 1 - _pearson(p_s, p_t, dim=1).mean()
    intra = 1 - _pearson(p_s, p_t, dim=0).mean()
    return temperature**2 * (beta * inter + gamma * intra)
