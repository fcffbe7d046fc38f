"""RKD: relational knowledge distillation (Park et al., CVPR 2019)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from pat_mmdet.models.losses import rkd_angle_loss, rkd_distance_loss
from pat_mmdet.models.methods.base import BaseMethod
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import NetworkOutputs, PromptableTeacher, Requires
from pat_mmdet.utils.argument_types import NonNegativeFloat, Range


@METHODS.register_module()
class RKD(BaseMethod):
    """Match the pairwise distances and the angles among the samples of a batch.

    Source: Park et al., Relational Knowledge Distillation, CVPR 2019, sections 3.2.1 and 3.2.2,
    see :func:`rkd_distance_loss` and :func:`rkd_angle_loss`.
    The embeddings (N, D) are compared as they are, whatever their widths; there is nothing to
    train here. The weights are the paper's for classification.

    Angles cost N³. In detection the rows are all RoIs that the student sampled in the batch, up
    to some thousands, so at most ``max_rows`` of them are compared, evenly spaced: the RoIs of
    an image stand together, with its foreground first, so even steps take their share of each
    image and of its foreground, where the first rows would all be of the first images. Nothing
    is drawn, so the choice depends on N alone.

    Args:
        distance_weight (float): Weight of ``loss_rkd_distance``.
        angle_weight (float): Weight of ``loss_rkd_angle``.
        max_rows (int, optional): Most rows that are compared, 3 or more; ``None`` for all, as
            in classification.
    """

    requires = Requires.EMBEDDING

    def __init__(
        self,
        distance_weight: NonNegativeFloat = 25.0,
        angle_weight: NonNegativeFloat = 50.0,
        max_rows: Annotated[int, Range(min=3)] | None = 256,
    ) -> None:
        super().__init__()
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.max_rows = max_rows

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, frozen_teacher: PromptableTeacher
    ) -> dict[str, Tensor]:
        """Return ``loss_rkd_distance``, ``loss_rkd_angle``; arguments as in :class:`BaseMethod`."""
        rows = self._spaced(student.embedding), self._spaced(teacher.embedding)
        return {
            "loss_rkd_distance": self.distance_weight * rkd_distance_loss(*rows),
            "loss_rkd_angle": self.angle_weight * rkd_angle_loss(*rows),
        }

    def _spaced(self, x: Tensor) -> Tensor:
        """Return at most ``max_rows`` rows of (N, D), evenly spaced."""
        if self.max_rows is None or len(x) <= self.max_rows:
            return x
        return x[torch.arange(self.max_rows, device=x.device) * len(x) // self.max_rows]
