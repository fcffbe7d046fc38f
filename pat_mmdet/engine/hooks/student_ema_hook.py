"""Exponential moving average of the student's weights."""

from __future__ import annotations

from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_state_dict, weights_to_cpu

_PREFIX = "module."


@HOOKS.register_module()
class StudentEMAHook(EMAHook):
    """An ``EMAHook`` for the student alone, or for a model without a teacher.

    The method's layers are not averaged, as they serve training only.
    Checkpoints are those of ``EMAHook``: the average under ``state_dict``, the weights in training
    under ``ema_state_dict``. They are also right for models that rename their keys when they are
    saved, such as ``TimmClassifier``, where ``EMAHook`` does not find its keys.
    """

    def before_run(self, runner: Runner) -> None:
        """Copy the student."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.src_model = getattr(model, "student", model)
        self.ema_model = MODELS.build(self.ema_cfg, default_args=dict(model=self.src_model))

    def after_train_iter(self, runner: Runner, *args: object, **kwargs: object) -> None:
        """Average the weights of this iteration; copy them before the averaging begins."""
        if self._ema_started(runner):
            self.ema_model.update_parameters(self.src_model)
        else:
            self.ema_model.module.load_state_dict(self.src_model.state_dict())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the average as the student's weights, and these under ``ema_state_dict``."""
        state = checkpoint["state_dict"]
        average = weights_to_cpu(self.ema_model.module.state_dict())
        checkpoint["ema_state_dict"] = {
            "steps": self.ema_model.steps.cpu(),
            **{_PREFIX + key: state[key] for key in average},
        }
        state.update(average)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Load the average, and restore the student's own weights when resuming."""
        state = checkpoint["state_dict"]
        keys = self.ema_model.module.state_dict().keys()
        average = {key: state[key] for key in keys if key in state}
        weights = checkpoint.get("ema_state_dict") if runner._resume else None
        if weights is not None:
            state.update({key: weights[_PREFIX + key] for key in average})
            self.ema_model.steps.copy_(weights["steps"])
        load_state_dict(self.ema_model.module, average, strict=self.strict_load)
