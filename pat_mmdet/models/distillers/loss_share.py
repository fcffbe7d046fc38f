"""Warning of a feature loss that drowns the task's own losses."""

from __future__ import annotations

import logging

import torch
from mmengine.logging import print_log
from torch import Tensor

from pat_mmdet.models.methods.base import BaseMethod

_NUM_STEPS = 10  # over which losses are averaged; later ones are not looked at
_MAX_SHARE = 0.9  # of the total loss, above which to warn


class LossShareCheck:
    """Warn if a method's feature loss is nearly all of the loss in the first steps.

    The weight that a raw distance of features needs depends on the scale of the teacher's features:
    with PAT's published weight of 1, ``loss_fd`` may be fifty times all other losses together. The
    warning names a weight with which it equals them.

    Args:
        method (BaseMethod): Has the name of the loss, ``watched_loss``, and its weight,
            ``fd_weight``.

    Attributes:
        steps_left (int): Number of steps still to be looked at.
    """

    def __init__(self, method: BaseMethod) -> None:
        self.method = method
        self.steps_left = _NUM_STEPS if method.watched_loss else 0
        self._sums: list[Tensor] = []

    def update(self, total: Tensor, losses: dict[str, Tensor]) -> None:
        """Add the losses of a step, and compare them after the last one.

        Args:
            total (Tensor): The student's losses and the method's together.
            losses (dict[str, Tensor]): The method's losses.
        """
        if self.method.watched_loss not in losses:  # a subclass may have others
            self.steps_left = 0
            return
        self.steps_left -= 1
        self._sums.append(torch.stack([total, losses[self.method.watched_loss]]).detach())
        if self.steps_left == 0:
            # The only time that the device is waited for.
            self._compare(*torch.stack(self._sums).sum(0).tolist())
            self._sums.clear()

    def _compare(self, total: float, feature_loss: float) -> None:
        """Warn if the feature loss is too large a part of the total."""
        if not feature_loss > _MAX_SHARE * total:
            return
        weight = self.method.fd_weight * (total - feature_loss) / feature_loss
        print_log(
            f"{self.method.watched_loss} is {feature_loss / total:.0%} of the total loss in the "
            "first steps and drowns the task's own losses: train with "
            f"model.method.fd_weight={weight:.1g} instead of {self.method.fd_weight:g}, or with "
            "--method pat_plus, whose losses do not depend on the scale of the teacher's features",
            logger="current",
            level=logging.WARNING,
        )
