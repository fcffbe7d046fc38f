"""MGD: generating the teacher's map from a masked one (Yang et al., ECCV 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pat_mmdet.models.layers import ChannelProjector
from pat_mmdet.models.methods.base import BaseMethod, Prompted
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs


@METHODS.register_module()
class MGD(BaseMethod):
    """Hides positions of the student's map and lets a small block restore the teacher's.

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
        student (FeatureSpec): Shapes of the student.
        teacher (FeatureSpec): Shapes of the teacher.
        fd_weight (float): Weight of the loss (α of the paper). It is small because the squared
            error is a sum.
        mask_ratio (float): Share of the positions that is hidden, from 0 to less than 1.

    Raises:
        ValueError: If ``mask_ratio`` is out of range.
    """

    needs = frozenset({"features"})

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        fd_weight: float = 5e-7,
        mask_ratio: float = 0.45,
    ) -> None:
        super().__init__(student, teacher)
        if not 0 <= mask_ratio < 1:
            raise ValueError(
                f"mask_ratio={mask_ratio}: give the share of hidden positions, from 0 to less "
                "than 1"
            )
        self.fd_weight = fd_weight
        self.mask_ratio = mask_ratio
        self.projectors = nn.ModuleList(
            ChannelProjector(own[0], target[0])
            for own, target in zip(student.features, teacher.features)
        )
        self.generators = nn.ModuleList(_generator(shape[0]) for shape in teacher.features)

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, prompted: Prompted
    ) -> dict[str, Tensor]:
        """Gives ``loss_fd``; arguments as in :class:`BaseMethod`."""
        distances = []
        for projector, generator, own, target in zip(
            self.projectors, self.generators, student.features, teacher.features
        ):
            own = projector(own, target.shape[-2:])
            drawn = torch.rand(len(own), 1, *own.shape[2:], device=own.device)
            restored = generator(own * (drawn >= self.mask_ratio))
            error = F.mse_loss(restored.float(), target.float(), reduction="sum")
            distances.append(error / max(len(own), 1))
        return {"loss_fd": self.fd_weight * sum(distances)}


def _generator(channels: int) -> nn.Sequential:
    """The block that restores a map (B, C, H, W)."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
    )
