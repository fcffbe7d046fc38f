"""FitNet: hints (Romero et al., ICLR 2015)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pat_mmdet.models.layers import FeatureProjector
from pat_mmdet.models.losses import kd_loss
from pat_mmdet.models.methods.base import BaseMethod
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs, PromptableTeacher, Requires
from pat_mmdet.utils.argument_types import NonNegativeFloat, PositiveFloat


@METHODS.register_module()
class FitNet(BaseMethod):
    """Match all features by mean squared error after a projector, and logits by KD.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, Eq. 3, with the stages
    and weights of the PAT paper's comparison.

    Args:
        fd_weight (float): Weight of the feature loss, the sum over levels.
        kd_weight (float): Weight of the logit loss; with 0 no logits are read.
        temperature (float): Temperature of the logit loss.
    """

    def __init__(
        self,
        fd_weight: NonNegativeFloat = 1.0,
        kd_weight: NonNegativeFloat = 1.0,
        temperature: PositiveFloat = 1.0,
    ) -> None:
        super().__init__()
        self.fd_weight = fd_weight
        self.kd_weight = kd_weight
        self.temperature = temperature

    @property
    def requires(self) -> Requires:
        """Requires: Features, and logits unless ``kd_weight`` is 0."""
        return Requires.FEATURES | (Requires.LOGITS if self.kd_weight else Requires.NOTHING)

    def build_layers(self, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Build the projectors; arguments as in :class:`BaseMethod`."""
        self.projectors = nn.ModuleList(
            FeatureProjector(student_shape[0], teacher_shape[0])
            for student_shape, teacher_shape in zip(student.features, teacher.features)
        )

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, frozen_teacher: PromptableTeacher
    ) -> dict[str, Tensor]:
        """Return ``loss_fd``, and ``loss_kd`` if it has a weight.

        Arguments as in :class:`BaseMethod`.
        """
        distances = [
            F.mse_loss(projector(x, y.shape[-2:]).float(), y.float())
            for projector, x, y in zip(self.projectors, student.features, teacher.features)
        ]
        losses = {"loss_fd": self.fd_weight * sum(distances)}
        if self.kd_weight:
            divergence = kd_loss(student.logits, teacher.logits, self.temperature)
            losses["loss_kd"] = self.kd_weight * divergence
        return losses
