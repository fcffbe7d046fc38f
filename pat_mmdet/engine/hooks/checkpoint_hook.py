"""Checkpoints that load safely and hold what a resumed run needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

_RESUME_STATE = "distill_resume_state"


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """Save plain data only, so that checkpoints load with ``weights_only=True``.

    mmengine puts pickled ``HistoryBuffer`` objects and NumPy scalars into checkpoints, which
    torch's safe loading refuses. They are saved as tensors and Python numbers, and rebuilt on
    load. What the method of each process carries from step to step is saved too.
    """

    _resume_states: list[dict] | None = None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        # Before anything is removed, and in all processes.
        runner.call_hook("before_checkpoint")
        # Gathered here, as ``before_save_checkpoint`` runs on the first process only.
        method = _method(runner)
        if method is not None:
            self._resume_states = all_gather_object(
                {key: value.cpu() for key, value in method.resume_state().items()}
            )
        super()._save_checkpoint_with_step(runner, step, meta)
        self._resume_states = None

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        runner.call_hook("before_checkpoint")
        super()._save_best_checkpoint(runner, metrics)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replace everything that is not plain data."""
        for key in ("meta", "message_hub", "param_schedulers"):
            if key in checkpoint:
                checkpoint[key] = _to_plain(checkpoint[key])
        if self._resume_states is not None:
            checkpoint[_RESUME_STATE] = self._resume_states

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Rebuild the histories, and restore the state of this process's method."""
        scalars = checkpoint.get("message_hub", {}).get("log_scalars", {})
        for name, plain in scalars.items():
            if isinstance(plain, dict):
                scalars[name] = HistoryBuffer(
                    plain["values"].tolist(), plain["counts"].tolist(), plain["max_length"]
                )
        method, states = _method(runner), checkpoint.get(_RESUME_STATE, [])
        if not runner._resume or method is None:
            return
        if get_rank() < len(states):
            method.load_resume_state(states[get_rank()])
        if "optimizer" in checkpoint:
            _reshape_scalars(checkpoint["optimizer"], runner.optim_wrapper)


def _method(runner: Runner) -> nn.Module | None:
    """Return the distillation method of the runner's model, if it has one."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return getattr(model, "distill", None)


def _reshape_scalars(state: dict, optim_wrapper: OptimWrapper) -> None:
    """Reshape the optimizer's state of parameters that had the shape () in earlier checkpoints.

    Args:
        state (dict): State of the optimizer, changed in place.
        optim_wrapper (OptimWrapper): Will load it.
    """
    if "param_groups" not in state:  # several optimizers
        return
    params = [param for group in optim_wrapper.param_groups for param in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    for index, param in zip(indices, params):
        values = state["state"].get(index, {})
        for name, value in values.items():
            if param.shape == (1,) and isinstance(value, Tensor) and name != "step":
                values[name] = value.reshape(1)


def _to_plain(value: Any) -> Any:
    """Convert histories and NumPy values inside containers into tensors and Python values."""
    if isinstance(value, HistoryBuffer):
        values, counts = value.data
        return dict(
            values=torch.as_tensor(values),
            counts=torch.as_tensor(counts),
            max_length=value.max_length,
        )
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_plain(item) for item in value)
    return value
