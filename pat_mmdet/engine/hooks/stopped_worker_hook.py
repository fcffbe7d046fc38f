"""End a run whose data loader workers are stopped."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from pathlib import Path
from threading import Event, Thread

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from pat_mmdet.utils.argument_types import PositiveInt

_SECOND = 1.0  # shorter in tests


@HOOKS.register_module()
class StoppedWorkerHook(Hook):
    """End the process if one of its data loader workers has been stopped for long.

    A worker that is stopped (``SIGSTOP``) is alive, and its data loader may wait for it without
    end: the ``timeout`` of a data loader does not hold while it fetches a tensor from the worker,
    nor when the program exits. The process therefore ends at once, with exit code 1, and kills its
    workers. On Linux only.

    Args:
        timeout (int): Seconds for which a worker may be stopped. Those in which this process is
            stopped itself do not count.

    Raises:
        ValueError: If the timeout is not positive.
    """

    def __init__(self, timeout: PositiveInt = 300) -> None:
        if timeout <= 0:
            raise ValueError(f"StoppedWorkerHook: timeout={timeout} must be positive seconds")
        self.timeout = timeout
        self._done = Event()

    def before_run(self, runner: Runner) -> None:
        """Begin to watch the workers of this process."""
        self._done.clear()
        Thread(target=self._watch, daemon=True).start()

    def after_run(self, runner: Runner) -> None:
        """Watch no longer."""
        self._done.set()

    def _watch(self) -> None:
        """Look for stopped workers once a second."""
        seconds: dict[int, int] = {}
        while not self._done.wait(_SECOND):
            pids = [worker.pid for worker in multiprocessing.active_children()]
            seconds = {pid: seconds.get(pid, 0) + 1 for pid in pids if _is_stopped(pid)}
            for pid in seconds:
                if seconds[pid] >= self.timeout:
                    self._end_process(pid)

    def _end_process(self, pid: int) -> None:
        """Say which worker was stopped, and end this process, which may wait for it."""
        print(
            f"error: data loader worker {pid} has been stopped for {self.timeout} s, and the run "
            "ends; --resume continues a training",
            file=sys.stderr,
            flush=True,
        )
        logging.shutdown()
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(1)


def _is_stopped(pid: int) -> bool:
    """Return True if a process is stopped, by a signal and not by a debugger."""
    try:
        # The state comes after the name in brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
