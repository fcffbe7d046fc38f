"""DKD: decoupled knowledge distillation (Zhao et al., CVPR 2022)."""

from __future__ import annotations

from torch import Tensor

from pat_mmdet.models.losses import dkd_loss
from pat_mmdet.models.methods.base import BaseMethod
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import NetworkOutputs, PromptableTeacher, Requires
from pat_mmdet.utils.argument_types import NonNegativeFloat, PositiveFloat


@METHODS.register_module()
class DKD(BaseMethod):
    """Match the probability of the label, and the distribution over the other classes.

    Source: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, Eq. 7:
    ``T² · (alpha · TCKD + beta · NCKD)``, see :func:`dkd_loss`. In detection
    the logits (N, K) are the class scores of both networks on the student's N sampled RoIs, and
    the target is the label (N,) that the student's sampler gave; background is a class like any
    other, the last one. The defaults are the paper's for classification.

    Args:
        alpha (float): Weight of TCKD, on the target against all the rest.
        beta (float): Weight of NCKD, on the distribution over the other classes.
        temperature (float): Temperature of all distributions.
        kd_weight (float): Weight of the sum.
    """

    requires = Requires.LOGITS

    def __init__(
        self,
        alpha: NonNegativeFloat = 1.0,
        beta: NonNegativeFloat = 2.0,
        temperature: PositiveFloat = 1.0,
        kd_weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.kd_weight = kd_weight

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, frozen_teacher: PromptableTeacher
    ) -> dict[str, Tensor]:
        """Return ``loss_kd``; arguments as in :class:`BaseMethod`."""
        loss = dkd_loss(
            student.logits, teacher.logits, student.labels, self.alpha, self.beta, self.temperature
        )
        return {"loss_kd": self.kd_weight * loss}
