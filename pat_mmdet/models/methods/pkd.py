"""PKD: Pearson correlation of feature maps (Cao et al., NeurIPS 2022)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pat_mmdet.models.layers import ChannelProjector
from pat_mmdet.models.losses import standardize_channels
from pat_mmdet.models.methods.base import BaseMethod
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs, PromptableTeacher, Requires
from pat_mmdet.utils.argument_types import NonNegativeFloat


@METHODS.register_module()
class PKD(BaseMethod):
    """Match feature maps up to the scale and offset of each channel.

    Source: Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson
    Correlation Coefficient, NeurIPS 2022, the loss on FPN levels. Each channel of a map
    (B, C, H, W) is brought to zero mean and unit variance over B, H and W, that of the student
    and that of the teacher; the loss is half their mean squared error, that is 1 − r with the
    correlation r (up to the factor (n − 1)/n of the unbiased variance, n = B·H·W, which the
    published code has too), summed over levels.

    A 1×1 convolution leads to the teacher's channels where the numbers differ, and a map of
    another size is resized bilinearly to the teacher's. The default weight is that of MMRazor's
    configs, which use the first four levels; here all levels count.

    Args:
        fd_weight (float): Weight of the loss, the sum over levels.
    """

    requires = Requires.FEATURES

    def __init__(self, fd_weight: NonNegativeFloat = 6.0) -> None:
        super().__init__()
        self.fd_weight = fd_weight

    def build_layers(self, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Build the projectors; arguments as in :class:`BaseMethod`."""
        # Without a bias, since the loss does not depend on it.
        self.projectors = nn.ModuleList(
            ChannelProjector(student_shape[0], teacher_shape[0], bias=False)
            for student_shape, teacher_shape in zip(student.features, teacher.features)
        )

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, frozen_teacher: PromptableTeacher
    ) -> dict[str, Tensor]:
        """Return ``loss_fd``; arguments as in :class:`BaseMethod`."""
        distances = [
            _half_squared_distance(projector(x, y.shape[-2:]), y)
            for projector, x, y in zip(self.projectors, student.features, teacher.features)
        ]
        return {"loss_fd": self.fd_weight * sum(distances)}


def _half_squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the mean squared error of two maps (B, C, H, W) with standardised channels."""
    count = student[:, 0].numel()
    unbiased = (count - 1) / max(count, 1)
    student, teacher = (standardize_channels(x, eps=1e-12) for x in (student, teacher))
    return unbiased * F.mse_loss(student, teacher) / 2
