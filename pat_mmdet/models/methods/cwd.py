"""CWD: channel-wise distillation (Shu et al., ICCV 2021)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pat_mmdet.models.layers import ChannelProjector
from pat_mmdet.models.methods.base import BaseMethod
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs, PromptableTeacher, Requires
from pat_mmdet.utils.argument_types import NonNegativeFloat, PositiveFloat


@METHODS.register_module()
class CWD(BaseMethod):
    """Match each channel's distribution over the positions of the map.

    Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021,
    section "Channel-wise distillation". A softmax over the H·W positions, at a temperature, makes
    a distribution of each channel of a map (B, C, H, W); the loss is ``T² · KL(teacher ‖
    student)``, averaged over channels and images and summed over levels.

    A 1×1 convolution leads to the teacher's channels where the numbers differ, and a map of
    another size is resized bilinearly to the teacher's. Weight and temperature are those of
    MMRazor's config for Faster R-CNN, which has five levels as well.

    Args:
        fd_weight (float): Weight of the loss, the sum over levels.
        temperature (float): Temperature of both distributions.
    """

    requires = Requires.FEATURES

    def __init__(
        self, fd_weight: NonNegativeFloat = 10.0, temperature: PositiveFloat = 1.0
    ) -> None:
        super().__init__()
        self.fd_weight = fd_weight
        self.temperature = temperature

    def build_layers(self, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Build the projectors; arguments as in :class:`BaseMethod`."""
        # Without a bias, since the softmax would remove it.
        self.projectors = nn.ModuleList(
            ChannelProjector(student_shape[0], teacher_shape[0], bias=False)
            for student_shape, teacher_shape in zip(student.features, teacher.features)
        )

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, frozen_teacher: PromptableTeacher
    ) -> dict[str, Tensor]:
        """Return ``loss_fd``; arguments as in :class:`BaseMethod`."""
        divergences = [
            self._divergence(projector(x, y.shape[-2:]).float(), y.float())
            for projector, x, y in zip(self.projectors, student.features, teacher.features)
        ]
        return {"loss_fd": self.fd_weight * sum(divergences)}

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return ``T² · KL`` of two maps (B, C, H, W), the mean over B and C."""
        s, t = ((x.flatten(2) / self.temperature).log_softmax(2) for x in (student, teacher))
        kl = F.kl_div(s, t, reduction="sum", log_target=True)
        return self.temperature**2 * kl / max(len(student) * student.shape[1], 1)
