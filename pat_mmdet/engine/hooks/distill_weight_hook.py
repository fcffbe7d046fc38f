"""Schedule of the weight of distillation."""

from __future__ import annotations

import math
from typing import Literal

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from pat_mmdet.utils.argument_types import NonNegativeFloat, NonNegativeInt, PositiveInt

_SCHEDULES = ("constant", "linear", "cosine")


@HOOKS.register_module()
class DistillWeightHook(Hook):
    """Multiply all losses of the method by a weight that follows a schedule.

    The weight is ``start_weight`` up to the iteration ``begin`` and ``end_weight`` from the
    iteration ``end`` on; in between it is constant, or follows a line or half a cosine. While it is
    0, the teacher is not run. It is logged as ``distill_weight``.

    Args:
        schedule (str): ``'constant'``, ``'linear'`` or ``'cosine'``.
        begin (int): Iteration, from 0, at which the change begins.
        end (int, optional): Iteration at which it is complete; the end of training by default.
        start_weight (float): Weight before.
        end_weight (float): Weight after.

    Raises:
        ValueError: If the schedule is unknown or does not end after its beginning.
    """

    def __init__(
        self,
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        begin: NonNegativeInt = 0,
        end: PositiveInt | None = None,
        start_weight: NonNegativeFloat = 1.0,
        end_weight: NonNegativeFloat = 0.0,
    ) -> None:
        if schedule not in _SCHEDULES:
            raise ValueError(
                f"unknown schedule {schedule!r} of DistillWeightHook; known: "
                f"{', '.join(_SCHEDULES)}"
            )
        self.schedule = schedule
        self.begin = begin
        self.end = end
        self.start_weight = start_weight
        self.end_weight = end_weight

    def before_train(self, runner: Runner) -> None:
        """Check that the model has a method, and that the schedule ends after its beginning."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not hasattr(model, "distill_weight"):
            raise ValueError(
                f"DistillWeightHook: {type(model).__name__} has no teacher; take the hook out of "
                "custom_hooks, or train with a method"
            )
        self._model = model
        self._last = runner.max_iters if self.end is None else self.end
        if self.begin >= self._last:
            raise ValueError(
                f"DistillWeightHook: begin={self.begin} is not before the end, {self._last}"
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict) -> None:
        """Set the weight of this iteration."""
        self._model.distill_weight = self.weight(runner.iter)

    def weight(self, iteration: int) -> float:
        """Return the weight of an iteration, counted from 0."""
        share = (iteration - self.begin) / (self._last - self.begin)
        if share >= 1:
            return self.end_weight
        if share <= 0 or self.schedule == "constant":
            return self.start_weight
        if self.schedule == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start_weight + share * (self.end_weight - self.start_weight)
