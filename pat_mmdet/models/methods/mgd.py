"""MGD: masked generative distillation (Yang et al., ECCV 2022)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pat_mmdet.models.layers import ChannelProjector
from pat_mmdet.models.methods.base import BaseMethod
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs, PromptableTeacher, Requires
from pat_mmdet.utils.argument_types import NonNegativeFloat, Range


@METHODS.register_module()
class MGD(BaseMethod):
    """Mask positions of the student's map, and restore the teacher's by a small block.

    Source: Yang et al., Masked Generative Distillation, ECCV 2022, section 3. In each step and
    for each image and level, every position of the student's map (B, C, H, W) is set to zero
    with the probability ``mask_ratio`` (λ of the paper), in all channels at once; a 3×3
    convolution, ReLU and a second 3×3 convolution follow, and the loss is the squared error to
    the teacher's map, summed over C, H and W, averaged over the batch and summed over levels.
    Masks come from torch's generator of the map's device.

    A 1×1 convolution leads to the teacher's channels where the numbers differ, and a map of
    another size is resized bilinearly to the teacher's; masks come after that. The defaults are
    those of the published configs for Faster R-CNN and Mask R-CNN, which use P2 to P5 (here all
    levels count); those for one-stage detectors are ``fd_weight=2e-5, mask_ratio=0.65``.

    Args:
        fd_weight (float): Weight of the loss (α of the paper). It is small because the squared
            error is a sum.
        mask_ratio (float): Share of the positions that is hidden, from 0 to less than 1.
    """

    requires = Requires.FEATURES

    def __init__(
        self,
        fd_weight: NonNegativeFloat = 5e-7,
        mask_ratio: Annotated[float, Range(min=0, below=1)] = 0.45,
    ) -> None:
        super().__init__()
        self.fd_weight = fd_weight
        self.mask_ratio = mask_ratio

    def build_layers(self, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Build the projectors and generators; arguments as in :class:`BaseMethod`."""
        self.projectors = nn.ModuleList(
            ChannelProjector(student_shape[0], teacher_shape[0])
            for student_shape, teacher_shape in zip(student.features, teacher.features)
        )
        self.generators = nn.ModuleList(_generator(shape[0]) for shape in teacher.features)

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, frozen_teacher: PromptableTeacher
    ) -> dict[str, Tensor]:
        """Return ``loss_fd``; arguments as in :class:`BaseMethod`."""
        distances = []
        for projector, generator, x, y in zip(
            self.projectors, self.generators, student.features, teacher.features
        ):
            x = projector(x, y.shape[-2:])
            drawn = torch.rand(len(x), 1, *x.shape[2:], device=x.device)
            restored = generator(x * (drawn >= self.mask_ratio))
            error = F.mse_loss(restored.float(), y.float(), reduction="sum")
            distances.append(error / max(len(x), 1))
        return {"loss_fd": self.fd_weight * sum(distances)}


def _generator(channels: int) -> nn.Sequential:
    """Build the block that restores a map (B, C, H, W)."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
    )
