"""CWD: where each channel is active (Shu et al., ICCV 2021)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pat_mmdet.models.layers import ChannelProjector
from pat_mmdet.models.methods.base import BaseMethod, Prompted
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs


@METHODS.register_module()
class CWD(BaseMethod):
    """Matches each channel's distribution over the positions of the map.

    Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021,
    section "Channel-wise distillation". A softmax over the H·W positions, at a temperature, makes
    a distribution of each channel of a map (B, C, H, W); the loss is ``T² · KL(teacher ‖
    student)``, averaged over channels and images and summed over levels.

    A 1×1 convolution leads to the teacher's channels where the numbers differ, and a map of
    another size is resized bilinearly to the teacher's. Weight and temperature are those of
    MMRazor's config for Faster R-CNN, which has five levels as well.

    Args:
        student (FeatureSpec): Shapes of the student.
        teacher (FeatureSpec): Shapes of the teacher.
        fd_weight (float): Weight of the loss, the sum over levels.
        temperature (float): Temperature of both distributions.
    """

    needs = frozenset({"features"})

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        fd_weight: float = 10.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.fd_weight = fd_weight
        self.temperature = temperature
        # Without a bias, since the softmax would remove it.
        self.projectors = nn.ModuleList(
            ChannelProjector(own[0], target[0], bias=False)
            for own, target in zip(student.features, teacher.features)
        )

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, prompted: Prompted
    ) -> dict[str, Tensor]:
        """Gives ``loss_fd``; arguments as in :class:`BaseMethod`."""
        divergences = [
            self._divergence(projector(own, target.shape[-2:]).float(), target.float())
            for projector, own, target in zip(self.projectors, student.features, teacher.features)
        ]
        return {"loss_fd": self.fd_weight * sum(divergences)}

    def _divergence(self, own: Tensor, target: Tensor) -> Tensor:
        """``T² · KL`` of two maps (B, C, H, W), the mean over B and C."""
        s, t = ((x.flatten(2) / self.temperature).log_softmax(2) for x in (own, target))
        kl = F.kl_div(s, t, reduction="sum", log_target=True)
        return self.temperature**2 * kl / max(len(own) * own.shape[1], 1)
