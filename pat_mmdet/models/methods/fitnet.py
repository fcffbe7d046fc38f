"""FitNet: matching features after a projector (Romero et al., ICLR 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pat_mmdet.models.layers import FeatureProjector
from pat_mmdet.models.losses import kd_loss
from pat_mmdet.models.methods.base import BaseMethod, Prompted
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs


@METHODS.register_module()
class FitNet(BaseMethod):
    """Mean squared error of all features after a projector to the teacher's shape, and KD.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, Eq. 3, with the stages
    and weights of the PAT paper's comparison.

    Args:
        student (FeatureSpec): Shapes of the student.
        teacher (FeatureSpec): Shapes of the teacher.
        fd_weight (float): Weight of the feature loss, the sum over levels.
        kd_weight (float): Weight of the logit loss; with 0 no logits are read.
        temperature (float): Temperature of the logit loss.
    """

    needs = frozenset({"features", "logits"})

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        fd_weight: float = 1.0,
        kd_weight: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.fd_weight = fd_weight
        self.kd_weight = kd_weight
        self.temperature = temperature
        self.projectors = nn.ModuleList(
            FeatureProjector(own[0], target[0])
            for own, target in zip(student.features, teacher.features)
        )

    @classmethod
    def needed(cls, settings: Mapping[str, Any]) -> frozenset[str]:
        """Features, and logits for a weight other than 0."""
        return cls.needs - ({"logits"} if settings.get("kd_weight") == 0 else set())

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, prompted: Prompted
    ) -> dict[str, Tensor]:
        """Gives ``loss_fd``, and ``loss_kd`` if it has a weight.

        Arguments as in :class:`BaseMethod`.
        """
        distances = [
            F.mse_loss(projector(own, target.shape[-2:]).float(), target.float())
            for projector, own, target in zip(self.projectors, student.features, teacher.features)
        ]
        losses = {"loss_fd": self.fd_weight * sum(distances)}
        if self.kd_weight:
            divergence = kd_loss(student.logits, teacher.logits, self.temperature)
            losses["loss_kd"] = self.kd_weight * divergence
        return losses
