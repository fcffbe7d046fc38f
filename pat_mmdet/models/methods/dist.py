"""DIST: distillation from a stronger teacher (Huang et al., NeurIPS 2022)."""

from __future__ import annotations

from torch import Tensor

from pat_mmdet.models.losses import dist_loss
from pat_mmdet.models.methods.base import BaseMethod
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import NetworkOutputs, PromptableTeacher, Requires
from pat_mmdet.utils.argument_types import NonNegativeFloat, PositiveFloat


@METHODS.register_module()
class DIST(BaseMethod):
    """Correlate the class distributions of student and teacher, along rows and along columns.

    Source: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, the
    relations between classes and within a class: ``T² · (beta · (1 − mean row Pearson) +
    gamma · (1 − mean column Pearson))``, see :func:`dist_loss`. In detection
    the logits (N, K) are the class scores of both networks on the student's N sampled RoIs; a
    row is an RoI, a column one class over all RoIs of the batch. The defaults are the paper's.

    Args:
        beta (float): Weight of the relation between the classes of a row.
        gamma (float): Weight of the relation between the rows of a class.
        temperature (float): Temperature of both distributions.
        kd_weight (float): Weight of the sum.
    """

    requires = Requires.LOGITS

    def __init__(
        self,
        beta: NonNegativeFloat = 1.0,
        gamma: NonNegativeFloat = 1.0,
        temperature: PositiveFloat = 1.0,
        kd_weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature
        self.kd_weight = kd_weight

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, frozen_teacher: PromptableTeacher
    ) -> dict[str, Tensor]:
        """Return ``loss_kd``; arguments as in :class:`BaseMethod`."""
        loss = dist_loss(student.logits, teacher.logits, self.beta, self.gamma, self.temperature)
        return {"loss_kd": self.kd_weight * loss}
