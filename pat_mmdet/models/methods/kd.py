"""Knowledge distillation on logits (Hinton et al., 2015)."""

from torch import Tensor

from pat_mmdet.models.losses import kd_loss
from pat_mmdet.models.methods.base import BaseMethod, Prompted
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs


@METHODS.register_module()
class KD(BaseMethod):
    """Matches the student's class distribution to the teacher's.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015. In detection the
    logits are the class scores of both networks on the student's sampled RoIs.

    Args:
        student (FeatureSpec): Shapes of the student.
        teacher (FeatureSpec): Shapes of the teacher.
        kd_weight (float): Weight of the loss.
        temperature (float): Temperature of both distributions.
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        kd_weight: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.kd_weight = kd_weight
        self.temperature = temperature

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, prompted: Prompted
    ) -> dict[str, Tensor]:
        """Gives ``loss_kd``; arguments as in :class:`BaseMethod`."""
        loss = kd_loss(student.logits, teacher.logits, self.temperature)
        return {"loss_kd": self.kd_weight * loss}
