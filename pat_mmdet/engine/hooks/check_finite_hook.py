"""Stop a training whose numbers are not finite."""

from __future__ import annotations

import logging
import math
import os
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from pat_mmdet.utils.argument_types import NonNegativeInt, PositiveInt
from pat_mmdet.utils.finite import describe_non_finite, find_non_finite

_GRAD_NORM = "grad_norm"  # as mmengine logs it
_MAX_IMAGES = 16  # in a message
_MAX_OVERFLOWS = 50  # updates in a row that GradScaler may leave out; a few are usual


class _Step(NamedTuple):
    """Values of a step, kept until they are read.

    Attributes:
        iteration (int): Its number, from 1 as in the log.
        names (list[str]): What the values are.
        values (Tensor): Losses and gradient norms (N,), on their device.
        images (list[str]): Files of its images.
    """

    iteration: int
    names: list[str]
    values: Tensor
    images: list[str]


@HOOKS.register_module()
class CheckFiniteHook(Hook):
    """Stop training at a loss or gradient norm that is NaN or infinite.

    Losses and gradient norms are kept on their device, and read every ``interval`` steps and before
    each checkpoint, so that no other step waits for the device. A single process on the CPU, where
    there is nothing to wait for, reads them in each step. No checkpoint is written from there on,
    nor one with a weight that is not finite; the earlier ones stay.

    Gradients that overflow in mixed precision are no error, as ``GradScaler`` leaves such steps out
    and lowers its scale; it is one if 50 updates in a row are left out.

    Args:
        interval (int): Steps from one reading to the next.
        max_skips (int): Number of steps that may be left out before training stops. Such a step
            leaves weights, buffers, the state of the optimizer and that of the method as they were.
            With it every step is read before its update, which waits for the device.

    Raises:
        ValueError: If ``interval`` is not positive, or ``max_skips`` negative.
    """

    # Before the hooks that log, average or save what came out of the step.
    priority = "HIGHEST"

    def __init__(self, interval: PositiveInt = 50, max_skips: NonNegativeInt = 0) -> None:
        if interval < 1 or max_skips < 0:
            raise ValueError(
                f"CheckFiniteHook: interval={interval} must be at least 1, and "
                f"max_skips={max_skips} at least 0"
            )
        self.interval = interval
        self.max_skips = max_skips
        self._num_skipped = 0
        self._num_without_update = 0
        self._steps: list[_Step] = []
        self._values: dict[str, Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        """Check the weights, and watch the losses of the model and the steps of its optimizer.

        Raises:
            FloatingPointError: If a weight is not finite.
        """
        self._model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        names = find_non_finite(self._model.state_dict())
        if names:
            source = f" from {runner._load_from!r}" if runner._has_loaded else ""
            raise FloatingPointError(
                f"the model that is to be trained has {describe_non_finite(names)}{source}; use "
                "another checkpoint, an earlier one of its training for example"
            )
        self._handles = [self._model.register_forward_hook(self._keep_losses)]
        wrapper = runner.optim_wrapper
        parts = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for part in parts:
            hook = partial(self._before_update, part)
            self._handles.append(part.optimizer.register_step_pre_hook(hook))
        self._max_without_update = _MAX_OVERFLOWS * max(part._accumulative_counts for part in parts)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Remember what a step changes besides the weights, if it may be skipped."""
        if self.max_skips:
            self._buffers = {name: x.clone() for name, x in self._model.named_buffers()}
            method = getattr(self._model, "distill", None)
            self._method_state = None if method is None else method.resume_state()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Keep the values of the step, and read those that have not been read when it is time.

        Raises:
            FloatingPointError: If one is not finite.
        """
        if self._values:
            values = torch.stack(list(self._values.values()))
            names = list(self._values)
            self._steps.append(_Step(runner.iter + 1, names, values, _image_names(data_batch)))
            self._values = {}
        self._num_without_update += 1
        if self._num_without_update >= self._max_without_update:
            self._stop(
                runner,
                f"the gradients of the last {self._num_without_update} steps overflow at every "
                "loss scale",
            )
        at_once = self.max_skips or _is_free(self._model)
        if at_once or self.every_n_train_iters(runner, self.interval):
            self._read(runner, outputs)

    def before_val(self, runner: Runner) -> None:
        """Read the values that have not been read, before the model is evaluated in training.

        Raises:
            FloatingPointError: If one is not finite.
        """
        self._read(runner)

    def on_exception(self, runner: Runner, error: Exception) -> None:
        """Name values of this process that are not finite in place of an error that they caused.

        Raises:
            FloatingPointError: If there is one.
        """
        if isinstance(error, FloatingPointError):
            return
        problem = next(filter(None, map(_find_problem, self._steps)), None)
        if problem is not None:
            self._stop(runner, _describe(*problem), error)
        self._refuse_state(runner, self._model.state_dict(), "the model has", error)

    def before_checkpoint(self, runner: Runner) -> None:
        """Read all values that have not been read, and check the weights, in every process.

        ``SafeCheckpointHook`` calls this before it removes or writes anything.

        Raises:
            FloatingPointError: If one is not finite.
        """
        self._read(runner)
        self._refuse_state(runner, self._model.state_dict(), "the model has")

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check all that is saved, also where another hook or the user saves.

        Raises:
            FloatingPointError: If something is not finite.
        """
        parts = ("state_dict", "ema_state_dict", "optimizer")
        state = {key: checkpoint[key] for key in parts if key in checkpoint}
        self._refuse_state(runner, state, "the checkpoint would have")

    def after_train(self, runner: Runner) -> None:
        """Read the last values, and watch no longer.

        Raises:
            FloatingPointError: If one is not finite.
        """
        self._read(runner)
        for handle in self._handles:
            handle.remove()

    def _keep_losses(self, model: nn.Module, args: tuple, outputs: Any) -> None:
        """Keep the losses that the model returns, averaged as mmengine does."""
        if not model.training or not isinstance(outputs, dict):
            return
        for name, loss in outputs.items():
            if "loss" in name:
                parts = [loss] if isinstance(loss, Tensor) else loss
                self._values[name] = sum(part.detach().float().mean() for part in parts)

    def _before_update(
        self, wrapper: OptimWrapper, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict
    ) -> None:
        """Keep the gradient norm; leave the update out if the step is to be skipped."""
        self._num_without_update = 0
        # A fused optimizer gets scaled gradients, and leaves out those that overflow.
        if getattr(optimizer, "found_inf", None) is None:
            self._values.update(_grad_norm(wrapper))
        if self.max_skips and not _all_finite(list(self._values.values())):
            # Optimizers leave parameters without a gradient as they are.
            optimizer.zero_grad(set_to_none=True)

    def _read(self, runner: Runner, outputs: dict | None = None) -> None:
        """Read the values that were kept, and stop or skip at the first that is not finite."""
        steps, self._steps = self._steps, []
        if not steps or _all_finite([step.values for step in steps]):
            return
        first = next(filter(None, map(_find_problem, steps)), None)
        # Of all processes, as the images of one may spoil the gradients of all.
        message = _describe(*min(filter(None, all_gather_object(first))))
        if self._num_skipped >= self.max_skips:
            self._stop(runner, message)
        self._num_skipped += 1
        print_log(
            f"{message}; the step is skipped ({self._num_skipped} of at most {self.max_skips})",
            "current",
            logging.WARNING,
        )
        runner.optim_wrapper.zero_grad()  # where gradients are accumulated
        for name, buffer in self._model.named_buffers():
            buffer.copy_(self._buffers[name])
        if self._method_state is not None:
            self._model.distill.load_resume_state(self._method_state)
        if outputs is not None:
            outputs.clear()  # otherwise the averages of the log would be NaN for long

    def _refuse_state(
        self, runner: Runner, state: dict, owner: str, cause: Exception | None = None
    ) -> None:
        """Stop if a tensor of a state is not finite."""
        names = find_non_finite(state)
        if names:
            self._stop(runner, f"{owner} {describe_non_finite(names)}", cause)

    def _stop(self, runner: Runner, problem: str, cause: Exception | None = None) -> NoReturn:
        """Raise the error that ends the training, in place of another if that is given."""
        last = _last_checkpoint(runner)
        skipped = f", after {self._num_skipped} skipped steps" if self._num_skipped else ""
        raise FloatingPointError(
            f"{problem}{skipped}; training stops, and "
            + (f"{last} stays the last checkpoint" if last else "no checkpoint was written")
            + ". Lower the learning rate or the weights of the losses, or check weights and images"
        ) from cause


def _last_checkpoint(runner: Runner) -> str | None:
    """Return the last checkpoint of the work dir; a resumed training knows that of another too."""
    last = runner.message_hub.runtime_info.get("last_ckpt")
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    folders = {str(hook.out_dir or runner.work_dir) for hook in hooks}
    return last if last and os.path.dirname(last) in folders else None


def _is_free(model: nn.Module) -> bool:
    """Return True if reading a value waits for no device and no other process."""
    return get_world_size() == 1 and next(model.parameters()).device.type == "cpu"


def _grad_norm(wrapper: OptimWrapper) -> dict[str, Tensor]:
    """Return the norm of all gradients before clipping by its name, on their device."""
    grads = [
        param.grad
        for group in wrapper.optimizer.param_groups
        for param in group["params"]
        if param.grad is not None
    ]
    if not grads:
        return {}
    if wrapper.clip_grad_kwargs and wrapper.grad_name == _GRAD_NORM:
        # Clipping makes NaN or 0 of gradients whose norm is not finite; mmengine has logged it.
        norm = wrapper.message_hub.get_scalar(f"train/{_GRAD_NORM}").current()
        return {_GRAD_NORM: grads[0].new_full((), norm, dtype=torch.float32)}
    norms = torch.stack(torch._foreach_norm(grads)).float()
    return {_GRAD_NORM: torch.linalg.vector_norm(norms)}


def _all_finite(values: list[Tensor]) -> bool:
    """Return True if all values are finite, in every process; waits for the device once."""
    finite = torch.cat([value.reshape(-1) for value in values]).isfinite().all().float()
    if get_world_size() > 1:
        all_reduce(finite, op="min")
    return bool(finite)


def _find_problem(step: _Step) -> tuple[int, bool, str, list[str]] | None:
    """Return what is not finite in a step.

    Returns:
        tuple, optional: Iteration, whether it is the gradients alone, the values by name, and the
        files of the images.
    """
    bad = {
        name: value
        for name, value in zip(step.names, step.values.tolist())
        if not math.isfinite(value)
    }
    if not bad:
        return None
    # The gradients of a loss that is not finite follow from it.
    losses = {name: value for name, value in bad.items() if name != _GRAD_NORM}
    text = ", ".join(f"{name}={value}" for name, value in (losses or bad).items())
    return step.iteration, not losses, text, step.images


def _describe(iteration: int, gradients_alone: bool, values: str, images: list[str]) -> str:
    """Describe a problem in a message; images that are too many for it go into the log."""
    message = f"not finite in iteration {iteration}: {values}"
    if len(images) > _MAX_IMAGES:
        print_log(f"{message}; its images: {', '.join(images)}", "current", logging.ERROR)
        rest = len(images) - _MAX_IMAGES
        images = [*images[:_MAX_IMAGES], f"and {rest} more, which are in the log"]
    return f"{message} (images: {', '.join(images)})" if images else message


def _image_names(data_batch: Any) -> list[str]:
    """Return the files of a batch's images, or their places in the dataset, as far as known."""
    samples = data_batch.get("data_samples") if isinstance(data_batch, dict) else None
    if not isinstance(samples, (list, tuple)):
        return []
    return [
        getattr(sample, "img_path", None) or f"index {getattr(sample, 'sample_idx', '?')}"
        for sample in samples
    ]
