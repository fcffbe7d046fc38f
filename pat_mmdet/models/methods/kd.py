"""Knowledge distillation on logits (Hinton et al., 2015)."""

from torch import Tensor

from pat_mmdet.models.losses import kd_loss
from pat_mmdet.models.methods.base import BaseMethod
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import NetworkOutputs, PromptableTeacher, Requires
from pat_mmdet.utils.argument_types import NonNegativeFloat, PositiveFloat


@METHODS.register_module()
class KD(BaseMethod):
    """Match the student's class distribution to the teacher's.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015. In detection the
    logits are the class scores of both networks on the student's sampled RoIs.

    Args:
        kd_weight (float): Weight of the loss.
        temperature (float): Temperature of both distributions.
    """

    requires = Requires.LOGITS

    def __init__(self, kd_weight: NonNegativeFloat = 1.0, temperature: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.kd_weight = kd_weight
        self.temperature = temperature

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, frozen_teacher: PromptableTeacher
    ) -> dict[str, Tensor]:
        """Return ``loss_kd``; arguments as in :class:`BaseMethod`."""
        loss = kd_loss(student.logits, teacher.logits, self.temperature)
        return {"loss_kd": self.kd_weight * loss}
