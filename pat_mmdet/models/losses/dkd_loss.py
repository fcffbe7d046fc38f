"""Decoupled knowledge distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from .utils import check_logits, full_precision, kl_divergence, require


@full_precision
def dkd_loss(
    s: Tensor,
    t: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 2.0,
    temperature: float = 1.0,
) -> Tensor:
    """Compute decoupled knowledge distillation.

    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equation 7:
    ``T² · (α · TCKD + β · NCKD)``. TCKD compares how much probability the target class gets against
    all the rest together, NCKD how the rest is spread over the other classes.

    Args:
        s (Tensor): Student logits, (N, K), K ≥ 2.
        t (Tensor): Teacher logits, (N, K).
        target (Tensor): Class indices, int64 (N,).
        alpha (float): Weight of TCKD.
        beta (float): Weight of NCKD.
        temperature (float): T.

    Returns:
        Tensor: Scalar, the mean over the N rows.

    Raises:
        ValueError: The logits are not two matrices of equal shape with two classes or more, or
            there is not one target a row.
    """
    check_logits(s, t, target)
    require(s.shape[1] >= 2, "at least two classes", s, t)
    target = target[:, None]
    others = torch.arange(s.shape[1] - 1, device=s.device)
    others = others + (others >= target)  # (N, K-1): all classes but the target, in order

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits / temperature
        rest = logits.gather(1, others)
        # (target, logsumexp of the rest) are logits of the binary distribution: 1 - p_target is
        # never formed, so nothing cancels when the target is certain.
        binary = torch.cat([logits.gather(1, target), rest.logsumexp(1, keepdim=True)], 1)
        return binary, rest

    (binary_s, rest_s), (binary_t, rest_t) = split(s), split(t)
    tckd = kl_divergence(binary_s, binary_t)
    nckd = kl_divergence(rest_s, rest_t)
    return temperature**2 * (alpha * tckd + beta * nckd)
