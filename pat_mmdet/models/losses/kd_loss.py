"""Knowledge distillation on softened logits."""

from __future__ import annotations

from torch import Tensor

from .utils import check_logits, full_precision, kl_divergence


@full_precision
def kd_loss(s: Tensor, t: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute knowledge distillation on softened logits.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2:
    ``T² · KL(softmax(t/T) ‖ softmax(s/T))``. T² keeps the gradient's size when T changes.

    Args:
        s (Tensor): Logits that learn, (N, K).
        t (Tensor): Logits of the target distribution, (N, K). They receive a gradient if they have
            a graph.
        temperature (float): T.

    Returns:
        Tensor: Scalar, the mean over the N rows.

    Raises:
        ValueError: The logits are not two matrices of equal shape.
    """
    check_logits(s, t)
    return temperature**2 * kl_divergence(s / temperature, t / temperature)
