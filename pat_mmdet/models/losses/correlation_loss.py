"""Correlation congruence (CC)."""

from __future__ import annotations

from torch import Tensor

from .utils import full_precision, mean, require


@full_precision
def correlation_loss(s: Tensor, t: Tensor) -> Tensor:
    """Compute correlation congruence (CC) of neighbours in the batch.

    Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, in the form that
    comparisons of distillation methods have settled on:
    ``mean_i Σ_d |δ_i| · |δ_{i+1}|`` with ``δ = s − t``, over the B − 1 pairs of neighbours.

    Args:
        s (Tensor): Embedded student features, (B, D).
        t (Tensor): Embedded teacher features, (B, D). Their embedding is trained too: do not
            detach.

    Returns:
        Tensor: Scalar; 0 for fewer than two samples.

    Raises:
        ValueError: The embeddings are not two matrices of equal shape.
    """
    require(s.ndim == 2 and s.shape == t.shape, "two (B, D) matrices of equal shape", s, t)
    delta = (s - t).abs()
    return mean((delta[:-1] * delta[1:]).sum(1))
