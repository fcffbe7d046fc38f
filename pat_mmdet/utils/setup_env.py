"""Fit a process to its machine before a Runner is built."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from datetime import timedelta
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from pat_mmdet.utils.errors import ConfigError

# What a launcher leaves in the environment of each of its processes.
_LAUNCHED = {"pytorch": "RANK", "slurm": "SLURM_PROCID", "mpi": "OMPI_COMM_WORLD_LOCAL_RANK"}


def prepare_environment(cfg: Config, launcher: str) -> None:
    """Make loading safe, and fit precision and process groups to a machine without a GPU.

    Every file that torch reads from here on is read with ``weights_only=True``, also by older
    versions of torch and by other libraries. Without a GPU, mixed precision is switched off with a
    warning, as mmengine has none on the CPU, and several processes are joined with gloo here,
    because mmengine asks for a GPU even then.

    Args:
        cfg (Config): Changed in place.
        launcher (str): ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        ConfigError: If the process was not started by the launcher, or the launcher needs a GPU and
            there is none.
    """
    # Not above, as `--help` does not wait for torch.
    import torch

    from pat_mmdet.models.acceleration.onednn import disable_malloc_trim
    from pat_mmdet.utils.checkpoint import force_safe_loading

    if launcher != "none" and _LAUNCHED[launcher] not in os.environ:
        raise ConfigError(
            f"--launcher {launcher} is for processes that a launcher starts, and "
            f"{_LAUNCHED[launcher]} is not set; use tools/dist_train.sh or slurm_train.sh"
        )
    if launcher == "pytorch" and sys.platform == "linux":
        _die_with_parent()
    cfg.launcher = launcher
    force_safe_loading()
    if torch.cuda.is_available():
        return
    disable_malloc_trim()
    wrapper: Any = cfg.get("optim_wrapper") or {}
    if wrapper.get("type") == "AmpOptimWrapper":
        print_log("no GPU: full precision instead of mixed", "current", logging.WARNING)
        wrapper.type = "OptimWrapper"
        for key in ("loss_scale", "dtype", "use_fsdp"):
            wrapper.pop(key, None)
    if launcher in ("slurm", "mpi"):
        raise ConfigError(
            f"--launcher {launcher} needs a GPU, and there is none here; on the CPU use "
            "tools/dist_train.sh"
        )
    if launcher == "pytorch":
        cfg.env_cfg.dist_cfg = {**cfg.env_cfg.get("dist_cfg", {}), "backend": "gloo"}
        cfg.setdefault(
            "model_wrapper_cfg",
            dict(
                type="MMDistributedDataParallel",
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=False,
            ),
        )
        # mmengine takes a group that exists as it is.
        seconds = cfg.env_cfg.dist_cfg.get("timeout")
        timeout = None if seconds is None else timedelta(seconds=seconds)
        torch.distributed.init_process_group("gloo", timeout=timeout)


def _die_with_parent() -> None:
    """Have Linux kill this process when torchrun, which started it, is gone."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
