"""OFA: a student branch that speaks in logits (Hao et al., NeurIPS 2023)."""

from __future__ import annotations

from torch import Tensor, nn

from pat_mmdet.losses import ofa_loss
from pat_mmdet.methods.base import BaseMethod, Prompted
from pat_mmdet.registry import METHODS
from pat_mmdet.views import NetworkSpec, View


@METHODS.register_module()
class OFA(BaseMethod):
    """Compares in the space of logits, where the architecture no longer shows.

    Source: Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in
    Knowledge Distillation, NeurIPS 2023, with the adaptive target enhancement of
    :func:`pat_mmdet.losses.ofa_loss`. In detection a branch takes the student's embedding (N, D)
    of its sampled RoIs to logits (N, K): linear to the hidden width, batch norm, linear.
    ``loss_ofa`` holds the branch's logits to the teacher's on the same RoIs, ``loss_kd`` the
    student's final logits; the target class is the RoI's label, background included.

    The published detection code has the branch's term alone: its final term took
    the logarithm of a softmax, was NaN in half precision and had been switched off. Here both
    are computed from ``log_softmax`` in float32, so both are on. Set ``kd_weight=0`` for the
    published run.

    Args:
        student (NetworkSpec): Shapes of the student.
        teacher (NetworkSpec): Shapes of the teacher.
        eps (float): Exponent of the target enhancement in both terms: 1 is cross-entropy with
            the teacher, more trusts the label more. 1.5 for detection, 1 for classification.
        temperature (float): Temperature of both distributions.
        hidden_channels (int): Width inside the branch.
        ofa_weight (float): Weight of ``loss_ofa``.
        kd_weight (float): Weight of ``loss_kd``.
    """

    needs = frozenset({"logits", "embedding"})

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        eps: float = 1.0,
        temperature: float = 1.0,
        hidden_channels: int = 1024,
        ofa_weight: float = 1.0,
        kd_weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.eps = eps
        self.temperature = temperature
        self.ofa_weight = ofa_weight
        self.kd_weight = kd_weight
        self.branch = nn.Sequential(
            # Without a bias, since the norm would remove it.
            nn.Linear(student.embedding, hidden_channels, bias=False),
            nn.BatchNorm1d(hidden_channels),
            nn.Linear(hidden_channels, teacher.num_classes),
        )

    def forward(self, student: View, teacher: View, prompted: Prompted) -> dict[str, Tensor]:
        """Gives ``loss_ofa`` and ``loss_kd``; arguments as in :class:`BaseMethod`."""

        def loss(logits: Tensor) -> Tensor:
            return ofa_loss(logits, teacher.logits, student.labels, self.eps, self.temperature)

        return {
            "loss_ofa": self.ofa_weight * loss(self.branch(student.embedding)),
            "loss_kd": self.kd_weight * loss(student.logits),
        }
