"""OFA: one for all (Hao et al., NeurIPS 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pat_mmdet.models.layers import MapBranch, TokenBranch
from pat_mmdet.models.losses import ofa_loss
from pat_mmdet.models.methods.base import BaseMethod
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs, PromptableTeacher, Requires
from pat_mmdet.utils.argument_types import NonNegativeFloat, PositiveFloat, PositiveInt

# What the branches are applied to.
_BRANCHES = {"embedding": Requires.EMBEDDING, "stages": Requires.STUDENT_FEATURES}


@METHODS.register_module()
class OFA(BaseMethod):
    """Distil auxiliary classifiers on student features in logit space.

    Source: Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in
    Knowledge Distillation, NeurIPS 2023, with the adaptive target enhancement of
    :func:`ofa_loss`. Auxiliary branches, for training alone, compute logits (N, K) of the student's
    features: ``loss_ofa`` compares these with the teacher's, ``loss_kd`` the student's final
    logits; the target class is the label (N,), background included.

    ``branch='stages'`` (classification): a branch for each stage, convolutions for maps,
    transformer blocks for tokens, and ``loss_ofa`` is the sum. ``branch='embedding'`` (detection):
    one branch on the embedding (N, D) of the sampled RoIs: linear to ``hidden_channels``, batch
    norm, linear.

    The published detection code has the branch's term alone: its final term took
    the logarithm of a softmax, was NaN in half precision and had been switched off. Here both
    are computed from ``log_softmax`` in float32, so both are on. Set ``kd_weight=0`` for the
    published run.

    Args:
        branch (str): ``'embedding'`` or ``'stages'``.
        eps (float | Sequence[float]): Exponent of the target enhancement: 1 is cross-entropy with
            the teacher, more trusts the label more. A sequence has one for each branch and one for
            the final logits. 1.5 for detection, 1 for classification.
        temperature (float): Temperature of both distributions.
        hidden_channels (int): Width inside the branch on the embedding.
        ofa_weight (float): Weight of ``loss_ofa``.
        kd_weight (float): Weight of ``loss_kd``.
    """

    def __init__(
        self,
        branch: Literal["embedding", "stages"] = "embedding",
        eps: PositiveFloat | Sequence[PositiveFloat] = 1.0,
        temperature: PositiveFloat = 1.0,
        hidden_channels: PositiveInt = 1024,
        ofa_weight: NonNegativeFloat = 1.0,
        kd_weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.eps: Any = eps  # a list, once the number of branches is known
        self.temperature = temperature
        self.hidden_channels = hidden_channels
        self.ofa_weight = ofa_weight
        self.kd_weight = kd_weight

    @property
    def requires(self) -> Requires:
        """Requires: Logits, and the input of the branches."""
        return Requires.LOGITS | _BRANCHES[self.branch]

    def build_layers(self, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Build the branches; arguments as in :class:`BaseMethod`.

        Raises:
            ValueError: If the branches are not for the task, or the number of exponents is wrong.
        """
        num_classes = teacher.num_classes
        if self.branch == "embedding":
            self.branches = nn.ModuleList(
                [_embedding_branch(student.embedding, self.hidden_channels, num_classes)]
            )
        elif student.features:
            self.branches = _stage_branches(student, num_classes)
        else:
            raise ValueError(
                "branch='stages' of OFA scores whole images, as classifiers do; for detectors set "
                "model.method.branch='embedding'"
            )
        count = len(self.branches) + 1
        if isinstance(self.eps, (int, float)):
            self.eps = [self.eps] * count
        if len(self.eps) != count:
            raise ValueError(
                f"OFA has {count - 1} branches and the final logits, so eps has to be one number "
                f"or {count}, not {len(self.eps)}"
            )

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, frozen_teacher: PromptableTeacher
    ) -> dict[str, Tensor]:
        """Return ``loss_ofa`` and ``loss_kd``; arguments as in :class:`BaseMethod`."""

        def loss(logits: Tensor, eps: float) -> Tensor:
            return ofa_loss(logits, teacher.logits, student.labels, eps, self.temperature)

        inputs = student.features if self.branch == "stages" else [student.embedding]
        *branch_eps, final_eps = self.eps
        of_branches = [
            loss(branch(x), eps) for branch, x, eps in zip(self.branches, inputs, branch_eps)
        ]
        return {
            "loss_ofa": self.ofa_weight * sum(of_branches),
            "loss_kd": self.kd_weight * loss(student.logits, final_eps),
        }


class _RowNorm(nn.BatchNorm1d):
    """Batch norm of rows (N, D); a single row, which has no variance, uses the running one."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised rows (N, D)."""
        if len(x) > 1:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def _embedding_branch(width: int, hidden_channels: int, num_classes: int) -> nn.Module:
    """Build the branch from embeddings (N, width) to logits."""
    return nn.Sequential(
        # Without a bias, since the norm would remove it.
        nn.Linear(width, hidden_channels, bias=False),
        _RowNorm(hidden_channels),
        nn.Linear(hidden_channels, num_classes),
    )


def _stage_branches(student: FeatureSpec, num_classes: int) -> nn.ModuleList:
    """Build a branch for each stage, all as wide before the classifier as the last stage is."""
    width, last, _ = student.features[-1]
    count = len(student.features)
    return nn.ModuleList(
        TokenBranch(shape, max(count - 1 - i, 1), width, num_classes)
        if student.tokens
        else MapBranch(shape[0], math.ceil(math.log2(shape[1] / last)), width, num_classes)
        for i, shape in enumerate(student.features)
    )
