"""SIGTERM, with which Slurm and others announce the end of a training."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.runner import Runner
from torch.utils.data import DataLoader


class StopRequest:
    """Note SIGTERM, and find the step after which all processes of a training stop.

    Nothing is exchanged before the signal. Then each process notes its step in the store by which
    the processes found each other, and all stop one step after the last of these. They are not
    further apart, because a step needs the gradients of all.

    Args:
        patience (float): Seconds to wait until the other processes have had the signal.

    Attributes:
        requested (bool): Whether the signal has come.
    """

    def __init__(self, patience: float = 15) -> None:
        self.requested = False
        self._patience = patience
        self._noted: float | None = None
        self._previous: Any = None
        if threading.current_thread() is threading.main_thread():  # no other may
            self._previous = signal.signal(signal.SIGTERM, self._request)

    def _request(self, *_: Any) -> None:
        self.requested = True

    def close(self) -> None:
        """Handle the signal as before."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def is_due(self, runner: Runner) -> bool:
        """Return True after the step at which all processes stop; ask at each from the signal on.

        Args:
            runner (Runner): Has made a step.

        Raises:
            SystemExit: If other processes have not had the signal in time. No checkpoint can be
                saved without them.
        """
        if get_world_size() == 1:
            return True
        if not runner.optim_wrapper.should_update():
            # While they accumulate gradients, processes do not wait for each other.
            return False
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the CPU may be steps ahead
        store = torch.distributed.distributed_c10d._get_default_store()
        keys = [f"pat_mmdet/stop/{rank}" for rank in range(get_world_size())]
        if self._noted is None:
            self._noted = time.monotonic()
            store.set(keys[get_rank()], str(runner.iter))
        if store.check(keys):
            return runner.iter > max(int(store.get(key)) for key in keys)
        if time.monotonic() - self._noted > self._patience:
            sys.exit("error: SIGTERM reached some of the processes only; no checkpoint was saved")
        return False


def shield_workers(loader: DataLoader) -> None:
    """Have the workers of a data loader outlive a SIGTERM that is not their parent's.

    It reaches them too if it is sent to all processes of a job, and a step needs their data.

    Args:
        loader (DataLoader): Has not been iterated over yet.
    """
    loader.worker_init_fn = partial(_init_worker, loader.worker_init_fn)


def _init_worker(init: Callable[[int], None] | None, worker_id: int) -> None:
    """Leave SIGTERM to a thread, then call the function of the config."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, daemon=True).start()
    if init is not None:
        init(worker_id)


def _obey_parent() -> None:
    """Wait for a SIGTERM of the parent, and end the process."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
