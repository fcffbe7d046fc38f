"""Averaging the student's weights over training."""

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

    The method's layers are for training only, so that nothing of them is averaged or kept twice.
    Checkpoints are those of ``EMAHook``: the average under ``state_dict``, the weights in training
    under ``ema_state_dict``. They are also right for models that rename their keys when they are
    saved, such as ``TimmClassifier``, where ``EMAHook`` does not find its keys.
    """

    def before_run(self, runner: Runner) -> None:
        """Copies the student."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.src_model = getattr(model, "student", model)
        self.ema_model = MODELS.build(self.ema_cfg, default_args=dict(model=self.src_model))

    def after_train_iter(self, runner: Runner, *args: object, **kwargs: object) -> None:
        """Adds the weights of this iteration; copies them before the averaging begins."""
        if self._ema_started(runner):
            self.ema_model.update_parameters(self.src_model)
        else:
            self.ema_model.module.load_state_dict(self.src_model.state_dict())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Puts the average in place of the student's weights, and keeps these beside it."""
        state = checkpoint["state_dict"]
        average = weights_to_cpu(self.ema_model.module.state_dict())
        checkpoint["ema_state_dict"] = {
            "steps": self.ema_model.steps.cpu(),
            **{_PREFIX + key: state[key] for key in average},
        }
        state.update(average)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Takes the average out of a checkpoint, and gives the student its own weights back."""
        state = checkpoint["state_dict"]
        keys = self.ema_model.module.state_dict().keys()
        average = {key: state[key] for key in keys if key in state}
        kept = checkpoint.get("ema_state_dict") if runner._resume else None
        if kept is not None:
            state.update({key: kept[_PREFIX + key] for key in average})
            self.ema_model.steps.copy_(kept["steps"])
        load_state_dict(self.ema_model.module, average, strict=self.strict_load)
