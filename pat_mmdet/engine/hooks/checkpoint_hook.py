"""Checkpoints that load safely, survive a kill, and hold what a resumed run needs."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from mmengine.dist import (
    all_gather_object,
    barrier,
    broadcast_object_list,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner, find_latest_checkpoint
from torch import Tensor, nn

from pat_mmdet.engine.runner import ResumableEpochBasedTrainLoop, StopRequest, shield_workers
from pat_mmdet.utils.checkpoint import find_weights, read_training
from pat_mmdet.utils.io import write_atomic
from pat_mmdet.utils.resume import (
    changed_settings,
    checkpoint_folder,
    find_resumable,
    training_settings,
)
from pat_mmdet.utils.runs import lock_training

_RESUME_STATE = "distill_resume_state"
_GRADIENTS = "accumulated_gradients"
_SETTINGS = "training_settings"
# 128 + SIGTERM, as shells have it.
_TERMINATED = 143


@register_backend("pat_mmdet")
class AtomicBackend(LocalBackend):
    """Local files that a reader sees either as they were or whole."""

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write beside the file and rename."""
        write_atomic(Path(filepath), obj)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """A ``CheckpointHook`` whose files hold plain data only and are never half written.

    - mmengine puts pickled ``HistoryBuffer`` objects and NumPy scalars into checkpoints, which
      torch's safe loading refuses. They are saved as tensors and Python numbers, and rebuilt on
      load.
    - What an exact resume needs besides is saved too: what the method of each process carries from
      step to step, and gradients that are being accumulated.
    - A checkpoint is written beside and renamed; the one that it replaces is removed after.
    - Without ``load_from``, ``resume=True`` goes on from the newest whole checkpoint.
    - A work dir is for one training at a time.
    - SIGTERM saves a checkpoint after the step and ends the process with exit code 143.

    The arguments are those of ``CheckpointHook``.
    """

    # Attributes of CheckpointHook.
    backend_args: dict | None
    best_ckpt_path: str | None
    best_ckpt_path_dict: dict[str, str | None]
    keep_ckpt_ids: deque
    max_keep_ckpts: int

    _states: dict[str, list] | None = None
    _lock: IO | None = None
    _stop: StopRequest | None = None

    def before_run(self, runner: Runner) -> None:
        """Lock the work dir of a training, and choose the checkpoint to resume from.

        Raises:
            FileNotFoundError: If that checkpoint does not exist.
            ValueError: If another process trains in the work dir, or the training cannot go on.
        """
        if not isinstance(runner._train_loop, BaseLoop):  # validation or test
            return
        _from_main_process(lambda: self._lock_work_dir(runner))
        if runner._resume and not runner._has_loaded:
            runner._load_from = _from_main_process(lambda: self._find_resumable(runner))
            runner._resume = runner._load_from is not None

    def before_train(self, runner: Runner) -> None:
        """Prepare the writing of checkpoints, and note SIGTERM from here on."""
        if self.backend_args is None and self.file_client_args is None and self._is_local(runner):
            self.backend_args = dict(backend="pat_mmdet")
        super().before_train(runner)
        # Those of a copied work dir lie beside the copied checkpoint.
        if getattr(self, "best_ckpt_path", None) is not None:
            self.best_ckpt_path = self._beside(self.best_ckpt_path)
        for key, path in getattr(self, "best_ckpt_path_dict", {}).items():
            self.best_ckpt_path_dict[key] = path and self._beside(path)
        if runner.val_loop is not None:
            shield_workers(runner.val_loop.dataloader)
        self._stop = StopRequest()
        if runner.iter >= runner.max_iters:
            print_log(
                f"nothing is left to train: the checkpoint is of iteration {runner.iter} and the "
                f"training ends at {runner.max_iters}",
                "current",
                logging.WARNING,
            )

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save at the interval, and stop if SIGTERM asks for it."""
        super().after_train_iter(runner, *args, **kwargs)
        if self._stop.requested and self._stop.is_due(runner):
            self._save_and_exit(runner, runner.iter + 1)

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Stop an evaluation if SIGTERM asks for it; several processes end it first."""
        if self._stop is None or not self._stop.requested or get_world_size() > 1:
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):  # the weights in training instead of their average
                hook.after_val_epoch(runner)
        self._save_and_exit(runner, runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Publish the checkpoint if asked to, and leave SIGTERM to others again."""
        super().after_train(runner)
        self._stop.close()
        self._stop = None

    def after_run(self, runner: Runner) -> None:
        """Release the work dir."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replace everything that is not plain data."""
        for key in ("meta", "message_hub", "param_schedulers"):
            if key in checkpoint:
                checkpoint[key] = _to_plain(checkpoint[key])
        if self._states is not None:
            checkpoint.update(self._states)
            checkpoint[_SETTINGS] = training_settings(runner.cfg, get_world_size())

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Rebuild the histories; restore what else a resumed training needs."""
        scalars = checkpoint.get("message_hub", {}).get("log_scalars", {})
        for name, plain in scalars.items():
            if isinstance(plain, dict):
                scalars[name] = HistoryBuffer(
                    plain["values"].tolist(), plain["counts"].tolist(), plain["max_length"]
                )
        if not runner._resume:
            return
        if "optimizer" in checkpoint:
            _reshape_scalars(checkpoint["optimizer"], runner.optim_wrapper)
        method, rank = _method(runner), get_rank()
        states, gradients = (checkpoint.get(key, []) for key in (_RESUME_STATE, _GRADIENTS))
        if method is not None and rank < len(states):
            method.load_resume_state(states[rank])
        if gradients and len(gradients) == get_world_size():
            params = _parameters(runner.optim_wrapper)
            for index, gradient in gradients[rank].items():
                params[index].grad = gradient.to(params[index].device)
            runner.logger.info(
                "restored the gradients that were being accumulated; MMEngine's warning that some "
                "are lost does not hold"
            )

    def _save_checkpoint_with_step(self, runner: Runner, step: int | str, meta: dict) -> None:
        # Before anything is removed, and in all processes.
        runner.call_hook("before_checkpoint")
        # Gathered here, as ``before_save_checkpoint`` runs on the first process only.
        self._states = _gather_states(runner)
        # mmengine removes a checkpoint before it writes the next: not if it is to keep all.
        keep, self.max_keep_ckpts = self.max_keep_ckpts, -1
        replaced: list = []
        if keep > 0:
            ids = [saved for saved in self.keep_ckpt_ids if saved != step] + [step]
            replaced = ids[:-keep]
            self.keep_ckpt_ids = deque(ids[-keep:], keep)
            # With those that go: if a kill leaves them, the resumed run removes them.
            runner.message_hub.update_info("keep_ckpt_ids", ids)
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            self.max_keep_ckpts = keep
            self._states = None
        for saved in replaced:
            self._remove(self._beside(self.filename_tmpl.format(saved)))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        runner.call_hook("before_checkpoint")
        # mmengine removes a checkpoint before it writes the next: not one that it has no path of.
        several = len(self.key_indicators) > 1
        before = dict(self.best_ckpt_path_dict) if several else {"": self.best_ckpt_path}
        if several:
            self.best_ckpt_path_dict = dict.fromkeys(before)
        else:
            self.best_ckpt_path = None
        super()._save_best_checkpoint(runner, metrics)
        after = self.best_ckpt_path_dict if several else {"": self.best_ckpt_path}
        for key, path in before.items():
            if after[key] is None:
                after[key] = path
            elif path is not None and path != after[key]:
                self._remove(path)
        if not several:
            self.best_ckpt_path = after[""]

    def _remove(self, path: str) -> None:
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)

    def _beside(self, path: str) -> str:
        """Return the path of a checkpoint in the folder of this training."""
        return self.file_backend.join_path(self.out_dir, Path(path).name)

    def _is_local(self, runner: Runner) -> bool:
        return "://" not in str(self.out_dir or runner.work_dir)

    def _lock_work_dir(self, runner: Runner) -> None:
        """Lock the work dir, and remove what a kill left of checkpoints."""
        if self._lock is None:
            self._lock = lock_training(Path(runner.work_dir))
        if self._is_local(runner):
            folder = checkpoint_folder(runner.work_dir, self.out_dir)
            for part in folder.glob(".*.pth.*.tmp"):
                part.unlink()

    def _find_resumable(self, runner: Runner) -> str | None:
        """Return the checkpoint to resume from, if it fits."""
        path = runner._load_from
        if path is None and not self._is_local(runner):
            path = find_latest_checkpoint(runner.work_dir)
        if path is not None:
            checkpoint = read_training(path)
        else:
            folder = checkpoint_folder(runner.work_dir, self.out_dir)
            found = find_resumable(Path(runner.work_dir), folder, self.filename_tmpl)
            if found is None:
                return None
            path, checkpoint = found
        _check_fit(runner, checkpoint, path)
        return path

    def _save_and_exit(self, runner: Runner, num_iters: int) -> None:
        """Save after a number of iterations, and end the process as SIGTERM asks."""
        loop = runner.train_loop
        step: int | str = num_iters
        if self.by_epoch:
            within = num_iters - runner.epoch * len(loop.dataloader)
            step = f"{runner.epoch}_iter_{num_iters}" if within else runner.epoch
        path = self._beside(self.filename_tmpl.format(step))
        if isinstance(loop, EpochBasedTrainLoop) and not isinstance(
            loop, ResumableEpochBasedTrainLoop
        ):
            runner.logger.warning("SIGTERM: MMEngine's loop by epochs cannot go on within one")
        else:
            if path != self.last_ckpt:
                meta = dict(epoch=runner.epoch, iter=num_iters)
                self._save_checkpoint_with_step(runner, step, meta)
            runner.logger.warning(f"SIGTERM: saved {path}; --resume goes on from it")
        barrier()  # a launcher ends all processes with the first
        self._stop.close()
        sys.exit(_TERMINATED)


def _from_main_process(function: Callable) -> Any:
    """Call a function on the first process; all return its result, or raise its error."""
    answer: list = [None, None]
    if is_main_process():
        try:
            answer[0] = function()
        except (OSError, ValueError) as error:
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def _gather_states(runner: Runner) -> dict[str, list]:
    """Return what each process of an exact resume needs besides weights, by its key."""
    states: dict[str, dict] = {}
    method = _method(runner)
    if method is not None:
        state = method.resume_state()
        states[_RESUME_STATE] = {key: value.cpu() for key, value in state.items()}
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapper) and not wrapper.should_update():
        states[_GRADIENTS] = {
            index: param.grad.cpu()
            for index, param in enumerate(_parameters(wrapper))
            if param.grad is not None
        }
    gathered = all_gather_object(states)
    return {key: [each[key] for each in gathered] for key in states}


def _parameters(optim_wrapper: OptimWrapper) -> list[nn.Parameter]:
    """Return the parameters in the order of the optimizer's state."""
    # Those of the wrapper have one group more, for the rates of the log.
    return [param for group in optim_wrapper.optimizer.param_groups for param in group["params"]]


def _check_fit(runner: Runner, checkpoint: dict, path: str) -> None:
    """Check that a training can go on from a checkpoint; warn about other settings.

    Raises:
        ValueError: If weights of the model are missing, or the optimizer has others.
    """
    changes = ""
    if _SETTINGS in checkpoint:
        now = training_settings(runner.cfg, get_world_size())
        changes = changed_settings(checkpoint[_SETTINGS], now)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    weights, state = model.state_dict(), find_weights(checkpoint, path)
    missing = [key for key, value in weights.items() if not _same_size(state.get(key), value)]
    groups = checkpoint["optimizer"].get("param_groups")  # without them, of several optimizers
    differs = groups is not None and [len(group["params"]) for group in groups] != [
        len(group["params"]) for group in runner.optim_wrapper.optimizer.param_groups
    ]
    if missing or differs:
        first = f" ({missing[0]}, ...)" if missing else ""
        raise ValueError(
            f"checkpoint {path!r} cannot be resumed from with this config: "
            f"{len(missing)} of {len(weights)} weights are missing or of another shape{first}, "
            f"{'other' if differs else 'the same'} parameters are optimised"
            f"{'; changed: ' + changes if changes else ''}. Give the config of that training, or "
            "leave out --resume and start a new training with its weights by load_from"
        )
    if changes:
        runner.logger.warning(
            f"resumed with other settings: {changes} (learning rates and their schedule go on as "
            "in the checkpoint)"
        )


def _same_size(value: Any, other: Tensor) -> bool:
    """Compare numbers of elements, as layers may reshape what earlier versions saved."""
    return isinstance(value, Tensor) and value.numel() == other.numel()


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
    params = _parameters(optim_wrapper)
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
