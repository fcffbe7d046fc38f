"""Contrastive representation distillation."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from .utils import full_precision, mean, require

# The constant of the published implementation; it belongs to the definition of the loss.
_CRD_EPS = 1e-7


@full_precision
def crd_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    z_student: Tensor,
    z_teacher: Tensor,
    temperature: float,
    num_data: int,
) -> Tensor:
    """Compute contrastive representation distillation, given the scores against the memory banks.

    Tian et al., "Contrastive Representation Distillation", ICLR 2020, section 3, with the noise
    contrastive estimate of the published code. For ``P = exp(score / T) / Z`` and ``c = k / n``::

        −[Σ log(P / (P + c + 1e-7)) + Σ log(c / (P_neg + c + 1e-7))] / B

    where the first sum runs over the B positives, the second over the B · k negatives; the
    student's and the teacher's direction are added.

    Scores are inner products of normalised embeddings (B, D) with the k + 1 gathered rows
    (B, k + 1, D) of the *other* network's bank: ``student_scores[b, j] = <student_b, teacher bank
    row j>``. The gathered rows are by far the largest tensor here, hence left to the caller.

    Args:
        student_scores (Tensor): Student embeddings against rows of the teacher's bank, (B, k + 1),
            the sample's own row first, k ≥ 1 negatives after it. Compute them in float32.
        teacher_scores (Tensor): Teacher embeddings against rows of the student's bank, (B, k + 1).
            The teacher's embedding is trained too: do not detach.
        z_student (Tensor): Normalisation constant Z of the student's scores, a scalar tensor > 0:
            the first batch's ``exp(student_scores / T).mean() * num_data``, kept from then on.
        z_teacher (Tensor): The same of the teacher's scores.
        temperature (float): T.
        num_data (int): n, the number of rows in a bank.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: The scores are not two matrices of equal shape with two columns or more.
    """
    s, t = student_scores, teacher_scores
    valid = s.ndim == 2 and s.shape == t.shape and s.shape[1] >= 2
    require(valid, "two (B, k + 1) score matrices of equal shape, k >= 1", s, t)
    k = s.shape[1] - 1
    noise = k / num_data

    def direction(scores: Tensor, z: Tensor) -> Tensor:
        # P / (P + a) is the sigmoid of log P - log a: written so, exp() cannot overflow.
        logits = scores / temperature - z.log() - math.log(noise + _CRD_EPS)
        positive = F.logsigmoid(logits[:, 0])
        negative = F.logsigmoid(-logits[:, 1:]).sum(1) + k * math.log(noise / (noise + _CRD_EPS))
        return -mean(positive + negative)

    return direction(s, z_student) + direction(t, z_teacher)
