"""OFA: a student branch that speaks in logits (Hao et al., NeurIPS 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pat_mmdet.models.layers import MapBranch, TokenBranch
from pat_mmdet.models.losses import ofa_loss
from pat_mmdet.models.methods.base import BaseMethod, Prompted
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs

# Where the branches begin, and what a method needs for it.
_BRANCHES = {"embedding": "embedding", "stages": "student_features"}


@METHODS.register_module()
class OFA(BaseMethod):
    """Compares in the space of logits, where the architecture no longer shows.

    Source: Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in
    Knowledge Distillation, NeurIPS 2023, with the adaptive target enhancement of
    :func:`ofa_loss`. Branches take the student's features to logits (N, K):
    ``loss_ofa`` holds these to the teacher's, ``loss_kd`` the student's final logits; the target
    class is the label (N,), background included. They are only there for training.

    ``branch='stages'`` (classification): a branch for each stage, convolutions for maps,
    transformer blocks for tokens, and ``loss_ofa`` is the sum. ``branch='embedding'`` (detection):
    one branch on the embedding (N, D) of the sampled RoIs: linear to ``hidden_channels``, batch
    norm, linear.

    The published detection code has the branch's term alone: its final term took
    the logarithm of a softmax, was NaN in half precision and had been switched off. Here both
    are computed from ``log_softmax`` in float32, so both are on. Set ``kd_weight=0`` for the
    published run.

    Args:
        student (FeatureSpec): Shapes of the student.
        teacher (FeatureSpec): Shapes of the teacher.
        branch (str): ``'embedding'`` or ``'stages'``.
        eps (float | Sequence[float]): Exponent of the target enhancement: 1 is cross-entropy with
            the teacher, more trusts the label more. A sequence has one for each branch and one for
            the final logits. 1.5 for detection, 1 for classification.
        temperature (float): Temperature of both distributions.
        hidden_channels (int): Width inside the branch on the embedding.
        ofa_weight (float): Weight of ``loss_ofa``.
        kd_weight (float): Weight of ``loss_kd``.

    Raises:
        ValueError: If the branch is unknown or not for the task, or the number of exponents is
            wrong.
    """

    needs = frozenset({"student_features", "logits", "embedding"})

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        branch: str = "embedding",
        eps: float | Sequence[float] = 1.0,
        temperature: float = 1.0,
        hidden_channels: int = 1024,
        ofa_weight: float = 1.0,
        kd_weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        if branch not in _BRANCHES:
            raise ValueError(f"unknown branch {branch!r} of OFA; known: {', '.join(_BRANCHES)}")
        if branch == "stages" and not student.features:
            raise ValueError(
                "branch='stages' of OFA scores whole images, as classifiers do; for detectors set "
                "model.method.branch='embedding'"
            )
        self.branch = branch
        self.temperature = temperature
        self.ofa_weight = ofa_weight
        self.kd_weight = kd_weight
        num_classes = teacher.num_classes
        if branch == "stages":
            self.branches = _stage_branches(student, num_classes)
        else:
            self.branches = nn.ModuleList(
                [_embedding_branch(student.embedding, hidden_channels, num_classes)]
            )
        count = len(self.branches) + 1
        self.eps = [eps] * count if isinstance(eps, (int, float)) else list(eps)
        if len(self.eps) != count:
            raise ValueError(
                f"OFA has {count - 1} branches and the final logits, so eps has to be one number "
                f"or {count}, not {len(self.eps)}"
            )

    @classmethod
    def needed(cls, settings: Mapping[str, Any]) -> frozenset[str]:
        """Logits, and what the branches begin with."""
        return frozenset({"logits", _BRANCHES.get(settings.get("branch"), "embedding")})

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, prompted: Prompted
    ) -> dict[str, Tensor]:
        """Gives ``loss_ofa`` and ``loss_kd``; arguments as in :class:`BaseMethod`."""

        def loss(logits: Tensor, eps: float) -> Tensor:
            return ofa_loss(logits, teacher.logits, student.labels, eps, self.temperature)

        starts = student.features if self.branch == "stages" else [student.embedding]
        *branch_eps, final_eps = self.eps
        of_branches = [
            loss(branch(x), eps) for branch, x, eps in zip(self.branches, starts, branch_eps)
        ]
        return {
            "loss_ofa": self.ofa_weight * sum(of_branches),
            "loss_kd": self.kd_weight * loss(student.logits, final_eps),
        }


class _RowNorm(nn.BatchNorm1d):
    """Batch norm of rows (N, D); a row on its own, which has no variance, gets the running one."""

    def forward(self, x: Tensor) -> Tensor:
        """Gives the normalised rows."""
        if len(x) > 1:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def _embedding_branch(width: int, hidden_channels: int, num_classes: int) -> nn.Module:
    """From embeddings (N, D) to logits."""
    return nn.Sequential(
        # Without a bias, since the norm would remove it.
        nn.Linear(width, hidden_channels, bias=False),
        _RowNorm(hidden_channels),
        nn.Linear(hidden_channels, num_classes),
    )


def _stage_branches(student: FeatureSpec, num_classes: int) -> nn.ModuleList:
    """A branch for each stage, all as wide before the classifier as the last stage is."""
    width, last, _ = student.features[-1]
    count = len(student.features)
    return nn.ModuleList(
        TokenBranch(shape, max(count - 1 - i, 1), width, num_classes)
        if student.tokens
        else MapBranch(shape[0], math.ceil(math.log2(shape[1] / last)), width, num_classes)
        for i, shape in enumerate(student.features)
    )
