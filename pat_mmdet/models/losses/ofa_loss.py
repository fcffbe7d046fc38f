"""Adaptive target enhancement of OFA-KD."""

from __future__ import annotations

import torch
from torch import Tensor

from .utils import check_logits, full_precision, mean


@full_precision
def ofa_loss(
    s: Tensor, t: Tensor, target: Tensor, eps: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Compute the adaptive target enhancement of OFA-KD.

    Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
    Distillation", NeurIPS 2023, "adaptive target enhancement":
    ``mean_n Σ_k −((p_t + m)^ε − m) · log p_s`` with the one-hot target m and both distributions at
    temperature T (no factor T²). ε = 1 is plain cross-entropy with the teacher; a larger ε trusts
    the target class more.

    Args:
        s (Tensor): Student logits, (N, K).
        t (Tensor): Teacher logits, (N, K). They never receive a gradient.
        target (Tensor): Class indices, int64 (N,).
        eps (float): ε.
        temperature (float): T.

    Returns:
        Tensor: Scalar, the mean over the N rows.

    Raises:
        ValueError: The logits are not two matrices of equal shape, or there is not one target a
            row.
    """
    check_logits(s, t, target)
    # Detached: the slope of p^ε is infinite at p = 0 for ε < 1.
    p_t = (t.detach() / temperature).softmax(1)
    # Not F.one_hot, which may read the largest index back from the device.
    one_hot = torch.zeros_like(p_t).scatter(1, target[:, None], 1.0)
    weight = (p_t + one_hot) ** eps - one_hot
    return -mean((weight * (s / temperature).log_softmax(1)).sum(1))
