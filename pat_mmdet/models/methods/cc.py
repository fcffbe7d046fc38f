"""CC: correlation congruence (Peng et al., ICCV 2019)."""

from __future__ import annotations

from torch import Tensor, nn

from pat_mmdet.models.losses import correlation_loss
from pat_mmdet.models.methods.base import BaseMethod
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs, PromptableTeacher, Requires
from pat_mmdet.utils.argument_types import NonNegativeFloat, PositiveInt


@METHODS.register_module()
class CC(BaseMethod):
    """Match the embeddings of samples that are neighbours in the batch.

    Source: Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019, in the form
    that comparisons of methods use: ``mean_i Σ_d |δ_i| · |δ_{i+1}|`` with ``δ = s − t``, see
    :func:`correlation_loss`. A linear layer on each side brings the embeddings
    (N, D) of student and teacher to a common width; both layers are trained. In detection the
    rows are the student's N sampled RoIs.

    Args:
        width (int): Width in which the embeddings are compared.
        cc_weight (float): Weight of the loss.
    """

    requires = Requires.EMBEDDING

    def __init__(self, width: PositiveInt = 128, cc_weight: NonNegativeFloat = 0.02) -> None:
        super().__init__()
        self.width = width
        self.cc_weight = cc_weight

    def build_layers(self, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Build the layers to the common width; arguments as in :class:`BaseMethod`."""
        self.student_layer = nn.Linear(student.embedding, self.width)
        self.teacher_layer = nn.Linear(teacher.embedding, self.width)

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, frozen_teacher: PromptableTeacher
    ) -> dict[str, Tensor]:
        """Return ``loss_cc``; arguments as in :class:`BaseMethod`."""
        loss = correlation_loss(
            self.student_layer(student.embedding), self.teacher_layer(teacher.embedding)
        )
        return {"loss_cc": self.cc_weight * loss}
